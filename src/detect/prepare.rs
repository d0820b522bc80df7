//! What rules say of an event, found ahead of its turn: for rules that remember nothing it depends on the event alone, so that
//! several threads can find it, and [`Detector::decide`](super::Detector::decide) takes it up in the order of events.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{Settings, matching::Details};
use crate::{
    event::Event,
    name::SourceName,
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
    by_action: HashMap<Arc<str>, Arc<Plan>>,
}

/// Actions whose plans are kept: far more than there are.
const MAX_PLANS: usize = 10_000;

impl Plans {
    pub(super) fn new(prefilter: bool) -> Self {
        Self { prefilter, by_action: HashMap::new() }
    }

    pub(super) fn of(&mut self, rules: &RuleSet, action: &Arc<str>) -> Arc<Plan> {
        if let Some(plan) = self.by_action.get(action) {
            return Arc::clone(plan);
        }
        if self.by_action.len() >= MAX_PLANS {
            self.by_action.clear();
        }
        let make = if self.prefilter { Plan::new } else { Plan::unfiltered };
        let plan = Arc::new(make(rules, action));
        self.by_action.insert(Arc::clone(action), Arc::clone(&plan));
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

    /// Whether any rule may look at events of this action.
    pub fn wants(&mut self, action: &Arc<str>) -> bool {
        !self.plans.of(&self.rules, action).is_empty()
    }

    /// The rules that may match an event of this action, source and bytes.
    pub fn candidates(&mut self, action: &Arc<str>, source: &SourceName, raw: &str) -> Vec<usize> {
        self.plans.of(&self.rules, action).candidates(raw, source)
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
