//! `watchbell actions`: the organizations' actions, how often they were seen, and the rules that cover them.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde::Serialize;
use watchbell::{
    api::{answer, request},
    config::Config,
    model::{
        name::{RuleId, SourceName},
        time::Clock,
    },
    replay::coverage,
    rule::{Loader, RuleSet},
    source::{Refreshed, Source},
    store::{ActionList, SourceError, Store},
};

use super::{CliError, Context, ensure_readable, output, runtime};

#[derive(Debug, Args)]
pub(super) struct Actions {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the actions that the organizations list, and those seen in events
    List(List),
    /// Fetch the organizations' lists of actions now; the agent fetches them once a day
    Refresh {
        /// Only this source
        #[arg(long, value_name = "NAME")]
        source: Option<SourceName>,
    },
}

#[derive(Debug, Args)]
struct List {
    /// Only actions that were seen in events but that the organization does not list
    #[arg(long)]
    unknown: bool,
    /// Only actions that no rule covers
    #[arg(long)]
    uncovered: bool,
    /// Only actions that were seen in events
    #[arg(long)]
    seen: bool,
    /// Only actions of this source
    #[arg(long, value_name = "NAME")]
    source: Option<SourceName>,
}

/// An action, with the rules that cover it.
#[derive(Debug, Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    entry: &'a answer::ActionEntry,
    rules: Vec<&'a RuleId>,
}

impl Actions {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        match self.verb {
            Verb::List(list) => list.run(context),
            Verb::Refresh { source } => refresh(context, source.as_ref()),
        }
    }
}

impl List {
    fn run(&self, context: &Context) -> Result<(), CliError> {
        let (config, client) = context.client()?;
        let entries: Vec<answer::ActionEntry> = client.all(request::Actions {})?;
        drop(client);
        let mut sources = config.rules.clone();
        sources.catalog = super::catalog_of(&entries).into();
        let loaded = Loader::new(sources).without_builtin().load();
        context.output.diagnostics(&loaded.diagnostics);
        ensure_readable(&loaded.diagnostics)?;
        let rows: Vec<Row<'_>> = entries
            .iter()
            .filter(|entry| self.source.as_ref().is_none_or(|source| *source == entry.source))
            .filter(|entry| !self.unknown || entry.record.listed.is_none())
            .filter(|entry| !self.seen || entry.record.seen.is_some())
            .map(|entry| Row { entry, rules: covering(&loaded.set, &entry.id) })
            .filter(|row| !self.uncovered || row.rules.is_empty())
            .collect();
        if context.is_json() {
            for row in &rows {
                context.output.json_line(row)?;
            }
            return Ok(());
        }
        if rows.is_empty() {
            context.output.note(if entries.is_empty() {
                "no actions yet; `watchbell actions refresh` fetches the organization's list, and events add theirs"
            } else {
                "no matching actions"
            });
            return Ok(());
        }
        show(context, &rows)
    }
}

fn covering<'a>(set: &'a RuleSet, action: &str) -> Vec<&'a RuleId> {
    let rules = coverage::looking_at(set, action);
    rules.into_iter().filter_map(|index| set.detections.get(index)).map(|rule| rule.id()).collect()
}

fn show(context: &Context, rows: &[Row<'_>]) -> Result<(), CliError> {
    let mut by_source: BTreeMap<&SourceName, Vec<&Row<'_>>> = BTreeMap::new();
    for row in rows {
        by_source.entry(&row.entry.source).or_default().push(row);
    }
    let several = by_source.len() > 1;
    for (number, (source, mut rows)) in by_source.into_iter().enumerate() {
        if several {
            let gap = if number > 0 { "\n" } else { "" };
            context.output.line(&format!("{gap}{}", output::printable(source.as_str())))?;
        }
        // Most frequent first, then by id.
        rows.sort_by(|one, other| {
            other.entry.record.events.cmp(&one.entry.record.events).then(one.entry.id.cmp(&other.entry.id))
        });
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let table = rows.iter().map(|row| {
            let record = &row.entry.record;
            let dropped = if record.dropped > 0 { format!(" +{} dropped", record.dropped) } else { String::new() };
            let rules: Vec<&str> = row.rules.iter().map(|rule| rule.as_str()).collect();
            vec![
                row.entry.id.clone(),
                text(&record.name),
                text(&record.group),
                row.entry.category.to_string(),
                format!("{}{dropped}", record.events),
                record.newest.map_or_else(|| "-".to_owned(), output::time),
                if rules.is_empty() { "-".to_owned() } else { rules.join(" ") },
            ]
        });
        context
            .output
            .table(&["action", "name", "group", "category", "seen", "last (utc)", "rules"], table.collect())?;
    }
    Ok(())
}

fn refresh(context: &Context, wanted: Option<&SourceName>) -> Result<(), CliError> {
    let (config, client) = context.client_or_new_store()?;
    let answers: Vec<answer::ListAnswer> = if client.is_agent() {
        client.all(request::ListActions { source: wanted.cloned() })?
    } else {
        drop(client);
        ask(&config, wanted)?
    };
    let mut failed = None;
    for answer in &answers {
        if context.is_json() {
            context.output.json_line(answer)?;
        }
        match (&answer.refreshed, &answer.error) {
            (Some(Refreshed { listed, new }), _) if !context.is_json() => context.output.line(&format!(
                "{}: {}, {new} of them new; `watchbell actions list` shows them",
                output::printable(answer.source.as_str()),
                output::count(*listed, "action")
            ))?,
            (None, Some(error)) => {
                failed = Some(format!("cannot fetch the list of actions of \"{}\": {error}", answer.source))
            }
            _ => {}
        }
    }
    match failed {
        Some(error) => Err(CliError::Usage(format!(
            "{error}; rules still match by action ID. The list needs the scope `read:events:admin`; see `watchbell check`"
        ))),
        None => Ok(()),
    }
}

/// Fetches and stores the lists in this process, for when no agent runs.
fn ask(config: &Config, wanted: Option<&SourceName>) -> Result<Vec<answer::ListAnswer>, CliError> {
    let store = Store::open_patiently(&config.data_dir, std::time::Duration::from_secs(3))?;
    let clock = Clock::system();
    let mut answers = Vec::new();
    for settings in config.sources.iter().filter(|settings| wanted.is_none_or(|wanted| *wanted == settings.name)) {
        let source = Source::new(settings).map_err(|error| CliError::Usage(error.to_string()))?;
        let now = clock.now();
        let fetched = runtime()?.block_on(source.actions(now));
        let mut record = store.reader().source(&settings.name)?.unwrap_or_default();
        record.actions.tried = Some(now);
        let source = settings.name.clone();
        answers.push(match fetched {
            Ok(listed) => {
                let first = record.actions.first.or(Some(now));
                let count = listed.len() as u64;
                record.actions = ActionList { first, fetched: Some(now), tried: Some(now), listed: count, error: None };
                let new = store.save_listed(&settings.name, &listed, &record, now)? as u64;
                answer::ListAnswer { source, refreshed: Some(Refreshed { listed: count, new }), error: None }
            }
            Err(error) => {
                let message = error.message.clone();
                record.actions.error = Some(SourceError { kind: error.kind, message, at: now });
                store.save_source(&settings.name, &record)?;
                store.flush()?;
                answer::ListAnswer { source, refreshed: None, error: Some(error.message) }
            }
        });
    }
    if answers.is_empty() {
        let known: Vec<&str> = config.sources.iter().map(|settings| settings.name.as_str()).collect();
        return Err(CliError::Usage(format!("no such source; the configured sources are {known:?}")));
    }
    Ok(answers)
}
