//! Tests of what Watchbell promises, through its binary and its public interface. One binary, so that it is linked once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking"
)]

/// What tests share: a laboratory with a simulated organization, events and rule sets.
mod support;

/// What organizations call their actions: lists, names, categories, and what is not wanted.
mod actions;
/// Writing rules: their tests, what is doubtful about them, why they did or did not fire, beginning and formatting them.
mod authoring;
mod control_api;
/// The outbox: routing, failing destinations, rotation.
mod deliver;
/// Every kind of destination against a server on loopback.
mod destination;
/// What a match becomes: dedup, thresholds, escalation, fallbacks, late events.
mod detection;
/// Rules directories that change under a running agent.
mod hot_reload;
/// The rule language: every host function as its documentation says, on data of any shape, and the documents made of it.
mod language;
/// Project invariants: who imports whom, module docs, sizes of files.
mod layers;
/// What rules remember: exact, bounded, the same however it came about.
mod memory;
/// A running agent: its socket, its verbs, alerts' life, silences, events in and out, metrics.
mod operate;
/// The rule pack: that each rule explains itself, that ordinary weeks are quiet, and that an incident is found step by step.
mod pack;
/// Asking before a script runs.
mod prefilter;
/// Promise 5: absent data never throws.
mod promise_absent_data;
/// Promise 3: a bad rule hurts only itself.
mod promise_bad_rule;
/// Promise 1: nothing is lost and nothing doubled, whenever the process is killed.
mod promise_crash;
mod promise_last_resort;
mod promise_nothing_hidden;
/// Promise 2: replaying what was evaluated gives the alerts that were raised.
mod promise_replay_is_live;
/// No secret gets into anything that is written or printed.
mod promise_secrets;
/// Promise 4: silence is never mistaken for safety.
mod promise_silence;
/// What README says is what the program does.
mod readme;
/// Replays on many threads.
mod replay;
/// `replay` and `coverage` as people call them.
mod replay_verb;
/// The rules that ship.
mod shipped_rules;
/// The events stream: both endings, every fault, ragged pages.
mod source;
/// The store: layout, retention, merging, disk use.
mod store;
/// Care of the store: damaged snapshots, verify, backup, compaction, recovery.
mod store_care;
/// Rules that are new: the guard, and the run over what is stored.
mod trial;
/// Overrides and exceptions: what they change and hide, that they are reloaded, counted and kept.
mod tuning;
/// The verbs: what they print and which code they exit with.
mod verbs;
/// A rule's version changes exactly when its answer can.
mod versions;
