//! Runs a million events through the whole agent and prints its memory use. The simulated organization, poller, store,
//! rules and deliveries run in one process.
//!
//! `cargo run --release --example soak -- 1000000`

use std::{env, error::Error, fs, io::Write, path::Path, time::Duration, time::Instant};

use tokio_util::sync::CancellationToken;
use watchbell::{
    agent::{Agent, AgentOptions},
    config::Config,
    deliver::{Terminal, TerminalFormat},
    model::time::{self, Clock},
    rule::SHIPPED,
    simulator::{self, Scenario, Simulator},
    source::Timing,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let count: usize = env::args().nth(1).map_or(Ok(1_000_000), |text| text.parse())?;
    let directory = tempfile::tempdir()?;
    let clock = Clock::system();
    let start = time::before(clock.now(), Duration::from_secs(count as u64 / 10 + 60));
    let options = simulator::SimulatorOptions::new(Scenario::Flood { count, start });
    let simulator = Simulator::start(options.clone()).await?;
    fs::write(directory.path().join("key"), &options.key)?;
    for file in SHIPPED {
        let path = directory.path().join("rules").join(file.path);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("")))?;
        fs::write(path, file.text)?;
    }
    let text = format!(
        "[[source]]\nname = \"soak\"\norg_id = \"{}\"\nbase_url = \"{}\"\napi_key = {{ file = \"key\" }}\nbackfill = \"180d\"\n\
         rate_limit = 6000\n[[destination]]\nname = \"file\"\nkind = \"file\"\npath = \"alerts.jsonl\"\n",
        options.org_id,
        simulator.base_url()
    );
    let file = directory.path().join("watchbell.toml");
    fs::write(&file, text)?;
    let config = Config::load(&file).0.ok_or("the configuration has problems")?;
    let terminal = Terminal::new(Box::new(std::io::sink()), TerminalFormat::Human);
    let agent = Agent::open(config, AgentOptions { clock, timing: Timing::default(), terminal, pulse: None })?;
    let mut progress = agent.progress();
    let stop = CancellationToken::new();
    let task = tokio::spawn(agent.run(stop.clone()));

    let begun = Instant::now();
    let mut output = std::io::stdout().lock();
    let mut next = 0;
    while progress.changed().await.is_ok() {
        let now = progress.borrow_and_update().clone();
        if now.events >= next {
            let seconds = begun.elapsed().as_secs_f64();
            writeln!(
                output,
                "{:>9} events  {seconds:>6.1} s  {} alerts  {}",
                now.events,
                now.alerts.iter().sum::<u64>(),
                memory()
            )?;
            next += (count as u64 / 10).max(1);
        }
        if now.events >= count as u64 {
            break;
        }
    }
    stop.cancel();
    task.await??;
    writeln!(output, "done in {:.1} s; {}", begun.elapsed().as_secs_f64(), memory())?;
    Ok(())
}

/// Current and peak memory of this process, as reported by Linux.
fn memory() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let lines: Vec<String> = status
        .lines()
        .filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    lines.join("  ")
}
