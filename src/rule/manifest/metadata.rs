//! `const RULE = #{ … }`: what a rule says about itself, every key known and typed.
//!
//! The values come from running the file's top level once; the places for messages come from the parsed literal.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    ops::Range,
    path::Path,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use rhai::{Array, Dynamic, ImmutableString, Map};

use crate::rule::manifest::{selector::Selector, value};
use crate::{
    config::diagnostic::{Diagnostic, nearest, suggest},
    model::{alert::Severity, certainty::Certainty, name::RuleId, time},
};

/// A key of `RULE`.
#[derive(Debug, Clone, Copy)]
pub struct MetadataKey {
    /// Its name.
    pub name: &'static str,
    /// What stands there, in the words of the reference.
    pub takes: &'static str,
    /// What it is for.
    pub about: &'static str,
}

const fn key(name: &'static str, takes: &'static str, about: &'static str) -> MetadataKey {
    MetadataKey { name, takes, about }
}

/// Every key of `RULE`, in the order of the documentation.
pub const KEY_TABLE: &[MetadataKey] = &[
    key("id", "text, required", "Unique, in parts joined by dots: `team.subject.what_happened`."),
    key("title", "text, required", "The alert's title where there is no `fn title`."),
    key("severity", "text, required", "`info`, `low`, `medium`, `high` or `critical`."),
    key("enabled", "true or false", "`false`: checked, not run. Default `true`."),
    key("stage", "text", "`shadow`: matches and alerts are recorded, nobody is told. Default `active`."),
    key(
        "actions",
        "list of texts",
        "Action ids that it looks at; `*` is any text. Without it: every event, which costs.",
    ),
    key(
        "activities",
        "list of texts",
        "Names of actions, as Atlassian documents them and the organization lists them beside their ids: `[\"Deactivated account\"]`. It looks \
         at the actions that have one of these names, beside those of `actions`.",
    ),
    key(
        "evidence",
        "text",
        "How sure its actions are. `verified`: seen in a real event. `sample`: in a vendor's sample or data model. `documented`: Atlassian \
         documents the activity, not its id. `assumed`: likely, and no more.",
    ),
    key(
        "on",
        "list of texts",
        "In place of `actions` and `activities`: rules whose matches it runs on, `rule:atlassian.identity.*`, `tag:initial-access` or `risk`: once they open an \
         alert or join one, or would if they are signals. The event then has `rule`, `severity`, `key`, `title` and `risk` of the match \
         beside it, and `opened`: whether it is the first of its alert.",
    ),
    key(
        "risk",
        "number",
        "What a match adds to the risk of its actor: rules with `on: [\"risk\"]` hear of it, and find it in `event.risk`.",
    ),
    key(
        "flagged",
        "true or false",
        "`true`: it looks at events that something is unusual about, and at no others: those whose `event.flags` is not empty.",
    ),
    key("signal", "true or false", "`true`: its matches are there for rules that listen to them, and raise no alert."),
    key("description", "text", "What it means."),
    key(
        "runbook",
        "text, or list of texts",
        "What to do about it. A list becomes numbered steps. `{actor}`, `{target}`, `{ip}` and `{time}` stand for what the event says, so that \
         commands can be copied: `watchbell events list --actor {actor} --since {time}`.",
    ),
    key("reference", "text", "Where to read more."),
    key("severity_reason", "text", "Why it is as severe as it is."),
    key("false_positives", "list of texts", "What else may look like it."),
    key(
        "requires",
        "text",
        "What the organization must have for there to be such events: `Guard Premium or Enterprise`.",
    ),
    key("tags", "list of texts", "Free words to select by."),
    key("attack", "list of texts", "MITRE ATT&CK tactics and techniques: `TA0004`, `T1098.003`."),
    key("dedup_period", "duration", "How long matches with the same key join one alert. Default `1h`."),
    key("threshold", "number", "Matches that it takes, 1 to 10,000. Default 1."),
    key("window", "duration", "The sliding window in which they are counted. Default: the dedup period."),
    key(
        "group_by",
        "list of texts",
        "Fields, by paths, whose values are the dedup key: `[\"actor.email\"]`. Short for `fn dedup(event)`, which goes before it.",
    ),
    key("destinations", "list of texts", "Names of destinations, in place of the configured routing."),
    key("params", "map", "Values that overrides may change; `params.x` in functions. Types are those of the defaults."),
    key(
        "exception_slots",
        "map of lists of texts",
        "Fields, by paths, for which a list of values is a safe way to make exceptions: `#{ actor: [\"actor.email\"] }`. In a path `[]` is the \
         first item of a list that has what follows: `attributes.context[].attributes.groupName`.",
    ),
    key("resolved", "text", "For checks: the title when all is well again."),
];

/// The period in which matches join one alert where a rule says nothing else.
pub(in crate::rule) const DEFAULT_DEDUP_PERIOD: Duration = Duration::from_secs(3_600);
/// Bounds the matches that are remembered for one key.
pub(in crate::rule) const MAX_THRESHOLD: i64 = 10_000;

/// Whether people are told of what a rule finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// They are.
    #[default]
    Active,
    /// Matches and alerts are recorded, nothing is delivered: for rules on trial.
    Shadow,
}

impl Metadata {
    /// The runbook without an event, for people to read beforehand.
    pub fn blank_runbook(&self) -> Option<String> {
        self.runbook.as_deref().map(crate::rule::manifest::runbook::blank)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Active => "active",
            Self::Shadow => "shadow",
        })
    }
}

impl FromStr for Stage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "active" => Ok(Self::Active),
            "shadow" => Ok(Self::Shadow),
            _ => Err(format!("`{text}` is not a stage: write `active` or `shadow`")),
        }
    }
}

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
    /// Whether people are told of what it finds.
    pub stage: Stage,
    /// Action ids and `*` globs; absent: every event.
    pub actions: Option<Vec<String>>,
    /// Names of actions, resolved with what the organization says of its actions.
    pub activities: Option<Vec<String>>,
    /// How sure its actions are.
    pub evidence: Option<Certainty>,
    /// Rules whose matches it runs on, in place of events.
    pub on: Option<Vec<Selector>>,
    /// It looks at events that something is unusual about, and at no others.
    pub flagged: bool,
    /// Its matches are there for rules that listen to them, and raise no alert.
    pub signal: bool,
    /// What a match adds to the risk of its actor, for rules that listen to `risk`.
    pub risk: u32,
    /// What it means.
    pub description: Option<String>,
    /// What to do.
    ///
    /// `{actor}`, `{target}`, `{ip}` and `{time}` in it stand for what the event says.
    pub runbook: Option<String>,
    /// Where to read more.
    pub reference: Option<String>,
    /// Why it is as severe as it is.
    pub severity_reason: Option<String>,
    /// What else may look like it.
    pub false_positives: Vec<String>,
    /// What the organization must have for there to be such events.
    pub requires: Option<String>,
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
    /// Paths of fields whose values are the dedup key where there is no `fn dedup`.
    pub group_by: Option<Vec<String>>,
    /// Destinations by name; absent: routed as configured.
    pub destinations: Option<Vec<String>>,
    /// Values that the configuration may change; `params` inside the rule's functions.
    pub params: Map,
    /// Fields, by paths, for which lists of values make safe exceptions: by name.
    pub exception_slots: BTreeMap<String, Vec<String>>,
    /// For check rules: the title of the notice when all is well again.
    pub resolved: Option<String>,
    /// Whether the window was said, rather than being the dedup period.
    pub(in crate::rule) has_window: bool,
    /// The keys that the rule itself gives.
    pub declared: Vec<String>,
    /// Which values come from an override, and from where: by key.
    pub origins: BTreeMap<&'static str, String>,
}

impl Metadata {
    /// Whether it looks at events whatever their action.
    pub fn wants_every_action(&self) -> bool {
        self.on.is_none() && self.actions.is_none() && self.activities.is_none()
    }

    /// Whether a value was set from outside, so that the rule's own function is not asked.
    pub fn is_overridden(&self, key: &str) -> bool {
        self.origins.contains_key(key)
    }
}

impl Selector {
    /// Whether a rule is meant.
    pub fn selects(&self, rule: &Metadata) -> bool {
        self.fits(&rule.id, &rule.tags, rule.risk)
    }
}

/// Where the keys and values of the literal stand, in bytes.
#[derive(Debug, Clone, Default)]
pub(in crate::rule) struct Places {
    pub(in crate::rule) whole: Range<usize>,
    pub(in crate::rule) keys: HashMap<String, (Range<usize>, Range<usize>)>,
    /// For each key, the texts that are written out in its value.
    pub(in crate::rule) texts: HashMap<String, Vec<(String, Range<usize>)>>,
}

impl Places {
    /// Where a text stands in the value of a key; the value, or the rule, where it is not written out.
    pub(in crate::rule) fn text(&self, key: &str, wanted: &str) -> Range<usize> {
        let text = self.texts.get(key).and_then(|texts| texts.iter().find(|(text, _)| text == wanted));
        let place = text.map(|(_, place)| place).or_else(|| self.keys.get(key).map(|(_, value)| value));
        place.unwrap_or(&self.whole).clone()
    }
}

/// Problems of one kind that are looked for in a file.
pub(in crate::rule) const MOST_PROBLEMS: usize = 100;

/// Reads `RULE`. Everything that is wrong is noted; `None` if no usable rule is left.
pub(in crate::rule) fn read(
    map: &Map,
    places: &Places,
    file: &Path,
    text: &Arc<str>,
) -> (Option<Metadata>, Vec<Diagnostic>) {
    let mut reader = Reader { map, places, file, text, found: Vec::new() };
    let is_unknown = |key: &&rhai::Identifier| !KEY_TABLE.iter().any(|known| known.name == key.as_str());
    for key in map.keys().filter(is_unknown).take(MOST_PROBLEMS) {
        let message = format!("unknown key `{key}` in `RULE`");
        reader.problem("E201", key, true, message, suggest(key, KEY_TABLE.iter().map(|known| known.name)));
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
        stage: reader.stage(),
        actions: reader.actions(),
        activities: reader.activities(),
        evidence: reader.evidence(),
        on: reader.listens(),
        signal: reader.boolean("signal").unwrap_or(false),
        flagged: reader.boolean("flagged").unwrap_or(false),
        risk: reader.risk(),
        description: reader.text("description"),
        runbook: reader.text_or_steps("runbook"),
        reference: reader.text("reference"),
        severity_reason: reader.text("severity_reason"),
        false_positives: reader.texts("false_positives").unwrap_or_default(),
        requires: reader.text("requires"),
        tags: reader.texts("tags").unwrap_or_default(),
        attack: reader.texts("attack").unwrap_or_default(),
        dedup_period,
        threshold: reader.threshold(),
        window: reader.duration("window").unwrap_or(dedup_period),
        group_by: reader.texts("group_by"),
        destinations: reader.texts("destinations"),
        params: reader.params(),
        exception_slots: reader.slots(),
        resolved: reader.text("resolved"),
        has_window: map.contains_key("window"),
        declared: map.keys().map(ToString::to_string).collect(),
        origins: BTreeMap::new(),
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
        let message = format!("`{key}` must be {wanted}, found {}", value::describe(found));
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

    /// A text, or a list of them as numbered lines.
    fn text_or_steps(&mut self, key: &str) -> Option<String> {
        if !self.map.get(key)?.is_array() {
            return self.text(key);
        }
        let steps = self.texts(key)?;
        let numbered = (1..).zip(&steps).map(|(number, step)| format!("{number}. {step}"));
        Some(numbered.collect::<Vec<_>>().join("\n"))
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
        // Events' actions are in lower case.
        Some(actions.into_iter().map(|action| action.to_lowercase()).collect())
    }

    fn activities(&mut self) -> Option<Vec<String>> {
        let activities = self.texts("activities")?;
        if activities.is_empty() || activities.iter().any(|name| name.trim().is_empty()) {
            let message = "`activities` are names of actions, such as `[\"Deactivated account\"]`";
            self.wrong("activities", message.to_owned());
        }
        Some(activities)
    }

    fn evidence(&mut self) -> Option<Certainty> {
        let text = self.text("evidence")?;
        text.parse()
            .map_err(|error: String| {
                let near = nearest(&text, Certainty::ALL.map(Certainty::as_str));
                let near = near.map_or(String::new(), |near| format!("did you mean `{near}`?"));
                self.problem("E203", "evidence", false, error, near);
            })
            .ok()
    }

    fn listens(&mut self) -> Option<Vec<Selector>> {
        let texts = self.texts("on")?;
        if self.map.contains_key("actions") || self.map.contains_key("activities") {
            self.wrong(
                "on",
                "a rule has either `actions` and `activities`, or `on`: it runs on events, or on other rules' matches"
                    .to_owned(),
            );
        }
        let mut selectors = Vec::new();
        for text in &texts {
            let selector = match text.strip_prefix("rule:") {
                Some(pattern) => Selector::parse(pattern),
                None if text.starts_with("tag:") => Selector::parse(text),
                None if text == "risk" => Ok(Selector::risk()),
                None => Err(format!("`{text}`: write `rule:ID`, with `*` for any text, `tag:NAME`, or `risk`")),
            };
            match selector {
                Ok(selector) => selectors.push(selector),
                Err(error) => self.wrong("on", error),
            }
        }
        if selectors.is_empty() {
            self.wrong("on", "`on` names no rules, so the rule would never run".to_owned());
        }
        Some(selectors)
    }

    fn risk(&mut self) -> u32 {
        let Some(value) = self.map.get("risk") else {
            return 0;
        };
        match value.as_int().ok().and_then(|number| u32::try_from(number).ok()).filter(|number| *number <= 1_000) {
            Some(number) => number,
            None => {
                self.wrong_type("risk", "a whole number from 0 to 1000", value);
                0
            }
        }
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

    fn stage(&mut self) -> Stage {
        let parsed = self.text("stage").map(|text| text.parse());
        parsed
            .transpose()
            .unwrap_or_else(|error: String| {
                self.wrong("stage", error);
                None
            })
            .unwrap_or_default()
    }

    fn slots(&mut self) -> BTreeMap<String, Vec<String>> {
        let Some(value) = self.map.get("exception_slots") else {
            return BTreeMap::new();
        };
        let read = value.read_lock::<Map>().and_then(|slots| {
            slots
                .iter()
                .map(|(name, fields)| {
                    let fields = fields.read_lock::<Array>()?;
                    let fields: Vec<String> = fields.iter().map(as_text).collect::<Option<_>>()?;
                    (!fields.is_empty()).then(|| (name.to_string(), fields))
                })
                .collect::<Option<_>>()
        });
        read.unwrap_or_else(|| {
            self.wrong_type(
                "exception_slots",
                "a map of lists of paths, such as `#{ actor: [\"actor.email\"] }`",
                value,
            );
            BTreeMap::new()
        })
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
