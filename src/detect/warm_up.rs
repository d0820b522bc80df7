//! Learning: a rule that remembers and is new, or looks back further than before, is run over the events that were evaluated
//! before it came, so that it knows what it would know had it always been there. What it finds on the way is not told.

use std::{sync::Arc, time::Duration};

use super::{Detector, Settings};
use crate::{
    model::{event::Event, name::RuleId},
    rule::{CallWatch, CompiledRule, RuleSet},
};

/// Rules that learn.
#[derive(Debug)]
pub struct Learning {
    detector: Detector,
    rules: Vec<(RuleId, Duration)>,
}

impl Learning {
    /// Lets these of the rules learn, each with how far it looks back.
    pub fn of(rules: &RuleSet, learners: &[Arc<CompiledRule>], settings: Settings) -> Self {
        let detector = Detector::new(rules.part(learners), settings);
        let rules = learners.iter().map(|rule| (rule.id().clone(), rules.reach(rule))).collect();
        Self { detector, rules }
    }

    /// How far back the rules look, at most.
    pub fn reach(&self) -> Duration {
        self.rules.iter().map(|(_, reach)| *reach).max().unwrap_or_default()
    }

    /// The rules.
    pub fn rules(&self) -> impl Iterator<Item = &RuleId> {
        self.rules.iter().map(|(rule, _)| rule)
    }

    /// Tells `watch` of each call of a rule's function from now on.
    pub fn set_watch(&mut self, watch: Option<CallWatch>) {
        self.detector.set_watch(watch);
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
        let mut learners: Vec<Arc<CompiledRule>> = Vec::new();
        for rule in rules.detections.iter().filter(|rule| rule.remembers) {
            let reach = rules.reach(rule);
            let known = self.state.learned(rule.id());
            let begins = self.state.clock() == 0 || (known.is_none() && self.host.memory().knows(rule.id().as_str()));
            if begins {
                self.state.set_learned(rule.id(), reach);
            } else if known.is_none_or(|known| known < reach) {
                learners.push(Arc::clone(rule));
            }
        }
        if learners.is_empty() {
            return None;
        }
        Some(Learning::of(&rules, &learners, self.settings.clone()))
    }

    /// Takes over what rules have learned, in place of what they knew.
    pub fn learned(&mut self, learning: &Learning) {
        for (rule, reach) in &learning.rules {
            self.host.memory().adopt(rule.as_str(), &learning.detector.host.memory());
            self.state.set_learned(rule, *reach);
        }
    }
}
