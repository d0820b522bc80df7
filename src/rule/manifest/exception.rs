//! Exceptions: conditions that take a match out of alerting. `exceptions.toml` beside the rules.
//!
//! An exception is judged after a rule has said true, so that what it hides is known, kept and counted. It says why it is there,
//! who made it, and when it ends. Its condition is an expression about `event`, or values for one of the slots that a rule declares
//! (`exception_slots`): fields for which the rule's author says that a list of values is a safe way to make exceptions.

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

/// Name of the file.
pub const EXCEPTIONS: &str = "exceptions.toml";

/// A condition that takes matches out of alerting.
#[derive(Debug)]
pub struct Exception {
    /// Its name.
    pub id: ExceptionId,
    /// For which rules.
    pub rules: Vec<Selector>,
    /// When it applies.
    pub condition: ExceptionCondition,
    /// Why it is there.
    pub reason: String,
    /// Who made it.
    pub author: String,
    /// When it was made.
    pub created: Option<jiff::civil::Date>,
    /// The first moment at which it no longer applies, by the times of events; none: never.
    pub expires: Option<Timestamp>,
    /// Where it stands.
    pub place: Place,
    /// What its condition reads beside the event; filled in when it is loaded.
    pub(in crate::rule) reads: Reads,
}

/// When an exception applies.
#[derive(Debug)]
pub enum ExceptionCondition {
    /// When an expression is true.
    Expression {
        /// The expression.
        text: String,
        /// The same, compiled.
        ast: Box<AST>,
    },
    /// When the fields of a rule's slot have one of these values.
    Values {
        /// The slot's name.
        slot: String,
        /// Values, each with one text a field.
        values: Vec<Vec<String>>,
    },
}

impl Exception {
    /// Whether it may hide matches of a rule.
    pub fn is_about(&self, rule: &Metadata) -> bool {
        let selected = self.rules.iter().any(|selector| selector.selects(rule));
        match &self.condition {
            ExceptionCondition::Expression { .. } => selected,
            ExceptionCondition::Values { slot, .. } => selected && rule.exception_slots.contains_key(slot),
        }
    }

    /// Whether it still applied to what happened at `time`.
    pub fn applies_at(&self, time: Timestamp) -> bool {
        self.expires.is_none_or(|expires| time < expires)
    }
}

/// Reads the text of an `exceptions.toml`. Everything that is wrong with it is told; then nothing of it is used.
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
                    let message = format!("two exceptions are called `{}`", exception.id);
                    problems.push("E106", span, message, None);
                }
                exceptions.push(Arc::new(exception));
            }
        }
        top.finish();
    }
    let found = problems.into_sorted();
    if found.is_empty() { Ok(exceptions) } else { Err(found) }
}

fn read_one(engine: &mut Engine, mut table: TableReader<'_>) -> Option<Exception> {
    let place = table.place();
    table.required_text("id", "\"what-it-is-about\"");
    let id = table.parsed("id", ExceptionId::parse);
    if !table.has("rules") {
        let help = "add `rules = [\"a.rule.id\"]`: ids, patterns such as `atlassian.*`, or `tag:NAME`";
        table.problem("", "the exception says for no rules", Some(help.to_owned()));
    }
    let rules = table.texts("rules", Selector::parse).unwrap_or_default();
    let reason = table.required_text("reason", "\"why this is no cause for alarm\"").unwrap_or_default().to_owned();
    let author = table.required_text("author", "\"who says so\"").unwrap_or_default().to_owned();
    let created = table.date("created");
    let expires = expiry(&mut table);
    let condition = condition(engine, &mut table);
    table.finish();
    let reads = Reads::default();
    Some(Exception { id: id?, rules, condition: condition?, reason, author, created, expires, place, reads })
}

/// When it ends. It must be said, be it that it never does: an exception that nobody remembers is a hole.
fn expiry(table: &mut TableReader<'_>) -> Option<Timestamp> {
    if !table.has("expires") {
        let help = "add `expires = 2027-06-30`, or `expires = \"never\"` if that is what you mean";
        table.problem("", "the exception does not say when it ends", Some(help.to_owned()));
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
                let wanted = "`values` must be a list of texts, or of lists with a text for each field of the slot";
                table.problem("values", wanted, None);
                None
            }
        },
        _ => {
            let help = "write `condition = 'event.actor.email == \"dana@example.com\"'`, or `slot` and `values`";
            table.problem(
                "",
                "the exception must have a `condition`, or a `slot` with `values`",
                Some(help.to_owned()),
            );
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

/// Compiles a condition: one expression about `event` and `params`.
pub(in crate::rule) fn compile(engine: &mut Engine, text: &str) -> Result<AST, String> {
    let mut scope = Scope::new();
    scope.push_constant("event", Dynamic::UNIT);
    scope.push_constant("params", rhai::Map::new());
    // Constants would be put in the place of their names: here they stand for values that come later.
    let level = engine.optimization_level();
    engine.set_optimization_level(rhai::OptimizationLevel::None);
    engine.set_strict_variables(true);
    let compiled = engine.compile_expression_with_scope(&scope, text);
    engine.set_optimization_level(level);
    compiled.map_err(|error| {
        let diagnostic = problem::parse_error(&error, Path::new(""), &text.into());
        format!("the condition does not compile: {}", diagnostic.message)
    })
}

/// Warnings about exceptions that can hide nothing.
pub(in crate::rule) fn unused<'a>(
    exceptions: &[Arc<Exception>],
    rules: impl Iterator<Item = &'a Metadata> + Clone,
) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for exception in exceptions {
        let selected: Vec<&Metadata> =
            rules.clone().filter(|rule| exception.rules.iter().any(|selector| selector.selects(rule))).collect();
        if selected.is_empty() {
            let message = format!("exception `{}` is about no rule that there is", exception.id);
            found.push(exception.place.warning("W311", message));
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
                let known = if known.is_empty() { "they have none".to_owned() } else { known.join(", ") };
                format!("exception `{}`: none of its rules has a slot `{slot}`; slots there: {known}", exception.id)
            }
            Some(count) if values.iter().any(|value| value.len() != *count) => {
                format!(
                    "exception `{}`: slot `{slot}` has {count} fields, and so must each of its values",
                    exception.id
                )
            }
            Some(_) => continue,
        };
        found.push(exception.place.warning("W312", problem));
    }
    found
}
