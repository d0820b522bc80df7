//! Problems in files that the user wrote: plain data, rendered only by `cli::output`.
//!
//! Code that reads users' files returns everything usable together with a list of diagnostics, and never stops at the
//! first.

use std::{ops::Range, path::PathBuf, sync::Arc};

use serde::Serialize;

use crate::model::text::escaped;

/// The severity of a diagnostic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Usable, but probably not as intended.
    Warning,
    /// Not usable.
    Error,
}

/// A problem, its place, and how to fix it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// A stable code, such as `E101`.
    pub code: &'static str,
    /// Error or warning.
    pub level: Level,
    /// What is wrong, in lower case, without a final period.
    pub message: String,
    /// The file with the problem.
    pub file: PathBuf,
    /// Line, counted from 1. `None` if the problem concerns the whole file.
    pub line: Option<usize>,
    /// Column in characters, counted from 1. `None` if the problem concerns the whole file.
    pub column: Option<usize>,
    /// Byte range of the problem in `text`.
    #[serde(skip)]
    pub span: Option<Range<usize>>,
    /// A few words to show next to the caret.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// How to fix the problem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// The file's text, to show the line.
    #[serde(skip)]
    pub text: Arc<str>,
}

impl Diagnostic {
    /// Creates an error about `file` as a whole.
    pub fn error(code: &'static str, file: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self {
            code,
            level: Level::Error,
            message: message.into(),
            file: file.into(),
            line: None,
            column: None,
            span: None,
            label: String::new(),
            help: None,
            text: Arc::from(""),
        }
    }

    /// Creates a warning about `file` as a whole.
    pub fn warning(code: &'static str, file: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self { level: Level::Warning, ..Self::error(code, file, message) }
    }

    /// Sets the place in `text`. A span that exceeds the text is clipped.
    #[must_use]
    pub fn at(mut self, text: &Arc<str>, span: Range<usize>) -> Self {
        let start = floor_boundary(text, span.start);
        let end = floor_boundary(text, span.end).max(start);
        let before = text.get(..start).unwrap_or("");
        self.line = Some(before.matches('\n').count() + 1);
        self.column = Some(before.rsplit('\n').next().unwrap_or("").chars().count() + 1);
        self.span = Some(start..end);
        self.text = Arc::clone(text);
        self
    }

    /// Sets the words to show next to the caret.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Sets the help: how to fix the problem.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Formats the problem as one line for logs and alerts: `file:line:column: message`.
    pub fn one_line(&self) -> String {
        let (file, message) = (escaped(&self.file.display().to_string()), escaped(&self.message));
        match (self.line, self.column) {
            (Some(line), Some(column)) => format!("{file}:{line}:{column}: {message}"),
            _ => format!("{file}: {message}"),
        }
    }
}

/// True if any of the diagnostics is an error.
pub fn any_error(diagnostics: &[Diagnostic]) -> bool {
    diagnostics.iter().any(|diagnostic| diagnostic.level == Level::Error)
}

/// Returns the candidate closest to `name`, if one is similar enough.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&name.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.chars().count().max(name.chars().count()) / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Returns `did you mean …?`, or the list of all candidates if none is similar.
pub fn suggest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(name, candidates.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            let all: Vec<String> = candidates.into_iter().map(|candidate| format!("`{candidate}`")).collect();
            format!("expected one of {}", all.join(", "))
        }
    }
}

fn floor_boundary(text: &str, index: usize) -> usize {
    let mut index = index.min(text.len());
    while !text.is_char_boundary(index) {
        index -= 1;
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_characters_from_one() {
        let text: Arc<str> = Arc::from("a\nüx y");
        let found = Diagnostic::error("E000", "f", "m").at(&text, 4..5);
        assert_eq!((found.line, found.column), (Some(2), Some(2)));
        assert_eq!(found.one_line(), "f:2:2: m");
        // In the middle of a character, and past the end.
        assert_eq!(Diagnostic::error("E000", "f", "m").at(&text, 3..99).span, Some(2..text.len()));
    }

    #[test]
    fn near_names_only() {
        assert_eq!(nearest("sevrity", ["title", "severity"]), Some("severity"));
        assert_eq!(nearest("zzz", ["title", "severity"]), None);
    }
}
