//! Loading rule files: reading, compiling, keeping last good versions, and watching for changes.

pub(in crate::rule) mod compile;
pub(in crate::rule) mod files;
pub(in crate::rule) mod loader;
pub(in crate::rule) mod shipped;
pub(in crate::rule) mod watch;
