//! Translates Rhai's errors into ours: parse errors into diagnostics, runtime errors into [`RuleFailure`]s.
//!
//! Rhai reports a single position, in characters from 1. The span of a diagnostic is the token at that position.

use std::{fmt, ops::Range, path::Path, sync::Arc};

use rhai::{Dynamic, EvalAltResult, ParseError, ParseErrorType, Position};

use crate::rule::manifest::value::{describe, to_json_value};
use crate::{config::diagnostic::Diagnostic, model::text::clipped};

/// How a function of a rule failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureKind {
    /// It threw, or used a value in a way that its type does not allow.
    Threw,
    /// It returned a value of the wrong type.
    WrongType,
    /// It exceeded the operation budget.
    Budget,
    /// It exceeded the wall-clock limit.
    Deadline,
    /// Its calls nested too deep, or it built too large a value.
    Size,
    /// The host panicked. This is a bug in the host, and is contained.
    Panicked,
}

impl FailureKind {
    /// Returns the name used in alerts and statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Threw => "threw",
            Self::WrongType => "wrong_type",
            Self::Budget => "budget",
            Self::Deadline => "deadline",
            Self::Size => "size",
            Self::Panicked => "panicked",
        }
    }

    /// Whether the function exceeded a limit. Three such failures in a row suspend a rule.
    pub fn exceeds_limit(self) -> bool {
        matches!(self, Self::Budget | Self::Deadline | Self::Size)
    }
}

/// A failed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleFailure {
    /// The kind of failure.
    pub kind: FailureKind,
    /// What happened, and its place in the file if known.
    pub message: String,
}

/// A limit that a call can exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::rule) enum Exceeded {
    /// Number of operations.
    Budget = 1,
    /// Wall-clock time.
    Deadline = 2,
    Memory = 3,
}

impl Exceeded {
    /// Returns the token with which Rhai terminates the call.
    pub(in crate::rule) fn token(self) -> &'static str {
        match self {
            Self::Budget => "watchbell: budget",
            Self::Deadline => "watchbell: deadline",
            Self::Memory => "watchbell: memory",
        }
    }

    /// Returns the limit that a termination token stands for.
    pub(in crate::rule) fn of_token(token: &str) -> Option<Self> {
        [Self::Budget, Self::Deadline, Self::Memory].into_iter().find(|exceeded| exceeded.token() == token)
    }
}

impl fmt::Display for RuleFailure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl RuleFailure {
    /// The failure when subscribers run too often for one event.
    pub(crate) fn heard_too_much(most: usize) -> Self {
        let message = format!(
            "one event caused more than {most} runs of rules with `on`: too many of them subscribe to each other"
        );
        Self { kind: FailureKind::Budget, message }
    }

    pub(in crate::rule) fn wrong_type(function: &str, wanted: &str, found: &Dynamic) -> Self {
        Self {
            kind: FailureKind::WrongType,
            message: format!("`{function}` must return {wanted}, but returned {}", describe(found)),
        }
    }

    pub(in crate::rule) fn of(error: &EvalAltResult) -> Self {
        let inner = innermost(error);
        let kind = match inner {
            EvalAltResult::ErrorTerminated(token, _) => exceeded(token).map_or(FailureKind::Threw, kind_of),
            EvalAltResult::ErrorStackOverflow(_)
            | EvalAltResult::ErrorDataTooLarge(..)
            | EvalAltResult::ErrorTooManyVariables(_)
            | EvalAltResult::ErrorTooManyModules(_) => FailureKind::Size,
            _ => FailureKind::Threw,
        };
        let text = match inner {
            EvalAltResult::ErrorTerminated(token, _) if exceeded(token).is_some() => {
                exceeded(token).map_or("", text_of).to_owned()
            }
            EvalAltResult::ErrorStackOverflow(_) => "function calls nest too deep (infinite recursion?)".to_owned(),
            EvalAltResult::ErrorRuntime(value, _) if value.is_string() => value.to_string(),
            EvalAltResult::ErrorRuntime(value, _) => format!("threw {}", to_json_value(value)),
            EvalAltResult::Exit(..) => "`exit` cannot be used in a function; use `return`".to_owned(),
            other => {
                // Rhai appends the position to its message; ours is appended below.
                let mut plain = rhai_text(other);
                if let Some(cut) = plain.rfind(" (line ") {
                    plain.truncate(cut);
                }
                plain
            }
        };
        let position = inner.position();
        // What a rule throws may have any length and may contain values from the event.
        let text = clipped(&text, MAX_MESSAGE);
        let message = match (position.line(), position.position()) {
            (Some(line), Some(column)) => format!("{text} (line {line}, column {column})"),
            (Some(line), None) => format!("{text} (line {line})"),
            _ => text,
        };
        Self { kind, message }
    }

    /// The failure of a call that exceeded a limit but caught the error, so that its own result does not show it.
    pub(in crate::rule) fn exceeded(exceeded: Exceeded) -> Self {
        Self { kind: kind_of(exceeded), message: text_of(exceeded).to_owned() }
    }
}

/// Maximum length of a failure's message, in UTF-16 code units.
const MAX_MESSAGE: usize = 1_000;

fn kind_of(exceeded: Exceeded) -> FailureKind {
    match exceeded {
        Exceeded::Budget => FailureKind::Budget,
        Exceeded::Deadline => FailureKind::Deadline,
        Exceeded::Memory => FailureKind::Size,
    }
}

fn text_of(exceeded: Exceeded) -> &'static str {
    match exceeded {
        Exceeded::Budget => "exceeded the operation budget (infinite loop?)",
        Exceeded::Deadline => "exceeded the time limit",
        Exceeded::Memory => "exceeded the memory limit",
    }
}

fn rhai_text(error: &EvalAltResult) -> String {
    match error {
        // This is how Rhai reports that a list cannot be sorted.
        EvalAltResult::ErrorFunctionNotFound(signature, _) if signature.starts_with("elements of ") => {
            signature.clone()
        }
        EvalAltResult::ErrorFunctionNotFound(signature, _) => format!("no function `{signature}`"),
        EvalAltResult::ErrorMismatchDataType(wanted, found, _) => format!("expected {wanted}, found {found}"),
        EvalAltResult::ErrorNonPureMethodCallOnConstant(name, _) => {
            format!("`{name}` cannot change a read-only value: events cannot be modified")
        }
        EvalAltResult::ErrorDataTooLarge(what, _) => match what.as_str() {
            "Length of string" => "a string must not exceed 256 KiB".to_owned(),
            "Size of array" | "Size of array/BLOB" => "a list must not exceed 20,000 items".to_owned(),
            "Size of object map" => "a map must not exceed 20,000 entries".to_owned(),
            other => other.to_owned(),
        },
        // Rhai locks a value while one of its methods runs, and reports a second use as a data race.
        EvalAltResult::ErrorDataRace(..) => {
            "a closure cannot use the value whose method calls it: copy what it needs first, such as \
             `let actor = event.actor;`"
                .to_owned()
        }
        EvalAltResult::ErrorAssignmentToConstant(..) => {
            "cannot assign to a read-only value: events and constants cannot be modified".to_owned()
        }
        other => other.to_string(),
    }
}

fn exceeded(token: &Dynamic) -> Option<Exceeded> {
    token.read_lock::<rhai::ImmutableString>().and_then(|token| Exceeded::of_token(&token))
}

fn innermost(error: &EvalAltResult) -> &EvalAltResult {
    match error {
        EvalAltResult::ErrorInFunctionCall(_, _, inner, _) | EvalAltResult::ErrorInModule(_, inner, _) => {
            innermost(inner)
        }
        other => other,
    }
}

/// Turns a parse error into a diagnostic.
pub(in crate::rule) fn parse_error(error: &ParseError, file: &Path, text: &Arc<str>) -> Diagnostic {
    let span = span(text, error.1);
    let (message, help) = match &*error.0 {
        ParseErrorType::VariableUndefined(name) => (
            format!("`{name}` is not defined"),
            "functions can use their parameters and variables, the file's constants, and `params`".to_owned(),
        ),
        ParseErrorType::ModuleUndefined(name) => (
            format!("module `{name}` is not imported"),
            format!("add `import \"…\" as {name};` at the top of the file"),
        ),
        ParseErrorType::UnexpectedEOF => ("unexpected end of input".to_owned(), String::new()),
        ParseErrorType::MissingToken(token, what) => (format!("expected `{token}` {what}"), String::new()),
        ParseErrorType::BadInput(rhai::LexError::ImproperSymbol(word, _)) if word == "this" => {
            ("`this` is not available".to_owned(), "pass the value as a parameter and return the result".to_owned())
        }
        other => (lower_first(&other.to_string()), String::new()),
    };
    let diagnostic = Diagnostic::error("E200", file, message).at(text, span);
    if help.is_empty() { diagnostic } else { diagnostic.help(help) }
}

/// Turns a runtime error of a file's top level into a diagnostic.
pub(in crate::rule) fn load_error(error: &EvalAltResult, file: &Path, text: &Arc<str>) -> Diagnostic {
    let position = error.position();
    let detail = match innermost(error) {
        EvalAltResult::ErrorModuleNotFound(path, _) => {
            return Diagnostic::error(
                "E214",
                file,
                format!("cannot find `{path}.rhai` next to this file or under the rules directories"),
            )
            .at(text, span(text, position))
            .help("write the path without `.rhai`, relative to this file or to a rules directory");
        }
        EvalAltResult::ErrorParsing(kind, at) => {
            format!("{kind} (line {})", at.line().unwrap_or(0))
        }
        other => RuleFailure::of(other).message,
    };
    let message = match error {
        EvalAltResult::ErrorInModule(path, ..) => format!("cannot import `{path}`: {detail}"),
        _ => format!("the file's top level failed: {detail}"),
    };
    Diagnostic::error("E213", file, message).at(text, span(text, position))
}

/// Returns the span of the token at a position. Rhai counts lines and characters from 1.
pub(in crate::rule) fn span(text: &str, position: Position) -> Range<usize> {
    let Some(line) = position.line() else {
        return text.len()..text.len();
    };
    let start_of_line: usize = text.split_inclusive('\n').take(line - 1).map(str::len).sum();
    let rest = text.get(start_of_line..).unwrap_or("");
    let column = position.position().unwrap_or(1).max(1) - 1;
    let offset: usize = rest.chars().take(column).map(char::len_utf8).sum();
    let start = (start_of_line + offset).min(text.len());
    let token = text.get(start..).unwrap_or("");
    let word = |character: char| character.is_alphanumeric() || character == '_';
    let length: usize = match token.chars().next() {
        Some('"') => token
            .char_indices()
            .skip(1)
            .find(|(_, character)| matches!(character, '"' | '\n'))
            .map_or(1, |(index, _)| index + 1),
        Some(first) if word(first) => token.chars().take_while(|character| word(*character)).map(char::len_utf8).sum(),
        Some('\n') | None => 0,
        Some(first) => first.len_utf8(),
    };
    start..start + length
}

fn lower_first(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_lowercase().chain(characters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_cover_the_token() {
        let text = "let a;\n  ünder + \"x y\" ";
        let at = |line, column| text.get(span(text, Position::new(line, column))).unwrap();
        assert_eq!(at(2, 3), "ünder");
        assert_eq!(at(2, 11), "\"x y\"");
        assert_eq!(at(9, 9), "");
        assert_eq!(span(text, Position::NONE), text.len()..text.len());
    }
}
