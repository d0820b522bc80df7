//! Learning: a rule that remembers and is new, or looks back further than before, is run over the events that were evaluated
//! before it came, so that it knows what it would know had it always been there. What it finds on the way is not told.

use std::{sync::Arc, time::Duration};

use super::Detector;
use crate::{event::Event, name::RuleId, rule::CompiledRule};

/// Rules that learn.
#[derive(Debug)]
pub struct Learning {
    detector: Detector,
    rules: Vec<(RuleId, Duration)>,
}

impl Learning {
    /// How far back the rules look, at most.
    pub fn reach(&self) -> Duration {
        self.rules.iter().map(|(_, reach)| *reach).max().unwrap_or_default()
    }

    /// The rules.
    pub fn rules(&self) -> impl Iterator<Item = &RuleId> {
        self.rules.iter().map(|(rule, _)| rule)
    }

    /// Learns from the next event.
    pub fn event(&mut self, event: &Event) {
        self.detector.evaluate(event);
        // Nobody stores its state.
        self.detector.drop_changes();
    }
}

impl Detector {
    /// Rules that have to learn from what was evaluated so far, if there are any. Those that began together with the store, or
    /// remember something already, know what there is to know.
    pub fn learning(&mut self) -> Option<Learning> {
        let rules = Arc::clone(&self.rules);
        let runs = |id: &RuleId| rules.detections.iter().any(|rule| rule.id() == id && rule.remembers);
        self.state.keep_learned(runs);
        let mut learners: Vec<(Arc<CompiledRule>, Duration)> = Vec::new();
        for rule in rules.detections.iter().filter(|rule| rule.remembers) {
            let reach = rules.reach(rule);
            let known = self.state.learned(rule.id());
            let begins = self.state.clock() == 0 || (known.is_none() && self.host.memory().knows(rule.id().as_str()));
            if begins {
                self.state.set_learned(rule.id(), reach);
            } else if known.is_none_or(|known| known < reach) {
                learners.push((Arc::clone(rule), reach));
            }
        }
        if learners.is_empty() {
            return None;
        }
        let part: Vec<Arc<CompiledRule>> = learners.iter().map(|(rule, _)| Arc::clone(rule)).collect();
        let detector = Self::new(rules.part(&part), self.settings.clone());
        let rules = learners.into_iter().map(|(rule, reach)| (rule.id().clone(), reach)).collect();
        Some(Learning { detector, rules })
    }

    /// Takes over what rules have learned, in place of what they knew.
    pub fn learned(&mut self, learning: &Learning) {
        for (rule, reach) in &learning.rules {
            self.host.memory().adopt(rule.as_str(), &learning.detector.host.memory());
            self.state.set_learned(rule, *reach);
        }
    }
}
