//! Tools for rule authors: lints, the formatter, templates, test files and documentation.

pub(in crate::rule) mod docs;
pub(in crate::rule) mod format;
pub(in crate::rule) mod lint;
pub(in crate::rule) mod template;
pub mod test_file;
