//! Patterns in which `*` matches any text, as configuration, rules and the command line write them.

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

/// The longest pattern, in bytes. Compiling takes time and stack by its length.
pub const MAX_LENGTH: usize = 4_096;

/// Parses a pattern for a whole string. The error names the pattern.
pub fn glob(text: &str) -> Result<Glob, String> {
    if text.len() > MAX_LENGTH {
        return Err(format!("the pattern is longer than {MAX_LENGTH} bytes"));
    }
    GlobBuilder::new(text)
        .literal_separator(false)
        .build()
        .map_err(|error| format!("invalid pattern `{text}`: {}", error.kind()))
}

/// Combines patterns into a set, which tells which of them match.
pub fn set(globs: impl IntoIterator<Item = Glob>) -> Result<GlobSet, String> {
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        set.add(glob);
    }
    set.build().map_err(|error| format!("too many or too large patterns: {error}"))
}
