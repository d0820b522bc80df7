//! What Rhai says went wrong, in our terms: parse errors as diagnostics, runtime errors as [`RuleFailure`]s.
//!
//! Rhai gives one point, counted in characters from 1; the span is the token that stands there.

use std::{fmt, ops::Range, path::Path, sync::Arc};

use rhai::{Dynamic, EvalAltResult, ParseError, ParseErrorType, Position};

use crate::rule::manifest::value::{describe, to_json_value};
use crate::{config::diagnostic::Diagnostic, model::text::clipped};

/// How a function of a rule can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureKind {
    /// It threw, or used a value in a way its type does not allow.
    Threw,
    /// It returned something of another type than asked for.
    WrongType,
    /// It ran out of operations.
    Budget,
    /// It ran into the wall-clock limit.
    Deadline,
    /// It called too deep, or built something too large.
    Size,
    /// The host failed under it. A bug of ours, contained.
    Panicked,
}

impl FailureKind {
    /// The name in alerts and statistics.
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

    /// Whether a limit was exceeded: three times in a row suspend a rule.
    pub fn exceeds_limit(self) -> bool {
        matches!(self, Self::Budget | Self::Deadline | Self::Size)
    }
}

/// A failed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleFailure {
    /// How.
    pub kind: FailureKind,
    /// What happened, and where in the file if that is known.
    pub message: String,
}

/// A limit that a call can exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::rule) enum Exceeded {
    /// Operations.
    Budget = 1,
    /// Wall-clock time.
    Deadline = 2,
    /// Memory.
    Memory = 3,
}

impl Exceeded {
    /// The token with which Rhai is told to end a call.
    pub(in crate::rule) fn token(self) -> &'static str {
        match self {
            Self::Budget => "watchbell: budget",
            Self::Deadline => "watchbell: deadline",
            Self::Memory => "watchbell: memory",
        }
    }

    /// What a token says.
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
    /// Rules that listen to each other ran too often for one event.
    pub(crate) fn heard_too_much(most: usize) -> Self {
        let message = format!(
            "one event led to more than {most} runs of rules that listen to matches: they listen to each other crosswise"
        );
        Self { kind: FailureKind::Budget, message }
    }

    pub(in crate::rule) fn wrong_type(function: &str, wanted: &str, found: &Dynamic) -> Self {
        Self {
            kind: FailureKind::WrongType,
            message: format!("`{function}` must return {wanted}, it returned {}", describe(found)),
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
            EvalAltResult::ErrorStackOverflow(_) => {
                "called functions too deep (does it recurse without end?)".to_owned()
            }
            EvalAltResult::ErrorRuntime(value, _) if value.is_string() => value.to_string(),
            EvalAltResult::ErrorRuntime(value, _) => format!("threw {}", to_json_value(value)),
            EvalAltResult::Exit(..) => "`exit` does not work in a called function: use `return`".to_owned(),
            other => {
                // Rhai puts the position at the end of its own text; ours follows below.
                let mut plain = rhai_text(other);
                if let Some(cut) = plain.rfind(" (line ") {
                    plain.truncate(cut);
                }
                plain
            }
        };
        let position = inner.position();
        // What a rule throws may be of any length, and be made of what an event says.
        let text = clipped(&text, MAX_MESSAGE);
        let message = match (position.line(), position.position()) {
            (Some(line), Some(column)) => format!("{text} (line {line}, column {column})"),
            (Some(line), None) => format!("{text} (line {line})"),
            _ => text,
        };
        Self { kind, message }
    }

    /// A call that exceeded a limit, where its own error does not say so: it caught it.
    pub(in crate::rule) fn exceeded(exceeded: Exceeded) -> Self {
        Self { kind: kind_of(exceeded), message: text_of(exceeded).to_owned() }
    }
}

/// UTF-16 units of what a rule failed with.
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
        Exceeded::Budget => "ran out of its budget of operations (does it loop without end?)",
        Exceeded::Deadline => "ran into the time limit",
        Exceeded::Memory => "took too much memory",
    }
}

fn rhai_text(error: &EvalAltResult) -> String {
    match error {
        // Rhai says in this way that a list cannot be sorted.
        EvalAltResult::ErrorFunctionNotFound(signature, _) if signature.starts_with("elements of ") => signature.clone(),
        EvalAltResult::ErrorFunctionNotFound(signature, _) => format!("no function `{signature}`"),
        EvalAltResult::ErrorMismatchDataType(wanted, found, _) => format!("needs {wanted}, found {found}"),
        EvalAltResult::ErrorNonPureMethodCallOnConstant(name, _) => {
            format!("`{name}` would change a value that is read-only: the event cannot be changed")
        }
        EvalAltResult::ErrorDataTooLarge(what, _) => match what.as_str() {
            "Length of string" => "a text would be longer than 256 KiB".to_owned(),
            "Size of array" | "Size of array/BLOB" => "a list would have more than 20,000 items".to_owned(),
            "Size of object map" => "a map would have more than 20,000 entries".to_owned(),
            other => other.to_owned(),
        },
        // Rhai locks a value while a method of it runs, and calls the second use a data race.
        EvalAltResult::ErrorDataRace(..) => {
            "a closure uses the value whose method calls it: take what it needs out first, such as `let actor = event.actor;`"
                .to_owned()
        }
        EvalAltResult::ErrorAssignmentToConstant(..) => {
            "assignment to a value that is read-only: the event and constants cannot be changed".to_owned()
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

/// A parse error of a file as a diagnostic.
pub(in crate::rule) fn parse_error(error: &ParseError, file: &Path, text: &Arc<str>) -> Diagnostic {
    let span = span(text, error.1);
    let (message, help) = match &*error.0 {
        ParseErrorType::VariableUndefined(name) => (
            format!("`{name}` is not defined"),
            "a function sees its own parameters and variables, the file's constants, and `params`".to_owned(),
        ),
        ParseErrorType::ModuleUndefined(name) => (
            format!("module `{name}` is not imported"),
            format!("add `import \"…\" as {name};` at the top of the file"),
        ),
        ParseErrorType::UnexpectedEOF => ("the file ends in the middle of something".to_owned(), String::new()),
        ParseErrorType::MissingToken(token, what) => (format!("expected `{token}` {what}"), String::new()),
        ParseErrorType::BadInput(rhai::LexError::ImproperSymbol(word, _)) if word == "this" => (
            "there is no `this`".to_owned(),
            "give the function what it works on as a parameter, and let it return the result".to_owned(),
        ),
        other => (lower_first(&other.to_string()), String::new()),
    };
    let diagnostic = Diagnostic::error("E200", file, message).at(text, span);
    if help.is_empty() { diagnostic } else { diagnostic.help(help) }
}

/// A runtime error of a file's top level as a diagnostic.
pub(in crate::rule) fn load_error(error: &EvalAltResult, file: &Path, text: &Arc<str>) -> Diagnostic {
    let position = error.position();
    let detail = match innermost(error) {
        EvalAltResult::ErrorModuleNotFound(path, _) => {
            return Diagnostic::error(
                "E214",
                file,
                format!("no file `{path}.rhai` beside this one or under the rules directories"),
            )
            .at(text, span(text, position));
        }
        EvalAltResult::ErrorParsing(kind, at) => {
            format!("{kind} (line {})", at.line().unwrap_or(0))
        }
        other => RuleFailure::of(other).message,
    };
    let message = match error {
        EvalAltResult::ErrorInModule(path, ..) => format!("`{path}` cannot be imported: {detail}"),
        _ => format!("the top level of the file fails: {detail}"),
    };
    Diagnostic::error("E213", file, message).at(text, span(text, position))
}

/// The token at a position: Rhai counts lines and characters from 1.
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
