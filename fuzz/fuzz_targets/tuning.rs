//! Arbitrary text as overrides, exceptions and lists next to a rule: accepted or refused, and the rule still loads.
#![no_main]

#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|text: &str| targets::tuning(text));
