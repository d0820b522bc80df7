//! Arbitrary text as a test file: accepted or refused.
#![no_main]

#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|text: &str| targets::test_file(text));
