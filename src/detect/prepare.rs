//! What rules say of an event, found ahead of its turn: for rules that remember nothing it depends on the event alone, so that
//! several threads can find it, and [`Detector::decide`](super::Detector::decide) takes it up in the order of events.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{Settings, matching::Details};
use crate::{
    model::{event::Event, legible::Flags, name::SourceName},
    rule::{Plan, RuleFailure, RuleHost, RuleInput, RuleSet},
};

/// What a rule says of an event.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// It is to be asked when it is the event's turn.
    Turn,
    /// It says true.
    Yes(Box<Details>),
    /// It fails.
    Failed(RuleFailure),
}

/// What is asked of events, by action: made once for each id.
#[derive(Debug)]
pub(super) struct Plans {
    prefilter: bool,
    /// For ordinary events.
    by_action: HashMap<Arc<str>, Arc<Plan>>,
    /// For those that something is unusual about.
    flagged: HashMap<Arc<str>, Arc<Plan>>,
}

/// Actions whose plans are kept: far more than there are.
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
        // The bytes of what is unusual are not what rules see: it is left to their scripts.
        let plan = Arc::new(match (flags.is_empty(), self.prefilter) {
            (true, true) => Plan::new(rules, action),
            (true, false) => Plan::unfiltered(rules, action),
            (false, _) => Plan::of_flagged(rules, action),
        });
        plans.insert(Arc::clone(action), Arc::clone(&plan));
        plan
    }
}

/// Finds verdicts. One for each thread.
#[derive(Debug)]
pub struct Preparer {
    rules: Arc<RuleSet>,
    host: RuleHost,
    plans: Plans,
    /// Rules that exceeded their limits: they wait for their turn, at which they may be suspended.
    slow: HashSet<usize>,
}

impl Preparer {
    /// For these rules.
    pub fn new(rules: Arc<RuleSet>, settings: &Settings) -> Self {
        let host = RuleHost::new(&settings.limits);
        Self { rules, host, plans: Plans::new(settings.prefilter), slow: HashSet::new() }
    }

    /// Whether any rule may look at events of this action and these flags.
    pub fn wants(&mut self, action: &Arc<str>, flags: Flags) -> bool {
        !self.plans.of(&self.rules, action, flags).is_empty()
    }

    /// The rules that may match an event of this action, these flags, source and bytes.
    pub fn candidates(&mut self, action: &Arc<str>, flags: Flags, source: &SourceName, raw: &str) -> Vec<usize> {
        self.plans.of(&self.rules, action, flags).candidates(raw, source)
    }

    /// What these rules say of an event, in their order; those that are not named say false.
    pub fn prepare(&mut self, event: &Event, candidates: Vec<usize>) -> Vec<(usize, Verdict)> {
        let rules = Arc::clone(&self.rules);
        let input = RuleInput::new(event, &rules.catalog);
        let mut verdicts = Vec::new();
        for index in candidates {
            let Some(rule) = rules.detections.get(index) else {
                continue;
            };
            if rule.remembers || self.slow.contains(&index) {
                verdicts.push((index, Verdict::Turn));
                continue;
            }
            // What the rule before it looked into is not its own.
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
