//! Arbitrary text as overrides, exceptions and lists next to a rule: accepted or refused, and the rule still loads.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use watchbell::rule::Loader;

fuzz_target!(|text: &str| {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).expect("a file");
    fs::create_dir(directory.path().join("lists")).expect("a directory");
    write("r.rhai", "const RULE = #{ id: \"a.b\", title: \"t\", severity: \"low\" };\nfn rule(event) { true }");
    for name in ["overrides.toml", "exceptions.toml", "lists/a.txt", "lists/b.csv", "lists/c.json"] {
        write(name, text);
    }
    let loaded = Loader::of(vec![directory.path().to_owned()]).without_builtin().load();
    assert!(loaded.set.all().count() <= 1);
});
