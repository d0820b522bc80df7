//! Patterns in rules: regular expressions and globs, compiled once and cached.
//!
//! All calls of an engine share one cache. It is bounded in bytes, because a rule that builds patterns from events
//! would fill it.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use crate::model::pattern;
use globset::{Glob, GlobMatcher, GlobSet};
use regex::{Regex, RegexBuilder};

/// Maximum size of the cache in bytes. Beyond that, the whole cache is cleared and patterns are compiled again.
const MAX_KEPT_BYTES: usize = 32 * 1024 * 1024;
/// Maximum length of a pattern in bytes. Patterns written by hand are far shorter.
const MAX_LENGTH: usize = 4_096;
/// Memory limits for a regular expression, in bytes. It counts as the smallest limit within which it compiles.
const REGEX_BYTES: [usize; 4] = [16 * 1024, 64 * 1024, 256 * 1024, 1024 * 1024];
/// Maximum memory that a regular expression uses in addition while it searches, in bytes.
const MAX_CACHE_BYTES: usize = 1024 * 1024;
/// Approximate memory use of a compiled glob, in bytes per byte of its text.
pub(in crate::rule) const BYTES_OF_A_GLOB: usize = 256;
/// Maximum total length in bytes of the patterns of a set.
const MAX_SET_LENGTH: usize = 256 * 1024;

/// A cache of compiled patterns, by their text.
#[derive(Debug, Default)]
pub(in crate::rule) struct Patterns {
    regexes: Mutex<Kept<(Regex, usize)>>,
    globs: Mutex<Kept<GlobMatcher>>,
}

impl Patterns {
    /// Returns the compiled regular expression and its approximate memory use in bytes.
    pub(in crate::rule) fn regex(&self, text: &str) -> Result<(Regex, usize), String> {
        let mut regexes = self.regexes.lock().unwrap_or_else(PoisonError::into_inner);
        regexes.get(text, || regex(text).map(|(regex, bytes)| ((regex, bytes), bytes)))
    }

    /// Whether the pattern matches the whole of `text`.
    pub(in crate::rule) fn glob(&self, pattern: &str, text: &str) -> Result<bool, String> {
        let mut globs = self.globs.lock().unwrap_or_else(PoisonError::into_inner);
        let compile = || glob(pattern).map(|glob| (glob.compile_matcher(), pattern.len() * BYTES_OF_A_GLOB));
        globs.get(pattern, compile).map(|glob| glob.is_match(text))
    }
}

/// Cached patterns of one kind.
#[derive(Debug)]
struct Kept<T> {
    by_text: HashMap<String, Result<T, String>>,
    bytes: usize,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { by_text: HashMap::new(), bytes: 0 }
    }
}

impl<T: Clone> Kept<T> {
    /// Returns the pattern of this text. On a miss, `compile` returns the pattern and its size in bytes. Errors are
    /// cached too, so that an invalid pattern costs no more than a valid one.
    fn get(&mut self, text: &str, compile: impl FnOnce() -> Result<(T, usize), String>) -> Result<T, String> {
        /// Fixed size of an entry in bytes. The text is counted twice: in the key and in the pattern.
        const LEAST: usize = 1_024;
        if let Some(pattern) = self.by_text.get(text) {
            return pattern.clone();
        }
        let compiled = compile();
        let bytes = LEAST + 2 * text.len() + compiled.as_ref().map_or(0, |(_, bytes)| *bytes);
        if self.bytes + bytes > MAX_KEPT_BYTES {
            self.by_text.clear();
            self.bytes = 0;
        }
        self.bytes += bytes;
        let pattern = compiled.map(|(pattern, _)| pattern);
        self.by_text.insert(text.to_owned(), pattern.clone());
        pattern
    }
}

/// Compiles a regular expression within the limits, and returns its approximate memory use in bytes.
fn regex(text: &str) -> Result<(Regex, usize), String> {
    if text.len() > MAX_LENGTH {
        return Err(format!("the regular expression is longer than {MAX_LENGTH} bytes"));
    }
    let build = |bytes: usize| {
        let built = RegexBuilder::new(text).size_limit(bytes).dfa_size_limit(MAX_CACHE_BYTES).build();
        built.map(|regex| (regex, 2 * bytes))
    };
    let mut built = build(REGEX_BYTES[0]);
    for bytes in REGEX_BYTES.into_iter().skip(1) {
        if !matches!(built, Err(regex::Error::CompiledTooBig(_))) {
            break;
        }
        built = build(bytes);
    }
    built.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => "the regular expression is too large when compiled".to_owned(),
        // The message of `regex` spans several lines; the last one names the problem.
        other => {
            let text = other.to_string();
            let what = text.lines().last().unwrap_or_default();
            format!("invalid regular expression: {}", what.trim_start_matches("error: "))
        }
    })
}

/// Parses a pattern for a whole string, in which `*` matches anything.
pub(in crate::rule) fn glob(text: &str) -> Result<Glob, String> {
    pattern::glob(text)
}

/// Combines several patterns into a set.
pub(in crate::rule) fn glob_set<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<GlobSet, String> {
    let mut globs = Vec::new();
    let mut length = 0;
    for text in texts {
        length += text.len();
        if length > MAX_SET_LENGTH {
            return Err(format!("the patterns are longer than {MAX_SET_LENGTH} bytes in total"));
        }
        globs.push(glob(text)?);
    }
    pattern::set(globs)
}
