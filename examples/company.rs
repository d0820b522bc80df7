//! Prints the log of a simulated company as JSON Lines, with fixed times. It generated `examples/events/`.
//!
//! ```console
//! cargo run --example company > examples/events/week.jsonl
//! cargo run --example company -- --actions > examples/events/actions.json
//! cargo run --release --example company -- --people 500 --weeks 3 --views > company.jsonl
//! ```

use std::{error::Error, io::Write};

use watchbell::{
    model::time::Timestamp,
    simulator::{ACTIONS, Company, Weeks, actions_answer},
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut output = std::io::stdout().lock();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_set = |name: &str| arguments.iter().any(|argument| argument == name);
    if is_set("--actions") {
        return Ok(writeln!(output, "{}", serde_json::to_string_pretty(&actions_answer(ACTIONS))?)?);
    }
    let number = |name: &str| -> Result<Option<u32>, Box<dyn Error>> {
        let value = arguments.iter().position(|argument| argument == name).and_then(|place| arguments.get(place + 1));
        Ok(value.map(|text| text.parse()).transpose()?)
    };
    let people = number("--people")?.unwrap_or(60);
    let weeks = Weeks {
        // A Monday.
        start: "2026-11-09T00:00:00Z".parse::<Timestamp>()?,
        count: number("--weeks")?.unwrap_or(1),
        views: is_set("--views"),
        // With `--people`, the log is ordinary activity only.
        incident: number("--people")?.is_none(),
    };
    let scenario = Company::new(u64::from(number("--seed")?.unwrap_or(7)), usize::try_from(people)?).tell(weeks);
    for index in 0..scenario.len() {
        writeln!(output, "{}", scenario.entry(index).json)?;
    }
    Ok(())
}
