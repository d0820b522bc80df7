use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use crate::support::Lab;

/// Documents whose commands, settings, rules and tests are checked.
const DOCUMENTS: &[&str] = &[
    "README.md",
    "docs/guide.md",
    "docs/operate.md",
    "docs/why.md",
    "docs/coming-from-panther.md",
    "contrib/README.md",
    "CONTRIBUTING.md",
];

/// Documents that show a rule, its tests and what it finds in the example's week.
const WITH_A_RULE: &[&str] = &["README.md", "docs/guide.md"];

/// A fenced block of a document.
struct Block {
    document: &'static str,
    language: String,
    text: String,
}

/// The fenced blocks of a document, without the indentation of their fences.
fn blocks(document: &'static str) -> Vec<Block> {
    let text = fs::read_to_string(document).unwrap();
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(language) = line.trim_start().strip_prefix("```") else {
            continue;
        };
        let indent = line.len() - line.trim_start().len();
        let mut text = String::new();
        for line in lines.by_ref().take_while(|line| line.trim() != "```") {
            text.push_str(line.get(indent..).unwrap_or_default());
            text.push('\n');
        }
        found.push(Block { document, language: language.trim().to_owned(), text });
    }
    found
}

/// All blocks of this language in [`DOCUMENTS`].
fn all_blocks(language: &str) -> Vec<Block> {
    DOCUMENTS.iter().flat_map(|document| blocks(document)).filter(|block| block.language == language).collect()
}

/// The text of the first block of a document that has this language and contains `part`.
#[track_caller]
fn block(document: &'static str, language: &str, part: &str) -> String {
    let found = blocks(document).into_iter().find(|block| block.language == language && block.text.contains(part));
    found.unwrap_or_else(|| panic!("{document} has no block of {language} with `{part}`")).text
}

/// A document without its fenced blocks.
fn prose(document: &Path) -> String {
    let text = fs::read_to_string(document).unwrap();
    let mut fenced = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    prose
}

/// The words of a shell command, without its comment, redirection and quotes.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for character in command.chars() {
        match quote {
            Some(open) if character == open => quote = None,
            None if matches!(character, '\'' | '"') => quote = Some(character),
            None if matches!(character, '#' | '>') => break,
            None if character.is_whitespace() => words.push(String::new()),
            _ => words.last_mut().unwrap().push(character),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Whether a block of TOML is a file next to the rules, which is tried where rules are.
fn is_tuning(block: &Block) -> bool {
    block.text.starts_with("# rules/")
}

/// Blocks of TOML, as the documents and the example show them.
fn settings() -> Vec<(String, String)> {
    let shown = all_blocks("toml").into_iter().filter(|block| !is_tuning(block));
    let mut found: Vec<(String, String)> = shown.map(|block| (block.document.to_owned(), block.text)).collect();
    // What is commented out by a `#` without a space shows what can be said.
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

/// Every setting that is shown is one that the program accepts.
#[test]
fn every_setting_shown_is_accepted() {
    let settings = settings();
    assert!(settings.len() > 6);
    let mut shown = String::new();
    for (file, text) in settings {
        let (config, problems) = watchbell::config::Config::parse(Path::new("watchbell.toml"), &text);
        assert!(config.is_some(), "{file}: {problems:#?}\n{text}");
        if file == "docs/operate.md" {
            shown.push_str(&text);
        }
    }
    for kind in watchbell::deliver::KINDS.iter().filter(|kind| **kind != "terminal") {
        assert!(shown.contains(&format!("kind = \"{kind}\"")), "docs/operate.md does not show how to set up `{kind}`");
    }
}

#[test]
fn the_two_commands_are_there() {
    let readme = fs::read_to_string("README.md").unwrap();
    assert!(readme.contains("cargo run --release -- demo") && readme.contains("cargo test"));
}

/// README is the front door: details belong in `docs/`.
#[test]
fn readme_is_short() {
    let lines = fs::read_to_string("README.md").unwrap().lines().count();
    assert!(lines <= 150, "README.md has {lines} lines");
}

/// The documents count the rules that ship.
#[test]
fn the_shipped_rules_are_counted() {
    let rules = watchbell::rule::SHIPPED.iter().filter(|file| file.path.ends_with(".rhai")).count();
    for (document, words) in
        [("README.md", format!("{rules} tested rules")), ("docs/guide.md", format!("{rules} rules"))]
    {
        assert!(fs::read_to_string(document).unwrap().contains(&words), "{document} does not say `{words}`");
    }
}

/// Every call of the program in the documents has verbs and flags that the program has.
#[test]
fn every_call_is_understood() {
    let lab = Lab::new();
    let mut calls = BTreeSet::new();
    for block in all_blocks("console") {
        for line in block.text.lines() {
            assert!(!line.starts_with('$'), "{}: a block of commands has no prompts: {line}", block.document);
            if let Some(call) = line.strip_prefix("watchbell ") {
                calls.insert(words(call));
            }
        }
    }
    assert!(calls.len() >= 60, "{calls:#?}");
    for mut call in calls {
        call.push("--help".to_owned());
        let words: Vec<&str> = call.iter().map(String::as_str).collect();
        let finished = lab.watchbell(&words);
        assert_eq!(finished.code, Some(0), "watchbell {}: {}", call.join(" "), finished.stderr);
    }
}

/// The rules that README and the guide show compile, and find what the documents say.
#[test]
fn the_rules_shown_find_something() {
    for document in WITH_A_RULE {
        let lab = Lab::new();
        lab.write("rules/mine.rhai", block(document, "rhai", "const RULE"));
        fs::copy("examples/events/week.jsonl", lab.path("week.jsonl")).unwrap();
        let finished = lab.watchbell(&["replay", "--rules", "rules", "--events", "week.jsonl", "--format", "json"]);
        assert_eq!(finished.code, Some(0), "{document}: {}", finished.show());
        let report: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
        assert_eq!(report["alerts"].as_array().unwrap().len(), 1, "{document}: {}", report["alerts"]);
    }
}

/// The tests of these rules hold, and what the guide shows of tuning loads.
#[test]
fn the_tests_and_the_tuning_shown_work() {
    for document in WITH_A_RULE {
        let lab = Lab::new();
        for file in watchbell::rule::SHIPPED {
            lab.write(&format!("rules/{}", file.path), file.text);
        }
        lab.write("rules/mine.rhai", block(document, "rhai", "const RULE"));
        lab.write("rules/mine.test.yaml", block(document, "yaml", "- name:"));
        let finished = lab.watchbell(&["test", "rules", "--min-cases", "2"]);
        assert_eq!(finished.code, Some(0), "{document}: {}", finished.show());
        lab.write("rules/overrides.toml", block("docs/guide.md", "toml", "# rules/overrides.toml"));
        lab.write("rules/exceptions.toml", block("docs/guide.md", "toml", "# rules/exceptions.toml"));
        let finished = lab.watchbell(&["check", "rules", "--deny-warnings"]);
        assert_eq!(finished.code, Some(0), "{document}: {}", finished.show());
    }
}

/// Every rule in the documents loads.
#[test]
fn every_rule_shown_loads() {
    for block in all_blocks("rhai") {
        let lab = Lab::new();
        lab.write("rules/mine.rhai", &block.text);
        let finished = lab.watchbell(&["check", "rules"]);
        assert_eq!(finished.code, Some(0), "{}: {}", block.document, finished.show());
    }
}

/// No tests of rules and no tuning are shown beyond those that are tried above.
#[test]
fn no_block_is_left_out() {
    let mut count: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for language in ["yaml", "toml"] {
        for block in all_blocks(language).iter().filter(|block| language == "yaml" || is_tuning(block)) {
            *count.entry((block.document, language)).or_default() += 1;
        }
    }
    let tried = [(("README.md", "yaml"), 1), (("docs/guide.md", "yaml"), 1), (("docs/guide.md", "toml"), 2)];
    assert_eq!(count, BTreeMap::from(tried));
}

/// The configuration that README shows is one that the program accepts.
#[test]
fn the_configuration_in_readme_is_accepted() {
    let lab = Lab::new();
    lab.write("watchbell.toml", block("README.md", "toml", "[[source]]"));
    fs::create_dir_all(lab.path("rules")).unwrap();
    let finished = lab.watchbell(&["check", "--offline"]);
    assert_eq!(finished.code, Some(0), "{}", finished.show());
}

/// The anchors that GitHub makes of a document's headings.
fn anchors(document: &Path) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for line in prose(document).lines() {
        let title = line.trim_start_matches('#');
        if title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let kept = |character: &char| character.is_alphanumeric() || matches!(character, ' ' | '-' | '_');
        let anchor: String = title.trim().to_lowercase().chars().filter(kept).collect();
        let anchor = anchor.replace(' ', "-");
        // The second heading of the same name gets a number.
        let again = (1..).map(|number| format!("{anchor}-{number}")).find(|numbered| !anchors.contains(numbered));
        let anchor = if anchors.contains(&anchor) { again.unwrap_or_default() } else { anchor };
        anchors.insert(anchor);
    }
    anchors
}

/// Every relative link leads to a file, and its anchor to a heading.
#[test]
fn every_link_leads_somewhere() {
    let link = regex::Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let code = regex::Regex::new("`[^`\n]*`").unwrap();
    let mut documents: BTreeSet<PathBuf> = DOCUMENTS.iter().map(PathBuf::from).collect();
    documents.insert(PathBuf::from("SECURITY.md"));
    for entry in fs::read_dir("docs").unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md") {
            documents.insert(path);
        }
    }
    let mut followed = 0;
    let mut broken = Vec::new();
    for document in &documents {
        let text = prose(document);
        let text = code.replace_all(&text, "");
        for found in link.captures_iter(&text) {
            let target = &found[1];
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let here = document.parent().unwrap_or(Path::new(""));
            let file = if path.is_empty() { document.clone() } else { here.join(path) };
            followed += 1;
            if !file.exists() || (!anchor.is_empty() && !anchors(&file).contains(anchor)) {
                broken.push(format!("{}: {target}", document.display()));
            }
        }
    }
    assert!(followed >= 40, "only {followed} links were found");
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Every diagnostic has its section, and every section a diagnostic.
#[test]
fn every_diagnostic_is_explained() {
    fn codes(text: &str, found: &mut BTreeSet<String>) {
        let code = regex::Regex::new(r#""([EW]\d{3})""#).unwrap();
        // Tests of the drawing use a code that nothing has.
        found.extend(code.captures_iter(text).map(|code| code[1].to_owned()).filter(|code| code != "E000"));
    }
    fn walk(directory: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, found) } else { codes(&fs::read_to_string(path).unwrap(), found) }
        }
    }
    let mut used = BTreeSet::new();
    walk(Path::new("src"), &mut used);
    let text = fs::read_to_string("docs/diagnostics.md").unwrap();
    let explained: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .filter_map(|line| line.get(..4))
        .map(str::to_owned)
        .collect();
    assert_eq!(used, explained);
}
