//! `watchbell coverage`: what occurs, and which rules look at it.

use std::path::PathBuf;

use clap::Args;
use watchbell::{
    config::diagnostic::any_error,
    model::{name::RuleId, time::Clock},
    replay::{
        Run,
        coverage::{self, ActionCoverage, Occurrence},
    },
    rule::{Loader, navigator_layer},
};

use super::{
    CliError, Context, filter, output, problems, readable,
    replay::{self, Feed},
};

#[derive(Debug, Args)]
pub(super) struct CoverageArgs {
    /// The rules: a directory or a file; by default those of the configuration
    #[arg(long, value_name = "DIR")]
    rules: Vec<PathBuf>,
    /// Look at the events of these files instead of the stored ones
    #[arg(long, value_name = "FILE", num_args = 1..)]
    events: Vec<PathBuf>,
    /// What the organization says of its actions, as `GET /event-actions` returns it; by default what is stored
    #[arg(long, value_name = "FILE")]
    actions: Option<PathBuf>,
    #[command(flatten)]
    range: filter::Range,
    /// Write the techniques that rules are about as a layer for the ATT&CK Navigator
    #[arg(long)]
    navigator: bool,
}

impl CoverageArgs {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        let now = Clock::system().now();
        let (config, sources) = replay::sources(context, &self.rules, &self.events, self.actions.as_deref())?;
        let loaded = Loader::new(sources).without_builtin().load();
        context.output.diagnostics(&loaded.diagnostics);
        readable(&loaded.diagnostics)?;
        let (since, until) = self.range.bounds(now)?;
        let mut run = Run { source: self.range.source(), ..Run::default() };
        let feed = if self.events.is_empty() {
            Feed::stored(config.as_ref(), &mut run)?
        } else {
            Feed::files(&self.events, run.source.take(), context, now)?
        };
        let mut occurs = Occurrence::default();
        let mut unreadable = None;
        feed.send(|block| {
            match block.unpack() {
                Ok(block) => {
                    let wanted = |head: &watchbell::store::EventHead<'_>| {
                        since.is_none_or(|since| head.time >= since)
                            && until.is_none_or(|until| head.time < until)
                            && run.source.as_ref().is_none_or(|source| head.source == source)
                    };
                    block.heads().filter(wanted).for_each(|head| occurs.count(&head));
                }
                Err(error) => unreadable = Some(error),
            }
            true
        })?;
        if let Some(error) = unreadable {
            context.output.warning(&format!("some stored events cannot be read and are left out: {error}"));
        }
        let found = occurs.coverage(&loaded.set);
        if self.navigator {
            context.output.json(&navigator_layer(&found.attack))?;
        } else if context.is_json() {
            context.output.json(&found)?;
        } else {
            show(context, &found)?;
        }
        if any_error(&loaded.diagnostics) {
            return Err(CliError::Rules(problems("some rules do not load and were left out", &loaded.diagnostics)));
        }
        Ok(())
    }
}

fn show(context: &Context, found: &coverage::Coverage) -> Result<(), CliError> {
    let out = &context.output;
    let range = match (found.earliest, found.latest) {
        (Some(earliest), Some(latest)) => format!(", {} to {} UTC", output::time(earliest), output::time(latest)),
        _ => String::new(),
    };
    let (covered, open): (Vec<&ActionCoverage>, Vec<&ActionCoverage>) =
        found.actions.iter().partition(|action| !action.rules.is_empty());
    out.line(&format!(
        "{} of {}{range}; rules look at {} of these actions\n",
        output::count(found.events, "event"),
        output::count(found.actions.len() as u64, "action"),
        covered.len()
    ))?;
    if !covered.is_empty() {
        let rows = covered
            .iter()
            .map(|action| vec![action.action.to_string(), action.events.to_string(), list(&action.rules)]);
        out.table(&["action", "events", "rules that look at it"], rows.collect())?;
        out.line("")?;
    }
    if !open.is_empty() {
        let rows = open.iter().map(|action| {
            let latest = action.latest.map_or_else(String::new, output::time);
            vec![action.action.to_string(), action.events.to_string(), latest]
        });
        out.table(&["action that no rule names", "events", "last"], rows.collect())?;
        out.line("")?;
    }
    for (what, rules) in [
        ("looking at every event", &found.every_event),
        ("without an event to look at", &found.idle),
        ("without an ATT&CK technique", &found.without_attack),
    ] {
        if !rules.is_empty() {
            out.line(&format!("{} {what}: {}\n", output::count(rules.len() as u64, "rule"), list(rules)))?;
        }
    }
    if !found.attack.is_empty() {
        let rows = found.attack.iter().map(|(id, rules)| vec![id.clone(), list(rules)]);
        out.table(&["ATT&CK", "rules"], rows.collect())?;
    }
    Ok(())
}

fn list(rules: &[RuleId]) -> String {
    rules.iter().map(RuleId::as_str).collect::<Vec<_>>().join(", ")
}
