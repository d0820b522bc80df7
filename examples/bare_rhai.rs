//! Calls rules on parsed events in a bare loop, on one thread, to measure the cost of a call alone.
//!
//! `cargo run --release --example bare_rhai -- RULES EVENTS.jsonl`

use std::{
    env,
    error::Error,
    fs,
    io::{BufRead, BufReader, Write},
    time::{Duration, Instant},
};

use rhai::{CallFnOptions, Dynamic, Engine, Scope};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let rules = arguments.next().ok_or("usage: bare_rhai RULES EVENTS.jsonl")?;
    let events = arguments.next().ok_or("usage: bare_rhai RULES EVENTS.jsonl")?;
    let engine = Engine::new();
    let mut compiled = Vec::new();
    for entry in fs::read_dir(rules)? {
        compiled.push(engine.compile(fs::read_to_string(entry?.path())?)?);
    }
    let (mut count, mut matches, mut calling) = (0_u32, 0_u64, Duration::ZERO);
    for line in BufReader::new(fs::File::open(events)?).lines() {
        let event: Dynamic = serde_json::from_str(&line?)?;
        let event = event.into_shared();
        let begun = Instant::now();
        for rule in &compiled {
            let options = CallFnOptions::new().eval_ast(false);
            let mut scope = Scope::new();
            let matched: bool = engine.call_fn_with_options(options, &mut scope, rule, "rule", (event.clone(),))?;
            matches += u64::from(matched);
        }
        calling += begun.elapsed();
        count += 1;
    }
    let rate = f64::from(count) / calling.as_secs_f64();
    writeln!(std::io::stdout(), "{rate:.0} events/s, {matches} matches")?;
    Ok(())
}
