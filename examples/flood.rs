//! Creates a directory with a store of many generated events and several kinds of rules, for `benches/replay.sh`.
//!
//! `cargo run --release --example flood -- DIRECTORY 1000000`

use std::{env, error::Error, fmt::Write as _, fs, io::Write, path::Path};

use watchbell::{
    model::{
        event::IncomingEvent,
        name::SourceName,
        time::{self, Timestamp},
    },
    simulator::Scenario,
    store::{Page, Store},
};

/// Events per page, as in the API.
const PAGE: usize = 500;
const RULES: usize = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let directory = arguments.next().ok_or("usage: flood DIRECTORY [EVENTS]")?;
    let count: usize = arguments.next().map_or(Ok(1_000_000), |text| text.parse())?;
    let directory = Path::new(&directory);
    fs::create_dir_all(directory)?;
    fs::write(directory.join("watchbell.toml"), CONFIG)?;
    for (name, rule) in [
        ("declared", declared as fn(usize) -> String),
        ("written", written),
        ("opaque", opaque),
        ("stateful", stateful),
    ] {
        let rules = directory.join(name);
        fs::create_dir_all(&rules)?;
        for index in 0..RULES {
            fs::write(rules.join(format!("rule_{index}.rhai")), rule(index))?;
        }
    }
    fs::create_dir_all(directory.join("rare"))?;
    fs::write(directory.join("rare/rule.rhai"), RARE)?;
    let start: Timestamp = "2026-03-01T00:00:00Z".parse()?;
    let scenario = Scenario::Flood { count, start };
    let store = Store::open(&directory.join("data"))?;
    let source = SourceName::parse("flood")?;
    let mut lines = std::io::BufWriter::new(fs::File::create(directory.join("events.jsonl"))?);
    for begin in (0..count).step_by(PAGE) {
        let end = (begin + PAGE).min(count);
        let mut events = Vec::with_capacity(PAGE);
        for index in begin..end {
            let entry = scenario.entry(index);
            writeln!(lines, "{}", entry.json)?;
            events.push(IncomingEvent::parse(&entry.json).map_err(|rejected| rejected.reason)?);
        }
        let arrived = time::after(scenario.entry(end - 1).processed, std::time::Duration::from_secs(1));
        store.import_page(Page::new(source.clone(), arrived, events))?;
    }
    lines.flush()?;
    writeln!(std::io::stdout(), "{count} events in {}", directory.display())?;
    Ok(())
}

const CONFIG: &str = "data_dir = \"data\"\n[[destination]]\nname = \"terminal\"\nkind = \"terminal\"\n";

const RARE: &str = "const RULE = #{ id: \"flood.rare\", title: \"t\", severity: \"low\", actions: [\"user_created\"] };\nfn rule(event) { true }\n";

/// Rules that declare their actions, which are rare, as is typical.
fn declared(index: usize) -> String {
    let action =
        if index.is_multiple_of(10) { "user_login_failed".to_owned() } else { format!("jira_action_{}", index % 55) };
    format!(
        "const RULE = #{{ id: \"flood.declared_{index}\", title: \"t\", severity: \"low\", actions: [\"{action}\"] }};\n\
         fn rule(event) {{ event.attributes.actor.email == \"person{index}@example.com\" }}\nfn dedup(event) {{ event.actor.id }}\n"
    )
}

/// Rules without declared actions, written the way people write them.
fn written(index: usize) -> String {
    let mut text = format!("const RULE = #{{ id: \"flood.written_{index}\", title: \"t\", severity: \"low\" }};\n");
    let condition = match index % 4 {
        0 => format!(
            "event.attributes.action == \"jira_action_{}\" && event.attributes.actor.email.ends_with(\"7@example.com\")",
            index % 55
        ),
        1 => format!("event.attributes.actor.email == \"person{index}@example.com\" && event.action != \"user_login\""),
        2 => {
            let names: Vec<String> = (0..6).map(|more| format!("\"712020:{:08}\"", index * 7 + more)).collect();
            format!(
                "event.attributes.context[0].id in [{}] && event.attributes.location.countryName == \"Germany\"",
                names.join(", ")
            )
        }
        _ => format!(
            "event.attributes.location.ip == \"203.0.113.{index}\" && event.attributes.action.starts_with(\"jira_action_1\")"
        ),
    };
    write!(text, "fn rule(event) {{ {condition} }}\nfn dedup(event) {{ event.actor.id }}\n").ok();
    text
}

/// Rules whose conditions cannot be extracted from the script.
fn opaque(index: usize) -> String {
    format!(
        "const RULE = #{{ id: \"flood.opaque_{index}\", title: \"t\", severity: \"low\" }};\n\
         fn wanted(email) {{ email == \"person{index}@example.com\" }}\nfn rule(event) {{ wanted(event.attributes.actor.email) }}\n"
    )
}

/// Stateful rules.
fn stateful(index: usize) -> String {
    format!(
        "const RULE = #{{ id: \"flood.stateful_{index}\", title: \"t\", severity: \"low\", actions: [\"jira_action_{}\"] }};\n\
         fn rule(event) {{ count(event.actor.id, \"1h\") > 20 }}\nfn dedup(event) {{ event.actor.id }}\n",
        index % 55
    )
}
