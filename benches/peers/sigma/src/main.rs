//! Runs a hundred Sigma rules in the rsigma engine over a file of events: `sigma-peer EVENTS.jsonl`.

use std::{
    error::Error,
    fs::File,
    io::{BufRead, BufReader},
    time::Instant,
};

use rsigma_eval::{Engine, event::JsonEvent};
use rsigma_parser::parse_sigma_yaml;

fn rule(index: usize) -> String {
    let selection = match index % 4 {
        0 => format!(
            "        attributes.action: 'jira_action_{}'\n        attributes.actor.email|endswith: '7@example.com'\n    condition: selection",
            index % 55
        ),
        1 => format!(
            "        attributes.actor.email: 'person{index}@example.com'\n    filter:\n        attributes.action: 'user_login'\n    condition: selection and not filter"
        ),
        2 => {
            let ids: String =
                (0..6).map(|more| format!("            - '712020:{:08}'\n", index * 7 + more)).collect();
            format!(
                "        attributes.context.id:\n{ids}        attributes.location.countryName: 'Germany'\n    condition: selection"
            )
        }
        _ => format!(
            "        attributes.location.ip: '203.0.113.{index}'\n        attributes.action|startswith: 'jira_action_1'\n    condition: selection"
        ),
    };
    format!("title: flood {index}\nlogsource:\n    product: atlassian\ndetection:\n    selection:\n{selection}\nlevel: low\n")
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: sigma-peer EVENTS.jsonl")?;
    let mut engine = Engine::new();
    for index in 0..100 {
        engine.add_collection(&parse_sigma_yaml(&rule(index))?)?;
    }
    let (mut events, mut matches) = (0_u64, 0);
    let begun = Instant::now();
    for line in BufReader::new(File::open(path)?).lines() {
        let value = serde_json::from_str(&line?)?;
        matches += engine.evaluate(&JsonEvent::borrow(&value)).len();
        events += 1;
    }
    println!("{:.0} events/s, {matches} matches", events as f64 / begun.elapsed().as_secs_f64());
    Ok(())
}
