//! `docs/configuration.md` is made of the doc comments of the settings, and has all keys that the program accepts.
//! `UPDATE_DOCS=1 cargo test configuration` writes it.

use std::{collections::BTreeSet, fmt::Write as _, fs};

use watchbell::config::Config;

/// A key with its description.
type Row = (String, String);

/// The keys of a struct of settings: its fields, or the items of a list in a field's doc comment.
fn keys(file: &str, name: &str) -> Vec<Row> {
    let text = fs::read_to_string(file).unwrap();
    let start = text.find(&format!("pub struct {name} {{")).unwrap_or_else(|| panic!("no `{name}` in {file}"));
    let body = &text[start..start + text[start..].find("\n}").unwrap()];
    let mut rows = Vec::new();
    let mut doc: Vec<&str> = Vec::new();
    for line in body.lines().skip(1) {
        let line = line.trim();
        if let Some(part) = line.strip_prefix("/// ") {
            doc.push(part);
        } else if let Some(field) = line.strip_prefix("pub ") {
            rows.append(&mut rows_of(field.split(':').next().unwrap(), &doc));
            doc.clear();
        }
    }
    rows
}

fn rows_of(field: &str, doc: &[&str]) -> Vec<Row> {
    let text = doc.join(" ");
    if text.ends_with("Not a key.") || text.starts_with("`[") {
        return Vec::new();
    }
    let Some(list) = text.strip_prefix("- ") else {
        return vec![(field.to_owned(), text)];
    };
    list.split(" - `")
        .map(|item| {
            let (key, about) = item.trim_start_matches('`').split_once("`: ").unwrap();
            let about = about.split_whitespace().collect::<Vec<_>>().join(" ");
            (key.to_owned(), about)
        })
        .collect()
}

/// The keys below a table, without its name.
fn below(rows: &[Row], table: &str) -> Vec<Row> {
    let strip = |(key, about): &Row| Some((key.strip_prefix(table)?.strip_prefix('.')?.to_owned(), about.clone()));
    rows.iter().filter_map(strip).collect()
}

/// The keys that the program says it accepts in a table. `text` has the table with what it requires and the key `zz`.
fn accepted(text: &str) -> BTreeSet<String> {
    let (_, problems) = Config::parse(std::path::Path::new("watchbell.toml"), text);
    let unknown = problems.iter().find(|problem| problem.message.contains("`zz`")).unwrap_or_else(|| {
        panic!("`zz` is accepted in\n{text}\n{problems:?}");
    });
    let help = unknown.help.as_deref().unwrap();
    help.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

struct Page(String);

impl Page {
    /// A section with a table of keys, which must be those that are accepted.
    fn section(&mut self, heading: &str, about: &str, rows: &[Row], accepted: BTreeSet<String>) {
        let documented: BTreeSet<String> = rows.iter().map(|(key, _)| key.clone()).collect();
        assert_eq!(documented, accepted, "{heading}");
        writeln!(self.0, "\n{heading}\n\n{about}\n\n| key | what it sets |\n| --- | --- |").unwrap();
        for (key, about) in rows {
            writeln!(self.0, "| `{key}` | {} |", about.replace('|', "\\|")).unwrap();
        }
    }
}

/// A table that has what it must have, with one key more.
fn kind(name: &str) -> String {
    let required = match name {
        "file" => "path = \"a\"",
        "webhook" => "url = \"https://example.com\"",
        "slack" | "teams" => "url = { env = \"A\" }",
        "pagerduty" => "routing_key = { env = \"A\" }",
        "jira" => {
            "base_url = \"https://example.atlassian.net\"\nemail = \"a@example.com\"\napi_token = { env = \"A\" }\nproject = \"SEC\""
        }
        "email" => "host = \"example.com\"\nfrom = \"a@example.com\"\nto = [\"a@example.com\"]",
        "syslog" => "host = \"example.com\"",
        "command" => "command = [\"a\"]",
        "terminal" => "",
        other => panic!("`{other}` has no example here"),
    };
    format!("[[destination]]\nname = \"a\"\nkind = \"{name}\"\n{required}\nzz = 1\n")
}

fn generated() -> String {
    let config = keys("src/config/mod.rs", "Config");
    let mut page = Page(
        "# Configuration\n\n\
         `watchbell.toml` is a file in TOML. `watchbell init` writes one with comments, and `watchbell check --offline`\n\
         reports everything that is wrong in it, with line and column. Unknown keys are errors. Relative paths are\n\
         relative to the file. Durations are written like `30s`, `10m`, `24h` or `7d`.\n\n\
         A *secret* is `{ env = \"NAME\" }`, an environment variable, or `{ file = \"PATH\" }`, a file. It is never\n\
         written in `watchbell.toml` itself. Destinations read their secrets for each message, and a source reads its\n\
         API key again when it is refused, so files of secrets can be replaced while the agent runs.\n\n\
         SIGHUP makes a running agent load its rules again, with the settings in `[rules]` and `[checks]`. Other\n\
         settings take effect when the agent is restarted.\n"
            .to_owned(),
    );
    let tables = ["rules", "alerts", "metrics", "heartbeat", "checks", "source", "destination"];
    let top: Vec<Row> = config.iter().filter(|(key, _)| !key.contains('.')).cloned().collect();
    let top: Vec<Row> = top.into_iter().filter(|(key, _)| !tables.contains(&key.as_str())).collect();
    let mut at_top = accepted("zz = 1\n");
    tables.iter().for_each(|table| assert!(at_top.remove(*table), "{table}"));
    page.section("## Top level", "Before the first table.", &top, at_top);
    let mut in_rules = accepted("[rules]\nzz = 1\n");
    assert!(in_rules.remove("guard"));
    page.section("## `[rules]`", "Which rules run, and their limits.", &below(&config, "rules"), in_rules);
    page.section(
        "## `[rules.guard]`",
        "If this table is there, a new or changed rule is replayed before it runs. One that would flood runs in shadow mode:\nits alerts are stored but not delivered, and a health alert says so.",
        &keys("src/config/mod.rs", "Guard"),
        accepted("[rules.guard]\nzz = 1\n"),
    );
    page.section("## `[alerts]`", "How alerts are raised.", &below(&config, "alerts"), accepted("[alerts]\nzz = 1\n"));
    page.section(
        "## `[checks.\"ID\"]`",
        "Overrides of a built-in check rule, such as `[checks.\"builtin.log_drop_off\"]`. The keys are those of\n`overrides.toml`; see [the guide](guide.md).",
        &keys("src/rule/manifest/overrides.rs", "RuleOverride"),
        accepted("[checks.\"builtin.log_drop_off\"]\nzz = 1\n"),
    );
    let atlassian = keys("src/source/atlassian/mod.rs", "Settings");
    let source: Vec<Row> = keys("src/source/mod.rs", "Settings").into_iter().chain(atlassian).collect();
    page.section(
        "## `[[source]]`",
        "An audit log to poll; one table for each.",
        &source,
        accepted("[[source]]\nname = \"a\"\norg_id = \"a\"\napi_key = { env = \"A\" }\nzz = 1\n"),
    );
    let common = keys("src/deliver/mod.rs", "Settings");
    page.section(
        "## `[[destination]]`",
        "Where alerts go; one table for each. Without any, alerts are written to the terminal. These keys are for\nall kinds; `kind = \"terminal\"` has no others.",
        &common,
        accepted(&kind("terminal")),
    );
    for name in watchbell::deliver::KINDS.iter().filter(|name| **name != "terminal") {
        let rows = keys(&format!("src/deliver/{name}.rs"), "Settings");
        let mut own = accepted(&kind(name));
        common.iter().for_each(|(key, _)| assert!(own.remove(key), "{name}: {key}"));
        page.section(&format!("### `kind = \"{name}\"`"), "Also has:", &rows, own);
    }
    page.section(
        "## `[metrics]`",
        "Serves `/metrics`, `/healthz` and `/readyz`; not served without this table.",
        &below(&config, "metrics"),
        accepted("[metrics]\nlisten = \"127.0.0.1:9\"\nzz = 1\n"),
    );
    page.section(
        "## `[heartbeat]`",
        "GET requests to a monitor that raises an alarm when they stop. They are sent only while the agent does its\nwhole job.",
        &keys("src/heartbeat.rs", "Heartbeat"),
        accepted("[heartbeat]\nurl = \"https://example.com\"\nzz = 1\n"),
    );
    page.0
}

#[test]
fn the_documentation_of_the_configuration_is_current() {
    let (generated, file) = (generated(), "docs/configuration.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(file, &generated).unwrap();
    }
    let stored = fs::read_to_string(file).unwrap_or_default();
    assert!(stored == generated, "{file} is out of date: `UPDATE_DOCS=1 cargo test configuration` writes it");
}
