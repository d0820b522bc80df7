//! Patterns that rules write: regular expressions and globs, compiled once and kept.
//!
//! An engine's calls share one store of them. It is bounded in bytes: a rule that makes patterns out of events would fill it.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use globset::{Glob, GlobBuilder, GlobMatcher, GlobSet, GlobSetBuilder};
use regex::{Regex, RegexBuilder};

/// Bytes that kept patterns may take together; beyond that all are forgotten, and compiled again when needed.
const MAX_KEPT_BYTES: usize = 32 * 1024 * 1024;
/// A pattern may not be longer: nobody writes such a one.
const MAX_LENGTH: usize = 4_096;
/// What a regular expression may take of memory, in bytes: the least of these that is enough is what it counts for.
const REGEX_BYTES: [usize; 4] = [16 * 1024, 64 * 1024, 256 * 1024, 1024 * 1024];
/// Bounds what a regular expression adds to that while it searches, in bytes.
const MAX_CACHE_BYTES: usize = 1024 * 1024;
/// About how many bytes a pattern takes for each byte of its text.
pub(in crate::rule) const BYTES_OF_A_GLOB: usize = 256;
/// Bytes of several patterns that are used as one.
const MAX_SET_LENGTH: usize = 256 * 1024;

/// Compiled patterns by their texts.
#[derive(Debug, Default)]
pub(in crate::rule) struct Patterns {
    regexes: Mutex<Kept<(Regex, usize)>>,
    globs: Mutex<Kept<GlobMatcher>>,
}

impl Patterns {
    /// The regular expression of this text, and about how many bytes it takes.
    pub(in crate::rule) fn regex(&self, text: &str) -> Result<(Regex, usize), String> {
        let mut regexes = self.regexes.lock().unwrap_or_else(PoisonError::into_inner);
        regexes.get(text, || regex(text).map(|(regex, bytes)| ((regex, bytes), bytes)))
    }

    /// Whether all of `text` is as the pattern says.
    pub(in crate::rule) fn glob(&self, pattern: &str, text: &str) -> Result<bool, String> {
        let mut globs = self.globs.lock().unwrap_or_else(PoisonError::into_inner);
        let compile = || glob(pattern).map(|glob| (glob.compile_matcher(), pattern.len() * BYTES_OF_A_GLOB));
        globs.get(pattern, compile).map(|glob| glob.is_match(text))
    }
}

/// Patterns of one kind.
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
    /// The pattern of this text, compiled if it is not there: to the pattern, and the bytes it takes. A mistake in it is kept as well,
    /// so that it costs no more than a good one.
    fn get(&mut self, text: &str, compile: impl FnOnce() -> Result<(T, usize), String>) -> Result<T, String> {
        /// What any takes, with its text twice: in its key and in itself.
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

/// A regular expression, within its bounds, and about how many bytes it takes.
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
        // Its own text draws the place over several lines; the last one says what is wrong.
        other => {
            let text = other.to_string();
            let what = text.lines().last().unwrap_or_default();
            format!("not a regular expression: {}", what.trim_start_matches("error: "))
        }
    })
}

/// A pattern for a whole text, in which `*` stands for anything.
pub(in crate::rule) fn glob(text: &str) -> Result<Glob, String> {
    if text.len() > MAX_LENGTH {
        return Err(format!("the pattern is longer than {MAX_LENGTH} bytes"));
    }
    GlobBuilder::new(text)
        .literal_separator(false)
        .build()
        .map_err(|error| format!("`{text}` is not a pattern: {}", error.kind()))
}

/// Several patterns as one.
pub(in crate::rule) fn glob_set<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<GlobSet, String> {
    let mut set = GlobSetBuilder::new();
    let mut length = 0;
    for text in texts {
        length += text.len();
        if length > MAX_SET_LENGTH {
            return Err(format!("the patterns are longer than {MAX_SET_LENGTH} bytes together"));
        }
        set.add(glob(text)?);
    }
    set.build().map_err(|error| format!("the patterns are too many or too large: {error}"))
}
