//! Arbitrary text as an event: parsed, anonymized, and run through the shipped rules. No rule may fail on any event.
#![no_main]

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use watchbell::{detect::Settings, model::{event::IncomingEvent, name::{Sequence, SourceName}, time::Timestamp}, replay::Replay, rule::{self, Loader, RuleSet, SHIPPED, Vocabulary}};

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

fuzz_target!(|text: &str| {
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
});
