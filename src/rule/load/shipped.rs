//! The rules that ship, compiled into the binary: `rules/builtin` always runs, the others are what `init` writes.
//!
//! The build script lists the files of `rules/`, so that a rule is added by adding its file.

/// A file of `rules/`.
#[derive(Debug, Clone, Copy)]
pub struct ShippedFile {
    /// Its path below `rules/` (below `rules/builtin/` for a built-in one), with `/` between parts.
    pub path: &'static str,
    /// Its text.
    pub text: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/shipped.rs"));
