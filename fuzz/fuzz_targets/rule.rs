//! Arbitrary text as a rule file: formatted, loaded, linted, traced and run on an event. It must not panic or hang.
#![no_main]

#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|text: &str| targets::rule(text));
