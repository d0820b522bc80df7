//! Uses Watchbell as a library: loads rules, runs them over a file of events, and prints the alerts.
//!
//! `cargo run --example embed -- rules examples/events/week.jsonl`

use std::{env, error::Error, io::Write, path::Path, path::PathBuf};

use watchbell::{
    detect::Settings,
    model::{name::SourceName, time::Timestamp},
    replay::{Replay, file_events},
    rule::Loader,
    source::file,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let rules = arguments.next().unwrap_or_else(|| "rules".to_owned());
    let events = arguments.next().unwrap_or_else(|| "examples/events/week.jsonl".to_owned());

    let loaded = Loader::of(vec![PathBuf::from(rules)]).without_builtin().load();
    let mut output = std::io::stdout().lock();
    for problem in &loaded.diagnostics {
        writeln!(output, "{}", problem.one_line())?;
    }
    let mut replay = Replay::new(loaded.set, Settings::default());
    let events = file::read(Path::new(&events))?.events;
    for event in file_events(events, &SourceName::parse("example")?, Timestamp::UNIX_EPOCH) {
        replay.event(&event);
    }
    for alert in replay.finish().alerts {
        writeln!(output, "{:<8} {} ({} events)", alert.severity, alert.title, alert.count)?;
    }
    Ok(())
}
