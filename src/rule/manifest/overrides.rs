//! Overrides: tuning rules without editing them, from `overrides.toml` next to the rules and `[checks]` in the
//! configuration.
//!
//! An override selects rules by id, by pattern or by tag, and replaces some of their metadata. Overrides are applied in
//! the order of the file, so the last one wins. Each value records where it comes from.

use std::{path::Path, time::Duration};

use rhai::Map;
use toml::de::DeTable;

use crate::rule::manifest::{
    metadata::{MAX_THRESHOLD, MOST_PROBLEMS, Metadata, Stage},
    selector::Selector,
    value::{describe, params_from_json},
};
use crate::{
    config::{
        diagnostic::{Diagnostic, suggest},
        settings::{Place, Problems, TableReader},
    },
    model::{alert::Severity, name::RuleId},
};

/// Name of the overrides file.
pub const OVERRIDES: &str = "overrides.toml";

/// An override for a set of rules. A value of `None` leaves the rule's own in place.
#[derive(Debug, Clone)]
pub struct RuleOverride {
    /// The rules that it applies to. Not a key.
    pub selector: Selector,
    /// The place of the override in its file. Not a key.
    pub place: Place,
    /// Whether the rule runs.
    pub enabled: Option<bool>,
    /// `active`, or `shadow`: alerts are stored but not delivered.
    pub stage: Option<Stage>,
    /// `info`, `low`, `medium`, `high` or `critical`; takes precedence over `fn severity`.
    pub severity: Option<Severity>,
    /// The number of matches that open an alert.
    pub threshold: Option<u32>,
    /// The window in which matches are counted.
    pub window: Option<Duration>,
    /// How long further matches join an open alert.
    pub dedup_period: Option<Duration>,
    /// Names of destinations; takes precedence over `fn destinations`.
    pub destinations: Option<Vec<String>>,
    /// A table of values for the rule's `params`.
    pub params: Option<serde_json::Value>,
}

impl RuleOverride {
    /// Builds an override of one rule's parameters, for a test at `place`.
    pub fn of_params(rule: &RuleId, params: serde_json::Value, place: Place) -> Self {
        Self {
            selector: Selector::id(rule),
            place,
            enabled: None,
            stage: None,
            severity: None,
            threshold: None,
            window: None,
            dedup_period: None,
            destinations: None,
            params: Some(params),
        }
    }
}

/// Overrides, in the order in which they are applied.
pub type Overrides = Vec<RuleOverride>;

/// Parses the text of an `overrides.toml`. Returns all problems if there are any, and no overrides.
pub(in crate::rule) fn read(file: &Path, text: &str) -> Result<Overrides, Vec<Diagnostic>> {
    let problems = Problems::new(file, text);
    let (table, errors) = DeTable::parse_recoverable(text);
    let broken = !errors.is_empty();
    for error in errors {
        problems.push("E100", error.span().unwrap_or(0..0), error.message().to_owned(), None);
    }
    let mut overrides = Vec::new();
    if !broken {
        let mut top = TableReader::new(table.get_ref(), 0..0, "the overrides", &problems);
        if let Some(mut named) = top.table("override") {
            overrides = named.named_tables().into_iter().filter_map(|(name, table)| read_one(name, table)).collect();
        }
        top.finish();
    }
    let diagnostics = problems.into_sorted();
    // The parser returns tables sorted by name, but overrides apply in the order of the file.
    overrides.sort_by_key(|change: &RuleOverride| change.place.span.start);
    if diagnostics.is_empty() { Ok(overrides) } else { Err(diagnostics) }
}

/// Reads one table of overrides.
pub(crate) fn read_one(name: &str, mut table: TableReader<'_>) -> Option<RuleOverride> {
    let selector = Selector::parse(name).map_err(|error| table.problem("", error, None)).ok();
    let year = Duration::from_secs(366 * 86_400);
    let change = selector.map(|selector| RuleOverride {
        selector,
        place: table.place(),
        enabled: table.boolean("enabled"),
        stage: table.parsed("stage", str::parse::<Stage>),
        severity: table.parsed("severity", str::parse::<Severity>),
        threshold: table
            .number("threshold", 1..=MAX_THRESHOLD.unsigned_abs())
            .and_then(|number| u32::try_from(number).ok()),
        window: table.duration("window", Duration::from_millis(1)..=year),
        dedup_period: table.duration("dedup_period", Duration::from_millis(1)..=year),
        destinations: table.texts("destinations", |text| Ok(text.to_owned())),
        params: table.json("params"),
    });
    table.finish();
    change
}

/// Applies overrides to a rule and reports those that cannot be applied.
pub(in crate::rule) fn apply(metadata: &mut Metadata, changes: &[&RuleOverride]) -> Vec<Diagnostic> {
    let mut diagnostics = Vec::new();
    for change in changes {
        let origin = change.place.short();
        let mut note = |key: &'static str| {
            metadata.origins.insert(key, origin.clone());
        };
        if let Some(enabled) = change.enabled {
            metadata.enabled = enabled;
            note("enabled");
        }
        if let Some(stage) = change.stage {
            metadata.stage = stage;
            note("stage");
        }
        if let Some(severity) = change.severity {
            metadata.severity = severity;
            note("severity");
        }
        if let Some(threshold) = change.threshold {
            metadata.threshold = threshold;
            note("threshold");
        }
        if let Some(period) = change.dedup_period {
            // The window follows the dedup period unless it is set explicitly.
            if metadata.window == metadata.dedup_period && !metadata.has_window {
                metadata.window = period;
            }
            metadata.dedup_period = period;
            note("dedup_period");
        }
        if let Some(window) = change.window {
            metadata.window = window;
            metadata.has_window = true;
            note("window");
        }
        if let Some(destinations) = &change.destinations {
            metadata.destinations = Some(destinations.clone());
            note("destinations");
        }
        if let Some(params) = &change.params {
            set_params(metadata, &params_from_json(params), change, &mut diagnostics);
            metadata.origins.insert("params", origin);
        }
    }
    diagnostics
}

fn set_params(metadata: &mut Metadata, set: &Map, change: &RuleOverride, diagnostics: &mut Vec<Diagnostic>) {
    for (name, value) in set {
        match metadata.params.get(name.as_str()) {
            None => {
                // A pattern may select rules with different parameters.
                if change.selector.is_exact() {
                    let message = format!("rule `{}` has no parameter `{name}`", metadata.id);
                    let known: Vec<&str> = metadata.params.keys().map(|key| key.as_str()).collect();
                    let help = if known.is_empty() {
                        "the rule has no parameters".to_owned()
                    } else {
                        suggest(name, known.iter().copied())
                    };
                    diagnostics.push(change.place.error("E209", message).help(help));
                }
            }
            Some(default) if default.type_name() != value.type_name() => {
                let message = format!(
                    "`params.{name}` of rule `{}` must have the type of its default, {}; found {}",
                    metadata.id,
                    describe(default),
                    describe(value)
                );
                diagnostics.push(change.place.error("E209", message));
            }
            Some(_) => {
                metadata.params.insert(name.clone(), value.clone());
            }
        }
    }
}

/// Returns warnings about overrides that select no rule.
pub(in crate::rule) fn unused<'a>(
    overrides: &[RuleOverride],
    rules: impl Iterator<Item = &'a Metadata> + Clone,
) -> Vec<Diagnostic> {
    overrides
        .iter()
        .filter(|change| !rules.clone().any(|rule| change.selector.selects(rule)))
        .take(MOST_PROBLEMS)
        .map(|change| {
            let text = change.selector.as_str();
            let message = format!("`{text}` matches no rule");
            let near = crate::config::diagnostic::nearest(text, rules.clone().map(|rule| rule.id.as_str()));
            let warning = change.place.warning("W301", message);
            match near {
                Some(near) => warning.help(format!("did you mean `{near}`?")),
                None => warning.help("run `watchbell rules list` to list rule IDs"),
            }
        })
        .collect()
}
