//! `const RULE = #{ … }`: a rule's metadata, with every key known and typed.
//!
//! The values come from running the file's top level once. The spans for diagnostics come from the parsed literal.

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
    /// The key's name.
    pub name: &'static str,
    /// The type of its value, as the reference describes it.
    pub takes: &'static str,
    /// What the key does, in Markdown.
    pub about: &'static str,
}

const fn key(name: &'static str, takes: &'static str, about: &'static str) -> MetadataKey {
    MetadataKey { name, takes, about }
}

/// Every key of `RULE`, in the order of the documentation.
pub const KEY_TABLE: &[MetadataKey] = &[
    key("id", "string, required", "Unique id, made of parts joined by dots: `team.subject.what_happened`."),
    key("title", "string, required", "The alert's title if the rule has no `fn title`."),
    key("severity", "string, required", "`info`, `low`, `medium`, `high` or `critical`."),
    key("enabled", "true or false", "`false`: the rule is checked but not run. Default `true`."),
    key("stage", "string", "`shadow`: matches and alerts are recorded but not delivered. Default `active`."),
    key(
        "actions",
        "list of strings",
        "Action IDs that the rule runs on; `*` is a wildcard. Without it, the rule runs on every event, which is slow.",
    ),
    key(
        "activities",
        "list of strings",
        "Activity names, as Atlassian documents them and as your organization lists them next to the ids: \
         `[\"Deactivated account\"]`. The rule runs on the actions with these names, in addition to those in \
         `actions`.",
    ),
    key(
        "evidence",
        "string",
        "How reliable the action IDs are. `verified`: seen in a real event. `sample`: from a vendor's sample or data \
         model. `documented`: Atlassian documents the activity, but not its id. `assumed`: likely, but unconfirmed.",
    ),
    key(
        "on",
        "list of strings",
        "Instead of `actions` and `activities`: the rules whose matches this rule runs on, as \
         `rule:atlassian.identity.*`, `tag:initial-access` or `risk`. It runs when a match opens or joins an alert \
         (for a signal: when it would). The event then also has the match's `rule`, `severity`, `key`, `title` and \
         `risk`, and `opened`, which is true for the first match of an alert.",
    ),
    key(
        "risk",
        "number",
        "What a match adds to the risk of its actor. Rules with `on: [\"risk\"]` run on such matches and read it as \
         `event.risk`.",
    ),
    key(
        "flagged",
        "true or false",
        "`true`: the rule runs only on events with something unusual about them, whose `event.flags` is not empty.",
    ),
    key(
        "signal",
        "true or false",
        "`true`: matches raise no alert; they exist for the rules that subscribe to them with `on`.",
    ),
    key("description", "string", "What a match means."),
    key(
        "runbook",
        "string, or list of strings",
        "What to do about an alert. A list becomes numbered steps. `{actor}`, `{target}`, `{ip}` and `{time}` are \
         replaced by the event's values, so that commands can be copied: \
         `watchbell events list --actor {actor} --since {time}`.",
    ),
    key("reference", "string", "Where to read more."),
    key("severity_reason", "string", "Why the rule has this severity."),
    key("false_positives", "list of strings", "Harmless activity that looks the same."),
    key(
        "requires",
        "string",
        "What the organization needs for these events to be logged: `Guard Premium or Enterprise`.",
    ),
    key("tags", "list of strings", "Free-form labels to select rules by."),
    key("attack", "list of strings", "MITRE ATT&CK tactics and techniques: `TA0004`, `T1098.003`."),
    key("dedup_period", "duration", "How long matches with the same key join one alert. Default `1h`."),
    key("threshold", "number", "Number of matches that open an alert, 1 to 10,000. Default 1."),
    key("window", "duration", "The sliding window in which matches are counted. Default: the dedup period."),
    key(
        "group_by",
        "list of strings",
        "Paths of the fields whose values form the dedup key: `[\"actor.email\"]`. Shorthand for `fn dedup(event)`, \
         which takes precedence.",
    ),
    key("destinations", "list of strings", "Names of destinations, instead of the configured routing."),
    key("params", "map", "Values that overrides may change; `params.x` in functions. The defaults set the types."),
    key(
        "exception_slots",
        "map of lists of strings",
        "Paths of the fields for which a list of values makes a safe exception: `#{ actor: [\"actor.email\"] }`. In a \
         path, `[]` stands for every list item that has the rest of the path, and the value of each must be excepted: \
         `attributes.context[].attributes.groupName`.",
    ),
    key("resolved", "string", "Check rules only: the title of the notice when the problem is resolved."),
];

/// How long matches join one alert if the rule does not set `dedup_period`.
pub(in crate::rule) const DEFAULT_DEDUP_PERIOD: Duration = Duration::from_secs(3_600);
/// Limits the number of matches that are remembered for one key.
pub(in crate::rule) const MAX_THRESHOLD: i64 = 10_000;

/// Whether a rule's alerts are delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Alerts are delivered.
    #[default]
    Active,
    /// Shadow mode: matches and alerts are recorded, but nothing is delivered.
    Shadow,
}

impl Metadata {
    /// Returns the runbook with its placeholders replaced by words, for reading without an event.
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
            _ => Err(format!("`{text}` is not a stage: expected `active` or `shadow`")),
        }
    }
}

/// A rule's metadata.
#[derive(Debug, Clone)]
pub struct Metadata {
    /// The rule's unique, dotted id.
    pub id: RuleId,
    /// The alert's title if the rule has no `fn title`.
    pub title: String,
    /// The alert's severity if the rule has no `fn severity`.
    pub severity: Severity,
    /// Whether the rule runs. A disabled rule is loaded and checked, but not run.
    pub enabled: bool,
    /// Whether the rule's alerts are delivered.
    pub stage: Stage,
    /// Action ids and `*` globs that it runs on. Without them and `activities`, it runs on every event.
    pub actions: Option<Vec<String>>,
    /// Activity names that it runs on, resolved to ids with the organization's action list.
    pub activities: Option<Vec<String>>,
    /// How reliable its action ids are.
    pub evidence: Option<Certainty>,
    /// The rules whose matches it runs on, instead of events.
    pub on: Option<Vec<Selector>>,
    /// Whether it runs only on flagged events, those with something unusual about them.
    pub flagged: bool,
    /// Whether its matches raise no alert and exist only for the rules that subscribe to them.
    pub signal: bool,
    /// What a match adds to the risk of its actor, for rules that subscribe to `risk`.
    pub risk: u32,
    /// What a match means.
    pub description: Option<String>,
    /// What to do about an alert.
    ///
    /// `{actor}`, `{target}`, `{ip}` and `{time}` are placeholders for the event's values.
    pub runbook: Option<String>,
    /// Where to read more.
    pub reference: Option<String>,
    /// Why the rule has this severity.
    pub severity_reason: Option<String>,
    /// Harmless activity that looks the same.
    pub false_positives: Vec<String>,
    /// What the organization needs for these events to be logged.
    pub requires: Option<String>,
    /// Free-form labels to select rules by.
    pub tags: Vec<String>,
    /// MITRE ATT&CK ids of tactics and techniques.
    pub attack: Vec<String>,
    /// How long further matches with the same key join an alert.
    pub dedup_period: Duration,
    /// The number of matches (of distinct values, if the rule has `fn unique`) that open an alert.
    pub threshold: u32,
    /// The sliding window in which matches are counted.
    pub window: Duration,
    /// Paths of the fields whose values form the dedup key if there is no `fn dedup`.
    pub group_by: Option<Vec<String>>,
    /// Names of destinations. Without them, alerts are routed as configured.
    pub destinations: Option<Vec<String>>,
    /// Values that overrides may change; `params` in the rule's functions.
    pub params: Map,
    /// Slot names, and the paths of the fields for which lists of values make safe exceptions.
    pub exception_slots: BTreeMap<String, Vec<String>>,
    /// For check rules: the title of the notice when the problem is resolved.
    pub resolved: Option<String>,
    /// Whether `window` was set explicitly, rather than taken from the dedup period.
    pub(in crate::rule) has_window: bool,
    /// The keys that the rule itself declares.
    pub declared: Vec<String>,
    /// For each overridden key, the place of the override.
    pub origins: BTreeMap<&'static str, String>,
}

impl Metadata {
    /// Whether it runs on events of every action.
    pub fn wants_every_action(&self) -> bool {
        self.on.is_none() && self.actions.is_none() && self.activities.is_none()
    }

    /// Whether an override sets this key, so that the rule's own function is not called.
    pub fn is_overridden(&self, key: &str) -> bool {
        self.origins.contains_key(key)
    }
}

impl Selector {
    /// Whether it selects this rule.
    pub fn selects(&self, rule: &Metadata) -> bool {
        self.fits(&rule.id, &rule.tags, rule.risk)
    }
}

/// Byte spans of the literal's keys and values.
#[derive(Debug, Clone, Default)]
pub(in crate::rule) struct Places {
    pub(in crate::rule) whole: Range<usize>,
    pub(in crate::rule) keys: HashMap<String, (Range<usize>, Range<usize>)>,
    /// For each key, the string literals in its value.
    pub(in crate::rule) texts: HashMap<String, Vec<(String, Range<usize>)>>,
}

impl Places {
    /// Returns the span of a string literal in the value of a key. If the string is not written literally, returns the
    /// span of the value, or of `RULE`.
    pub(in crate::rule) fn text(&self, key: &str, wanted: &str) -> Range<usize> {
        let literal = self.texts.get(key).and_then(|texts| texts.iter().find(|(text, _)| text == wanted));
        let span = literal.map(|(_, span)| span).or_else(|| self.keys.get(key).map(|(_, value)| value));
        span.unwrap_or(&self.whole).clone()
    }
}

/// Maximum number of problems of one kind that are reported for a file.
pub(in crate::rule) const MOST_PROBLEMS: usize = 100;

/// Reads `RULE` and reports all problems. The metadata is `None` if there are any.
pub(in crate::rule) fn read(
    map: &Map,
    places: &Places,
    file: &Path,
    text: &Arc<str>,
) -> (Option<Metadata>, Vec<Diagnostic>) {
    let mut reader = Reader { map, places, file, text, diagnostics: Vec::new() };
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
        on: reader.on(),
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
    let usable = reader.diagnostics.is_empty() && id.is_some() && title.is_some() && severity.is_some();
    (usable.then_some(metadata), reader.diagnostics)
}

fn placeholder() -> RuleId {
    RuleId::try_from("not.read".to_owned()).unwrap_or_else(|_| unreachable!("a constant dotted name"))
}

struct Reader<'a> {
    map: &'a Map,
    places: &'a Places,
    file: &'a Path,
    text: &'a Arc<str>,
    diagnostics: Vec<Diagnostic>,
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
        self.diagnostics.push(diagnostic);
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
            self.wrong_type(key, "a string", value);
        }
        text
    }

    /// Reads a string, or a list of strings as numbered lines.
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
            let message = format!("missing key `{key}` in `RULE`");
            self.problem("E204", key, true, message, format!("add `{key}: {example}`"));
            return None;
        }
        let text = self.text(key)?;
        if text.trim().is_empty() {
            self.wrong(key, format!("`{key}` must not be empty"));
            return None;
        }
        Some(text)
    }

    fn boolean(&mut self, key: &str) -> Option<bool> {
        let value = self.map.get(key)?;
        let boolean = value.as_bool().ok();
        if boolean.is_none() {
            self.wrong_type(key, "`true` or `false`", value);
        }
        boolean
    }

    fn duration(&mut self, key: &str) -> Option<Duration> {
        let text = self.text(key)?;
        match time::parse_duration(&text) {
            Ok(duration) if !duration.is_zero() && duration <= Duration::from_secs(366 * 86_400) => Some(duration),
            Ok(duration) => {
                let found = time::show_duration(duration);
                self.wrong(key, format!("`{key}` must be between 1ms and 366d, found {found}"));
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
                self.wrong_type(key, "a list of strings", value);
                None
            }
        }
    }

    fn actions(&mut self) -> Option<Vec<String>> {
        let actions = self.texts("actions")?;
        if actions.is_empty() {
            let message = "`actions` is empty, so the rule would never run".to_owned();
            self.problem("E203", "actions", false, message, "remove `actions` to run on every event".to_owned());
        }
        for action in &actions {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:*".contains(&byte);
            if action.is_empty() || !action.bytes().all(plain) {
                let help = "use letters, digits, `_`, `-`, `.` and `:`, and `*` as a wildcard".to_owned();
                self.problem("E203", "actions", false, format!("`{action}` is not an action ID"), help);
            }
        }
        // The actions of events are in lower case.
        Some(actions.into_iter().map(|action| action.to_lowercase()).collect())
    }

    fn activities(&mut self) -> Option<Vec<String>> {
        let activities = self.texts("activities")?;
        if activities.is_empty() || activities.iter().any(|name| name.trim().is_empty()) {
            let message = "`activities` must be names of activities, such as `[\"Deactivated account\"]`";
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

    fn on(&mut self) -> Option<Vec<Selector>> {
        let texts = self.texts("on")?;
        if self.map.contains_key("actions") || self.map.contains_key("activities") {
            let message = "`on` cannot be combined with `actions` or `activities`".to_owned();
            let help = "a rule runs either on events (`actions`, `activities`) or on matches of other rules (`on`)";
            self.problem("E203", "on", false, message, help.to_owned());
        }
        let mut selectors = Vec::new();
        for text in &texts {
            let selector = match text.strip_prefix("rule:") {
                Some(pattern) => Selector::parse(pattern),
                None if text.starts_with("tag:") => Selector::parse(text),
                None if text == "risk" => Ok(Selector::risk()),
                None => Err(format!("`{text}` is not a selector: expected `rule:ID`, `tag:NAME` or `risk`")),
            };
            match selector {
                Ok(selector) => selectors.push(selector),
                Err(error) => self.wrong("on", format!("`on`: {error}")),
            }
        }
        if selectors.is_empty() {
            self.wrong("on", "`on` selects no rules, so the rule would never run".to_owned());
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
