//! Prints the demo's story as JSON lines, with times that do not change: `examples/events/incident.jsonl` was made with it.
//!
//! `cargo run --example story > examples/events/incident.jsonl`

use std::{error::Error, io::Write, time::Duration};

use watchbell::{
    simulator::{Story, StoryLength},
    time::Timestamp,
};

fn main() -> Result<(), Box<dyn Error>> {
    let start: Timestamp = "2026-11-20T14:00:00Z".parse()?;
    let length = StoryLength {
        history: Duration::from_secs(6 * 3_600),
        history_events: 200,
        live: Duration::from_secs(30 * 60),
    };
    let scenario = Story::tell(7, start, length);
    let mut output = std::io::stdout().lock();
    for index in 0..scenario.len() {
        writeln!(output, "{}", scenario.entry(index).json)?;
    }
    Ok(())
}
