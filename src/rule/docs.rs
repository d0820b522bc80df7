//! Documentation of rules, made of what they say about themselves: a page for each, an index with a table of how sure their
//! actions are, and a layer for the ATT&CK Navigator.

use std::{collections::BTreeMap, fmt::Write, sync::Arc};

use serde_json::{Value, json};

use super::{CompiledRule, RuleKind, Selector};
use crate::{action::Certainty, category, name::RuleId, time};

/// A rule with what stands beside it.
#[derive(Debug)]
pub struct Documented {
    /// The rule.
    pub rule: Arc<CompiledRule>,
    /// Its file below the rules' directory, without its ending: `admin/impersonated_user`.
    pub path: String,
    /// The text of its file.
    pub text: String,
    /// The names of its tests.
    pub cases: Vec<String>,
}

/// The pages of these rules: file names below the documentation's directory, and texts.
pub fn documentation(rules: &[Documented]) -> Vec<(String, String)> {
    let mut files = vec![("README.md".to_owned(), index(rules))];
    files.extend(rules.iter().map(|rule| (format!("{}.md", rule.path), page(rule))));
    files.push(("categories.md".to_owned(), categories()));
    let mut attack: BTreeMap<String, Vec<RuleId>> = BTreeMap::new();
    for rule in rules {
        for id in &rule.rule.metadata.attack {
            attack.entry(id.clone()).or_default().push(rule.rule.id().clone());
        }
    }
    let layer = serde_json::to_string_pretty(&navigator_layer(&attack)).unwrap_or_default();
    files.push(("navigator.json".to_owned(), format!("{layer}\n")));
    files
}

/// A layer in the format of the ATT&CK Navigator, version 4.5 (github.com/mitre-attack/attack-navigator, layers), of rules by the
/// ids that they name. It has techniques only: tactics are columns there.
pub fn navigator_layer(attack: &BTreeMap<String, Vec<RuleId>>) -> Value {
    let techniques: Vec<Value> = attack
        .iter()
        .filter(|(id, _)| !id.starts_with("TA"))
        .map(|(id, rules)| {
            let names: Vec<&str> = rules.iter().map(RuleId::as_str).collect();
            json!({ "techniqueID": id, "score": rules.len(), "comment": names.join(", ") })
        })
        .collect();
    let most = attack.iter().filter(|(id, _)| !id.starts_with("TA")).map(|(_, rules)| rules.len()).max().unwrap_or(1);
    json!({
        "name": "watchbell",
        "versions": { "layer": "4.5" },
        "domain": "enterprise-attack",
        "description": "Techniques that the rules are about; the score is the number of rules",
        "techniques": techniques,
        "gradient": { "colors": ["#cfe2ff", "#0d47a1"], "minValue": 0, "maxValue": most },
    })
}

fn index(rules: &[Documented]) -> String {
    let mut text = String::from(
        "# Rules\n\nMade by `watchbell rules docs`, of what the rules say about themselves. Each has a page with what it means, what to do, what \
         else may look like it, and how to tune it.\n\n",
    );
    let count = |certainty| rules.iter().filter(|rule| rule.rule.metadata.evidence == Some(certainty)).count();
    let others = rules.iter().filter(|rule| rule.rule.metadata.evidence.is_none()).count();
    text.push_str(
        "## How sure their actions are\n\nAtlassian publishes no list of action ids. Each rule says on what its ids rest, so that nobody takes a \
         guess for a fact. Your own organization's list settles it: `watchbell actions refresh` fetches it, and `watchbell rules list` then shows \
         as *blind* what can match none of its actions, with the nearest that could be meant.\n\n| evidence | rules | what it means |\n| --- | --- | --- |\n",
    );
    for certainty in Certainty::ALL {
        let about = match certainty {
            Certainty::Verified => "Its id was seen in a real event.",
            Certainty::Sample => {
                "Its ids stand in a vendor's sample, in a public data model, or are what a collector looks for; some may be invented."
            }
            Certainty::Documented => {
                "Atlassian documents the activity by its name, or the field that it goes by; the id is not known. The name is resolved with your \
                 organization's list."
            }
            Certainty::Assumed => "Its ids are likely forms, and no more. Check them against your organization's list.",
        };
        writeln!(text, "| {certainty} | {} | {about} |", count(certainty)).ok();
    }
    writeln!(
        text,
        "| - | {others} | It has no actions of its own: it listens to other rules, or watches over the agent. |"
    )
    .ok();
    text.push_str(
        "\nRunbooks name the menus of admin.atlassian.com as they were in 2026; Atlassian moves them now and then.\n",
    );
    let mut folders: BTreeMap<&str, Vec<&Documented>> = BTreeMap::new();
    for rule in rules {
        folders.entry(rule.path.rsplit_once('/').map_or("", |(folder, _)| folder)).or_default().push(rule);
    }
    for (folder, rules) in folders {
        let title = if folder.is_empty() { "others" } else { folder };
        writeln!(
            text,
            "\n## {title}\n\n| rule | severity | evidence | ATT&CK | needs |\n| --- | --- | --- | --- | --- |"
        )
        .ok();
        for rule in rules {
            let metadata = &rule.rule.metadata;
            writeln!(
                text,
                "| [{}]({}.md) | {} | {} | {} | {} |",
                cell(&metadata.title),
                rule.path,
                metadata.severity,
                metadata.evidence.map_or("-", Certainty::as_str),
                metadata.attack.iter().map(|id| attack_link(id)).collect::<Vec<_>>().join(" "),
                cell(metadata.requires.as_deref().unwrap_or("")),
            )
            .ok();
        }
    }
    text.push_str("\n[Categories of events](categories.md): what decides them, and how sure that is. ");
    text.push_str("[`navigator.json`](navigator.json) is a layer for the [ATT&CK Navigator](https://mitre-attack.github.io/attack-navigator/).\n");
    text
}

fn categories() -> String {
    let mut text = String::from(
        "# Categories\n\nEvery event has a category, `event.category` in rules. It is decided by the first of these that fits: the name of the \
         activity and the group that it stands in, by your organization's list of actions; else the action's id, in which `*` is any \
         text.\n",
    );
    for (title, what, rows) in category::tables() {
        writeln!(text, "\n## {title}\n\n| {what} | category | evidence |\n| --- | --- | --- |").ok();
        for (name, category, certainty) in rows {
            writeln!(text, "| `{name}` | {category} | {certainty} |").ok();
        }
    }
    text
}

fn page(documented: &Documented) -> String {
    let Documented { rule, text: source, cases, path } = documented;
    let metadata = &rule.metadata;
    let mut text = format!("# {}\n\n`{}`, severity **{}**", metadata.title, rule.id(), metadata.severity);
    if let Some(evidence) = metadata.evidence {
        write!(text, ", evidence **{evidence}**").ok();
    }
    text.push_str(".\n");
    let mut section = |title: &str, body: &str| {
        if !body.trim().is_empty() {
            write!(text, "\n## {title}\n\n{}\n", body.trim_end()).ok();
        }
    };
    section("What it means", metadata.description.as_deref().unwrap_or_default());
    section("Why this severity", metadata.severity_reason.as_deref().unwrap_or_default());
    section("What to do", &metadata.blank_runbook().unwrap_or_default());
    section("What else may look like it", &bullets(metadata.false_positives.iter().cloned()));
    section("What it needs", metadata.requires.as_deref().unwrap_or_default());
    section("What it looks at", &looks_at(rule));
    let mut counting = String::new();
    if metadata.threshold > 1 {
        let window = time::show_duration(metadata.window);
        writeln!(counting, "An alert opens at {} matches within {window}.", metadata.threshold).ok();
    }
    writeln!(counting, "Further matches with the same key join it for {}.", time::show_duration(metadata.dedup_period))
        .ok();
    if rule.kind == RuleKind::Detection {
        section("How it counts", &counting);
    }
    let mut tuning = String::new();
    if !metadata.params.is_empty() {
        tuning.push_str("`params`, to change in `overrides.toml`:\n\n| name | default |\n| --- | --- |\n");
        for (name, value) in &metadata.params {
            writeln!(tuning, "| `{name}` | `{}` |", cell(&format!("{value:?}"))).ok();
        }
        tuning.push('\n');
    }
    if !metadata.exception_slots.is_empty() {
        tuning.push_str("Slots for exceptions (`watchbell exceptions add`):\n\n");
        let slots = metadata.exception_slots.iter();
        tuning.push_str(&bullets(slots.map(|(name, fields)| format!("`{name}`: `{}`", fields.join("`, `")))));
    }
    section("Tuning", &tuning);
    section("ATT&CK", &metadata.attack.iter().map(|id| attack_link(id)).collect::<Vec<_>>().join(", "));
    section("Reference", metadata.reference.as_deref().unwrap_or_default());
    section("Tests", &bullets(cases.iter().cloned()));
    section("The rule", &format!("`rules/{path}.rhai`\n\n```rhai\n{}\n```", source.trim_end()));
    text
}

fn looks_at(rule: &CompiledRule) -> String {
    let metadata = &rule.metadata;
    if rule.kind != RuleKind::Detection {
        let what =
            if rule.kind == RuleKind::CheckAgent { "How the agent itself stands" } else { "How each source stands" };
        return format!("{what}, on a timer.");
    }
    if let Some(selectors) = &metadata.on {
        let heard: Vec<&str> = selectors.iter().map(Selector::as_str).collect();
        return format!("Matches of other rules: `{}`.", heard.join("`, `"));
    }
    if metadata.wants_every_event() {
        return "Every event; the conditions that it begins with leave out most of them.".to_owned();
    }
    let actions = metadata.actions.iter().flatten().map(|action| format!("`{action}`"));
    let activities = metadata.activities.iter().flatten();
    let activities = activities.map(|name| format!("\"{name}\", by the organization's list of actions"));
    bullets(actions.chain(activities))
}

fn bullets(items: impl Iterator<Item = String>) -> String {
    items.fold(String::new(), |mut text, item| {
        writeln!(text, "- {item}").ok();
        text
    })
}

fn attack_link(id: &str) -> String {
    let kind = if id.starts_with("TA") { "tactics" } else { "techniques" };
    format!("[{id}](https://attack.mitre.org/{kind}/{}/)", id.replace('.', "/"))
}

/// Within a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
