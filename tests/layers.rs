use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Each file of `src` with the module it belongs to: the part of its path that names the layer.
fn modules() -> Vec<(String, PathBuf, String)> {
    let mut files = Vec::new();
    sources(Path::new("src"), &mut files);
    files
        .into_iter()
        .map(|path| {
            let inside = path.strip_prefix("src").unwrap().with_extension("");
            let module = inside.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).unwrap();
            (module, path, text)
        })
        .collect()
}

/// The names of the modules that lead to a file.
fn names(path: &Path) -> Vec<String> {
    let inside = path.strip_prefix("src").unwrap().with_extension("");
    let mut names: Vec<String> =
        inside.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    if names.last().is_some_and(|last| last == "mod") {
        names.pop();
    }
    names
}

/// Parts of `config` that every module may use: reading tables, diagnostics, and secrets.
const SETTINGS: [&str; 3] = ["diagnostic", "secret", "settings"];

/// The modules that a module may use, in addition to `model`, the settings and itself.
fn may_use(module: &str) -> &'static [&'static str] {
    match module {
        "store" => &[],
        "rule" => &[],
        "detect" => &["rule"],
        "http" => &[],
        "heartbeat" => &["http"],
        "source" | "deliver" => &["http", "store"],
        "dispatch" => &["deliver", "store"],
        "replay" => &["detect", "rule", "store"],
        "config" => &["deliver", "detect", "heartbeat", "rule", "source"],
        "api" => &["config", "deliver", "detect", "dispatch", "http", "rule", "source", "store"],
        "agent" => &[
            "api",
            "config",
            "deliver",
            "detect",
            "dispatch",
            "heartbeat",
            "http",
            "replay",
            "rule",
            "source",
            "store",
        ],
        "model" | "settings" | "simulator" => &[],
        other => panic!("module `{other}` has no place in the table of layers: give it one here and in lib.rs"),
    }
}

/// The code of a file without unit tests and comments.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap_or(text);
    text.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn modules_use_only_what_is_below_them() {
    // Settings are plain values, even if the module that owns them is not.
    let layer = |path: &[String]| match path {
        [first, second, ..] if first == "config" && SETTINGS.contains(&second.as_str()) => "settings".to_owned(),
        [first, ..] => first.clone(),
        [] => String::new(),
    };
    let mut wrong = Vec::new();
    for (_, path, text) in modules() {
        let module = names(&path);
        let own = layer(&module);
        if matches!(own.as_str(), "main" | "lib" | "cli") {
            continue;
        }
        for used in paths(&module, &code(&text)) {
            let used = layer(&used);
            let named = used.starts_with(char::is_lowercase) && used != "as";
            if named
                && used != own
                && !["model", "settings"].contains(&used.as_str())
                && !may_use(&own).contains(&used.as_str())
            {
                wrong.push(format!("{} uses `{used}`", path.display()));
            }
            if own == "model" && used == "settings" {
                wrong.push(format!("{} uses `{used}`", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The paths in code after `crate::` and `super::`, as lists of modules, with the file they are in.
fn paths(module: &[String], code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (at, token) in code.match_indices("crate::").chain(code.match_indices("super::")) {
        // `super::super::x` is read from its start, and `pub(in crate::rule)` is not a use.
        if code[..at].ends_with("super::") || code[..at].ends_with("(in ") {
            continue;
        }
        let mut start = match token {
            "crate::" => Vec::new(),
            _ => module[..module.len() - 1].to_vec(),
        };
        let mut rest = &code[at + token.len()..];
        while let Some(further) = rest.strip_prefix("super::") {
            start.pop();
            rest = further;
        }
        follow(start, rest, &mut found);
    }
    found
}

/// Reads one path, or each of those in braces; returns the remaining text.
fn follow<'a>(mut path: Vec<String>, code: &'a str, found: &mut Vec<Vec<String>>) -> &'a str {
    let mut rest = code.trim_start();
    loop {
        if let Some(mut list) = rest.strip_prefix('{') {
            loop {
                list = list.trim_start().trim_start_matches(',').trim_start();
                if let Some(after) = list.strip_prefix('}') {
                    return after;
                }
                let after = follow(path.clone(), list, found);
                // Anything else is not a path, such as `as name`.
                list = if after.len() < list.len() { after } else { &list[1..] };
                if list.is_empty() {
                    return list;
                }
            }
        }
        let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(rest.len());
        if end == 0 {
            return rest;
        }
        path.push(rest[..end].to_owned());
        rest = &rest[end..];
        match rest.strip_prefix("::") {
            Some(further) => rest = further,
            None => {
                found.push(path);
                return rest;
            }
        }
    }
}

/// Each file with the files that it uses, except for its ancestors and descendants.
fn uses() -> BTreeMap<String, Vec<String>> {
    let files = modules();
    let known: Vec<Vec<String>> = files.iter().map(|(_, path, _)| names(path)).collect();
    let mut uses = BTreeMap::new();
    for (_, path, text) in &files {
        let own = names(path);
        let mut used: Vec<String> = paths(&own, &code(text))
            .into_iter()
            .filter_map(|path| {
                known
                    .iter()
                    .filter(|known| path.starts_with(known) && !known.is_empty())
                    .max_by_key(|known| known.len())
            })
            .filter(|other| !own.starts_with(other) && !other.starts_with(&own))
            .map(|other| other.join("/"))
            .collect();
        used.sort();
        used.dedup();
        uses.insert(own.join("/"), used);
    }
    uses
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let mut left = uses();
    assert!(left["agent/evaluate"].contains(&"agent/request".to_owned()), "uses are found: {left:#?}");
    assert!(left["rule/load/compile"].contains(&"rule/script/scan".to_owned()));
    // Files that use no remaining file are not in a cycle.
    loop {
        let done: Vec<String> = left
            .iter()
            .filter(|(_, used)| !used.iter().any(|used| left.contains_key(used)))
            .map(|(file, _)| file.clone())
            .collect();
        if done.is_empty() {
            break;
        }
        done.iter().for_each(|file| drop(left.remove(file)));
    }
    // Neither are files that no remaining file uses.
    loop {
        let done: Vec<String> =
            left.keys().filter(|file| !left.values().any(|used| used.contains(file))).cloned().collect();
        if done.is_empty() {
            break;
        }
        done.iter().for_each(|file| drop(left.remove(file)));
    }
    assert!(left.is_empty(), "in or between circles: {left:#?}");
}

/// The layers of `rule`, from the top down, with what they may use.
#[test]
fn rules_are_in_four_rooms_with_one_direction() {
    let floor = |file: &str| match file.strip_prefix("rule/")?.split('/').next()? {
        "author" => Some(4),
        "load" => Some(3),
        "set" | "version" | "cycle" | "unmatched" | "plan" => Some(2),
        "script" => Some(1),
        "manifest" => Some(0),
        other => panic!("`rule/{other}` has no place: give it one here"),
    };
    let mut wrong = Vec::new();
    for (file, used) in uses() {
        for used in used {
            if let (Some(own), Some(other)) = (floor(&file), floor(&used))
                && own < other
            {
                wrong.push(format!("{file} uses {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Each external crate is used only by the module that owns it.
#[test]
fn dependencies_stay_behind_their_owner() {
    let owners: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("sled::", &["store"][..]),
        ("zstd::", &["store"]),
        ("rhai::", &["rule"]),
        ("notify::", &["rule"]),
        ("reqwest::", &["http", "source", "deliver", "api"]),
        ("axum::", &["simulator", "api"]),
        ("clap::", &["cli"]),
        ("indicatif::", &["cli"]),
        ("tokio::spawn", &["agent", "cli", "simulator"]),
        ("Clock::system()", &["cli", "simulator"]),
    ]);
    let mut wrong = Vec::new();
    for (module, path, text) in modules() {
        for (used, owners) in &owners {
            // `sd_notify::` is not `notify::`.
            let code = code(&text);
            let named = code
                .match_indices(used)
                .any(|(at, _)| !code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_'));
            if named && !owners.contains(&module.as_str()) {
                wrong.push(format!("{} uses `{used}`", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Store calls may block, which would stall all tasks on an async thread: async code uses `TaskStore` or `TaskDesk`.
#[test]
fn tasks_wait_for_no_disk() {
    let mut wrong = Vec::new();
    for (module, path, text) in modules() {
        let code = code(&text);
        if !code.contains("async fn") || matches!(module.as_str(), "cli" | "simulator") {
            continue;
        }
        for (at, call) in code.match_indices("store.").chain(code.match_indices("service.")) {
            let line = code[..at].lines().count();
            let next = &code[at + call.len()..];
            // `self.store.run(…)`: the closure's parameter is also called `store`, and is not a field.
            let held = code[..at].ends_with("self.");
            let runs =
                ["run(", "start(", "clone(", "subscribe("].iter().any(|name| next.trim_start().starts_with(name));
            // In `deliver`, a service is one that messages are sent to.
            let other = module == "deliver" && call == "service.";
            // The agent is assembled and opened before its tasks run.
            let opens = path.ends_with("agent/mod.rs");
            if held && !runs && !opens && !other {
                wrong.push(format!("{}:{line}", path.display()));
            }
        }
        for kind in ["Reader,", "Recorder,", "Store,"] {
            for line in code.lines().filter(|line| line.trim_end().ends_with(&format!(": {kind}"))) {
                // A field, not a parameter.
                if line.starts_with("    ") && !line.starts_with("        ") && !path.ends_with("agent/mod.rs") {
                    wrong.push(format!("{} keeps `{}`", path.display(), line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_have_a_subject() {
    let mut wrong = Vec::new();
    for (_, path, text) in modules() {
        if !text.starts_with("//! ") {
            wrong.push(format!("{} has no module doc", path.display()));
        }
        if text.lines().count() > 600 {
            wrong.push(format!("{} has {} lines", path.display(), text.lines().count()));
        }
        for word in ["TODO", "FIXME", "todo!(", "unimplemented!("] {
            if text.contains(word) {
                wrong.push(format!("{} has a {word}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
