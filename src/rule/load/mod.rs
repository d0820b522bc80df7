//! From files to a set of rules that can run: reading, compiling, keeping last good versions, and saying when to look again.

pub(in crate::rule) mod compile;
pub(in crate::rule) mod files;
pub(in crate::rule) mod loader;
pub(in crate::rule) mod shipped;
pub(in crate::rule) mod watch;
