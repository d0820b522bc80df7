//! Serves a simulated organization for testing an agent, rules and destinations.
//!
//! `cargo run --example organization -- DIR` writes the shipped rules and a configuration for the organization to DIR. It
//! then plays ten minutes of events, and runs until it is stopped. Meanwhile, run
//! `watchbell --config DIR/watchbell.toml run`.

use std::{error::Error, fs, io::Write, path::Path, time::Duration};

use watchbell::{
    model::time::{self, Clock},
    rule::SHIPPED,
    simulator::{ACTIONS, Simulator, SimulatorOptions, Story, StoryLength},
};

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args().nth(1).filter(|name| !name.starts_with('-')).ok_or("usage: organization DIR")?;
    let directory = Path::new(&directory);
    let start = time::after(Clock::system().now(), Duration::from_secs(5));
    let length = StoryLength {
        history: Duration::from_secs(6 * 3_600),
        history_events: 2_000,
        live: Duration::from_secs(10 * 60),
    };
    let options = SimulatorOptions::new(Story::tell(7, start, length)).with_actions(ACTIONS);
    let runtime = tokio::runtime::Runtime::new()?;
    let simulator = runtime.block_on(Simulator::start(options.clone()))?;
    for rule in SHIPPED {
        let file = directory.join("rules").join(rule.path);
        fs::create_dir_all(file.parent().unwrap_or(directory))?;
        fs::write(file, rule.text)?;
    }
    fs::write(directory.join("key"), &options.key)?;
    let config = format!(
        "[[source]]\nname = \"simulated\"\norg_id = \"{}\"\nbase_url = \"{}\"\napi_key = {{ file = \"key\" }}\npoll_interval = \"1s\"\n\
         rate_limit = 600\ndrop_off = \"5m\"\n\n[[destination]]\nname = \"file\"\nkind = \"file\"\npath = \"alerts.jsonl\"\n",
        options.org_id,
        simulator.base_url()
    );
    let file = directory.join("watchbell.toml");
    if !file.exists() {
        fs::write(&file, config)?;
    }
    let message = format!("serving {} at {}: {}\n", options.org_id, simulator.base_url(), file.display());
    std::io::stdout().write_all(message.as_bytes())?;
    loop {
        std::thread::park();
    }
}
