use std::fs;

use clap_words::verbs;

/// Commands and flags as the README writes them.
mod clap_words {
    /// Lines of the README's code blocks that call the program, without comments.
    pub(super) fn verbs(readme: &str) -> Vec<Vec<String>> {
        let mut inside = false;
        let mut calls = Vec::new();
        for line in readme.lines() {
            if line.starts_with("```") {
                inside = !inside && (line.contains("console") || line.contains("sh"));
                continue;
            }
            let line = line.split('#').next().unwrap_or("").trim().trim_start_matches("$ ");
            if let (true, Some(call)) = (inside, line.strip_prefix("watchbell ")) {
                calls.push(call.split_whitespace().map(|word| word.trim_matches('\'').to_owned()).collect());
            }
        }
        calls
    }
}

use crate::support::Lab;

/// Blocks of TOML, as shown in the documents and the example.
fn settings() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for file in ["README.md", "contrib/README.md", "docs/why.md", "docs/coming-from-panther.md"] {
        let text = fs::read_to_string(file).unwrap();
        for block in text.split("```toml\n").skip(1) {
            found.push((file.to_owned(), block.split("```").next().unwrap().to_owned()));
        }
    }
    // Those of files next to the rules are tested with rules.
    found.retain(|(_, text)| !text.starts_with("# rules/"));
    // Lines commented out with `#` and no space are optional settings.
    let example = fs::read_to_string("examples/watchbell.toml").unwrap();
    let all: String = example
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') => format!("{setting}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    found.push(("examples/watchbell.toml".to_owned(), all));
    found
}

/// Every setting shown in the documents is accepted.
#[test]
fn every_setting_shown_is_accepted() {
    let settings = settings();
    assert!(settings.len() > 6);
    let mut shown = String::new();
    for (file, text) in settings {
        let (config, problems) = watchbell::config::Config::parse(std::path::Path::new("watchbell.toml"), &text);
        assert!(config.is_some(), "{file}: {problems:#?}\n{text}");
        if file == "README.md" {
            shown.push_str(&text);
        }
    }
    for kind in watchbell::deliver::KINDS.iter().filter(|kind| **kind != "terminal") {
        assert!(shown.contains(&format!("kind = \"{kind}\"")), "README does not show how `{kind}` is set up");
    }
}

#[test]
fn the_two_commands_are_there() {
    let readme = fs::read_to_string("README.md").unwrap();
    assert!(readme.contains("cargo run --release -- demo") && readme.contains("cargo test"));
}

/// Every command line in the documents uses existing commands and flags.
#[test]
fn every_call_is_understood() {
    let lab = Lab::new();
    let documents = ["README.md", "docs/why.md", "docs/coming-from-panther.md", "contrib/README.md"];
    let calls: Vec<Vec<String>> = documents.iter().flat_map(|file| verbs(&fs::read_to_string(file).unwrap())).collect();
    assert!(calls.len() >= 40, "{calls:?}");
    for mut call in calls {
        call.truncate(call.iter().position(|word| word == ">").unwrap_or(call.len()));
        call.push("--help".to_owned());
        let words: Vec<&str> = call.iter().map(String::as_str).collect();
        let finished = lab.watchbell(&words);
        assert_eq!(finished.code, Some(0), "watchbell {}: {}", call.join(" "), finished.stderr);
    }
}

/// The rule in the README compiles, and matches what the README says.
#[test]
fn the_rule_in_readme_works() {
    let readme = fs::read_to_string("README.md").unwrap();
    let rule = readme.split("```rhai\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let lab = Lab::new();
    lab.write("rules/mine.rhai", rule);
    fs::copy("examples/events/week.jsonl", lab.path("week.jsonl")).unwrap();
    let finished = lab.watchbell(&["replay", "--rules", "rules", "--events", "week.jsonl", "--format", "json"]);
    assert_eq!(finished.code, Some(0), "{}", finished.show());
    let report: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(report["alerts"].as_array().unwrap().len(), 1, "{}", report["alerts"]);
}

/// The tests that the README shows for its rule pass, and its tuning files load.
#[test]
fn the_tests_and_the_tuning_in_readme_work() {
    let readme = fs::read_to_string("README.md").unwrap();
    let block = |language: &str, with: &str| {
        let fence = format!("```{language}\n");
        let mut blocks = readme.split(&*fence).skip(1).map(|rest| rest.split("```").next().unwrap());
        blocks.find(|block| block.contains(with)).unwrap().to_owned()
    };
    let lab = Lab::new();
    for file in watchbell::rule::SHIPPED {
        lab.write(&format!("rules/{}", file.path), file.text);
    }
    lab.write("rules/mine.rhai", block("rhai", "const RULE"));
    lab.write("rules/mine.test.yaml", block("yaml", "- name:"));
    let finished = lab.watchbell(&["test", "rules", "--min-cases", "2"]);
    assert_eq!(finished.code, Some(0), "{}", finished.show());
    lab.write("rules/overrides.toml", block("toml", "rules/overrides.toml"));
    lab.write("rules/exceptions.toml", block("toml", "rules/exceptions.toml"));
    let finished = lab.watchbell(&["check", "rules", "--deny-warnings"]);
    assert_eq!(finished.code, Some(0), "{}", finished.show());
}

/// The configuration that the README shows is accepted.
#[test]
fn the_configuration_in_readme_is_accepted() {
    let readme = fs::read_to_string("README.md").unwrap();
    let config = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let lab = Lab::new();
    lab.write("watchbell.toml", config);
    fs::create_dir_all(lab.path("rules")).unwrap();
    let finished = lab.watchbell(&["check", "--offline"]);
    assert_eq!(finished.code, Some(0), "{}", finished.show());
}

/// Every diagnostic has a section, and every section has a diagnostic.
#[test]
fn every_diagnostic_is_explained() {
    fn codes(text: &str, found: &mut std::collections::BTreeSet<String>) {
        let code = regex::Regex::new(r#""([EW]\d{3})""#).unwrap();
        // The rendering tests use a code that no diagnostic has.
        found.extend(code.captures_iter(text).map(|code| code[1].to_owned()).filter(|code| code != "E000"));
    }
    fn walk(directory: &std::path::Path, found: &mut std::collections::BTreeSet<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, found) } else { codes(&fs::read_to_string(path).unwrap(), found) }
        }
    }
    let mut used = std::collections::BTreeSet::new();
    walk(std::path::Path::new("src"), &mut used);
    let text = fs::read_to_string("docs/diagnostics.md").unwrap();
    let explained: std::collections::BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .filter_map(|line| line.get(..4))
        .map(str::to_owned)
        .collect();
    assert_eq!(used, explained);
}
