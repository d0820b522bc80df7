//! Warm-up: a rule with state that is new, or looks back further than before, is run over the events that were
//! evaluated before it was added, so that it has the same state as if it had always been there. Matches on the way are
//! not reported.

use std::{sync::Arc, time::Duration};

use super::{Detector, Settings};
use crate::{
    model::{event::Event, name::RuleId},
    rule::{CallWatch, CompiledRule, RuleSet},
};

/// Rules that warm up over earlier events.
#[derive(Debug)]
pub struct Learning {
    detector: Detector,
    rules: Vec<(RuleId, Duration)>,
}

impl Learning {
    /// Starts a warm-up of these rules, each with how far it looks back.
    pub fn of(rules: &RuleSet, learners: &[Arc<CompiledRule>], settings: Settings) -> Self {
        let detector = Detector::new(rules.part(learners), settings);
        let rules = learners.iter().map(|rule| (rule.id().clone(), rules.reach(rule))).collect();
        Self { detector, rules }
    }

    /// The longest time that any of the rules looks back.
    pub fn reach(&self) -> Duration {
        self.rules.iter().map(|(_, reach)| *reach).max().unwrap_or_default()
    }

    /// The ids of the rules.
    pub fn rules(&self) -> impl Iterator<Item = &RuleId> {
        self.rules.iter().map(|(rule, _)| rule)
    }

    /// From now on, reports each call of a rule's function to `watch`.
    pub fn set_watch(&mut self, watch: Option<CallWatch>) {
        self.detector.set_watch(watch);
    }

    /// Evaluates the next event.
    pub fn event(&mut self, event: &Event) {
        self.detector.evaluate(event);
        // The state of this detector is not stored.
        self.detector.drop_changes();
    }
}

impl Detector {
    /// Returns a warm-up for the rules that need one, if any. Rules that were there from the start of the store, or
    /// already have state, do not.
    pub fn learning(&mut self) -> Option<Learning> {
        let rules = Arc::clone(&self.rules);
        let runs = |id: &RuleId| rules.detections.iter().any(|rule| rule.id() == id && rule.remembers);
        self.state.keep_learned(runs);
        let mut learners: Vec<Arc<CompiledRule>> = Vec::new();
        for rule in rules.detections.iter().filter(|rule| rule.remembers) {
            let reach = rules.reach(rule);
            let known = self.state.learned(rule.id());
            let is_warm = self.state.clock() == 0 || (known.is_none() && self.host.memory().knows(rule.id().as_str()));
            if is_warm {
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

    /// Replaces the state of the rules by the state from their warm-up.
    pub fn learned(&mut self, learning: &Learning) {
        for (rule, reach) in &learning.rules {
            self.host.memory().adopt(rule.as_str(), &learning.detector.host.memory());
            self.state.set_learned(rule, *reach);
        }
    }
}
