//! Tests of a rule: `NAME.test.yaml` beside `NAME.rhai`. A list of cases, each an event or a timed sequence of events, and the
//! alerts that are expected of them.
//!
//! Events are written as they come from the log; JSON is YAML, so it can be pasted. What a case leaves out of an event (id, time)
//! is filled in. Time is virtual: it begins at [`BEGINNING`] and is moved by `at`, `repeat` and `every`.

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

/// When the time of a case begins: an ordinary Thursday, at noon UTC.
pub const BEGINNING: &str = "2026-01-15T12:00:00Z";
/// Events of a case: more would be a replay.
const MAX_EVENTS: usize = 100_000;
/// Nothing in a test file is larger.
const MAX_FILE_BYTES: usize = 8 * 1024 * 1024;
/// A file of events that a test names may not be larger.
const MAX_EVENTS_BYTES: u64 = 256 * 1024 * 1024;
/// The keys of a step of a sequence.
const STEP_KEYS: [&str; 4] = ["event", "at", "repeat", "every"];

/// A case: what happens, and what should come of it.
#[derive(Debug, Clone)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// The line it begins at.
    pub line: usize,
    /// What happens, in order.
    pub events: Vec<Event>,
    /// What the organization says of its actions.
    pub actions: Vec<ListedAction>,
    /// Up to when nothing more happens.
    pub until: Option<Timestamp>,
    /// Values for `params` of the rule, in place of its own.
    pub params: Option<Value>,
    /// The alerts that are expected, in the order in which they open.
    pub expected: Expected,
    /// Whether the rule is expected to match at all: what a rule says that raises no alerts.
    pub matches: Option<bool>,
    /// Parts of errors that the rule is expected to make; none: it must not fail.
    pub errors: Vec<String>,
}

/// What is expected of a case.
#[derive(Debug, Clone, PartialEq)]
pub enum Expected {
    /// At least one alert, or none.
    Any(bool),
    /// So many.
    Count(usize),
    /// These.
    Alerts(Vec<ExpectedAlert>),
}

impl Expected {
    /// Whether an alert is expected at all.
    pub fn alerts(&self) -> bool {
        match self {
            Self::Any(any) => *any,
            Self::Count(count) => *count > 0,
            Self::Alerts(alerts) => !alerts.is_empty(),
        }
    }
}

/// What is expected of an alert; what is left out is not looked at.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExpectedAlert {
    /// Its title.
    pub title: Option<String>,
    /// Its severity.
    pub severity: Option<Severity>,
    /// Its dedup key.
    pub dedup: Option<String>,
    /// Its matches.
    pub count: Option<u64>,
    /// Part of its context.
    pub context: Option<Map<String, Value>>,
    /// Its description.
    pub description: Option<String>,
    /// Its runbook.
    pub runbook: Option<String>,
    /// Its reference.
    pub reference: Option<String>,
    /// Its destinations.
    pub destinations: Option<Vec<String>>,
    /// Parts of the errors of its optional functions, in order.
    pub errors: Option<Vec<String>>,
}

/// A case as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: Spanned<String>,
    event: Option<Value>,
    events: Option<Value>,
    /// Names for people, by action id.
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
    /// By hand, so that what is wrong with one of the alerts is said, and not that it fits neither form.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = WrittenAlerts;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("how many alerts, or a list of them")
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

/// The test file that belongs to a rule's file.
pub fn test_file(rule: &Path) -> PathBuf {
    rule.with_extension("test.yaml")
}

/// The text of a rule's test file; none where there is none. One that is there and cannot be read is a problem, not an absence.
pub fn text_of(file: &Path) -> Result<Option<String>, Vec<Diagnostic>> {
    let unreadable =
        |problem: String| vec![Diagnostic::error("E401", file, problem).help("write it again, or delete it")];
    if !file.exists() && file.symlink_metadata().is_err() {
        return Ok(None);
    }
    if let Some(problem) = beside(file).refuses(file, MAX_FILE_BYTES as u64, "test file") {
        return Err(unreadable(problem));
    }
    std::fs::read_to_string(file)
        .map(Some)
        .map_err(|error| unreadable(format!("the test file cannot be read: {error}")))
}

/// Where a test, and the events that it names, may be: in the directory of the test, or below it.
fn beside(file: &Path) -> Inside {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Inside::new(&[directory.to_owned()], false)
}

/// Reads the text of a test file. `read_events` reads a file of events that a case names.
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

/// What was probably meant by a name that is not known: `… `titel`, expected one of title, severity`.
fn misspelt(message: &str) -> Option<String> {
    let (found, known) = message.split_once("`, expected one of ")?;
    let found = found.rsplit('`').next()?;
    nearest(found, known.split(", ").map(|name| name.trim_matches('`'))).map(str::to_owned)
}

/// Without the place, which is shown beside it.
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
            return Err(
                "`expect` has either `alert: true`, `alert: false`, or `alerts` (or `match`, for a signal)".to_owned()
            );
        }
    };
    let mut timeline = Timeline::new(number)?;
    match (written.event, written.events) {
        (Some(event), None) => timeline.step(&event)?,
        (None, Some(Value::String(name))) => {
            let path = file.parent().unwrap_or(Path::new("")).join(&name);
            if let Some(problem) = beside(file).refuses(&path, MAX_EVENTS_BYTES, "file of events for a test") {
                return Err(format!("`{name}`: {problem}"));
            }
            timeline.file(read_events(&path).map_err(|error| format!("`{name}` cannot be read: {error}"))?)?;
        }
        (None, Some(Value::Array(steps))) => {
            for step in steps {
                timeline.step(&step)?;
            }
        }
        (None, Some(_)) => return Err("`events` is a list of events, or the name of a file of them".to_owned()),
        _ => return Err("a case has either `event` or `events`".to_owned()),
    }
    if timeline.events.is_empty() {
        return Err("there are no events".to_owned());
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

/// The events of a case as they happen.
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
        let beginning = time::parse_timestamp(BEGINNING).ok_or("no beginning")?;
        let source = SourceName::parse("test").map_err(|error| error.to_string())?;
        Ok(Self { case, source, beginning, now: beginning, events: Vec::new(), seen: HashSet::new() })
    }

    /// An event, or a map with `event` and when it happens how often.
    fn step(&mut self, step: &Value) -> Result<(), String> {
        let Some(map) = step.as_object() else {
            return Err("an event is a map, as in the log".to_owned());
        };
        let Some(event) = map.get("event") else {
            let mut event = map.clone();
            let at = event.remove("at");
            let (repeat, every) = (event.remove("repeat"), event.remove("every"));
            return self.repeat(&event, at.as_ref(), repeat.as_ref(), every.as_ref());
        };
        if let Some(key) = map.keys().find(|key| !STEP_KEYS.contains(&key.as_str())) {
            return Err(format!("unknown key `{key}` beside `event`: {}", suggest(key, STEP_KEYS)));
        }
        let event = event.as_object().ok_or("`event` is a map, as in the log")?;
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
                .ok_or_else(|| format!("`repeat` is a whole number from 1 to {MAX_EVENTS}"))?,
        };
        if self.events.len() + repeat > MAX_EVENTS {
            return Err(format!("there are more than {MAX_EVENTS} events"));
        }
        let every = every.map_or(Ok(Duration::from_secs(1)), |value| duration("every", value))?;
        let own = event.get("attributes").and_then(|attributes| attributes.get("time")).and_then(Value::as_str);
        let own = match own {
            Some(text) if at.is_none() => {
                Some(time::parse_timestamp(text).ok_or_else(|| format!("`{text}` is not a time: write RFC 3339"))?)
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
        let attributes = attributes.as_object_mut().ok_or("`attributes` of the event is a map")?;
        attributes.insert("time".to_owned(), self.now.to_string().into());
        let raw = Value::Object(event).to_string();
        let incoming = IncomingEvent::parse(&raw)
            .map_err(|rejected| format!("the log would not have such an event: {}", rejected.reason))?;
        if &*incoming.action == NO_ACTION {
            return Err("the log would not have such an event: no `attributes.action`".to_owned());
        }
        self.push(incoming, self.now)
    }

    fn push(&mut self, incoming: IncomingEvent, arrived: Timestamp) -> Result<(), String> {
        if self.events.len() >= MAX_EVENTS {
            return Err(format!("there are more than {MAX_EVENTS} events"));
        }
        // The store drops an event that it has already; so is it here.
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
    let text = value.as_str().ok_or_else(|| format!("`{key}` is a duration, such as `10m`"))?;
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
    fn what_is_wrong_is_told_with_its_place() {
        let told = |text: &str| cases(text).1.join("; ");
        assert!(told("- name: a\n  evnt: {}\n  expect: { alert: true }\n").contains("x.test.yaml:2:3: "));
        assert!(told("[").starts_with("x.test.yaml:1:"));
        let case = |body: &str| told(&format!("- name: a\n{body}"));
        assert!(case("  event: {}\n  expect: { alert: true }\n").contains("no `attributes.action`"));
        assert!(case("  event: { attributes: { action: a } }\n  expect: {}\n").contains("`expect` has either"));
        assert!(
            case("  events: [{ event: { attributes: { action: a } }, repat: 2 }]\n  expect: { alert: true }\n")
                .contains("did you mean `repeat`?")
        );
        assert!(
            case("  events: nowhere.jsonl\n  expect: { alert: true }\n")
                .contains("`nowhere.jsonl`: the file cannot be read")
        );
        assert!(
            case("  events: [{ at: soon, attributes: { action: a } }]\n  expect: { alert: true }\n")
                .contains("not a duration")
        );
    }
}
