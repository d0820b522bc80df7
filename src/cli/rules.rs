//! `watchbell rules`: lists and shows rules. The verbs for authors of rules are in `author`.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
};

use clap::{Args, Subcommand};
use serde_json::json;
use watchbell::{
    api::{Client, answer, request},
    deliver::wrapped,
    detect::RuleRecord,
    model::{
        name::RuleId,
        time::{self, Clock},
    },
    rule::{self, CompiledRule, Loader, Metadata, RuleKind, RuleSet, Selector, Stage},
};

use super::{CliError, Context, author, ensure_readable, output, problems};

#[derive(Debug, Args)]
pub(super) struct RulesArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List all rules with their numbers of matches and errors
    List,
    /// Show a rule's metadata, matches and errors
    Show {
        /// ID of the rule
        id: RuleId,
        /// Show every effective value and its origin: the rule, one of its functions, an override or a default
        #[arg(long)]
        effective: bool,
    },
    /// Create a rule with two tests
    New(author::New),
    /// Format rule files
    Fmt(author::Fmt),
    /// Print the reference of the rule language as Markdown
    Reference,
    /// Write the documentation of rules: a page per rule, an index, and an ATT&CK Navigator layer
    Docs(author::Docs),
    /// Write the rule language's definitions (`*.d.rhai`) for editors, and settings for VS Code
    Definitions {
        /// Directory to write to
        #[arg(value_name = "DIR", default_value = ".")]
        directory: PathBuf,
    },
}

impl RulesArgs {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        let verb = match self.verb {
            Verb::New(new) => return new.run(context),
            Verb::Fmt(fmt) => return fmt.run(context),
            Verb::Docs(docs) => return docs.run(context),
            other => other,
        };
        match &verb {
            Verb::Reference => return Ok(context.output.raw(&rule::reference())?),
            Verb::Definitions { directory } => return author::definitions(context, directory),
            Verb::New(_) | Verb::Fmt(_) | Verb::Docs(_) | Verb::List | Verb::Show { .. } => {}
        }
        let config = context.config()?;
        let loaded = Loader::new(context.rule_sources(&config)).load();
        context.output.diagnostics(&loaded.diagnostics);
        ensure_readable(&loaded.diagnostics)?;
        // Without a store, rules are listed without their records.
        let known = if config.data_dir.join("store").exists() {
            let client = Client::open(&config, &Clock::system())?;
            let entries: Vec<answer::RuleEntry> = client.all(request::Rules {})?;
            let records = entries.into_iter().map(|entry| (entry.rule, entry.record)).collect();
            let status = if client.is_agent() { client.one(request::Status {})? } else { None };
            let guarded = status.and_then(|status| status.agent).map(|agent| agent.guarded).unwrap_or_default();
            Known { records, guarded, ..Known::of(&client.all(request::Actions {})?, &loaded.set) }
        } else {
            Known::default()
        };
        match verb {
            Verb::List => list(context, &loaded.set, &known)?,
            Verb::Show { id, effective: true } => effective(context, find(&loaded.set, &id)?, &known)?,
            Verb::Show { id, effective: false } => show(context, &loaded.set, &known, &id)?,
            Verb::New(_) | Verb::Fmt(_) | Verb::Docs(_) | Verb::Reference | Verb::Definitions { .. } => {}
        }
        if loaded.set.context.broken.is_empty() {
            return Ok(());
        }
        Err(CliError::Rules(problems("some rules do not load", &loaded.diagnostics)))
    }
}

/// Why a guarded rule is in shadow mode.
const BY_GUARD: &str =
    "the guard found that it would flood; `watchbell alerts list --rule builtin.rule_guarded` has the numbers";

/// The stored records of rules, and the rules that match no known action.
#[derive(Debug, Default)]
struct Known {
    records: HashMap<RuleId, RuleRecord>,
    /// Rules that match none of the organizations' actions, each with the most similar actions.
    unmatched: BTreeMap<RuleId, Vec<String>>,
    /// Rules that the guard of the running agent moved to shadow mode.
    guarded: Vec<RuleId>,
    /// True if an organization's list of actions is known; if not, only the actions of stored events are.
    listed: bool,
}

impl Known {
    fn of(entries: &[answer::ActionEntry], set: &RuleSet) -> Self {
        let known: Vec<_> = entries.iter().map(|entry| (entry.id.clone(), entry.record.name.clone())).collect();
        Self {
            records: HashMap::new(),
            guarded: Vec::new(),
            unmatched: set.unmatched(&known).into_iter().map(|unmatched| (unmatched.rule, unmatched.nearest)).collect(),
            listed: entries.iter().any(|entry| entry.record.listed.is_some()),
        }
    }

    /// Why a rule is unmatched, and which actions might be meant.
    fn why_unmatched(&self, rule: &RuleId) -> Option<String> {
        let nearest = self.unmatched.get(rule)?;
        let reason =
            if self.listed { "the organization lists no such action" } else { "no event has had such an action yet" };
        Some(match nearest.is_empty() {
            true => reason.to_owned(),
            false => format!("{reason}; the nearest are {}", nearest.join(", ")),
        })
    }
}

/// The events or matches that a rule runs on.
fn runs_on(metadata: &Metadata, separator: &str) -> String {
    if let Some(selectors) = &metadata.on {
        let selectors: Vec<&str> = selectors.iter().map(Selector::as_str).collect();
        return format!("matches of {}", selectors.join(separator));
    }
    let flagged = if metadata.flagged { " with flags" } else { "" };
    if metadata.wants_every_action() {
        return format!("every event{flagged}");
    }
    let activities = metadata.activities.iter().flatten().map(|name| format!("\"{name}\""));
    let named = metadata.actions.iter().flatten().cloned().chain(activities);
    named.map(|named| format!("{named}{flagged}")).collect::<Vec<_>>().join(separator)
}

/// Shortens text to fit a line of the list. `rules show` shows all of it.
fn clipped(text: &str) -> String {
    const WIDTH: usize = 60;
    if text.chars().count() <= WIDTH {
        return text.to_owned();
    }
    text.chars().take(WIDTH - 1).chain(['…']).collect()
}

fn list(context: &Context, set: &RuleSet, known: &Known) -> Result<(), CliError> {
    let records = &known.records;
    if context.is_json() {
        let all: Vec<_> = set.all().map(|rule| as_json(rule, known)).collect();
        return Ok(context.output.json(&all)?);
    }
    let rows = set
        .all()
        .map(|rule| {
            let record = records.get(rule.id());
            let state = if !rule.metadata.enabled {
                "off"
            } else if rule.metadata.stage == Stage::Shadow || known.guarded.contains(rule.id()) {
                "shadow"
            } else if record.is_some_and(|record| record.suspended.as_deref() == Some(&*rule.hash)) {
                "suspended"
            } else if known.unmatched.contains_key(rule.id()) {
                "unmatched"
            } else {
                "on"
            };
            let actions = runs_on(&rule.metadata, " ");
            vec![
                rule.id().to_string(),
                output::severity(rule.metadata.severity),
                state.to_owned(),
                rule.metadata.evidence.map_or_else(|| "-".to_owned(), |evidence| evidence.to_string()),
                if rule.kind == RuleKind::Detection { clipped(&actions) } else { "on a timer".to_owned() },
                record.map_or(0, |record| record.matches).to_string(),
                record.map_or(0, |record| record.errors).to_string(),
            ]
        })
        .collect();
    context.output.table(&["rule", "severity", "state", "evidence", "runs on", "matches", "errors"], rows)?;
    for rule in &known.guarded {
        context.output.note(&format!("{rule} is in shadow mode: {BY_GUARD}"));
    }
    for rule in known.unmatched.keys() {
        if let Some(why) = known.why_unmatched(rule) {
            context.output.note(&format!("{rule} is unmatched: {why}"));
        }
    }
    Ok(())
}

fn find<'a>(set: &'a RuleSet, id: &RuleId) -> Result<&'a Arc<CompiledRule>, CliError> {
    set.all().find(|rule| rule.id() == id).ok_or_else(|| no_such_rule(set, id))
}

/// Prints every effective value of a rule with its origin.
fn effective(context: &Context, rule: &CompiledRule, known: &Known) -> Result<(), CliError> {
    let values = as_json(rule, &Known::default());
    let mut rows = Vec::new();
    for key in rule::KEY_TABLE {
        if key.name == "stage" && known.guarded.contains(rule.id()) {
            rows.push((key.name, "shadow".into(), "the guard".to_owned()));
            continue;
        }
        let value = values.get(key.name).cloned().unwrap_or_default();
        let origin = match rule.metadata.origins.get(key.name) {
            Some(origin) => origin.clone(),
            None if rule.has(key.name) => format!("fn {}", key.name),
            None if rule.metadata.declared.iter().any(|declared| declared == key.name) => "the rule".to_owned(),
            None => "default".to_owned(),
        };
        rows.push((key.name, value, origin));
    }
    if context.is_json() {
        let rows: Vec<_> =
            rows.iter().map(|(key, value, origin)| json!({ "key": key, "value": value, "origin": origin })).collect();
        return Ok(context.output.json(&rows)?);
    }
    let show = |value: &serde_json::Value| match value {
        serde_json::Value::Null => "-".to_owned(),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let rows = rows.iter().map(|(key, value, origin)| vec![(*key).to_owned(), show(value), origin.clone()]).collect();
    Ok(context.output.table(&["key", "value", "from"], rows)?)
}

/// The error for an unknown rule, with the most similar ID.
pub(super) fn no_such_rule(set: &RuleSet, id: &RuleId) -> CliError {
    let nearest = watchbell::config::diagnostic::nearest(id.as_str(), set.all().map(|rule| rule.id().as_str()));
    let help = nearest.map_or_else(
        || "`watchbell rules list` lists all rules".to_owned(),
        |nearest| format!("did you mean `{nearest}`?"),
    );
    CliError::Usage(format!("no rule `{id}`; {help}"))
}

fn show(context: &Context, set: &RuleSet, known: &Known, id: &RuleId) -> Result<(), CliError> {
    let rule = find(set, id)?;
    let record = known.records.get(id);
    if context.is_json() {
        return Ok(context.output.json(&as_json(rule, known))?);
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
        lines.push(("actions", runs_on(metadata, ", ")));
        lines.extend(metadata.evidence.map(|evidence| ("evidence", evidence.to_string())));
        lines.extend(known.why_unmatched(id).map(|why| ("unmatched", why)));
        lines.extend(known.guarded.contains(id).then(|| ("shadow", BY_GUARD.to_owned())));
        let window = time::show_duration(metadata.window);
        lines.push((
            "threshold",
            if metadata.threshold > 1 { format!("{} within {window}", metadata.threshold) } else { "1".to_owned() },
        ));
        lines.push(("dedup", format!("matches join an alert for {}", time::show_duration(metadata.dedup_period))));
    }
    if metadata.stage == Stage::Shadow {
        lines.push(("stage", "shadow: alerts are recorded but not delivered".to_owned()));
    }
    for (key, origin) in &metadata.origins {
        lines.push(("override", format!("{key}, from {origin}")));
    }
    for (name, text) in [
        ("about", &metadata.description),
        ("reason", &metadata.severity_reason),
        ("runbook", &metadata.blank_runbook()),
        ("reference", &metadata.reference),
        ("requires", &metadata.requires),
    ] {
        lines.extend(text.clone().map(|text| (name, text)));
    }
    lines.extend(metadata.false_positives.iter().map(|text| ("benign", text.clone())));
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
        for (number, line) in value.lines().enumerate() {
            let name = if number == 0 { name } else { "" };
            let line = wrapped(&output::printable(line), context.output.width(), 11);
            context.output.line(&format!("{name:<11}{line}"))?;
        }
    }
    Ok(())
}

fn as_json(rule: &CompiledRule, known: &Known) -> serde_json::Value {
    let record = known.records.get(rule.id());
    let metadata = &rule.metadata;
    json!({
        "id": rule.id(),
        "title": metadata.title,
        "severity": metadata.severity,
        "enabled": metadata.enabled,
        "stage": metadata.stage,
        "kind": match rule.kind {
            RuleKind::Detection => "detection",
            RuleKind::CheckSource => "check",
            RuleKind::CheckAgent => "check_agent",
        },
        "actions": metadata.actions,
        "activities": metadata.activities,
        "evidence": metadata.evidence,
        "guarded": known.guarded.contains(rule.id()),
        "unmatched": known.unmatched.contains_key(rule.id()),
        "nearest": known.unmatched.get(rule.id()),
        "on": metadata.on.as_ref().map(|on| on.iter().map(|selector| selector.as_str()).collect::<Vec<_>>()),
        "signal": metadata.signal,
        "risk": metadata.risk,
        "description": metadata.description,
        "runbook": metadata.runbook,
        "reference": metadata.reference,
        "severity_reason": metadata.severity_reason,
        "false_positives": metadata.false_positives,
        "requires": metadata.requires,
        "tags": metadata.tags,
        "attack": metadata.attack,
        "dedup_period": time::show_duration(metadata.dedup_period),
        "threshold": metadata.threshold,
        "window": time::show_duration(metadata.window),
        "params": metadata.params.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect::<BTreeMap<_, _>>(),
        "destinations": metadata.destinations,
        "group_by": metadata.group_by,
        "exception_slots": metadata.exception_slots,
        "resolved": metadata.resolved,
        "overridden": metadata.origins,
        "file": rule.file,
        "hash": rule.hash,
        "matches": record.map_or(0, |record| record.matches),
        "errors": record.map_or(0, |record| record.errors),
        "last_match": record.and_then(RuleRecord::last_match_at),
        "last_error": record.and_then(|record| record.last_error.clone()),
        "suspended": record.is_some_and(|record| record.suspended.as_deref() == Some(&*rule.hash)),
    })
}
