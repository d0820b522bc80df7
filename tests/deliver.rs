use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt};

use serde_json::Value;
use watchbell::name::DestinationName;

use crate::support::{Lab, entry, evaluated, organization, rule};

/// Detection rules whose alerts the lines of a file tell of. (That a delivery failed may be among them as well, by whether the
/// check or the worker comes first.)
fn told(lab: &Lab, name: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(lab.path(name)).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter_map(|message| message["alert"]["rule"].as_str().map(str::to_owned))
        .filter(|rule| !rule.starts_with("builtin."))
        .collect()
}

fn lab(destinations: &str) -> Lab {
    let lab = Lab::with_organization(organization(&[entry("1", "x", 0, "ann")]), "");
    let config = fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    let sources = config.split("[[destination]]").next().unwrap().to_owned();
    lab.write("watchbell.toml", format!("{sources}\n{destinations}"));
    for (id, severity) in [("team.low", "low"), ("team.high", "high"), ("other.high", "high")] {
        let text = rule(id, "", "fn rule(event) { true }").replace("medium", severity);
        lab.write(&format!("rules/{id}.rhai"), text);
    }
    lab
}

fn destination(name: &str, path: &str, more: &str) -> String {
    format!("[[destination]]\nname = \"{name}\"\nkind = \"file\"\npath = \"{path}\"\n{more}\n")
}

fn names(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn alerts_go_where_severity_and_rule_say() {
    let lab = lab(&[
        destination("all", "all.jsonl", ""),
        destination("high", "high.jsonl", "min_severity = \"high\""),
        destination("team", "team.jsonl", "rules = [\"team.*\"]"),
    ]
    .concat());
    lab.run_agent_until(|reader| evaluated(reader, 1));
    assert_eq!(told(&lab, "all.jsonl"), names(&["team.low", "team.high", "other.high"]));
    assert_eq!(told(&lab, "high.jsonl"), names(&["team.high", "other.high"]));
    assert_eq!(told(&lab, "team.jsonl"), names(&["team.low", "team.high"]));
    let mode = fs::metadata(lab.path("all.jsonl")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
}

/// A destination that fails holds up no other and nothing else; what it is owed is kept over a restart, and delivered.
#[test]
fn a_dead_destination_delays_no_other_and_loses_nothing() {
    let lab = lab(&[destination("dead", "dead.jsonl", ""), destination("well", "well.jsonl", "")].concat());
    // Nothing can be written to a directory.
    fs::create_dir(lab.path("dead.jsonl")).unwrap();
    let dead = DestinationName::parse("dead").unwrap();
    lab.run_agent_until(|reader| {
        let outbox = reader.outbox().unwrap();
        evaluated(reader, 1) && outbox.len() == 1 && outbox.get(&dead).is_some_and(|owed| owed.error.is_some())
    });
    assert_eq!(told(&lab, "well.jsonl").len(), 3);
    let owed = lab.reader().1.outbox().unwrap();
    assert_eq!(owed[&dead].count, 3);
    assert!(owed[&dead].error.as_ref().unwrap().contains("cannot be written"), "{owed:?}");

    fs::remove_dir(lab.path("dead.jsonl")).unwrap();
    // The clock of these tests stands still; a later one, so that the retry is due.
    let later = watchbell::time::after(crate::support::now(), std::time::Duration::from_secs(3_600));
    lab.run_agent_with(&watchbell::time::Clock::manual(later), |reader| reader.outbox().unwrap().is_empty());
    assert_eq!(told(&lab, "dead.jsonl").len(), 3);
    assert_eq!(told(&lab, "well.jsonl").len(), 3, "nothing is sent twice without a crash");
}

/// A crash tore the last line; what follows stands on lines of its own.
#[test]
fn a_torn_line_stays_alone() {
    let lab = lab(&destination("file", "out.jsonl", ""));
    lab.write("out.jsonl", "{\"torn\": ");
    lab.run_agent_until(|reader| evaluated(reader, 1) && reader.outbox().unwrap().is_empty());
    let text = fs::read_to_string(lab.path("out.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 4);
    assert_eq!(text.lines().skip(1).filter(|line| serde_json::from_str::<Value>(line).is_ok()).count(), 3);
}
