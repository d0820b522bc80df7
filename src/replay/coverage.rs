//! Coverage: which actions occur in a history, which rules evaluate them, and which actions no rule evaluates.
//!
//! A rule evaluates an action if it names it, under `actions` or in the conditions that its `fn rule` begins with. A
//! rule that does not name any action evaluates every event, which says nothing about a single action; such rules are
//! listed separately.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::Serialize;

use crate::{
    model::{
        name::{RuleId, SourceName},
        time::Timestamp,
    },
    rule::{CompiledRule, Plan, RuleSet},
    store::EventHead,
};

/// An action id that no event has.
const NO_ACTION: &str = "\u{0}";

/// The actions that occur in a history.
#[derive(Debug, Clone, Default)]
pub struct Occurrence {
    events: u64,
    earliest: Option<Timestamp>,
    latest: Option<Timestamp>,
    actions: BTreeMap<Arc<str>, ActionCount>,
}

#[derive(Debug, Clone, Default)]
struct ActionCount {
    events: u64,
    sources: BTreeSet<SourceName>,
    latest: Option<Timestamp>,
}

/// Which rules evaluate which actions.
#[derive(Debug, Clone, Serialize)]
pub struct Coverage {
    /// The number of events.
    pub events: u64,
    /// The time of the earliest event.
    pub earliest: Option<Timestamp>,
    /// The time of the latest event.
    pub latest: Option<Timestamp>,
    /// The actions that occur, the most frequent first.
    pub actions: Vec<ActionCoverage>,
    /// The rules that evaluate every event, whatever its action.
    pub every_event: Vec<RuleId>,
    /// The rules that had no event to evaluate, including those that subscribe only to such rules.
    pub idle: Vec<RuleId>,
    /// The rules by the ATT&CK tactics and techniques that they name.
    pub attack: BTreeMap<String, Vec<RuleId>>,
    /// The rules that do not name any.
    pub without_attack: Vec<RuleId>,
}

/// An action that occurs.
#[derive(Debug, Clone, Serialize)]
pub struct ActionCoverage {
    /// The action id.
    pub action: Arc<str>,
    /// The number of events with this action.
    pub events: u64,
    /// The sources of these events.
    pub sources: BTreeSet<SourceName>,
    /// The time of the newest of these events.
    pub latest: Option<Timestamp>,
    /// The rules that evaluate this action.
    pub rules: Vec<RuleId>,
}

/// The rules that evaluate an action because they name it, as indexes into the set's `detections`.
pub fn looking_at(rules: &RuleSet, action: &str) -> Vec<usize> {
    let unconditional = Plan::new(rules, NO_ACTION).rules();
    Plan::new(rules, action).rules().into_iter().filter(|rule| !unconditional.contains(rule)).collect()
}

impl Occurrence {
    /// Counts an event.
    pub fn count(&mut self, head: &EventHead<'_>) {
        self.events += 1;
        self.earliest = Some(self.earliest.map_or(head.time, |earliest| earliest.min(head.time)));
        self.latest = Some(self.latest.map_or(head.time, |latest| latest.max(head.time)));
        let action = match self.actions.get_mut(head.action) {
            Some(action) => action,
            None => self.actions.entry(Arc::clone(head.action)).or_default(),
        };
        action.events += 1;
        action.latest = action.latest.max(Some(head.time));
        if !action.sources.contains(head.source) {
            action.sources.insert(head.source.clone());
        }
    }

    /// Returns the coverage of these actions by the rules.
    pub fn coverage(self, rules: &RuleSet) -> Coverage {
        let unconditional = Plan::new(rules, NO_ACTION).rules();
        let ids = |indexes: &[usize]| -> Vec<RuleId> {
            indexes.iter().filter_map(|index| rules.detections.get(*index)).map(|rule| rule.id().clone()).collect()
        };
        let mut busy: BTreeSet<usize> = BTreeSet::new();
        let looking = |(action, count): (Arc<str>, ActionCount)| {
            let all = Plan::new(rules, &action).rules();
            busy.extend(&all);
            let own: Vec<usize> = all.into_iter().filter(|rule| !unconditional.contains(rule)).collect();
            let ActionCount { events, sources, latest } = count;
            ActionCoverage { action, events, sources, latest, rules: ids(&own) }
        };
        let mut actions: Vec<ActionCoverage> = self.actions.into_iter().map(looking).collect();
        actions.sort_by(|one, other| other.events.cmp(&one.events).then(one.action.cmp(&other.action)));
        let is_busy = |rule: &Arc<CompiledRule>| {
            rules.with_what_it_hears(rule).iter().any(|heard| {
                rules.detections.iter().position(|other| other.id() == heard.id()).is_some_and(|at| busy.contains(&at))
            })
        };
        let mut attack: BTreeMap<String, Vec<RuleId>> = BTreeMap::new();
        for rule in &rules.detections {
            for id in &rule.metadata.attack {
                attack.entry(id.clone()).or_default().push(rule.id().clone());
            }
        }
        let named = |keep: &dyn Fn(&Arc<CompiledRule>) -> bool| -> Vec<RuleId> {
            rules.detections.iter().filter(|rule| keep(rule)).map(|rule| rule.id().clone()).collect()
        };
        Coverage {
            events: self.events,
            earliest: self.earliest,
            latest: self.latest,
            actions,
            every_event: ids(&unconditional),
            idle: named(&|rule| !is_busy(rule)),
            attack,
            without_attack: named(&|rule| rule.metadata.attack.is_empty()),
        }
    }
}
