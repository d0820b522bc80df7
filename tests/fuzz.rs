//! The fuzz targets, on the inputs that are kept for them: `fuzz/seeds` has a directory for each target.

use std::fs;

#[path = "../fuzz/targets.rs"]
mod targets;

/// Runs a target on each of its inputs.
fn run(name: &str, target: fn(&str)) {
    let mut inputs = 0;
    for entry in fs::read_dir(format!("fuzz/seeds/{name}")).unwrap() {
        let path = entry.unwrap().path();
        target(&fs::read_to_string(&path).unwrap());
        inputs += 1;
    }
    assert!(inputs >= 5, "{name}: {inputs} inputs");
}

#[test]
fn events() {
    run("event", targets::event);
}

#[test]
fn rules() {
    run("rule", targets::rule);
}

#[test]
fn test_files() {
    run("test_file", targets::test_file);
}

#[test]
fn tuning() {
    run("tuning", targets::tuning);
}
