//! For people who write rules: lints, the formatter, templates, test files, documentation.

pub(in crate::rule) mod docs;
pub(in crate::rule) mod format;
pub(in crate::rule) mod lint;
pub(in crate::rule) mod template;
pub mod test_file;
