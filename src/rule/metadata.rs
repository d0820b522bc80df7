//! `const RULE = #{ … }`: what a rule says about itself, every key known and typed.
//!
//! The values come from running the file's top level once; the places for messages come from the parsed literal.

use std::{collections::HashMap, ops::Range, path::Path, sync::Arc, time::Duration};

use rhai::{Array, Dynamic, ImmutableString, Map};

use super::problem;
use crate::{
    alert::Severity,
    diagnostic::{Diagnostic, nearest, suggest},
    name::RuleId,
    time,
};

/// Every key of `RULE`, in the order of the documentation.
pub const KEYS: [&str; 16] = [
    "id",
    "title",
    "severity",
    "enabled",
    "actions",
    "description",
    "runbook",
    "reference",
    "tags",
    "attack",
    "dedup_period",
    "threshold",
    "window",
    "destinations",
    "params",
    "resolved",
];

/// The period in which matches join one alert where a rule says nothing else.
pub(super) const DEFAULT_DEDUP_PERIOD: Duration = Duration::from_secs(3_600);
/// Bounds the matches that are remembered for one key.
pub(super) const MAX_THRESHOLD: i64 = 10_000;

/// What a rule says about itself.
#[derive(Debug, Clone)]
pub struct Metadata {
    /// Unique, dotted.
    pub id: RuleId,
    /// The alert's title where the rule has no `fn title`.
    pub title: String,
    /// The alert's severity where the rule has no `fn severity`.
    pub severity: Severity,
    /// Off: loaded and checked, but not run.
    pub enabled: bool,
    /// Action ids and `*` globs; absent: every event.
    pub actions: Option<Vec<String>>,
    /// What it means.
    pub description: Option<String>,
    /// What to do.
    pub runbook: Option<String>,
    /// Where to read more.
    pub reference: Option<String>,
    /// Free words to select by.
    pub tags: Vec<String>,
    /// MITRE ATT&CK ids of tactics and techniques.
    pub attack: Vec<String>,
    /// How long an alert takes in further matches with its key.
    pub dedup_period: Duration,
    /// Matches (distinct values, where the rule has `fn unique`) that it takes to open an alert.
    pub threshold: u32,
    /// The sliding window in which they are counted.
    pub window: Duration,
    /// Destinations by name; absent: routed as configured.
    pub destinations: Option<Vec<String>>,
    /// Values that the configuration may change; `params` inside the rule's functions.
    pub params: Map,
    /// For check rules: the title of the notice when all is well again.
    pub resolved: Option<String>,
}

/// Where the keys and values of the literal stand, in bytes.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub(super) whole: Range<usize>,
    pub(super) keys: HashMap<String, (Range<usize>, Range<usize>)>,
}

/// Reads `RULE`. Everything that is wrong is noted; `None` if no usable rule is left.
pub(super) fn read(map: &Map, places: &Places, file: &Path, text: &Arc<str>) -> (Option<Metadata>, Vec<Diagnostic>) {
    let mut reader = Reader { map, places, file, text, found: Vec::new() };
    for key in map.keys() {
        if !KEYS.contains(&key.as_str()) {
            reader.problem(
                "E201",
                key,
                true,
                format!("unknown key `{key}` in `RULE`"),
                suggest(key, KEYS.iter().copied()),
            );
        }
    }
    let id = reader
        .required("id", "\"team.subject.what_happened\"")
        .and_then(|id| RuleId::parse(&id).map_err(|error| reader.wrong("id", error.to_string())).ok());
    let title = reader.required("title", "\"What happened, in one line\"");
    let severity = reader.required("severity", "\"medium\"").and_then(|name| {
        name.parse::<Severity>()
            .map_err(|error| {
                let near = nearest(&name, Severity::ALL.map(Severity::as_str));
                let near = near.map_or(String::new(), |near| format!("did you mean `{near}`?"));
                reader.problem("E203", "severity", false, error, near);
            })
            .ok()
    });
    let dedup_period = reader.duration("dedup_period").unwrap_or(DEFAULT_DEDUP_PERIOD);
    let metadata = Metadata {
        id: id.clone().unwrap_or_else(|| RuleId::clone(&placeholder())),
        title: title.clone().unwrap_or_default(),
        severity: severity.unwrap_or(Severity::Medium),
        enabled: reader.boolean("enabled").unwrap_or(true),
        actions: reader.actions(),
        description: reader.text("description"),
        runbook: reader.text("runbook"),
        reference: reader.text("reference"),
        tags: reader.texts("tags").unwrap_or_default(),
        attack: reader.texts("attack").unwrap_or_default(),
        dedup_period,
        threshold: reader.threshold(),
        window: reader.duration("window").unwrap_or(dedup_period),
        destinations: reader.texts("destinations"),
        params: reader.params(),
        resolved: reader.text("resolved"),
    };
    let usable = reader.found.is_empty() && id.is_some() && title.is_some() && severity.is_some();
    (usable.then_some(metadata), reader.found)
}

fn placeholder() -> RuleId {
    RuleId::try_from("not.read".to_owned()).unwrap_or_else(|_| unreachable!("a constant dotted name"))
}

struct Reader<'a> {
    map: &'a Map,
    places: &'a Places,
    file: &'a Path,
    text: &'a Arc<str>,
    found: Vec<Diagnostic>,
}

impl Reader<'_> {
    fn problem(&mut self, code: &'static str, key: &str, at_key: bool, message: String, help: String) {
        let place = self.places.keys.get(key);
        let span = match place {
            Some((key, value)) => {
                if at_key {
                    key.clone()
                } else {
                    value.clone()
                }
            }
            None => self.places.whole.clone(),
        };
        let mut diagnostic = Diagnostic::error(code, self.file, message).at(self.text, span);
        if !help.is_empty() {
            diagnostic = diagnostic.help(help);
        }
        self.found.push(diagnostic);
    }

    fn wrong(&mut self, key: &str, message: String) {
        self.problem("E203", key, false, message, String::new());
    }

    fn wrong_type(&mut self, key: &str, wanted: &str, found: &Dynamic) {
        let message = format!("`{key}` must be {wanted}, found {}", problem::describe(found));
        self.problem("E202", key, false, message, String::new());
    }

    fn text(&mut self, key: &str) -> Option<String> {
        let value = self.map.get(key)?;
        let text = as_text(value);
        if text.is_none() {
            self.wrong_type(key, "a text", value);
        }
        text
    }

    fn required(&mut self, key: &str, example: &str) -> Option<String> {
        if !self.map.contains_key(key) {
            self.problem("E204", key, true, format!("`RULE` has no `{key}`"), format!("add `{key}: {example}`"));
            return None;
        }
        let text = self.text(key)?;
        if text.trim().is_empty() {
            self.wrong(key, format!("`{key}` is empty"));
            return None;
        }
        Some(text)
    }

    fn boolean(&mut self, key: &str) -> Option<bool> {
        let value = self.map.get(key)?;
        let found = value.as_bool().ok();
        if found.is_none() {
            self.wrong_type(key, "`true` or `false`", value);
        }
        found
    }

    fn duration(&mut self, key: &str) -> Option<Duration> {
        let text = self.text(key)?;
        match time::parse_duration(&text) {
            Ok(duration) if !duration.is_zero() && duration <= Duration::from_secs(366 * 86_400) => Some(duration),
            Ok(_) => {
                self.wrong(key, format!("`{key}` must be more than nothing and at most 366d"));
                None
            }
            Err(error) => {
                self.wrong(key, format!("`{key}`: {error}"));
                None
            }
        }
    }

    fn texts(&mut self, key: &str) -> Option<Vec<String>> {
        let value = self.map.get(key)?;
        let items = value.read_lock::<Array>().map(|items| items.iter().map(as_text).collect::<Option<Vec<_>>>());
        match items {
            Some(Some(texts)) => Some(texts),
            _ => {
                self.wrong_type(key, "a list of texts", value);
                None
            }
        }
    }

    fn actions(&mut self) -> Option<Vec<String>> {
        let actions = self.texts("actions")?;
        if actions.is_empty() {
            self.wrong(
                "actions",
                "`actions` is empty, so the rule would never run: leave it out to see every event".to_owned(),
            );
        }
        for action in &actions {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:*".contains(&byte);
            if action.is_empty() || !action.bytes().all(plain) {
                self.wrong(
                    "actions",
                    format!("`{action}` is not an action id: letters, digits, `_ - . :`, and `*` for any text"),
                );
            }
        }
        Some(actions)
    }

    fn threshold(&mut self) -> u32 {
        let Some(value) = self.map.get("threshold") else {
            return 1;
        };
        match value.as_int() {
            Ok(number) if (1..=MAX_THRESHOLD).contains(&number) => u32::try_from(number).unwrap_or(1),
            _ => {
                self.wrong_type("threshold", &format!("a whole number from 1 to {MAX_THRESHOLD}"), value);
                1
            }
        }
    }

    fn params(&mut self) -> Map {
        let Some(value) = self.map.get("params") else {
            return Map::new();
        };
        match value.read_lock::<Map>() {
            Some(map) => map.clone(),
            None => {
                self.wrong_type("params", "a map, such as `#{ limit: 5 }`", value);
                Map::new()
            }
        }
    }
}

fn as_text(value: &Dynamic) -> Option<String> {
    value.read_lock::<ImmutableString>().map(|text| text.to_string())
}
