//! Exceptions: conditions that suppress matches, from `exceptions.toml` next to the rules.
//!
//! An exception is evaluated after the rule has matched, so that suppressed matches are known, stored and counted. It
//! states its reason, its author, and when it expires. Its condition is an expression about `event`, or a list of
//! values for one of the slots that a rule declares (`exception_slots`): fields for which the rule's author considers a
//! list of values a safe way to make exceptions.

use std::{path::Path, sync::Arc};

use rhai::{AST, Dynamic, Engine, Scope};
use toml::de::DeTable;

use crate::rule::manifest::{metadata::Metadata, problem, reads::Reads, selector::Selector};
use crate::{
    config::{
        diagnostic::Diagnostic,
        settings::{Place, Problems, TableReader},
    },
    model::{name::ExceptionId, time::Timestamp},
};

/// Name of the exceptions file.
pub const EXCEPTIONS: &str = "exceptions.toml";

/// A condition that suppresses matches.
#[derive(Debug)]
pub struct Exception {
    /// The exception's id, unique among all exceptions.
    pub id: ExceptionId,
    /// The rules that it applies to.
    pub rules: Vec<Selector>,
    /// The condition that a match must meet.
    pub condition: ExceptionCondition,
    /// Why the exception exists.
    pub reason: String,
    /// Who created it.
    pub author: String,
    /// The date it was created, if stated.
    pub created: Option<jiff::civil::Date>,
    /// The first event time at which it no longer applies. `None` if it never expires.
    pub expires: Option<Timestamp>,
    /// Its place in the exceptions file.
    pub place: Place,
    /// What its condition reads in addition to the event. Filled in when the file is loaded.
    pub(in crate::rule) reads: Reads,
}

/// The condition of an exception.
#[derive(Debug)]
pub enum ExceptionCondition {
    /// An expression that must be true.
    Expression {
        /// The source text.
        text: String,
        /// The compiled expression.
        ast: Box<AST>,
    },
    /// Values, one of which the fields of a rule's slot must have.
    Values {
        /// The slot's name.
        slot: String,
        /// The values, each with one string per field of the slot.
        values: Vec<Vec<String>>,
    },
}

impl Exception {
    /// Whether it can suppress matches of this rule.
    pub fn is_about(&self, rule: &Metadata) -> bool {
        let selected = self.rules.iter().any(|selector| selector.selects(rule));
        match &self.condition {
            ExceptionCondition::Expression { .. } => selected,
            ExceptionCondition::Values { slot, .. } => selected && rule.exception_slots.contains_key(slot),
        }
    }

    /// Whether it has not yet expired for an event at `time`.
    pub fn applies_at(&self, time: Timestamp) -> bool {
        self.expires.is_none_or(|expires| time < expires)
    }
}

/// Parses the text of an `exceptions.toml`. Returns all problems if there are any, and no exceptions.
pub(in crate::rule) fn read(
    engine: &mut Engine,
    file: &Path,
    text: &str,
) -> Result<Vec<Arc<Exception>>, Vec<Diagnostic>> {
    let problems = Problems::new(file, text);
    let (table, errors) = DeTable::parse_recoverable(text);
    let broken = !errors.is_empty();
    for error in errors {
        problems.push("E100", error.span().unwrap_or(0..0), error.message().to_owned(), None);
    }
    let mut exceptions: Vec<Arc<Exception>> = Vec::new();
    if !broken {
        let mut top = TableReader::new(table.get_ref(), 0..0, "the exceptions", &problems);
        for table in top.tables("exception") {
            let span = table.span();
            if let Some(exception) = read_one(engine, table) {
                if exceptions.iter().any(|other| other.id == exception.id) {
                    let message = format!("duplicate exception ID `{}`", exception.id);
                    problems.push("E106", span, message, Some("give each exception a unique ID".to_owned()));
                }
                exceptions.push(Arc::new(exception));
            }
        }
        top.finish();
    }
    let diagnostics = problems.into_sorted();
    if diagnostics.is_empty() { Ok(exceptions) } else { Err(diagnostics) }
}

fn read_one(engine: &mut Engine, mut table: TableReader<'_>) -> Option<Exception> {
    let place = table.place();
    table.required_text("id", "\"what-it-is-about\"");
    let id = table.parsed("id", ExceptionId::parse);
    if !table.has("rules") {
        let help = "add `rules = [\"a.rule.id\"]`: rule IDs, patterns such as `atlassian.*`, or `tag:NAME`";
        table.problem("", "missing key `rules` in `[[exception]]`", Some(help.to_owned()));
    }
    let rules = table.texts("rules", Selector::parse).unwrap_or_default();
    let reason = table.required_text("reason", "\"why these matches are benign\"").unwrap_or_default().to_owned();
    let author = table.required_text("author", "\"your name\"").unwrap_or_default().to_owned();
    let created = table.date("created");
    let expires = expiry(&mut table);
    let condition = condition(engine, &mut table);
    table.finish();
    let reads = Reads::default();
    Some(Exception { id: id?, rules, condition: condition?, reason, author, created, expires, place, reads })
}

/// Reads `expires`. The key is required, even if its value is `"never"`: a forgotten exception is a blind spot.
fn expiry(table: &mut TableReader<'_>) -> Option<Timestamp> {
    if !table.has("expires") {
        let help = "add `expires = 2027-06-30`, or `expires = \"never\"` if it must not expire";
        table.problem("", "missing key `expires` in `[[exception]]`", Some(help.to_owned()));
    }
    if table.is_text("expires", "never") {
        table.text("expires");
        return None;
    }
    let date = table.date("expires")?;
    date.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|midnight| midnight.timestamp())
}

fn condition(engine: &mut Engine, table: &mut TableReader<'_>) -> Option<ExceptionCondition> {
    let text = table.text("condition").map(str::to_owned);
    let slot = table.text("slot").map(str::to_owned);
    let values = table.json("values");
    match (text, slot, values) {
        (Some(text), None, None) => match compile(engine, &text) {
            Ok(ast) => Some(ExceptionCondition::Expression { text, ast: Box::new(ast) }),
            Err(problem) => {
                table.problem("condition", problem, None);
                None
            }
        },
        (None, Some(slot), Some(values)) => match tuples(&values) {
            Some(values) if !values.is_empty() => Some(ExceptionCondition::Values { slot, values }),
            _ => {
                let message =
                    "`values` must be a list of strings, or of lists with one string for each field of the slot";
                table.problem("values", message, None);
                None
            }
        },
        _ => {
            let help = "write `condition = 'event.actor.email == \"dana@example.com\"'`, or add `slot` and `values`";
            let message = "an exception must have either `condition`, or `slot` and `values`";
            table.problem("", message, Some(help.to_owned()));
            None
        }
    }
}

fn tuples(values: &serde_json::Value) -> Option<Vec<Vec<String>>> {
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    values
        .as_array()?
        .iter()
        .map(|value| match value.as_array() {
            Some(fields) => fields.iter().map(text).collect(),
            None => text(value).map(|text| vec![text]),
        })
        .collect()
}

/// Compiles a condition, which is one expression about `event` and `params`.
pub(in crate::rule) fn compile(engine: &mut Engine, text: &str) -> Result<AST, String> {
    let mut scope = Scope::new();
    scope.push_constant("event", Dynamic::UNIT);
    scope.push_constant("params", rhai::Map::new());
    // The optimizer would replace names by these constants, but they are placeholders for values that come later.
    let level = engine.optimization_level();
    engine.set_optimization_level(rhai::OptimizationLevel::None);
    engine.set_strict_variables(true);
    let compiled = engine.compile_expression_with_scope(&scope, text);
    engine.set_optimization_level(level);
    compiled.map_err(|error| {
        let diagnostic = problem::parse_error(&error, Path::new(""), &text.into());
        format!("cannot compile the condition: {}", diagnostic.message)
    })
}

/// Returns warnings about exceptions that cannot suppress anything.
pub(in crate::rule) fn unused<'a>(
    exceptions: &[Arc<Exception>],
    rules: impl Iterator<Item = &'a Metadata> + Clone,
) -> Vec<Diagnostic> {
    let mut warnings = Vec::new();
    for exception in exceptions {
        let selected: Vec<&Metadata> =
            rules.clone().filter(|rule| exception.rules.iter().any(|selector| selector.selects(rule))).collect();
        if selected.is_empty() {
            let message = format!("`rules` of exception `{}` matches no rule", exception.id);
            warnings.push(exception.place.warning("W311", message).help("run `watchbell rules list` to list rule IDs"));
            continue;
        }
        let ExceptionCondition::Values { slot, values } = &exception.condition else {
            continue;
        };
        let fields: Vec<usize> =
            selected.iter().filter_map(|rule| rule.exception_slots.get(slot)).map(Vec::len).collect();
        let problem = match fields.first() {
            None => {
                let known: Vec<&str> =
                    selected.iter().flat_map(|rule| rule.exception_slots.keys()).map(String::as_str).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                format!(
                    "exception `{}`: none of its rules has a slot `{slot}` (available slots: {known})",
                    exception.id
                )
            }
            Some(count) if values.iter().any(|value| value.len() != *count) => {
                format!(
                    "exception `{}`: each value must have one string for each field of slot `{slot}` ({count})",
                    exception.id
                )
            }
            Some(_) => continue,
        };
        warnings.push(exception.place.warning("W312", problem));
    }
    warnings
}
