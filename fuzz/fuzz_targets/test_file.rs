//! Arbitrary text as a test file: accepted or refused.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use watchbell::rule::case;

fuzz_target!(|text: &str| {
    let (cases, _) = case::read(Path::new("x.test.yaml"), text, &|_| Err("not here".to_owned()));
    assert!(cases.iter().all(|case| !case.events.is_empty()));
});
