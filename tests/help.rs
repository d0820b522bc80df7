//! All help pages, in one snapshot, so that they can be read in one place.

use std::fmt::Write as _;

use crate::support::Lab;

/// The help of a verb and of all verbs below it.
fn pages(lab: &Lab, verb: &[&str], all: &mut String) {
    let mut command = lab.command(verb);
    command.arg("--help").env("COLUMNS", "100").env_remove("WATCHBELL_CONFIG");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{verb:?}");
    let help = String::from_utf8(output.stdout).unwrap();
    writeln!(all, "$ watchbell {}", [verb, &["--help"]].concat().join(" ")).unwrap();
    // The global options are shown once, and where a verb has more formats than others.
    let (own, global) = help.split_once("Global options:\n").unwrap_or((&help, ""));
    let shown = if verb.is_empty() || !global.contains("--format") { &*help } else { own };
    let lines = shown.trim_end().lines().map(str::trim_end);
    writeln!(all, "{}\n", lines.collect::<Vec<_>>().join("\n")).unwrap();
    let below = help.split("Commands:\n").nth(1).unwrap_or_default();
    let verbs = below.lines().take_while(|line| line.starts_with("  ")).filter(|line| !line.starts_with("    "));
    for name in verbs.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help") {
        pages(lab, &[verb, &[name]].concat(), all);
    }
}

#[test]
fn every_help_page() {
    let lab = Lab::new();
    let mut all = String::new();
    pages(&lab, &[], &mut all);
    assert!(all.matches("$ watchbell ").count() > 60, "{}", all.matches("$ watchbell ").count());
    insta::assert_snapshot!(all);
}
