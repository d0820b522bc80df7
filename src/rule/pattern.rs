//! Patterns that rules write: regular expressions and globs, compiled once and kept.
//!
//! An engine's calls share one store of them. It is bounded: a rule that makes patterns out of events would fill it.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use globset::{Glob, GlobBuilder, GlobMatcher, GlobSet, GlobSetBuilder};
use regex::{Regex, RegexBuilder};

/// Patterns that are kept; beyond that all are forgotten, and compiled again when needed.
const MAX_KEPT: usize = 1_000;
/// A pattern may not be longer: nobody writes such a one.
const MAX_LENGTH: usize = 4_096;
/// Bounds what a regular expression makes of memory, in bytes.
const MAX_REGEX_BYTES: usize = 1024 * 1024;

/// Compiled patterns by their texts.
#[derive(Debug, Default)]
pub(super) struct Patterns {
    regexes: Mutex<HashMap<String, Result<Regex, String>>>,
    globs: Mutex<HashMap<String, Result<GlobMatcher, String>>>,
}

impl Patterns {
    /// The regular expression of this text.
    pub(super) fn regex(&self, text: &str) -> Result<Regex, String> {
        kept(&self.regexes, text, regex)
    }

    /// Whether all of `text` is as the pattern says.
    pub(super) fn glob(&self, pattern: &str, text: &str) -> Result<bool, String> {
        kept(&self.globs, pattern, |pattern| glob(pattern).map(|glob| glob.compile_matcher()))
            .map(|glob| glob.is_match(text))
    }
}

/// A mistake in a pattern is kept as well, so that it costs no more than a good one.
fn kept<T: Clone>(
    patterns: &Mutex<HashMap<String, Result<T, String>>>,
    text: &str,
    compile: impl Fn(&str) -> Result<T, String>,
) -> Result<T, String> {
    let mut patterns = patterns.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pattern) = patterns.get(text) {
        return pattern.clone();
    }
    if patterns.len() >= MAX_KEPT {
        patterns.clear();
    }
    let pattern = compile(text);
    patterns.insert(text.to_owned(), pattern.clone());
    pattern
}

/// A regular expression, within its bounds.
pub(super) fn regex(text: &str) -> Result<Regex, String> {
    if text.len() > MAX_LENGTH {
        return Err(format!("the regular expression is longer than {MAX_LENGTH} bytes"));
    }
    let built = RegexBuilder::new(text).size_limit(MAX_REGEX_BYTES).dfa_size_limit(MAX_REGEX_BYTES).build();
    built.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => "the regular expression is too large when compiled".to_owned(),
        // Its own text draws the place over several lines; the last one says what is wrong.
        other => {
            let text = other.to_string();
            let what = text.lines().last().unwrap_or_default();
            format!("not a regular expression: {}", what.trim_start_matches("error: "))
        }
    })
}

/// A pattern for a whole text, in which `*` stands for anything.
pub(super) fn glob(text: &str) -> Result<Glob, String> {
    if text.len() > MAX_LENGTH {
        return Err(format!("the pattern is longer than {MAX_LENGTH} bytes"));
    }
    GlobBuilder::new(text)
        .literal_separator(false)
        .build()
        .map_err(|error| format!("`{text}` is not a pattern: {}", error.kind()))
}

/// Several patterns as one.
pub(super) fn glob_set<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<GlobSet, String> {
    let mut set = GlobSetBuilder::new();
    for text in texts {
        set.add(glob(text)?);
    }
    set.build().map_err(|error| format!("the patterns are too many or too large: {error}"))
}
