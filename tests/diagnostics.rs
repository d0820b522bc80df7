//! An example of each diagnostic, as users see it: the directories of `tests/data/diagnostics`, one for each code. The
//! snapshot has what `watchbell check` prints, or `watchbell test` where a test is wrong.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use crate::support::Lab;

const EXAMPLES: &str = "tests/data/diagnostics";

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}

#[test]
fn every_diagnostic_has_an_example() {
    let documented: BTreeSet<String> = fs::read_to_string("docs/diagnostics.md")
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("### ")?.get(..4).map(str::to_owned))
        .collect();
    let mut examples: BTreeSet<String> = fs::read_dir(EXAMPLES)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    let took = regex::Regex::new(r", in [\d.]+ ?m?s\b").unwrap();
    let (mut all, mut missing) = (String::new(), Vec::new());
    for code in &examples {
        let lab = Lab::new();
        copy(&Path::new(EXAMPLES).join(code), &lab.path("."));
        let verb: &[&str] = match code.as_str() {
            "E401" | "E402" | "E403" => &["test", "rules"],
            "E006" => &["check", "--offline"],
            _ if lab.path("watchbell.toml").exists() => &["check", "--offline"],
            _ => &["check", "rules"],
        };
        let finished = lab.watchbell(verb);
        let shown = format!("{}{}", finished.stderr, finished.stdout);
        let shown = shown.replace(&*lab.path("").to_string_lossy(), "");
        let shown = took.replace_all(&shown, ", in [TIME]").into_owned();
        if !shown.contains(&format!("[{code}]")) {
            missing.push(format!("{code}: {shown}"));
        }
        writeln!(all, "{code}: exit {}\n\n{}\n", finished.code.unwrap_or(-1), shown.trim_end()).unwrap();
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    // A panic of the engine, and the death of the agent, are no input that could be written down.
    examples.extend(["E217".to_owned(), "E219".to_owned()]);
    assert_eq!(examples, documented);
    insta::assert_snapshot!(all);
}
