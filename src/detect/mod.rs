//! Detection: events in, outcomes out. No I/O, no clock, no randomness; the same rules and the same events in the same order
//! give the same outcomes, live and in a replay.
//!
//! [`Detector::evaluate`] is the one door. State is kept by key, and what changed since the last time is handed out by
//! [`Detector::take_changes`], to be stored together with the outcomes and the checkpoint.

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
        RuleInput, RuleSet,
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

/// What detection is told by the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What a call may use.
    pub limits: Limits,
    /// An event that is older than this when it arrives raises late alerts.
    pub max_age: Duration,
    /// How much a rule may remember.
    pub quota: Quota,
    /// Whether rules are left out that the conditions they begin with rule out. It changes no outcome; for tests.
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

/// What is on record of each rule, read from stored state.
pub fn rule_records(entries: impl IntoIterator<Item = (String, Vec<u8>)>) -> Vec<(RuleId, RuleRecord)> {
    State::restore(entries).rules().map(|(id, record)| (id.clone(), record.clone())).collect()
}

/// What is on record of each exception, read from stored state.
pub fn exception_records(entries: impl IntoIterator<Item = (String, Vec<u8>)>) -> Vec<(ExceptionId, ExceptionRecord)> {
    State::restore(entries).exceptions().map(|(id, record)| (id.clone(), record.clone())).collect()
}

/// What rules remember, read from stored state.
pub fn memory(entries: impl IntoIterator<Item = (String, Vec<u8>)>) -> Memory {
    let mut memory = Memory::default();
    for (name, bytes) in entries.into_iter().filter(|(name, _)| name.starts_with(MEMORY)) {
        memory.restore(&name, &bytes);
    }
    memory
}

/// What becomes of stored state through what a person did with an alert while no detector runs: see [`Detector::handled`].
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

/// How often rules that listen run for one event, all of them together.
const MOST_HEARD: usize = 2_000;

impl Detector {
    /// A detector with no state.
    pub fn new(rules: Arc<RuleSet>, settings: Settings) -> Self {
        Self {
            rules,
            host: RuleHost::new(&settings.limits).with_memory(Memory::new(settings.quota)),
            plans: Plans::new(settings.prefilter),
            settings,
            state: State::default(),
        }
    }

    /// A detector that goes on from stored state, as [`Detector::take_changes`] handed it out.
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

    /// Takes up another rule set, between two events.
    pub fn set_rules(&mut self, rules: Arc<RuleSet>) {
        self.rules = rules;
        self.plans = Plans::new(self.settings.prefilter);
    }

    /// The latest event time seen.
    pub fn clock(&self) -> Timestamp {
        time::from_millis(self.state.clock())
    }

    /// The rules that run.
    pub fn rules(&self) -> &Arc<RuleSet> {
        &self.rules
    }

    /// What is on record of each rule.
    pub fn records(&self) -> impl Iterator<Item = (&RuleId, &RuleRecord)> {
        self.state.rules()
    }

    /// What is on record of each exception.
    pub fn exception_records(&self) -> impl Iterator<Item = (&ExceptionId, &ExceptionRecord)> {
        self.state.exceptions()
    }

    /// The dedup key of a match.
    pub fn key(&self, rule: &CompiledRule, input: &RuleInput<'_>) -> DedupKey {
        Details::find(&self.host, rule, input).key
    }

    /// What rules that listen are told of a match that opens an alert.
    pub fn info(&self, rule: &CompiledRule, input: &RuleInput<'_>) -> MatchInfo {
        Details::find(&self.host, rule, input).info(rule, true)
    }

    /// Whether an exception hides a match.
    pub fn excepts(
        &self,
        rule: &CompiledRule,
        exception: &Exception,
        input: &RuleInput<'_>,
    ) -> Result<bool, RuleFailure> {
        self.host.excepts(rule, exception, input)
    }

    /// How many matches of a rule are counted towards its threshold, under a dedup key of a source.
    pub fn counted(&self, rule: &RuleId, source: &SourceName, key: &DedupKey) -> usize {
        self.state.counted(&state::key_of(rule, source.as_str(), key.as_str()))
    }

    /// State that changed since the last call.
    pub fn take_changes(&mut self) -> StateChanges {
        let mut changes = self.state.take_changes();
        changes.extend(self.host.memory().take_changes());
        changes
    }

    /// Forgets which state changed: for a detector whose state nobody stores.
    pub fn drop_changes(&mut self) {
        self.state.drop_changes();
        self.host.memory().drop_changes();
    }

    /// Tells `watch` of each call of a rule's function from now on.
    pub fn set_watch(&mut self, watch: Option<CallWatch>) {
        self.host.set_watch(watch);
    }

    /// What rules remember.
    pub fn memory(&self) -> Memory {
        self.host.memory().clone()
    }

    /// Forgets what a rule remembers, or several that share it; says how many keys that were.
    pub fn clear_memory(&mut self, space: &str) -> usize {
        self.host.memory().clear(space)
    }

    /// Takes note of what a person did: matches no longer join an alert that was resolved, and join one again that was
    /// reopened.
    pub fn handled(&mut self, alert: &Alert, action: AlertAction) {
        self.state.handled(alert, action);
    }

    /// Runs every rule that wants it on an event, in the order of their ids, then those that listen to what matched. None sees
    /// what another does, but for the matches that it listens to.
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

    /// What follows from an event's being next, whatever is in it: time passes.
    pub fn begin(&mut self, source: &SourceName, time: Timestamp, arrived: Timestamp) -> Outcome {
        let mut outcome = Outcome::default();
        // A clock that is wrong in an event must not end what is open: no event counts as later than its arrival.
        let clock = time.min(arrived);
        self.state.advance(clock);
        self.host.memory().advance(clock.as_millisecond());
        self.fail_expected(source, clock.as_millisecond(), &mut outcome);
        outcome
    }

    /// What follows from what the rules have said, or are to say, of an event that is next. All rules that want it and are not
    /// named have said false.
    pub fn decide(&mut self, event: &Event, verdicts: Vec<(usize, Verdict)>, outcome: &mut Outcome) {
        let named = |index: usize| verdicts.iter().any(|(other, _)| *other == index);
        self.rule_out(&event.action, named);
        if !verdicts.is_empty() {
            let rules = Arc::clone(&self.rules);
            self.run_all(&rules, verdicts, &RuleInput::new(event, &rules.catalog), outcome);
        }
    }

    /// Takes note that rules which want an action and are not named have said false, within their limits.
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

    /// Takes note that the log of a source is known to be whole up to a time, although no event says so: what was expected before
    /// that has not happened.
    pub fn advance(&mut self, source: &SourceName, until: Timestamp) -> Outcome {
        let mut outcome = Outcome::default();
        if self.fail_expected(source, until.as_millisecond(), &mut outcome) {
            outcome.watermarks.push(Watermark { source: source.clone(), until });
        }
        outcome
    }

    /// Tells rules what they expected and did not happen, as the log of a source is known to be whole up to a time. Says whether
    /// there was anything.
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
            // The rule may have gone, or expect nothing any more.
            let index = rules.detections.iter().position(|rule| rule.expires && rule.id().as_str() == space);
            let event = Event { time: time::from_millis(failed.due), ..failed.event.clone() };
            let turn = index.map(|index| (index, Verdict::Turn)).into_iter().collect();
            self.run_all(&rules, turn, &RuleInput::of_failed(&event, failed, &rules.catalog), outcome);
        }
    }

    /// Runs rules, and then those that listen to what matched.
    fn run_all(
        &mut self,
        rules: &RuleSet,
        verdicts: Vec<(usize, Verdict)>,
        input: &RuleInput<'_>,
        outcome: &mut Outcome,
    ) {
        // Matches that other rules listen to, in the order in which they came up.
        let mut heard: VecDeque<(usize, MatchInfo)> = VecDeque::new();
        for (index, verdict) in verdicts {
            let matched = self.run(rules, index, input, verdict, outcome);
            heard.extend(matched.filter(|_| rules.is_heard(index)).map(|matched| (index, matched)));
        }
        // Rules listen in no circle, so this ends; but ways through rules that listen crosswise double at each step.
        let mut turns = 0;
        while let Some((heard_rule, matched)) = heard.pop_front() {
            let input = RuleInput::of_match(input.event(), matched, &rules.catalog);
            for index in rules.listeners(heard_rule) {
                turns += 1;
                if turns > MOST_HEARD {
                    if let Some(rule) = rules.detections.get(*index) {
                        self.failed(rule, input.event(), &RuleFailure::heard_too_much(MOST_HEARD), outcome);
                    }
                    return;
                }
                let matched = self.run(rules, *index, &input, Verdict::Turn, outcome);
                heard.extend(matched.filter(|_| rules.is_heard(*index)).map(|matched| (*index, matched)));
            }
        }
    }

    /// Runs a rule on an event, or on another rule's match, and says what is to be told of it to those who listen.
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
        let mut found = None;
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
                    found = self.matched(rule, event, input, details, outcome);
                }
            }
            Err(failure) => self.failed(rule, event, &failure, outcome),
        }
        if rule.remembers {
            self.tell_overflow(rule, event, outcome);
        }
        found
    }
}
