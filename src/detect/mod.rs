//! Detection: events in, outcomes out. It does not do I/O and does not use a clock or randomness: the same rules and
//! the same events in the same order yield the same outcomes, live and in a replay.
//!
//! [`Detector::evaluate`] is the entry point. The state is kept by key. [`Detector::take_changes`] returns what changed
//! since the last call, to be stored together with the outcomes and the checkpoint.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use crate::{
    model::{
        alert::{Alert, AlertAction},
        event::Event,
        legible::Flags,
        name::{DedupKey, ExceptionId, RuleId, SourceName},
        outcome::{Outcome, StateChanges, Watermark},
        time::{self, Timestamp},
    },
    rule::{
        CallWatch, CompiledRule, Exception, LATENESS, Limits, MEMORY, MatchInfo, Memory, Quota, RuleFailure, RuleHost,
        RuleInput, RuleSet, Stage,
    },
};

mod failure;
mod health;
mod matching;
mod prepare;
mod state;
mod warm_up;
mod window;

pub use health::{DROP_OFF_STATE, HealthDetector, Subject, is_open_finding, sources_of_findings};
use matching::{Details, joined};
use prepare::Plans;
pub use prepare::{Preparer, Verdict};
use state::State;
pub use state::{ExceptionRecord, RULE_STATE, RuleRecord};
pub use warm_up::Learning;

/// The settings of detection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The limits of a call of a rule's function.
    pub limits: Limits,
    /// An event that is older than this when it arrives raises late alerts.
    pub max_age: Duration,
    /// How much state a rule may keep.
    pub quota: Quota,
    /// Whether to skip rules whose leading conditions exclude an event. It does not change any outcome; for tests.
    pub prefilter: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            max_age: Duration::from_secs(86_400),
            quota: Quota::default(),
            prefilter: true,
        }
    }
}

/// Reads the record of each rule from stored state.
pub fn rule_records(entries: impl IntoIterator<Item = (String, Vec<u8>)>) -> Vec<(RuleId, RuleRecord)> {
    State::restore(entries).rules().map(|(id, record)| (id.clone(), record.clone())).collect()
}

/// Reads the record of each exception from stored state.
pub fn exception_records(entries: impl IntoIterator<Item = (String, Vec<u8>)>) -> Vec<(ExceptionId, ExceptionRecord)> {
    State::restore(entries).exceptions().map(|(id, record)| (id.clone(), record.clone())).collect()
}

/// Reads the state that rules keep from stored state.
pub fn memory(entries: impl IntoIterator<Item = (String, Vec<u8>)>) -> Memory {
    let mut memory = Memory::default();
    for (name, bytes) in entries.into_iter().filter(|(name, _)| name.starts_with(MEMORY)) {
        memory.restore(&name, &bytes);
    }
    memory
}

/// Returns the changes to stored state after a user handled an alert while no detector runs: see [`Detector::handled`].
pub fn handled(
    entries: impl IntoIterator<Item = (String, Vec<u8>)>,
    alert: &Alert,
    action: AlertAction,
) -> StateChanges {
    let mut state = State::restore(entries);
    state.handled(alert, action);
    state.take_changes()
}

/// Evaluates events against a rule set.
#[derive(Debug)]
pub struct Detector {
    rules: Arc<RuleSet>,
    host: RuleHost,
    settings: Settings,
    state: State,
    plans: Plans,
}

/// How many times rules that subscribe to other rules run for one event, all of them together.
const MAX_SUBSCRIBER_CALLS: usize = 2_000;

impl Detector {
    /// Creates a detector without state.
    pub fn new(rules: Arc<RuleSet>, settings: Settings) -> Self {
        Self {
            rules,
            host: RuleHost::new(&settings.limits).with_memory(Memory::new(settings.quota)),
            plans: Plans::new(settings.prefilter),
            settings,
            state: State::default(),
        }
    }

    /// Creates a detector from stored state, as returned by [`Detector::take_changes`].
    pub fn restore(
        rules: Arc<RuleSet>,
        settings: Settings,
        entries: impl IntoIterator<Item = (String, Vec<u8>)>,
    ) -> Self {
        let detector = Self::new(rules, settings);
        let mut others = Vec::new();
        for (name, bytes) in entries {
            if name.starts_with(MEMORY) {
                detector.host.memory().restore(&name, &bytes);
            } else {
                others.push((name, bytes));
            }
        }
        let state = State::restore(others);
        detector.host.memory().advance(state.clock());
        Self { state, ..detector }
    }

    /// Switches to another rule set, between two events.
    pub fn set_rules(&mut self, rules: Arc<RuleSet>) {
        self.rules = rules;
        self.plans = Plans::new(self.settings.prefilter);
    }

    /// The latest event time seen.
    pub fn clock(&self) -> Timestamp {
        time::from_millis(self.state.clock())
    }

    /// The rule set in use.
    pub fn rules(&self) -> &Arc<RuleSet> {
        &self.rules
    }

    /// The record of each rule.
    pub fn records(&self) -> impl Iterator<Item = (&RuleId, &RuleRecord)> {
        self.state.rules()
    }

    /// The record of each exception.
    pub fn exception_records(&self) -> impl Iterator<Item = (&ExceptionId, &ExceptionRecord)> {
        self.state.exceptions()
    }

    /// The dedup key of a match.
    pub fn key(&self, rule: &CompiledRule, input: &RuleInput<'_>) -> DedupKey {
        Details::find(&self.host, rule, input).key
    }

    /// What subscribed rules get to know about a match that opens an alert.
    pub fn info(&self, rule: &CompiledRule, input: &RuleInput<'_>) -> MatchInfo {
        Details::find(&self.host, rule, input).info(rule, true)
    }

    /// Returns true if an exception suppresses a match.
    pub fn excepts(
        &self,
        rule: &CompiledRule,
        exception: &Exception,
        input: &RuleInput<'_>,
    ) -> Result<bool, RuleFailure> {
        self.host.excepts(rule, exception, input)
    }

    /// The number of matches of a rule that count towards its threshold, for a source and a dedup key.
    pub fn counted(&self, rule: &CompiledRule, source: &SourceName, key: &DedupKey) -> usize {
        let shadow = rule.metadata.stage == Stage::Shadow;
        self.state.counted(&state::key_of(rule.id(), source.as_str(), key.as_str(), shadow))
    }

    /// Returns the state that changed since the last call.
    pub fn take_changes(&mut self) -> StateChanges {
        let mut changes = self.state.take_changes();
        changes.extend(self.host.memory().take_changes());
        changes
    }

    /// Discards the record of which state changed: for a detector whose state is not stored.
    pub fn drop_changes(&mut self) {
        self.state.drop_changes();
        self.host.memory().drop_changes();
    }

    /// From now on, reports each call of a rule's function to `watch`.
    pub fn set_watch(&mut self, watch: Option<CallWatch>) {
        self.host.set_watch(watch);
    }

    /// The state that rules keep.
    pub fn memory(&self) -> Memory {
        self.host.memory().clone()
    }

    /// Clears the state of a rule, or of several rules that share it. Returns the number of keys removed.
    pub fn clear_memory(&mut self, space: &str) -> usize {
        self.host.memory().clear(space)
    }

    /// Records what a user did with an alert: matches no longer join it after it was resolved, and join it again after
    /// it was reopened.
    pub fn handled(&mut self, alert: &Alert, action: AlertAction) {
        self.state.handled(alert, action);
    }

    /// Evaluates an event with every rule that wants it, in the order of their ids, and then with the rules that
    /// subscribe to what matched. Rules do not see each other's results, except for the matches that they subscribe to.
    pub fn evaluate(&mut self, event: &Event) -> Outcome {
        let mut outcome = self.begin(&event.source, event.time, event.arrived);
        let plan = self.plans.of(&self.rules, &event.action, event.flags);
        if plan.is_empty() {
            self.rule_out(&event.action, |_| false);
            return outcome;
        }
        let candidates =
            plan.candidates(&event.raw, &event.source).into_iter().map(|rule| (rule, Verdict::Turn)).collect();
        self.decide(event, candidates, &mut outcome);
        outcome
    }

    /// Moves time forward to the next event and returns what follows from that, independent of what the event contains.
    pub fn begin(&mut self, source: &SourceName, time: Timestamp, arrived: Timestamp) -> Outcome {
        let mut outcome = Outcome::default();
        // An event with a wrong clock must not expire state: no event counts as later than its arrival.
        let clock = time.min(arrived);
        self.state.advance(clock);
        self.host.memory().advance(clock.as_millisecond());
        self.fail_expected(source, clock.as_millisecond(), &mut outcome);
        outcome
    }

    /// Evaluates the next event, given the verdicts that are already known. All rules that want the event and are not
    /// in `verdicts` did not match.
    pub fn decide(&mut self, event: &Event, verdicts: Vec<(usize, Verdict)>, outcome: &mut Outcome) {
        let named = |index: usize| verdicts.iter().any(|(other, _)| *other == index);
        self.rule_out(&event.action, named);
        if !verdicts.is_empty() {
            let rules = Arc::clone(&self.rules);
            self.run_all(&rules, verdicts, &RuleInput::new(event, &rules.context.catalog), outcome);
        }
    }

    /// Records that all rules which want an action and are not `named` returned false within their limits.
    pub fn rule_out(&mut self, action: &str, named: impl Fn(usize) -> bool) {
        if !self.state.is_any_struggling() {
            return;
        }
        let rules = Arc::clone(&self.rules);
        for rule in rules.wanting_flagged(action, Flags::default()).into_iter().filter(|index| !named(*index)) {
            if let Some(rule) = rules.detections.get(rule) {
                self.state.succeeded(rule.id());
            }
        }
    }

    /// Records that the log of a source is known to be complete up to a time, although no event shows it. Expectations
    /// that were due before then have failed.
    pub fn advance(&mut self, source: &SourceName, until: Timestamp) -> Outcome {
        let mut outcome = Outcome::default();
        if self.fail_expected(source, until.as_millisecond(), &mut outcome) {
            outcome.watermarks.push(Watermark { source: source.clone(), until });
        }
        outcome
    }

    /// Reports failed expectations to their rules, given that the log of a source is complete up to a time. Returns
    /// true if there were any.
    fn fail_expected(&mut self, source: &SourceName, until: i64, outcome: &mut Outcome) -> bool {
        let mut any = false;
        let end = until.saturating_sub(LATENESS);
        loop {
            let failed = self.host.memory().take_failed(source, end);
            let Some((space, failed)) = failed else {
                return any;
            };
            any = true;
            let rules = Arc::clone(&self.rules);
            // The rule may have been removed, or no longer expects anything.
            let index = rules.detections.iter().position(|rule| rule.expires && rule.id().as_str() == space);
            let event = Event { time: time::from_millis(failed.due), ..failed.event.clone() };
            let turn = index.map(|index| (index, Verdict::Turn)).into_iter().collect();
            self.run_all(&rules, turn, &RuleInput::of_failed(&event, failed, &rules.context.catalog), outcome);
        }
    }

    /// Runs rules, and then the rules that subscribe to what matched.
    fn run_all(
        &mut self,
        rules: &RuleSet,
        verdicts: Vec<(usize, Verdict)>,
        input: &RuleInput<'_>,
        outcome: &mut Outcome,
    ) {
        // Matches that other rules subscribe to, in order.
        let mut published: VecDeque<(usize, MatchInfo)> = VecDeque::new();
        for (index, verdict) in verdicts {
            let matched = self.run(rules, index, input, verdict, outcome);
            published.extend(matched.filter(|_| rules.is_heard(index)).map(|matched| (index, matched)));
        }
        // Subscriptions do not form cycles, so this ends, but the paths through rules that subscribe to each other
        // crosswise double at each step.
        let mut calls = 0;
        while let Some((publisher, matched)) = published.pop_front() {
            let input = RuleInput::of_match(input.event(), matched, &rules.context.catalog);
            for index in rules.listeners(publisher) {
                calls += 1;
                if calls > MAX_SUBSCRIBER_CALLS {
                    if let Some(rule) = rules.detections.get(*index) {
                        self.failed(rule, input.event(), &RuleFailure::heard_too_much(MAX_SUBSCRIBER_CALLS), outcome);
                    }
                    return;
                }
                let matched = self.run(rules, *index, &input, Verdict::Turn, outcome);
                published.extend(matched.filter(|_| rules.is_heard(*index)).map(|matched| (*index, matched)));
            }
        }
    }

    /// Runs a rule on an event, or on another rule's match. Returns what subscribed rules get to know about its match.
    fn run(
        &mut self,
        rules: &RuleSet,
        index: usize,
        input: &RuleInput<'_>,
        verdict: Verdict,
        outcome: &mut Outcome,
    ) -> Option<MatchInfo> {
        let rule = rules.detections.get(index)?;
        if self.state.is_suspended(rule) {
            return None;
        }
        let event = input.event();
        outcome.rules_run += 1;
        self.host.take_lists();
        let mut published = None;
        let (answer, details) = match verdict {
            Verdict::Turn => (self.host.matches(rule, input), None),
            Verdict::Yes(details) => (Ok(true), Some(*details)),
            Verdict::Failed(failure) => (Err(failure), None),
        };
        match answer {
            Ok(matched) => {
                self.state.succeeded(rule.id());
                if matched && !self.excepted(rule, rules.exceptions_of(index), event, input, outcome) {
                    let details = details.unwrap_or_else(|| Details::find(&self.host, rule, input));
                    published = self.matched(rule, event, input, details, outcome);
                }
            }
            Err(failure) => self.failed(rule, event, &failure, outcome),
        }
        if rule.remembers {
            self.report_overflow(rule, event, outcome);
        }
        published
    }
}
