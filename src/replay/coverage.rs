//! Coverage: which actions occur in a history, which rules look at them, and what nobody looks at.
//!
//! A rule looks at an action if it names it, under `actions` or in the conditions that its `fn rule` begins with. A rule that names
//! none looks at every event, which says nothing about any of them; such rules are told apart.

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

/// An id that no event has.
const NO_ACTION: &str = "\u{0}";

/// What occurs in a history.
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

/// Which rules look at what.
#[derive(Debug, Clone, Serialize)]
pub struct Coverage {
    /// Events.
    pub events: u64,
    /// Time of the earliest.
    pub earliest: Option<Timestamp>,
    /// Time of the latest.
    pub latest: Option<Timestamp>,
    /// What occurs, the most frequent first.
    pub actions: Vec<ActionCoverage>,
    /// Rules that look at every event, whatever its action.
    pub every_event: Vec<RuleId>,
    /// Rules that had no event to look at; those that listen to rules none of which had one.
    pub idle: Vec<RuleId>,
    /// Rules by the ATT&CK tactics and techniques that they name.
    pub attack: BTreeMap<String, Vec<RuleId>>,
    /// Rules that name none.
    pub without_attack: Vec<RuleId>,
}

/// An action that occurs.
#[derive(Debug, Clone, Serialize)]
pub struct ActionCoverage {
    /// Its id.
    pub action: Arc<str>,
    /// Events that have it.
    pub events: u64,
    /// Sources that have it.
    pub sources: BTreeSet<SourceName>,
    /// Time of the newest.
    pub latest: Option<Timestamp>,
    /// Rules that look at it.
    pub rules: Vec<RuleId>,
}

/// The rules that look at an action because they name it, as indexes into the set's `detections`.
pub fn looking_at(rules: &RuleSet, action: &str) -> Vec<usize> {
    let whatever = Plan::new(rules, NO_ACTION).rules();
    Plan::new(rules, action).rules().into_iter().filter(|rule| !whatever.contains(rule)).collect()
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

    /// Which of these rules look at what.
    pub fn coverage(self, rules: &RuleSet) -> Coverage {
        let whatever = Plan::new(rules, NO_ACTION).rules();
        let ids = |indexes: &[usize]| -> Vec<RuleId> {
            indexes.iter().filter_map(|index| rules.detections.get(*index)).map(|rule| rule.id().clone()).collect()
        };
        let mut busy: BTreeSet<usize> = BTreeSet::new();
        let looking = |(action, count): (Arc<str>, ActionCount)| {
            let all = Plan::new(rules, &action).rules();
            busy.extend(&all);
            let own: Vec<usize> = all.into_iter().filter(|rule| !whatever.contains(rule)).collect();
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
            every_event: ids(&whatever),
            idle: named(&|rule| !is_busy(rule)),
            attack,
            without_attack: named(&|rule| rule.metadata.attack.is_empty()),
        }
    }
}
