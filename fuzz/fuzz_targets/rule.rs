//! Arbitrary text as a rule file: formatted, loaded, linted, traced and run on an event. It must not panic or hang.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use watchbell::{detect::Settings, model::{event::IncomingEvent, name::{Sequence, SourceName}}, replay::Replay, rule::{self, Limits, Loader, RuleInput, Tracer, Vocabulary}};

fuzz_target!(|text: &str| {
    let formatted = rule::format(text);
    assert_eq!(rule::format(&formatted), formatted);
    let directory = tempfile::tempdir().expect("a directory");
    // Inputs that start with `!` are function bodies, so that more of them actually run.
    let rule = match text.strip_prefix('!') {
        Some(body) => format!("const RULE = #{{ id: \"a.b\", title: \"t\", severity: \"low\" }};\nfn rule(event) {{ {body} }}"),
        None => text.to_owned(),
    };
    fs::write(directory.path().join("r.rhai"), rule).expect("a file");
    let loaded = Loader::of(vec![directory.path().to_owned()]).without_builtin().load();
    let limits = Limits { operations: 20_000, ..Limits::default() };
    let source = SourceName::parse("fuzz").expect("a name");
    let incoming = IncomingEvent::parse(rule::EXAMPLE_EVENT).expect("an event");
    let arrived = incoming.time.expect("a time");
    let event = incoming.into_event(source, Sequence(1), arrived);
    let input = RuleInput::new(&event);
    for rule in loaded.set.all() {
        rule::lint(rule, &Vocabulary::default());
        Tracer::new(&limits).run(rule, "rule", &input);
    }
    let mut replay = Replay::new(loaded.set, Settings { limits, ..Settings::default() });
    replay.event(&event);
    let report = replay.finish();
    // A panic of the host is contained in production; here it must be found.
    assert!(!report.failures.iter().any(|failure| failure.contains("internal error")), "{:?}", report.failures);
});
