//! `watchbell coverage`: shows which actions occur, and which rules cover them.

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
    CliError, Context, ensure_readable, filter, output, problems,
    replay::{self, Feed},
};

#[derive(Debug, Args)]
pub(super) struct CoverageArgs {
    /// Directory or file of rules; by default the configured rules
    #[arg(long, value_name = "DIR")]
    rules: Vec<PathBuf>,
    /// Use the events of these files instead of the stored events
    #[arg(long, value_name = "FILE", num_args = 1..)]
    events: Vec<PathBuf>,
    /// The organization's list of actions, as returned by `GET /event-actions`; by default the stored list
    #[arg(long, value_name = "FILE")]
    actions: Option<PathBuf>,
    #[command(flatten)]
    range: filter::Range,
    /// Print the rules' techniques as an ATT&CK Navigator layer
    #[arg(long)]
    navigator: bool,
}

impl CoverageArgs {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        let now = Clock::system().now();
        let (config, sources) = replay::sources(context, &self.rules, &self.events, self.actions.as_deref())?;
        let loaded = Loader::new(sources).without_builtin().load();
        context.output.diagnostics(&loaded.diagnostics);
        ensure_readable(&loaded.diagnostics)?;
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
            context.output.warning(&format!("skipping unreadable stored events: {error}"));
        }
        let coverage = occurs.coverage(&loaded.set);
        if self.navigator {
            context.output.json(&navigator_layer(&coverage.attack))?;
        } else if context.is_json() {
            context.output.json(&coverage)?;
        } else {
            show(context, &coverage)?;
        }
        if any_error(&loaded.diagnostics) {
            return Err(CliError::Rules(problems("some rules do not load and were skipped", &loaded.diagnostics)));
        }
        Ok(())
    }
}

fn show(context: &Context, coverage: &coverage::Coverage) -> Result<(), CliError> {
    let out = &context.output;
    let range = match (coverage.earliest, coverage.latest) {
        (Some(earliest), Some(latest)) => format!(", {} to {} UTC", output::time(earliest), output::time(latest)),
        _ => String::new(),
    };
    let (covered, open): (Vec<&ActionCoverage>, Vec<&ActionCoverage>) =
        coverage.actions.iter().partition(|action| !action.rules.is_empty());
    out.line(&format!(
        "{} with {}{range}; rules cover {} of these actions\n",
        output::count(coverage.events, "event"),
        output::count(coverage.actions.len() as u64, "action"),
        covered.len()
    ))?;
    if !covered.is_empty() {
        let rows = covered
            .iter()
            .map(|action| vec![action.action.to_string(), action.events.to_string(), list(&action.rules)]);
        out.table(&["action", "events", "covered by"], rows.collect())?;
        out.line("")?;
    }
    if !open.is_empty() {
        let rows = open.iter().map(|action| {
            let latest = action.latest.map_or_else(String::new, output::time);
            vec![action.action.to_string(), action.events.to_string(), latest]
        });
        out.table(&["action not covered", "events", "last"], rows.collect())?;
        out.line("")?;
    }
    for (what, rules) in [
        ("on every event", &coverage.every_event),
        ("without events to run on", &coverage.idle),
        ("without an ATT&CK technique", &coverage.without_attack),
    ] {
        if !rules.is_empty() {
            out.line(&format!("{} {what}: {}\n", output::count(rules.len() as u64, "rule"), list(rules)))?;
        }
    }
    if !coverage.attack.is_empty() {
        let rows = coverage.attack.iter().map(|(id, rules)| vec![id.clone(), list(rules)]);
        out.table(&["ATT&CK", "rules"], rows.collect())?;
    }
    Ok(())
}

fn list(rules: &[RuleId]) -> String {
    rules.iter().map(RuleId::as_str).collect::<Vec<_>>().join(", ")
}
