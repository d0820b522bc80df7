//! Arbitrary text as an event: parsed, anonymized, and run through the shipped rules. No rule may fail on any event.
#![no_main]

#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|text: &str| targets::event(text));
