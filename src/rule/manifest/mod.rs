//! Rule metadata: `RULE`, overrides and exceptions. Nothing here runs a script.

pub(in crate::rule) mod exception;
pub(in crate::rule) mod metadata;
pub(in crate::rule) mod overrides;
pub(in crate::rule) mod pattern;
pub(in crate::rule) mod problem;
pub(in crate::rule) mod reads;
pub(in crate::rule) mod runbook;
pub(in crate::rule) mod selector;
pub(in crate::rule) mod value;
