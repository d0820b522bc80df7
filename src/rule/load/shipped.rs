//! The rules compiled into the binary. Those in `rules/builtin` always run; `watchbell init` writes the others.
//!
//! The build script lists the files in `rules/`, so adding a file adds a rule.

/// A file from `rules/`.
#[derive(Debug, Clone, Copy)]
pub struct ShippedFile {
    /// The path below `rules/` (below `rules/builtin/` for a built-in rule), separated by `/`.
    pub path: &'static str,
    /// The file's text.
    pub text: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/shipped.rs"));
