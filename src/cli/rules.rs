//! `watchbell rules list|show|reference|definitions`.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{Args, Subcommand};
use serde_json::json;
use watchbell::{
    api::{Client, Request, wire},
    detect::RuleRecord,
    name::RuleId,
    rule::{self, CompiledRule, Loader, RuleKind, RuleSet},
    time::{self, Clock},
};

use super::{CliError, Context, output, problems};

#[derive(Debug, Args)]
pub(super) struct Rules {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Lists all rules, with what they have found
    List,
    /// Shows what a rule says about itself
    Show {
        /// Its id
        id: RuleId,
    },
    /// Prints the reference of the rule language, as Markdown
    Reference,
    /// Writes what editors need to know of the rule language: `*.d.rhai`, and settings for VS Code
    Definitions {
        /// Where
        #[arg(value_name = "DIR", default_value = ".")]
        directory: PathBuf,
    },
}

impl Rules {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        match &self.verb {
            Verb::Reference => return Ok(context.output.raw(&rule::reference())?),
            Verb::Definitions { directory } => return definitions(context, directory),
            Verb::List | Verb::Show { .. } => {}
        }
        let config = context.config()?;
        let loaded = Loader::new(config.rules.clone()).load();
        context.output.diagnostics(&loaded.diagnostics);
        // Before there is a store, rules are listed without their records.
        let records: HashMap<RuleId, RuleRecord> = if config.data_dir.join("store").exists() {
            let entries: Vec<wire::RuleEntry> = Client::open(&config, &Clock::system())?.all(Request::Rules {})?;
            entries.into_iter().map(|entry| (entry.rule, entry.record)).collect()
        } else {
            HashMap::new()
        };
        match self.verb {
            Verb::List => list(context, &loaded.set, &records)?,
            Verb::Show { id } => show(context, &loaded.set, &records, &id)?,
            Verb::Reference | Verb::Definitions { .. } => {}
        }
        if loaded.set.broken.is_empty() {
            return Ok(());
        }
        Err(CliError::Rules(problems("rules do not load", &loaded.diagnostics)))
    }
}

/// Writes the definitions, and settings for VS Code where there are none yet.
fn definitions(context: &Context, directory: &Path) -> Result<(), CliError> {
    let write = |path: PathBuf, text: &str, replace: bool| -> Result<(), CliError> {
        if !replace && path.exists() {
            context.output.note(&format!("kept     {}", path.display()));
            return Ok(());
        }
        let written = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&path, text));
        written.map_err(|error| CliError::Usage(format!("`{}` cannot be written: {error}", path.display())))?;
        context.output.note(&format!("written  {}", path.display()));
        Ok(())
    };
    for (name, text) in rule::definitions() {
        write(directory.join("definitions").join(name), &text, true)?;
    }
    for (name, text) in EDITOR_FILES {
        write(directory.join(name), text, false)?;
    }
    Ok(())
}

/// What editors read: the language server's own file, and VS Code's.
const EDITOR_FILES: [(&str, &str); 3] = [
    ("Rhai.toml", "[source]\ninclude = [\"rules/**/*.rhai\", \"definitions/*.d.rhai\"]\n"),
    (".vscode/settings.json", "{\n  \"files.associations\": { \"*.rhai\": \"rhai\", \"*.test.yaml\": \"yaml\" }\n}\n"),
    (".vscode/extensions.json", "{\n  \"recommendations\": [\"rhaiscript.vscode-rhai\"]\n}\n"),
];

fn list(context: &Context, set: &RuleSet, records: &HashMap<RuleId, RuleRecord>) -> Result<(), CliError> {
    if context.is_json() {
        let all: Vec<_> = set.all().map(|rule| as_json(rule, records.get(rule.id()))).collect();
        return Ok(context.output.json(&all)?);
    }
    let rows = set
        .all()
        .map(|rule| {
            let record = records.get(rule.id());
            let state = if !rule.metadata.enabled {
                "off"
            } else if record.is_some_and(|record| record.suspended.as_deref() == Some(&*rule.hash)) {
                "suspended"
            } else {
                "on"
            };
            let actions =
                rule.metadata.actions.as_ref().map_or_else(|| "every event".to_owned(), |actions| actions.join(" "));
            vec![
                rule.id().to_string(),
                output::severity(rule.metadata.severity),
                state.to_owned(),
                if rule.kind == RuleKind::Detection { actions } else { "on a timer".to_owned() },
                record.map_or(0, |record| record.matches).to_string(),
                record.map_or(0, |record| record.errors).to_string(),
            ]
        })
        .collect();
    Ok(context.output.table(&["rule", "severity", "state", "runs on", "matches", "errors"], rows)?)
}

/// What to say about a rule that is not there.
pub(super) fn no_such_rule(set: &RuleSet, id: &RuleId) -> CliError {
    let near = watchbell::diagnostic::nearest(id.as_str(), set.all().map(|rule| rule.id().as_str()));
    let near =
        near.map_or_else(|| "`watchbell rules list` lists them".to_owned(), |near| format!("did you mean `{near}`?"));
    CliError::Usage(format!("there is no rule `{id}`: {near}"))
}

fn show(context: &Context, set: &RuleSet, records: &HashMap<RuleId, RuleRecord>, id: &RuleId) -> Result<(), CliError> {
    let Some(rule) = set.all().find(|rule| rule.id() == id) else {
        return Err(no_such_rule(set, id));
    };
    let record = records.get(id);
    if context.is_json() {
        return Ok(context.output.json(&as_json(rule, record))?);
    }
    let metadata = &rule.metadata;
    let mut lines: Vec<(&str, String)> = vec![
        ("rule", rule.id().to_string()),
        ("title", metadata.title.clone()),
        ("severity", metadata.severity.to_string()),
        ("file", rule.file.display().to_string()),
        ("hash", rule.hash.clone()),
    ];
    if rule.kind == RuleKind::Detection {
        lines.push((
            "actions",
            metadata.actions.as_ref().map_or_else(|| "every event".to_owned(), |actions| actions.join(", ")),
        ));
        let window = time::show_duration(metadata.window);
        lines.push((
            "threshold",
            if metadata.threshold > 1 { format!("{} within {window}", metadata.threshold) } else { "1".to_owned() },
        ));
        lines.push(("dedup", format!("matches join an alert for {}", time::show_duration(metadata.dedup_period))));
    }
    for (name, text) in [("what", &metadata.description), ("do", &metadata.runbook), ("reference", &metadata.reference)]
    {
        lines.extend(text.clone().map(|text| (name, text)));
    }
    if !metadata.attack.is_empty() {
        lines.push(("ATT&CK", metadata.attack.join(", ")));
    }
    if !metadata.params.is_empty() {
        let params: Vec<String> = metadata.params.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        lines.push(("params", params.join(", ")));
    }
    if let Some(record) = record {
        lines.push(("matches", record.matches.to_string()));
        lines.push(("errors", record.errors.to_string()));
        lines.extend(record.last_error.clone().map(|error| ("last error", error)));
    }
    for (name, value) in lines {
        context.output.line(&format!("{name:<11}{}", output::printable(&value)))?;
    }
    Ok(())
}

fn as_json(rule: &Arc<CompiledRule>, record: Option<&RuleRecord>) -> serde_json::Value {
    let metadata = &rule.metadata;
    json!({
        "id": rule.id(),
        "title": metadata.title,
        "severity": metadata.severity,
        "enabled": metadata.enabled,
        "kind": match rule.kind {
            RuleKind::Detection => "detection",
            RuleKind::CheckSource => "check",
            RuleKind::CheckAgent => "check_agent",
        },
        "actions": metadata.actions,
        "description": metadata.description,
        "runbook": metadata.runbook,
        "reference": metadata.reference,
        "tags": metadata.tags,
        "attack": metadata.attack,
        "dedup_period": time::show_duration(metadata.dedup_period),
        "threshold": metadata.threshold,
        "window": time::show_duration(metadata.window),
        "params": metadata.params.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect::<BTreeMap<_, _>>(),
        "file": rule.file,
        "hash": rule.hash,
        "matches": record.map_or(0, |record| record.matches),
        "errors": record.map_or(0, |record| record.errors),
        "last_match": record.and_then(RuleRecord::last_match_at),
        "last_error": record.and_then(|record| record.last_error.clone()),
        "suspended": record.is_some_and(|record| record.suspended.as_deref() == Some(&*rule.hash)),
    })
}
