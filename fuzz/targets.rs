//! What the fuzz targets do with an input. `tests/fuzz.rs` runs the same functions on the inputs in `seeds/`.

#![allow(dead_code, reason = "each target uses one of them")]

use std::{
    fs,
    path::Path,
    sync::{Arc, OnceLock},
};

use watchbell::{
    detect::Settings,
    model::{
        action::Catalog,
        event::IncomingEvent,
        name::{Sequence, SourceName},
        time::Timestamp,
    },
    replay::Replay,
    rule::{self, Limits, Loader, RuleInput, RuleSet, SHIPPED, Tracer, Vocabulary, test_file},
};

fn rules() -> Arc<RuleSet> {
    static RULES: OnceLock<Arc<RuleSet>> = OnceLock::new();
    let load = || {
        let directory = tempfile::tempdir().expect("a directory");
        for (number, file) in SHIPPED.iter().filter(|file| file.path.ends_with(".rhai")).enumerate() {
            // Without `actions`, every rule sees every event.
            let text: Vec<&str> = file.text.lines().filter(|line| !line.trim_start().starts_with("actions:")).collect();
            std::fs::write(directory.path().join(format!("r{number}.rhai")), text.join("\n")).expect("a file");
        }
        Loader::of(vec![directory.path().to_owned()]).without_builtin().load().set
    };
    Arc::clone(RULES.get_or_init(load))
}

/// Arbitrary text as an event: parsed, anonymized, and run through the shipped rules. No rule may fail on any event.
pub(crate) fn event(text: &str) {
    let Ok(incoming) = IncomingEvent::parse(text) else {
        return;
    };
    let event = incoming.into_event(SourceName::parse("fuzz").expect("a name"), Sequence(1), Timestamp::UNIX_EPOCH);
    let value = event.value();
    rule::anonymise(&value);
    Vocabulary::default().add_event(&value);
    let mut replay = Replay::new(rules(), Settings::default());
    replay.event(&event);
    let report = replay.finish();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
}

/// Arbitrary text as a rule file: formatted, loaded, linted, traced and run on an event. It must not panic or hang.
pub(crate) fn rule(text: &str) {
    let formatted = rule::format(text);
    assert_eq!(rule::format(&formatted), formatted);
    let directory = tempfile::tempdir().expect("a directory");
    // Inputs that start with `!` are function bodies, so that more of them actually run.
    let rule = match text.strip_prefix('!') {
        Some(body) => {
            format!("const RULE = #{{ id: \"a.b\", title: \"t\", severity: \"low\" }};\nfn rule(event) {{ {body} }}")
        }
        None => text.to_owned(),
    };
    fs::write(directory.path().join("r.rhai"), rule).expect("a file");
    let loaded = Loader::of(vec![directory.path().to_owned()]).without_builtin().load();
    let limits = Limits { operations: 20_000, ..Limits::default() };
    let source = SourceName::parse("fuzz").expect("a name");
    let incoming = IncomingEvent::parse(rule::EXAMPLE_EVENT).expect("an event");
    let arrived = incoming.time.expect("a time");
    let event = incoming.into_event(source, Sequence(1), arrived);
    let catalog = Catalog::default();
    let input = RuleInput::new(&event, &catalog);
    for rule in loaded.set.all() {
        rule::lint(rule, &Vocabulary::default());
        Tracer::new(&limits).run(rule, "rule", &input);
    }
    let mut replay = Replay::new(loaded.set, Settings { limits, ..Settings::default() });
    replay.event(&event);
    let report = replay.finish();
    // A panic of the host is contained in production; here it must be found.
    assert!(!report.failures.iter().any(|failure| failure.contains("internal error")), "{:?}", report.failures);
}

/// Arbitrary text as a test file: accepted or refused.
pub(crate) fn test_file(text: &str) {
    let (cases, _) = test_file::read(Path::new("x.test.yaml"), text, &|_| Err("not here".to_owned()));
    assert!(cases.iter().all(|case| !case.events.is_empty()));
}

/// Arbitrary text as overrides, exceptions and lists next to a rule: accepted or refused, and the rule still loads.
pub(crate) fn tuning(text: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).expect("a file");
    fs::create_dir(directory.path().join("lists")).expect("a directory");
    write("r.rhai", "const RULE = #{ id: \"a.b\", title: \"t\", severity: \"low\" };\nfn rule(event) { true }");
    for name in ["overrides.toml", "exceptions.toml", "lists/a.txt", "lists/b.csv", "lists/c.json"] {
        write(name, text);
    }
    let loaded = Loader::of(vec![directory.path().to_owned()]).without_builtin().load();
    assert!(loaded.set.all().count() <= 1);
}
