//! The values that all other modules share: events, alerts, actions, names and times, and helpers that bound and print
//! them. Nothing here does I/O.

pub mod action;
pub mod alert;
pub mod bound;
pub mod category;
pub mod certainty;
pub mod error_kind;
pub mod event;
pub mod legible;
pub mod name;
pub mod outcome;
pub mod oversize;
pub mod pattern;
pub mod repeat;
pub mod signal;
pub mod silence;
pub mod text;
pub mod time;
