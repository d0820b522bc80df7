//! The script engine: the sandbox and its limits, the host functions and data it offers, rule memory, and everything
//! that is read from a syntax tree.

pub(in crate::rule) mod address;
pub(in crate::rule) mod ast;
pub(in crate::rule) mod bounds;
pub(in crate::rule) mod call;
pub(in crate::rule) mod compiled;
pub(in crate::rule) mod conditions;
pub(in crate::rule) mod cost;
pub(in crate::rule) mod extract;
pub(in crate::rule) mod fields;
pub(in crate::rule) mod fold;
pub(in crate::rule) mod host;
pub(in crate::rule) mod import;
pub(in crate::rule) mod library;
pub(in crate::rule) mod lists;
pub(in crate::rule) mod memory;
pub(in crate::rule) mod meter;
pub(in crate::rule) mod natives;
pub(in crate::rule) mod places;
pub(in crate::rule) mod printer;
pub(in crate::rule) mod resources;
pub(in crate::rule) mod sandbox;
pub(in crate::rule) mod scan;
pub mod stack;
pub(in crate::rule) mod trace;
pub(in crate::rule) mod view;
pub(in crate::rule) mod vocabulary;
