//! Detection: events in, outcomes out. No I/O, no clock, no randomness; the same rules and the same events in the same order
//! give the same outcomes, live and in a replay.
//!
//! [`Detector::evaluate`] is the one door. State is kept by key, and what changed since the last time is handed out by
//! [`Detector::take_changes`], to be stored together with the outcomes and the mark.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::{
    alert::{Action, Alert, AlertChange, FunctionError, Histogram, Kind, Severity, Status},
    event::Event,
    name::{AlertId, DedupKey, EventId, ExceptionId, RuleId, SourceName},
    outcome::{Match, Outcome, Pass, StateChanges},
    rule::{
        CompiledRule, EXPIRED, Exception, LATENESS, Limits, MEMORY, MatchInfo, Memory, Metadata, Plan, Quota,
        RuleFailure, RuleHost, RuleInput, RuleSet, Stage,
    },
    time::{self, Timestamp},
};

mod failure;
mod health;
mod learn;
mod state;
mod window;

pub use health::{HealthDetector, Subject, is_open_finding};
pub use learn::Learning;
pub use state::{ExceptionRecord, RuleRecord};
use state::{KeyState, OpenAlert, State};
use window::Counted;

/// Actions whose plans are kept: far more than there are.
const MAX_PLANS: usize = 10_000;

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
pub fn handled(entries: impl IntoIterator<Item = (String, Vec<u8>)>, alert: &Alert, action: Action) -> StateChanges {
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
    /// What is asked of events, by action: made once for each id.
    plans: HashMap<Arc<str>, Arc<Plan>>,
}

/// What one matching event has to say, as far as it is needed to find its alert.
struct Found<'a> {
    rule: &'a CompiledRule,
    event: &'a Event,
    input: &'a RuleInput<'a>,
    title: String,
    severity: Severity,
    key: DedupKey,
    errors: Vec<FunctionError>,
}

impl Detector {
    /// A detector with no state.
    pub fn new(rules: Arc<RuleSet>, settings: Settings) -> Self {
        Self {
            rules,
            host: RuleHost::new(&settings.limits).with_memory(Memory::new(settings.quota)),
            settings,
            state: State::default(),
            plans: HashMap::new(),
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
        self.plans.clear();
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
        self.find(rule, input).key
    }

    /// What rules that listen are told of a match that opens an alert.
    pub fn info(&self, rule: &CompiledRule, input: &RuleInput<'_>) -> MatchInfo {
        let found = self.find(rule, input);
        info(&found, true)
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
    pub fn handled(&mut self, alert: &Alert, action: Action) {
        self.state.handled(alert, action);
    }

    /// Runs every rule that wants it on an event, in the order of their ids, then those that listen to what matched. None sees
    /// what another does, but for the matches that it listens to.
    pub fn evaluate(&mut self, event: &Event) -> Outcome {
        let mut outcome = Outcome::default();
        // A clock that is wrong in an event must not end what is open: no event counts as later than its arrival.
        let clock = event.time.min(event.arrived);
        self.state.advance(clock);
        self.host.memory().advance(clock.as_millisecond());
        self.fail_expected(&event.source, clock.as_millisecond(), &mut outcome);
        let plan = self.plan(&event.action);
        if plan.is_empty() {
            return outcome;
        }
        let candidates = plan.candidates(event);
        let rules = Arc::clone(&self.rules);
        if self.state.is_any_struggling() {
            // To be ruled out is to have said false within the limits.
            let out = rules.wanting(&event.action).into_iter().filter(|index| candidates.binary_search(index).is_err());
            for rule in out.filter_map(|index| rules.detections.get(index)) {
                self.state.succeeded(rule.id());
            }
        }
        if !candidates.is_empty() {
            self.run_all(&rules, &candidates, &RuleInput::new(event), &mut outcome);
        }
        outcome
    }

    /// What is to be asked of events of an action.
    fn plan(&mut self, action: &Arc<str>) -> Arc<Plan> {
        if let Some(plan) = self.plans.get(action) {
            return Arc::clone(plan);
        }
        if self.plans.len() >= MAX_PLANS {
            self.plans.clear();
        }
        let make = if self.settings.prefilter { Plan::new } else { Plan::unfiltered };
        let plan = Arc::new(make(&self.rules, action));
        self.plans.insert(Arc::clone(action), Arc::clone(&plan));
        plan
    }

    /// Takes note that the log of a source is known to be whole up to a time, although no event says so: what was expected before
    /// that has not happened.
    pub fn pass(&mut self, source: &SourceName, until: Timestamp) -> Outcome {
        let mut outcome = Outcome::default();
        if self.fail_expected(source, until.as_millisecond(), &mut outcome) {
            outcome.passes.push(Pass { source: source.clone(), until });
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
            self.run_all(&rules, index.as_slice(), &RuleInput::of_failed(&event, failed), outcome);
        }
    }

    /// Runs rules, and then those that listen to what matched.
    fn run_all(&mut self, rules: &RuleSet, indexes: &[usize], input: &RuleInput<'_>, outcome: &mut Outcome) {
        // Matches that other rules listen to, in the order in which they came up.
        let mut heard: VecDeque<(usize, MatchInfo)> = VecDeque::new();
        for index in indexes {
            let matched = self.run(rules, *index, input, outcome);
            heard.extend(matched.filter(|_| rules.is_heard(*index)).map(|matched| (*index, matched)));
        }
        // Rules listen in no circle, so this ends.
        while let Some((heard_rule, matched)) = heard.pop_front() {
            let input = RuleInput::of_match(input.event(), matched);
            for index in rules.listeners(heard_rule) {
                let matched = self.run(rules, *index, &input, outcome);
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
        match self.host.matches(rule, input) {
            Ok(matched) => {
                self.state.succeeded(rule.id());
                if matched && !self.excepted(rule, rules.exceptions_of(index), event, input, outcome) {
                    found = self.matched(rule, event, input, outcome);
                }
            }
            Err(failure) => self.failed(rule, event, &failure, outcome),
        }
        if rule.remembers {
            self.tell_overflow(rule, event, outcome);
        }
        found
    }

    /// Whether an exception takes a match out of alerting; the match is kept and counted all the same. A condition that fails
    /// hides nothing.
    fn excepted(
        &mut self,
        rule: &CompiledRule,
        exceptions: &[Arc<Exception>],
        event: &Event,
        input: &RuleInput<'_>,
        outcome: &mut Outcome,
    ) -> bool {
        for exception in exceptions.iter().filter(|exception| exception.applies_at(event.time)) {
            match self.host.excepts(rule, exception, input) {
                Ok(false) => {}
                Ok(true) => {
                    self.state.matched(rule.id(), event.time);
                    self.state.excepted(&exception.id, event);
                    outcome.matches.push(matched(rule, event, None, Some(exception.id.clone())));
                    return true;
                }
                Err(failure) => {
                    self.state.exception_failed(&exception.id, &failure);
                    outcome.failures.push((rule.id().clone(), format!("exception {}: {failure}", exception.id)));
                }
            }
        }
        false
    }

    /// Takes a match to its alert, or towards its threshold. Rules that listen are told of it once it counts: when it opens an
    /// alert or joins one. A signal goes the same way, and only raises nothing.
    fn matched(
        &mut self,
        rule: &CompiledRule,
        event: &Event,
        input: &RuleInput<'_>,
        outcome: &mut Outcome,
    ) -> Option<MatchInfo> {
        let found = self.find(rule, input);
        let raises = !rule.metadata.signal;
        self.function_errors(rule, event, &found.errors, outcome);
        let state_key = state::key_of(rule.id(), event.source.as_str(), found.key.as_str());
        let mut keyed = self.state.take(&state_key);
        let period = rule.metadata.dedup_period;
        let mut told = None;
        let mut alert = None;
        if let Some(open) = keyed.open_at(event.time, period) {
            told = Some(info(&found, false));
            alert = Some(open.id);
            let change = joined(open, event, found.severity);
            outcome.alerts.extend(raises.then_some(change));
        } else if let Some(events) = self.count(rule, event, input, &mut keyed, outcome) {
            told = Some(info(&found, true));
            let known = found.errors.len();
            let opened = self.open(found, events);
            self.function_errors(rule, event, opened.errors.get(known..).unwrap_or(&[]), outcome);
            keyed.open(OpenAlert {
                id: opened.id,
                opened: opened.opened_at.as_millisecond(),
                severity: opened.severity,
            });
            alert = Some(opened.id);
            outcome.alerts.extend(raises.then(|| AlertChange::Opened(Box::new(opened))));
        }
        self.state.put(&state_key, keyed, period.max(rule.metadata.window) + self.settings.max_age);
        self.state.matched(rule.id(), event.time);
        outcome.matches.push(matched(rule, event, alert.filter(|_| raises), None));
        told
    }

    /// Counts a match towards its rule's threshold, and gives those that reached it.
    fn count(
        &self,
        rule: &CompiledRule,
        event: &Event,
        input: &RuleInput<'_>,
        keyed: &mut KeyState,
        outcome: &mut Outcome,
    ) -> Option<Vec<Counted>> {
        // No value, nothing to count; a threshold of one is reached all the same.
        let unique = match self.host.unique(rule, input).transpose() {
            Ok(value) => value.flatten(),
            Err(failure) => {
                outcome.failures.push((rule.id().clone(), format!("fn unique: {failure}")));
                None
            }
        };
        let counted = Counted { time: event.time.as_millisecond(), event: event.id.clone(), unique };
        let Metadata { threshold, window, .. } = rule.metadata;
        window::count(&mut keyed.pending, counted, threshold, window, rule.has("unique"))
    }

    /// Counts what went wrong in optional functions.
    fn function_errors(&mut self, rule: &CompiledRule, event: &Event, errors: &[FunctionError], outcome: &mut Outcome) {
        for error in errors {
            let message = format!("fn {}: {}", error.function, error.error);
            self.state.function_failed(rule.id(), event.time, &message);
            outcome.failures.push((rule.id().clone(), message));
        }
    }

    /// Title, severity and dedup key of a match, each with its fallback.
    fn find<'a>(&self, rule: &'a CompiledRule, input: &'a RuleInput<'a>) -> Found<'a> {
        let mut errors = Vec::new();
        let title = fallible("title", self.host.text(rule, "title", input), &mut errors);
        let title = title.filter(|title| !title.trim().is_empty()).unwrap_or_else(|| rule.metadata.title.clone());
        // What an override says of a rule is meant whatever the rule's own function says.
        let own = |key| !rule.metadata.is_overridden(key);
        let severity = own("severity").then(|| self.host.severity(rule, input)).flatten();
        let severity = fallible("severity", severity, &mut errors);
        let dedup = fallible("dedup", self.host.text(rule, "dedup", input), &mut errors);
        let key = dedup.filter(|key| !key.is_empty()).or_else(|| self.host.group(rule, input));
        let key = key.unwrap_or_else(|| title.clone());
        Found {
            rule,
            event: input.event(),
            input,
            severity: severity.unwrap_or(rule.metadata.severity),
            key: DedupKey::clipped(&key),
            title: clipped(&title, 500),
            errors,
        }
    }

    fn open(&self, found: Found<'_>, counted: Vec<Counted>) -> Alert {
        let times: Vec<i64> = counted.iter().map(|counted| counted.time).collect();
        let events: Vec<EventId> = counted.into_iter().map(|counted| counted.event).collect();
        let Found { rule, event, input, title, severity, key, mut errors } = found;
        let metadata = &rule.metadata;
        // The event may have opened an alert with the same key when it came.
        let birth = match input.failed() {
            None => event.id.to_string(),
            Some(failed) => format!("{}/{EXPIRED}/{}", event.id, failed.name),
        };
        let mut text = |name: &str, fallback: &Option<String>| {
            let own = fallible(name, self.host.text(rule, name, input), &mut errors);
            own.or_else(|| fallback.clone()).map(|text| clipped(&text, 20_000))
        };
        let description = text("description", &metadata.description);
        let runbook = text("runbook", &metadata.runbook);
        let reference = text("reference", &metadata.reference);
        let destinations =
            (!metadata.is_overridden("destinations")).then(|| self.host.destinations(rule, input)).flatten();
        let destinations = fallible("destinations", destinations, &mut errors);
        let context = fallible("context", self.host.context(rule, input), &mut errors);
        Alert {
            id: AlertId::derive(rule.id(), event.source.as_str(), key.as_str(), &birth),
            revision: 1,
            kind: Kind::Detection,
            rule: rule.id().clone(),
            title,
            severity,
            status: Status::Open,
            source: Some(event.source.clone()),
            opened_at: event.time,
            last_seen: event.time,
            raised_at: None,
            resolved_at: None,
            count: events.len() as u64,
            first_events: events.iter().take(Alert::FIRST_EVENTS).cloned().collect(),
            newest_events: newest(&events),
            dedup_key: key,
            evidence: event.evidence(),
            context: context.unwrap_or_default(),
            description,
            runbook,
            reference,
            tags: metadata.tags.clone(),
            attack: metadata.attack.clone(),
            destinations: destinations.or_else(|| metadata.destinations.clone()),
            errors,
            rule_hash: rule.hash.clone(),
            generation: self.rules.generation,
            late: time::since(event.arrived, event.time) > self.settings.max_age,
            acknowledged_at: None,
            disposition: None,
            remark: None,
            silenced_by: None,
            shadow: metadata.stage == Stage::Shadow,
            lists: self.host.take_lists(),
            histogram: Histogram::of(&times),
        }
    }
}

fn info(found: &Found<'_>, opened: bool) -> MatchInfo {
    MatchInfo {
        rule: found.rule.id().clone(),
        severity: found.severity,
        key: found.key.to_string(),
        title: found.title.clone(),
        risk: found.rule.metadata.risk,
        opened,
    }
}

fn matched(rule: &CompiledRule, event: &Event, alert: Option<AlertId>, exception: Option<ExceptionId>) -> Match {
    Match {
        rule: rule.id().clone(),
        event: event.id.clone(),
        sequence: event.sequence,
        time: event.time,
        alert,
        exception,
    }
}

fn joined(open: &mut OpenAlert, event: &Event, severity: Severity) -> AlertChange {
    let raised_to = (severity > open.severity).then_some(severity);
    open.severity = open.severity.max(severity);
    AlertChange::Joined {
        alert: open.id,
        event: event.id.clone(),
        sequence: event.sequence,
        time: event.time,
        raised_to,
    }
}

/// The value of an optional function; its error is kept and the fallback used.
fn fallible<T>(function: &str, answer: Option<Result<T, RuleFailure>>, errors: &mut Vec<FunctionError>) -> Option<T> {
    match answer? {
        Ok(value) => Some(value),
        Err(failure) => {
            errors.push(FunctionError { function: function.to_owned(), error: failure.message });
            None
        }
    }
}

fn newest(events: &[EventId]) -> Vec<EventId> {
    let rest = events.get(Alert::FIRST_EVENTS..).unwrap_or(&[]);
    rest.get(rest.len().saturating_sub(Alert::NEWEST_EVENTS)..).unwrap_or(&[]).to_vec()
}

fn clipped(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or(text)),
        None => text.to_owned(),
    }
}
