//! Tests of what Watchbell promises, through its binary and its public interface. A single test binary is linked once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking"
)]

/// Shared helpers: a lab with a simulated organization, events and rule sets.
mod support;

/// Action lists: names, categories, and ignored and dropped actions.
mod actions;
/// Writing rules: tests, lints, explanations, templates and formatting.
mod authoring;
mod configuration;
mod control_api;
/// The outbox: routing, failing destinations, rotation.
mod deliver;
/// Every kind of destination against a server on loopback.
mod destination;
/// From match to alert: dedup, thresholds, escalation, fallbacks, late events.
mod detection;
mod diagnostics;
/// Rules directories that change under a running agent.
mod fuzz;
mod help;
mod hot_reload;
/// The rule language: every host function as documented, on data of any shape, and the generated documents.
mod language;
/// Project invariants: layers, module docs, file sizes.
mod layers;
/// Rule state: exact, bounded, and independent of how it came about.
mod memory;
/// A running agent: its socket, commands, alert lifecycle, silences, import and export, metrics.
mod operate;
/// The rule pack: each rule documents itself, ordinary weeks are quiet, and each step of an incident is detected.
mod pack;
/// Evaluating conditions before a script runs.
mod prefilter;
/// Promise 5: absent data never throws.
mod promise_absent_data;
/// Promise 3: a bad rule hurts only itself.
mod promise_bad_rule;
/// Promise 1: nothing is lost or duplicated, whenever the process is killed.
mod promise_crash;
mod promise_last_resort;
mod promise_nothing_hidden;
/// Promise 2: replaying evaluated events gives the alerts that were raised.
mod promise_replay_is_live;
/// No secret is ever written or printed.
mod promise_secrets;
/// Promise 4: silence is never mistaken for safety.
mod promise_silence;
/// The program does what the README says.
mod readme;
/// Replays on several threads.
mod replay;
/// The commands `replay` and `coverage`.
mod replay_verb;
/// The shipped rules.
mod shipped_rules;
/// The events stream: both endings, every fault, malformed pages.
mod source;
/// The store: layout, retention, merging, disk use.
mod store;
/// Store maintenance: damaged snapshots, verify, backup, compaction, recovery.
mod store_care;
/// New rules: the guard and the retro-hunt.
mod trial;
/// Overrides and exceptions: their effects, reloading, counting and persistence.
mod tuning;
/// The commands: output and exit codes.
mod verbs;
/// A rule's version changes exactly when its results can.
mod versions;
