//! Test files for rules: `NAME.test.yaml` next to `NAME.rhai`. A test file is a list of cases, each with an event or a
//! timed sequence of events, and the expected alerts.
//!
//! Events are written as they appear in the audit log. JSON is valid YAML, so they can be pasted. A missing id or time
//! is filled in. Time is virtual: it starts at [`BEGINNING`], and `at`, `repeat` and `every` advance it.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor, value::SeqAccessDeserializer},
};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

use crate::rule::load::files::Inside;
use crate::{
    config::diagnostic::{Diagnostic, nearest, suggest},
    model::{
        action::ListedAction,
        alert::Severity,
        event::{Event, IncomingEvent, NO_ACTION},
        name::{EventId, Sequence, SourceName},
        time::{self, Timestamp},
    },
};

/// The time at which every case starts: an ordinary Thursday, at noon UTC.
pub const BEGINNING: &str = "2026-01-15T12:00:00Z";
/// Maximum number of events in a case. For more, use a replay.
const MAX_EVENTS: usize = 100_000;
/// Maximum size of a test file.
const MAX_FILE_BYTES: usize = 8 * 1024 * 1024;
/// Maximum size of an events file that a case refers to.
const MAX_EVENTS_BYTES: u64 = 256 * 1024 * 1024;
/// The keys of a step of a sequence.
const STEP_KEYS: [&str; 4] = ["event", "at", "repeat", "every"];

/// A test case: events, and the expected result.
#[derive(Debug, Clone)]
pub struct Case {
    /// The name of the case.
    pub name: String,
    /// The line of the test file where the case starts.
    pub line: usize,
    /// The events, in order.
    pub events: Vec<Event>,
    /// The organization's actions during the case.
    pub actions: Vec<ListedAction>,
    /// The time up to which no more events happen after the last one.
    pub until: Option<Timestamp>,
    /// Values for `params` of the rule, which replace its own.
    pub params: Option<Value>,
    /// The expected alerts, in the order in which they open.
    pub expected: Expected,
    /// Whether the rule is expected to match at all, for rules that raise no alerts.
    pub matches: Option<bool>,
    /// Substrings of the expected errors. If empty, the rule must not fail.
    pub errors: Vec<String>,
}

/// The alerts that a case expects.
#[derive(Debug, Clone, PartialEq)]
pub enum Expected {
    /// At least one alert if true, none if false.
    Any(bool),
    /// Exactly this number of alerts.
    Count(usize),
    /// Exactly these alerts.
    Alerts(Vec<ExpectedAlert>),
}

impl Expected {
    /// Whether any alert is expected.
    pub fn alerts(&self) -> bool {
        match self {
            Self::Any(any) => *any,
            Self::Count(count) => *count > 0,
            Self::Alerts(alerts) => !alerts.is_empty(),
        }
    }
}

/// The expected values of an alert. Missing values are not compared.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExpectedAlert {
    /// The alert's title.
    pub title: Option<String>,
    /// The alert's severity.
    pub severity: Option<Severity>,
    /// The alert's dedup key.
    pub dedup: Option<String>,
    /// The number of matches in the alert.
    pub count: Option<u64>,
    /// A subset of the alert's context.
    pub context: Option<Map<String, Value>>,
    /// The alert's description.
    pub description: Option<String>,
    /// The alert's runbook.
    pub runbook: Option<String>,
    /// The alert's reference.
    pub reference: Option<String>,
    /// Names of the alert's destinations.
    pub destinations: Option<Vec<String>>,
    /// Substrings of the errors of the rule's optional functions, in order.
    pub errors: Option<Vec<String>>,
}

/// A case as written in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: Spanned<String>,
    event: Option<Value>,
    events: Option<Value>,
    /// Activity names, by action id.
    #[serde(default)]
    actions: BTreeMap<String, String>,
    until: Option<String>,
    params: Option<Value>,
    expect: WrittenExpectation,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenExpectation {
    alert: Option<bool>,
    alerts: Option<WrittenAlerts>,
    #[serde(rename = "match")]
    matches: Option<bool>,
    #[serde(default)]
    errors: Vec<String>,
}

#[derive(Debug)]
enum WrittenAlerts {
    Count(usize),
    These(Vec<ExpectedAlert>),
}

impl<'de> Deserialize<'de> for WrittenAlerts {
    /// Implemented by hand, so that an error names the problem in an alert rather than that neither form matches.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = WrittenAlerts;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a number of alerts or a list of alerts")
            }

            fn visit_u64<E: serde::de::Error>(self, count: u64) -> Result<Self::Value, E> {
                usize::try_from(count).map(WrittenAlerts::Count).map_err(E::custom)
            }

            fn visit_i64<E: serde::de::Error>(self, count: i64) -> Result<Self::Value, E> {
                usize::try_from(count).map(WrittenAlerts::Count).map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, alerts: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(alerts)).map(WrittenAlerts::These)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Returns the path of the test file for a rule file.
pub fn test_file(rule: &Path) -> PathBuf {
    rule.with_extension("test.yaml")
}

/// Reads a rule's test file. Returns `None` if it does not exist. A file that exists but cannot be read is an error.
pub fn text_of(file: &Path) -> Result<Option<String>, Vec<Diagnostic>> {
    let unreadable =
        |problem: String| vec![Diagnostic::error("E401", file, problem).help("correct the test file, or delete it")];
    if !file.exists() && file.symlink_metadata().is_err() {
        return Ok(None);
    }
    if let Some(problem) = allowed_places(file).refuses(file, MAX_FILE_BYTES as u64, "test file") {
        return Err(unreadable(problem));
    }
    std::fs::read_to_string(file).map(Some).map_err(|error| unreadable(format!("cannot read the test file: {error}")))
}

/// The places where a test file and its events files may be: the test file's directory and everything below it.
fn allowed_places(file: &Path) -> Inside {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Inside::new(&[directory.to_owned()], false)
}

/// Parses the text of a test file. `read_events` reads an events file that a case refers to.
pub fn read(
    file: &Path,
    text: &str,
    read_events: &dyn Fn(&Path) -> Result<Vec<IncomingEvent>, String>,
) -> (Vec<Case>, Vec<Diagnostic>) {
    let text: Arc<str> = text.into();
    if text.len() > MAX_FILE_BYTES {
        return (Vec::new(), vec![Diagnostic::error("E401", file, "the test file is larger than 8 MiB")]);
    }
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return (Vec::new(), vec![Diagnostic::error("E401", file, "the test file has no cases")]);
    }
    let written: Vec<Written> = match serde_saphyr::from_str(&text) {
        Ok(written) => written,
        Err(error) => {
            let mut diagnostic = Diagnostic::error("E401", file, first_line(&error.without_snippet().to_string()));
            if let Some(location) = error.location() {
                diagnostic = diagnostic.at(&text, line_span(&text, usize::try_from(location.line()).unwrap_or(1)));
            }
            let near = misspelt(&diagnostic.message).map(|near| format!("did you mean `{near}`?"));
            let usual = "a test file is a list of cases, each with `name`, `event` or `events`, and `expect`";
            return (Vec::new(), vec![diagnostic.help(near.unwrap_or_else(|| usual.to_owned()))]);
        }
    };
    let mut cases = Vec::new();
    let mut diagnostics = Vec::new();
    for (number, written) in written.into_iter().enumerate() {
        let line = usize::try_from(written.name.defined.line()).unwrap_or(1);
        let name = written.name.value.clone();
        match case(file, number, line, written, read_events) {
            Ok(case) => cases.push(case),
            Err(problem) => diagnostics.push(
                Diagnostic::error("E402", file, format!("case \"{name}\": {problem}"))
                    .at(&text, line_span(&text, line)),
            ),
        }
    }
    (cases, diagnostics)
}

/// Finds the name that an unknown name was probably meant to be, in `… `titel`, expected one of title, severity`.
fn misspelt(message: &str) -> Option<String> {
    let (found, known) = message.split_once("`, expected one of ")?;
    let found = found.rsplit('`').next()?;
    nearest(found, known.split(", ").map(|name| name.trim_matches('`'))).map(str::to_owned)
}

/// Returns the first line of an error, without the place, which is shown separately.
fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let place = line.rfind(" at line ").or_else(|| line.rfind(", at line "));
    place.and_then(|place| line.get(..place)).unwrap_or(line).to_owned()
}

fn line_span(text: &str, line: usize) -> std::ops::Range<usize> {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let rest = text.get(start..).unwrap_or_default();
    let line = rest.lines().next().unwrap_or_default();
    let indent = line.len() - line.trim_start().len();
    start + indent..start + line.trim_end().len().max(indent)
}

fn case(
    file: &Path,
    number: usize,
    line: usize,
    written: Written,
    read_events: &dyn Fn(&Path) -> Result<Vec<IncomingEvent>, String>,
) -> Result<Case, String> {
    let expected = match (written.expect.alert, written.expect.alerts) {
        (Some(any), None) => Expected::Any(any),
        (None, Some(WrittenAlerts::Count(count))) => Expected::Count(count),
        (None, Some(WrittenAlerts::These(alerts))) => Expected::Alerts(alerts),
        (None, None) if !written.expect.errors.is_empty() || written.expect.matches.is_some() => Expected::Any(false),
        _ => {
            return Err("`expect` must have either `alert` or `alerts` (or `match`, for a signal)".to_owned());
        }
    };
    let mut timeline = Timeline::new(number)?;
    match (written.event, written.events) {
        (Some(event), None) => timeline.step(&event)?,
        (None, Some(Value::String(name))) => {
            let path = file.parent().unwrap_or(Path::new("")).join(&name);
            if let Some(problem) = allowed_places(file).refuses(&path, MAX_EVENTS_BYTES, "file of test events") {
                return Err(format!("`{name}`: {problem}"));
            }
            timeline.file(read_events(&path).map_err(|error| format!("cannot read `{name}`: {error}"))?)?;
        }
        (None, Some(Value::Array(steps))) => {
            for step in steps {
                timeline.step(&step)?;
            }
        }
        (None, Some(_)) => return Err("`events` must be a list of events or the name of an events file".to_owned()),
        _ => return Err("a case must have either `event` or `events`".to_owned()),
    }
    if timeline.events.is_empty() {
        return Err("the case has no events".to_owned());
    }
    let until = written
        .until
        .map(|text| time::parse_duration(&text))
        .transpose()
        .map_err(|error| format!("`until`: {error}"))?;
    Ok(Case {
        name: written.name.value,
        line,
        until: until.map(|until| time::after(timeline.beginning, until)),
        events: timeline.events,
        actions: written
            .actions
            .into_iter()
            .map(|(id, name)| ListedAction { id: id.into(), name: Some(name), group: None })
            .collect(),
        params: written.params,
        expected,
        matches: written.expect.matches,
        errors: written.expect.errors,
    })
}

/// Builds the events of a case and keeps the virtual time.
struct Timeline {
    case: usize,
    source: SourceName,
    beginning: Timestamp,
    now: Timestamp,
    events: Vec<Event>,
    seen: HashSet<EventId>,
}

impl Timeline {
    fn new(case: usize) -> Result<Self, String> {
        let beginning = time::parse_timestamp(BEGINNING).ok_or("internal error: invalid start time")?;
        let source = SourceName::parse("test").map_err(|error| error.to_string())?;
        Ok(Self { case, source, beginning, now: beginning, events: Vec::new(), seen: HashSet::new() })
    }

    /// Adds an event, or a map with `event` and its timing.
    fn step(&mut self, step: &Value) -> Result<(), String> {
        let Some(map) = step.as_object() else {
            return Err("an event must be a map, as in the audit log".to_owned());
        };
        let Some(event) = map.get("event") else {
            let mut event = map.clone();
            let at = event.remove("at");
            let (repeat, every) = (event.remove("repeat"), event.remove("every"));
            return self.repeat(&event, at.as_ref(), repeat.as_ref(), every.as_ref());
        };
        if let Some(key) = map.keys().find(|key| !STEP_KEYS.contains(&key.as_str())) {
            return Err(format!("unknown key `{key}` next to `event`: {}", suggest(key, STEP_KEYS)));
        }
        let event = event.as_object().ok_or("`event` must be a map, as in the audit log")?;
        self.repeat(event, map.get("at"), map.get("repeat"), map.get("every"))
    }

    fn repeat(
        &mut self,
        event: &Map<String, Value>,
        at: Option<&Value>,
        repeat: Option<&Value>,
        every: Option<&Value>,
    ) -> Result<(), String> {
        let repeat = match repeat {
            None => 1,
            Some(value) => value
                .as_u64()
                .and_then(|number| usize::try_from(number).ok())
                .filter(|number| (1..=MAX_EVENTS).contains(number))
                .ok_or_else(|| format!("`repeat` must be a whole number from 1 to {MAX_EVENTS}"))?,
        };
        if self.events.len() + repeat > MAX_EVENTS {
            return Err(format!("the case has more than {MAX_EVENTS} events"));
        }
        let every = every.map_or(Ok(Duration::from_secs(1)), |value| duration("every", value))?;
        let own = event.get("attributes").and_then(|attributes| attributes.get("time")).and_then(Value::as_str);
        let own = match own {
            Some(text) if at.is_none() => {
                let expected = || format!("`{text}` is not a time: expected RFC 3339, such as `{BEGINNING}`");
                Some(time::parse_timestamp(text).ok_or_else(expected)?)
            }
            _ => None,
        };
        if let Some(at) = at {
            self.now = match at.as_str().and_then(time::parse_timestamp) {
                Some(time) => time,
                None => time::after(self.beginning, duration("at", at)?),
            };
        } else if let Some(own) = own {
            self.now = own;
        }
        for index in 0..repeat {
            if index > 0 {
                self.now = time::after(self.now, every);
            }
            self.add(event, repeat > 1)?;
        }
        Ok(())
    }

    fn add(&mut self, event: &Map<String, Value>, repeated: bool) -> Result<(), String> {
        let number = self.events.len() + 1;
        let mut event = event.clone();
        let id = match event.get("id").and_then(Value::as_str) {
            Some(id) if !repeated => id.to_owned(),
            Some(id) => format!("{id}-{number}"),
            None => format!("case-{}-event-{number}", self.case + 1),
        };
        event.insert("id".to_owned(), id.into());
        event.entry("type").or_insert_with(|| "events".into());
        let attributes = event.entry("attributes").or_insert_with(|| Value::Object(Map::new()));
        let attributes = attributes.as_object_mut().ok_or("`attributes` of an event must be a map")?;
        attributes.insert("time".to_owned(), self.now.to_string().into());
        let raw = Value::Object(event).to_string();
        let incoming = IncomingEvent::parse(&raw)
            .map_err(|rejected| format!("not a valid audit log event: {}", rejected.reason))?;
        if &*incoming.action == NO_ACTION {
            return Err("not a valid audit log event: no `attributes.action`".to_owned());
        }
        self.push(incoming, self.now)
    }

    fn push(&mut self, incoming: IncomingEvent, arrived: Timestamp) -> Result<(), String> {
        if self.events.len() >= MAX_EVENTS {
            return Err(format!("the case has more than {MAX_EVENTS} events"));
        }
        // Duplicate events are dropped, as in the store.
        if self.seen.insert(incoming.id.clone()) {
            let number = u64::try_from(self.events.len() + 1).map_err(|error| error.to_string())?;
            self.events.push(incoming.into_event(self.source.clone(), Sequence(number), arrived));
        }
        Ok(())
    }

    fn file(&mut self, events: Vec<IncomingEvent>) -> Result<(), String> {
        for incoming in events {
            let arrived = incoming.time.or(incoming.processed).unwrap_or(self.now);
            self.push(incoming, arrived)?;
        }
        Ok(())
    }
}

fn duration(key: &str, value: &Value) -> Result<Duration, String> {
    let text = value.as_str().ok_or_else(|| format!("`{key}` must be a duration, such as `10m`"))?;
    time::parse_duration(text).map_err(|error| format!("`{key}`: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cases(text: &str) -> (Vec<Case>, Vec<String>) {
        let (cases, found) = read(Path::new("x.test.yaml"), text, &|_| Err("not here".to_owned()));
        (cases, found.iter().map(Diagnostic::one_line).collect())
    }

    #[test]
    fn time_is_virtual_and_ids_are_filled_in() {
        let (cases, found) = cases(
            "- name: several\n  events:\n    - { attributes: { action: a } }\n    - at: 10m\n      repeat: 3\n      every: 30s\n      event: { \"attributes\": { \"action\": \"b\" } }\n  expect: { alerts: 1 }\n",
        );
        assert_eq!(found, Vec::<String>::new());
        let seconds: Vec<i64> = cases[0]
            .events
            .iter()
            .map(|event| event.time.duration_since(BEGINNING.parse().unwrap()).as_secs())
            .collect();
        assert_eq!(seconds, [0, 600, 630, 660]);
        assert_eq!(cases[0].events[3].id.as_str(), "case-1-event-4");
    }

    #[test]
    fn problems_are_reported_with_their_place() {
        let problems = |text: &str| cases(text).1.join("; ");
        assert!(problems("- name: a\n  evnt: {}\n  expect: { alert: true }\n").contains("x.test.yaml:2:3: "));
        assert!(problems("[").starts_with("x.test.yaml:1:"));
        let case = |body: &str| problems(&format!("- name: a\n{body}"));
        assert!(case("  event: {}\n  expect: { alert: true }\n").contains("no `attributes.action`"));
        assert!(case("  event: { attributes: { action: a } }\n  expect: {}\n").contains("`expect` must have either"));
        assert!(
            case("  events: [{ event: { attributes: { action: a } }, repat: 2 }]\n  expect: { alert: true }\n")
                .contains("did you mean `repeat`?")
        );
        assert!(
            case("  events: nowhere.jsonl\n  expect: { alert: true }\n")
                .contains("`nowhere.jsonl`: cannot read the file")
        );
        assert!(
            case("  events: [{ at: soon, attributes: { action: a } }]\n  expect: { alert: true }\n")
                .contains("not a duration")
        );
    }
}
