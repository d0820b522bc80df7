//! Calling a rule's functions: budget, deadline, panic boundary, and the return type of each function.

use std::{
    cell::OnceCell,
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{Arc, MutexGuard},
};

use rhai::{Array, CallFnOptions, Dynamic, Engine, EvalAltResult, FuncArgs, ImmutableString, Map, Scope};

use crate::model::{
    action::Catalog,
    alert::Severity,
    event::Event,
    name::RuleId,
    text::{clipped, shortened},
};
use crate::rule::{
    manifest::{
        exception::{Exception, ExceptionCondition},
        problem::{FailureKind, RuleFailure},
        runbook,
        value::to_json_value,
    },
    script::{
        compiled::CompiledRule,
        fields,
        host::{About, Call},
        memory::{Expectation, Memory},
        meter::Limits,
        sandbox,
        view::{EventView, MatchInfo},
    },
};

/// The input of a rule call. The view of the event is built when the first rule needs it, and then shared.
#[derive(Debug)]
pub struct RuleInput<'a> {
    event: &'a Event,
    catalog: &'a Catalog,
    cause: Cause,
    shared: OnceCell<EventView>,
}

/// Why a rule is called for an event.
#[derive(Debug)]
enum Cause {
    /// The event happened.
    Event,
    /// Another rule matched it.
    Match(MatchInfo),
    /// What was expected after it did not happen.
    Failed(Expectation),
}

impl<'a> RuleInput<'a> {
    /// A plain event. Nothing is parsed yet.
    pub fn new(event: &'a Event, catalog: &'a Catalog) -> Self {
        Self { event, catalog, cause: Cause::Event, shared: OnceCell::new() }
    }

    /// An event that another rule matched.
    pub fn of_match(event: &'a Event, matched: MatchInfo, catalog: &'a Catalog) -> Self {
        Self { event, catalog, cause: Cause::Match(matched), shared: OnceCell::new() }
    }

    /// An expectation that was not met; `event` is the event that began it, with the deadline as its time.
    pub fn of_failed(event: &'a Event, failed: Expectation, catalog: &'a Catalog) -> Self {
        Self { event, catalog, cause: Cause::Failed(failed), shared: OnceCell::new() }
    }

    /// The missed expectation, if that is why the rule is called.
    pub fn failed(&self) -> Option<&Expectation> {
        match &self.cause {
            Cause::Failed(failed) => Some(failed),
            Cause::Event | Cause::Match(_) => None,
        }
    }

    fn view(&self) -> EventView {
        match &self.cause {
            Cause::Event => EventView::new(self.event, self.catalog),
            Cause::Match(matched) => EventView::of_match(self.event, matched, self.catalog),
            Cause::Failed(failed) => EventView::of_failed(self.event, failed, self.catalog),
        }
    }

    /// The actor in short form: an email address if there is one, else a name.
    pub fn who(&self, rule: &CompiledRule) -> Option<String> {
        let event = self.value_for(rule);
        let event = event.read_lock::<Map>()?;
        let text = |path: &str| {
            let value = fields::follow(event.get("actor")?, path)?;
            value.read_lock::<ImmutableString>().filter(|text| !text.is_empty()).map(|text| text.to_string())
        };
        let email = text("email");
        email.clone().filter(|email| email.contains('@')).or_else(|| text("name")).or_else(|| text("id")).or(email)
    }

    /// Fills the placeholders of a runbook from the event: see
    /// [`Metadata::runbook`](crate::rule::manifest::metadata::Metadata::runbook).
    pub fn fill(&self, rule: &CompiledRule, runbook: &str) -> String {
        let event = self.value_for(rule);
        runbook::filled(runbook, |place| match place {
            "{actor}" => fields::actor_name_of(&event),
            "{target}" => fields::target_name_of(&event),
            "{ip}" => fields::follow(&event, "ip").map(|ip| ip.to_string()),
            _ => fields::follow(&event, "time").map(|time| time.to_string()),
        })
    }

    /// Shortens a title. Long strings of the event are truncated within it, so that one of them does not push out
    /// what follows.
    pub fn shortened(&self, rule: &CompiledRule, title: &str) -> String {
        if title.chars().nth(MAX_TITLE).is_none() {
            return title.to_owned();
        }
        let title = clipped(title, MAX_LOOKED_THROUGH);
        let mut texts: Vec<ImmutableString> = Vec::new();
        long_texts(&self.value_for(rule), 0, &mut texts);
        // Longest first: a string may be part of another.
        texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
        texts.dedup();
        texts.truncate(MAX_TEXTS);
        let mut short = title;
        for text in &texts {
            short = short.replace(text.as_str(), &shortened(text, MAX_VALUE));
        }
        shortened(&short, MAX_TITLE)
    }

    /// The context that rule memory needs for a call.
    pub(in crate::rule) fn about(&self, rule: &CompiledRule, function: &str) -> About {
        let event = rule.expires.then(|| self.event.clone());
        let moment = (self.event.moment().as_millisecond(), self.event.sequence.0);
        About { moment, writes: function == "rule", event }
    }

    /// The stored event.
    pub fn event(&self) -> &'a Event {
        self.event
    }

    pub(in crate::rule) fn value_for(&self, rule: &CompiledRule) -> Dynamic {
        if rule.assigns_properties {
            return self.view().value();
        }
        self.shared.get_or_init(|| self.view()).value()
    }
}

/// Escapes a value of a group so that different lists of values never read the same: a slash that could be taken for
/// the separator is escaped.
fn escaped_value(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut before = None;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let at_edge = |neighbour: Option<char>| neighbour.is_none_or(|neighbour| neighbour == ' ');
        if character == '\\' || (character == '/' && (at_edge(before) || at_edge(characters.peek().copied()))) {
            result.push('\\');
        }
        result.push(character);
        before = Some(character);
    }
    result
}

/// Maximum length of a title, in UTF-16 units.
const MAX_TITLE: usize = 500;
/// How much of a long title is searched for strings of the event, in UTF-16 units.
const MAX_LOOKED_THROUGH: usize = 64 * 1024;
/// Maximum number of strings of the event to search for; the longest are used.
const MAX_TEXTS: usize = 50;
/// Maximum length of one string of the event in a title that is too long, in UTF-16 units.
const MAX_VALUE: usize = 80;

/// Collects the strings of an event that may be truncated in titles.
fn long_texts(value: &Dynamic, depth: usize, found: &mut Vec<ImmutableString>) {
    if depth > 64 {
        return;
    }
    if let Some(text) = value.read_lock::<ImmutableString>() {
        if text.len() > MAX_VALUE {
            found.push(text.clone());
        }
    } else if let Some(map) = value.read_lock::<Map>() {
        map.values().for_each(|value| long_texts(value, depth + 1, found));
    } else if let Some(items) = value.read_lock::<Array>() {
        items.iter().for_each(|value| long_texts(value, depth + 1, found));
    }
}

/// What a check rule reports about one subject.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Finding {
    /// Distinguishes several findings of one check; empty if there is only one.
    pub key: String,
    /// The alert's title; if absent, the rule's.
    pub title: Option<String>,
    /// The alert's severity; if absent, the rule's.
    pub severity: Option<Severity>,
    /// The alert's description; if absent, the rule's.
    pub description: Option<String>,
    /// Evidence for the alert.
    pub context: serde_json::Map<String, serde_json::Value>,
}

/// Called before each call of a rule's function, with the rule's id and hash.
pub type CallWatch = Arc<dyn Fn(&RuleId, &str) + Send + Sync>;

/// Runs rules. Each thread has its own.
pub struct RuleHost {
    engine: Engine,
    call: Arc<Call>,
    limits: Limits,
    watch: Option<CallWatch>,
}

impl std::fmt::Debug for RuleHost {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "RuleHost({:?})", self.limits)
    }
}

impl RuleHost {
    /// A host whose calls stay within `limits`.
    pub fn new(limits: &Limits) -> Self {
        let (engine, call) = sandbox::sandbox(limits);
        Self { engine, call, limits: limits.clone(), watch: None }
    }

    /// Calls `watch` before each call from now on.
    pub fn set_watch(&mut self, watch: Option<CallWatch>) {
        self.watch = watch;
    }

    /// Replaces the memory.
    #[must_use]
    pub fn with_memory(self, memory: Memory) -> Self {
        *self.call.memory() = memory;
        self
    }

    /// The values of the fields in `group_by`, joined to a unique string; `None` if the rule does not group.
    pub fn group(&self, rule: &CompiledRule, input: &RuleInput<'_>) -> Option<String> {
        let fields = rule.metadata.group_by.as_ref()?;
        let values = slot_values(&input.value_for(rule), fields);
        // The separator, and the placeholder for an absent value, are escaped within values.
        let value = |value: Option<String>| match value {
            None => "-".to_owned(),
            Some(text) if text == "-" => "\\-".to_owned(),
            Some(text) => escaped_value(&text),
        };
        let values: Vec<String> = values.into_iter().map(value).collect();
        Some(values.join(" / "))
    }

    /// The memory of all rules.
    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        self.call.memory()
    }

    /// The named lists that calls have used since this was last called, with their versions.
    pub fn take_lists(&self) -> BTreeMap<String, String> {
        self.call.take_lists()
    }

    /// Calls `fn rule(event)`, or `fn expired(key, event)` for a missed expectation.
    pub fn matches(&self, rule: &CompiledRule, input: &RuleInput<'_>) -> Result<bool, RuleFailure> {
        let event = input.value_for(rule);
        let (function, answer) = match input.failed() {
            None => {
                // Only memory functions need to know what the call is about.
                if rule.remembers {
                    self.call.set_about(Some(input.about(rule, "rule")));
                }
                ("rule", self.call(rule, "rule", (event,))?)
            }
            Some(failed) => {
                self.call.set_about(Some(input.about(rule, "expired")));
                ("expired", self.call(rule, "expired", (Dynamic::from(failed.key.clone()), event))?)
            }
        };
        answer.as_bool().map_err(|_| RuleFailure::wrong_type(function, "true or false", &answer))
    }

    /// Calls an optional function that returns a string, if the rule has it. Numbers and booleans are converted.
    pub fn text(
        &self,
        rule: &CompiledRule,
        function: &str,
        input: &RuleInput<'_>,
    ) -> Option<Result<String, RuleFailure>> {
        self.optional(rule, function, input, |answer| match answer.type_name() {
            "string" | "i64" | "f64" | "bool" | "char" => Ok(answer.to_string()),
            _ => Err("a string"),
        })
    }

    /// Calls `fn unique(event)`. `()` means that the match is not counted.
    pub fn unique(&self, rule: &CompiledRule, input: &RuleInput<'_>) -> Option<Result<Option<String>, RuleFailure>> {
        self.optional(rule, "unique", input, |answer| match answer.type_name() {
            "()" => Ok(None),
            "string" | "i64" | "f64" | "bool" | "char" => Ok(Some(answer.to_string())),
            _ => Err("a string, a number, or `()`"),
        })
    }

    /// Calls `fn severity(event)`.
    pub fn severity(&self, rule: &CompiledRule, input: &RuleInput<'_>) -> Option<Result<Severity, RuleFailure>> {
        self.optional(rule, "severity", input, |answer| {
            let text = answer.read_lock::<ImmutableString>().map(|text| text.to_string());
            text.and_then(|text| text.parse().ok()).ok_or("`info`, `low`, `medium`, `high` or `critical`")
        })
    }

    /// Calls `fn destinations(event)`.
    pub fn destinations(&self, rule: &CompiledRule, input: &RuleInput<'_>) -> Option<Result<Vec<String>, RuleFailure>> {
        self.optional(rule, "destinations", input, |answer| {
            answer
                .read_lock::<Array>()
                .and_then(|items| {
                    items.iter().map(|item| item.read_lock::<ImmutableString>().map(|text| text.to_string())).collect()
                })
                .ok_or("a list of destination names")
        })
    }

    /// Calls `fn context(event)`.
    pub fn context(
        &self,
        rule: &CompiledRule,
        input: &RuleInput<'_>,
    ) -> Option<Result<serde_json::Map<String, serde_json::Value>, RuleFailure>> {
        self.optional(rule, "context", input, |answer| {
            if !answer.is_map() {
                return Err("a map, such as `#{ target: … }`");
            }
            to_json_map(answer).ok_or("a map of strings, numbers, lists and maps")
        })
    }

    /// Calls the check function of a check rule with the record to check. `None`: it cannot decide now.
    pub fn check(
        &self,
        rule: &CompiledRule,
        function: &str,
        record: Dynamic,
    ) -> Result<Option<Vec<Finding>>, RuleFailure> {
        self.call.set_about(None);
        let answer = self.call(rule, function, (record,))?;
        let wrong = || RuleFailure::wrong_type(function, "true, false, `()`, a map, or a list of maps", &answer);
        if answer.is_unit() {
            return Ok(None);
        }
        if let Ok(unwell) = answer.as_bool() {
            return Ok(Some(if unwell { vec![Finding::default()] } else { Vec::new() }));
        }
        if answer.is_map() {
            return finding(&answer).map(|finding| Some(vec![finding])).ok_or_else(wrong);
        }
        let findings = answer.read_lock::<Array>().and_then(|items| items.iter().map(finding).collect());
        findings.map(Some).ok_or_else(wrong)
    }

    fn optional<T>(
        &self,
        rule: &CompiledRule,
        function: &str,
        input: &RuleInput<'_>,
        convert: impl FnOnce(&Dynamic) -> Result<T, &'static str>,
    ) -> Option<Result<T, RuleFailure>> {
        if !rule.has(function) {
            return None;
        }
        self.call.set_about(Some(input.about(rule, function)));
        let answer = self.call(rule, function, (input.value_for(rule),));
        Some(
            answer.and_then(|answer| {
                convert(&answer).map_err(|wanted| RuleFailure::wrong_type(function, wanted, &answer))
            }),
        )
    }

    /// Whether an exception suppresses a match of a rule.
    pub fn excepts(
        &self,
        rule: &CompiledRule,
        exception: &Exception,
        input: &RuleInput<'_>,
    ) -> Result<bool, RuleFailure> {
        let event = input.value_for(rule);
        self.call.set_about(Some(input.about(rule, "exception")));
        match &exception.condition {
            ExceptionCondition::Expression { ast, .. } => {
                let answer = self.guarded(rule, "exceptions", || {
                    let mut scope = Scope::new();
                    scope.push_constant("event", event);
                    scope.push_constant("params", rule.metadata.params.clone());
                    self.engine.eval_ast_with_scope::<Dynamic>(&mut scope, ast)
                })?;
                let wrong = || RuleFailure::wrong_type("the condition", "true or false", &answer);
                answer.as_bool().map_err(|_| wrong())
            }
            ExceptionCondition::Values { slot, values } => {
                let Some(fields) = rule.metadata.exception_slots.get(slot) else {
                    return Ok(false);
                };
                // Every combination of values must be excepted, so that one list item does not hide the others. Absent
                // fields never match: an exception must not suppress what it does not know.
                let found = slot_combinations(&event, fields);
                let excepted = |found: &Vec<String>| values.iter().any(|wanted| wanted == found);
                Ok(!found.is_empty() && found.iter().all(excepted))
            }
        }
    }

    /// The values of the fields in one of the rule's exception slots.
    pub fn slot(&self, rule: &CompiledRule, slot: &str, input: &RuleInput<'_>) -> Vec<Option<String>> {
        let fields = rule.metadata.exception_slots.get(slot).map_or(&[][..], Vec::as_slice);
        slot_values(&input.value_for(rule), fields)
    }

    fn call(&self, rule: &CompiledRule, function: &str, arguments: impl FuncArgs) -> Result<Dynamic, RuleFailure> {
        let options = CallFnOptions::new().eval_ast(rule.imports);
        self.guarded(rule, function, || {
            let mut scope = Scope::new();
            if rule.imports {
                scope.push_constant("params", rule.metadata.params.clone());
            }
            self.engine.call_fn_with_options::<Dynamic>(options, &mut scope, &rule.ast, function, arguments)
        })
    }

    /// Runs code of a rule within its limits; a panic in the host becomes a failure of the rule.
    fn guarded(
        &self,
        rule: &CompiledRule,
        what: &str,
        run: impl FnOnce() -> Result<Dynamic, Box<EvalAltResult>>,
    ) -> Result<Dynamic, RuleFailure> {
        if let Some(watch) = &self.watch {
            watch(rule.id(), &rule.hash);
        }
        let begun = self.call.begin(self.limits.time);
        self.call.set_current(Arc::clone(&rule.running));
        let result = std::panic::catch_unwind(AssertUnwindSafe(run));
        let exceeded = self.call.end();
        rule.cost.add(what, self.call.since(begun));
        match result {
            Ok(Ok(answer)) => exceeded.map_or(Ok(answer), |exceeded| Err(RuleFailure::exceeded(exceeded))),
            Ok(Err(error)) => {
                let failure = RuleFailure::of(&error);
                // An error that the rule raised after catching the limit says less than the limit itself.
                let own = exceeded.map(RuleFailure::exceeded).filter(|exceeded| exceeded.kind != failure.kind);
                Err(own.unwrap_or(failure))
            }
            Err(_) => Err(RuleFailure {
                kind: FailureKind::Panicked,
                message: format!("internal error while running `{what}`; please report this rule"),
            }),
        }
    }
}

/// The values of fields. In a path, `[]` is the first list item that has the rest of the path.
fn slot_values(event: &Dynamic, fields: &[String]) -> Vec<Option<String>> {
    let value = |path: &String| fields::follow_all(event, path).into_iter().next().map(|value| value.to_string());
    fields.iter().map(value).collect()
}

/// The combinations of values of fields, with those of all list items in a path; none if a field is absent, or if there are
/// too many.
fn slot_combinations(event: &Dynamic, fields: &[String]) -> Vec<Vec<String>> {
    const MOST: usize = 1_000;
    let mut combinations: Vec<Vec<String>> = vec![Vec::new()];
    for path in fields {
        let mut values: Vec<String> =
            fields::follow_all(event, path).into_iter().map(|value| value.to_string()).collect();
        values.sort_unstable();
        values.dedup();
        if combinations.len().saturating_mul(values.len()) > MOST {
            return Vec::new();
        }
        let with = |combination: &Vec<String>| {
            values
                .iter()
                .map(|value| [combination.as_slice(), std::slice::from_ref(value)].concat())
                .collect::<Vec<_>>()
        };
        combinations = combinations.iter().flat_map(with).collect();
    }
    combinations
}

fn finding(value: &Dynamic) -> Option<Finding> {
    let map = value.read_lock::<Map>()?;
    let text = |name: &str| map.get(name).filter(|value| !value.is_unit()).map(ToString::to_string);
    Some(Finding {
        key: text("key").unwrap_or_default(),
        title: text("title"),
        severity: match text("severity") {
            Some(name) => Some(name.parse().ok()?),
            None => None,
        },
        description: text("description"),
        context: match map.get("context") {
            Some(context) => to_json_map(context)?,
            None => serde_json::Map::new(),
        },
    })
}

fn to_json_map(value: &Dynamic) -> Option<serde_json::Map<String, serde_json::Value>> {
    match to_json_value(value) {
        serde_json::Value::Object(map) => Some(map),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// All pairs of short values: no two of them join to the same string.
    #[test]
    fn no_two_groups_read_alike() {
        let parts = ["", "a", " ", "/", "\\", "-"];
        let values: Vec<String> = parts
            .iter()
            .flat_map(|one| parts.iter().flat_map(move |two| parts.map(|three| format!("{one}{two}{three}"))))
            .collect();
        let values: std::collections::BTreeSet<String> = values.into_iter().collect();
        let mut seen: HashMap<String, (&str, &str)> = HashMap::new();
        for one in &values {
            for two in &values {
                let joined = [escaped_value(one), escaped_value(two)].join(" / ");
                if let Some(other) = seen.insert(joined, (one, two)) {
                    panic!("{other:?} and {:?}", (one, two));
                }
            }
        }
        assert_eq!(escaped_value("https://x/a"), "https://x/a");
    }
}
