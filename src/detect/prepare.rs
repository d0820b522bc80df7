//! Verdicts of rules on an event, found ahead of its turn. For rules without state they depend on the event alone, so
//! that several threads can find them, and [`Detector::decide`](super::Detector::decide) applies them in the order of
//! events.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{Settings, matching::Details};
use crate::{
    model::{event::Event, legible::Flags, name::SourceName},
    rule::{Plan, RuleFailure, RuleHost, RuleInput, RuleSet},
};

/// The verdict of a rule on an event.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// Not yet known: the rule must run in the order of events.
    Turn,
    /// The rule matches.
    Yes(Box<Details>),
    /// The rule failed.
    Failed(RuleFailure),
}

/// The evaluation plans, by action: created once for each action id.
#[derive(Debug)]
pub(super) struct Plans {
    prefilter: bool,
    /// For events without flags.
    by_action: HashMap<Arc<str>, Arc<Plan>>,
    /// For events with flags.
    flagged: HashMap<Arc<str>, Arc<Plan>>,
}

/// The number of actions whose plans are kept: far more than there are.
const MAX_PLANS: usize = 10_000;

impl Plans {
    pub(super) fn new(prefilter: bool) -> Self {
        Self { prefilter, by_action: HashMap::new(), flagged: HashMap::new() }
    }

    pub(super) fn of(&mut self, rules: &RuleSet, action: &Arc<str>, flags: Flags) -> Arc<Plan> {
        let plans = if flags.is_empty() { &mut self.by_action } else { &mut self.flagged };
        if let Some(plan) = plans.get(action) {
            return Arc::clone(plan);
        }
        if plans.len() >= MAX_PLANS {
            plans.clear();
        }
        // The bytes of a flagged event differ from what rules see, so the decision is left to their scripts.
        let plan = Arc::new(match (flags.is_empty(), self.prefilter) {
            (true, true) => Plan::new(rules, action),
            (true, false) => Plan::unfiltered(rules, action),
            (false, _) => Plan::of_flagged(rules, action),
        });
        plans.insert(Arc::clone(action), Arc::clone(&plan));
        plan
    }
}

/// Finds verdicts, one preparer for each thread.
#[derive(Debug)]
pub struct Preparer {
    rules: Arc<RuleSet>,
    host: RuleHost,
    plans: Plans,
    /// Rules that exceeded their limits: they run in order, because they may be suspended by then.
    slow: HashSet<usize>,
}

impl Preparer {
    /// Creates a preparer for these rules.
    pub fn new(rules: Arc<RuleSet>, settings: &Settings) -> Self {
        let host = RuleHost::new(&settings.limits);
        Self { rules, host, plans: Plans::new(settings.prefilter), slow: HashSet::new() }
    }

    /// Returns true if any rule may evaluate events with this action and these flags.
    pub fn wants(&mut self, action: &Arc<str>, flags: Flags) -> bool {
        !self.plans.of(&self.rules, action, flags).is_empty()
    }

    /// The rules that may match an event with this action, these flags, this source and these bytes.
    pub fn candidates(&mut self, action: &Arc<str>, flags: Flags, source: &SourceName, raw: &str) -> Vec<usize> {
        self.plans.of(&self.rules, action, flags).candidates(raw, source)
    }

    /// The verdicts of these rules on an event, in the same order. Rules that are not in the result did not match.
    pub fn prepare(&mut self, event: &Event, candidates: Vec<usize>) -> Vec<(usize, Verdict)> {
        let rules = Arc::clone(&self.rules);
        let input = RuleInput::new(event, &rules.context.catalog);
        let mut verdicts = Vec::new();
        for index in candidates {
            let Some(rule) = rules.detections.get(index) else {
                continue;
            };
            if rule.remembers || self.slow.contains(&index) {
                verdicts.push((index, Verdict::Turn));
                continue;
            }
            // Lists that the previous rule read do not belong to this one.
            self.host.take_lists();
            match self.host.matches(rule, &input) {
                Ok(false) => {}
                Ok(true) => verdicts.push((index, Verdict::Yes(Box::new(Details::find(&self.host, rule, &input))))),
                Err(failure) => {
                    if failure.kind.exceeds_limit() {
                        self.slow.insert(index);
                    }
                    verdicts.push((index, Verdict::Failed(failure)));
                }
            }
        }
        verdicts
    }
}
