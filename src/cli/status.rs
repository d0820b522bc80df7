//! `watchbell status`: the state of the agent, sources, rules, alerts and deliveries.

use std::{io::IsTerminal, time::Duration};

use clap::Args;
use watchbell::{
    api::{CategoryState, SeverityCounts, Status, request},
    model::time::{self, Timestamp},
};

use super::{CliError, Context, output};

#[derive(Debug, Args)]
pub(super) struct StatusVerb {
    /// Refresh every two seconds, until Ctrl-C
    #[arg(long, short)]
    watch: bool,
}

const REFRESH_INTERVAL: Duration = Duration::from_secs(2);

impl StatusVerb {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        loop {
            // A new client each time: an agent may start or stop in between.
            let status = {
                let (_, client) = context.client()?;
                client.one(request::Status {})?
            };
            if let Some(status) = &status {
                if self.watch && !context.is_json() && std::io::stdout().is_terminal() {
                    // Move the cursor to the top left, and clear the screen and the scrollback.
                    context.output.raw("\u{1b}[H\u{1b}[2J\u{1b}[3J")?;
                }
                show(context, status, self.watch)?;
            }
            if !self.watch {
                return Ok(());
            }
            std::thread::sleep(REFRESH_INTERVAL);
        }
    }
}

fn show(context: &Context, status: &Status, watch: bool) -> Result<(), CliError> {
    let out = &context.output;
    let now = status.now;
    if context.is_json() {
        let written = if watch { out.json_line(status) } else { out.json(status) };
        return Ok(written?);
    }
    match &status.agent {
        Some(agent) => {
            out.line(&format!(
                "agent      watchbell {}, process {}, up {}",
                status.version,
                agent.pid,
                time::show_duration(time::since(now, agent.started))
            ))?;
            for problem in &agent.problems {
                out.line(&format!("  problem  {}", output::printable(problem)))?;
            }
        }
        None => out.line(&format!("agent      not running, last alive {}", output::ago(status.last_alive, now)))?,
    }
    let events = &status.events;
    out.line(&format!(
        "events     {} stored, evaluated up to number {}, backlog {}; {} on disk for {} of events",
        events.stored,
        events.evaluated,
        events.backlog,
        output::size(status.store_bytes),
        output::size(events.bytes)
    ))?;
    if !status.categories.is_empty() {
        let counts = |state: &CategoryState| {
            let skipped: Vec<String> = [("ignored", state.ignored), ("dropped", state.dropped)]
                .into_iter()
                .filter(|(_, count)| *count > 0)
                .map(|(what, count)| format!("{count} {what}"))
                .collect();
            let skipped = if skipped.is_empty() { String::new() } else { format!(" ({})", skipped.join(", ")) };
            format!("{} {}{skipped}", state.category, state.events)
        };
        out.line(&format!("categories {}", status.categories.iter().map(counts).collect::<Vec<_>>().join(", ")))?;
    }
    let silences = match status.silences {
        0 => String::new(),
        count => format!("; {} active", output::count(count, "silence")),
    };
    out.line(&format!(
        "alerts     open: {}; acknowledged: {}{silences}",
        counts(&status.open_alerts),
        counts(&status.acknowledged_alerts)
    ))?;
    rules(context, status)?;
    for state in &status.destinations {
        let mut parts = Vec::new();
        if state.pending > 0 {
            parts.push(format!("{} pending, the oldest from {}", state.pending, output::ago(state.oldest, now)));
        }
        if state.given_up > 0 {
            parts.push(format!("{} given up", state.given_up));
        }
        if parts.is_empty() {
            parts.push("nothing pending".to_owned());
        }
        parts.push(format!("{} delivered, last {}", state.delivered, output::ago(state.last_delivered, now)));
        let error = state.error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
        out.line(&output::printable(&format!("delivery   {}: {}{error}", state.name, parts.join(", "))))?;
    }
    out.line("")?;
    sources(context, status)
}

fn counts(counts: &SeverityCounts) -> String {
    let parts: Vec<String> = counts
        .by_severity()
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(severity, count)| format!("{count} {severity}"))
        .collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

fn rules(context: &Context, status: &Status) -> Result<(), CliError> {
    let out = &context.output;
    let errors: Vec<String> = status
        .rules
        .iter()
        .filter(|rule| rule.errors > 0 || rule.suspended)
        .map(|rule| {
            let suspended = if rule.suspended { ", suspended" } else { "" };
            format!("{}: {}{suspended}", rule.rule, output::count(rule.errors, "error"))
        })
        .collect();
    let broken = status.agent.as_ref().map_or(0, |agent| agent.broken.len());
    let errors = match (errors.is_empty(), broken) {
        (true, 0) => "no errors".to_owned(),
        (true, _) => "no errors on events".to_owned(),
        (false, _) => errors.join("; "),
    };
    match &status.agent {
        None => out.line(&format!("rules      {errors}"))?,
        Some(agent) => {
            let files = if agent.files_changed { ", files on disk are newer" } else { "" };
            out.line(&format!(
                "rules      {} and {}, generation {}{files}; {errors}",
                output::count(agent.rules, "rule"),
                output::count(agent.checks, "check"),
                agent.generation
            ))?;
            for broken in &agent.broken {
                out.line(&format!("  broken   {}", output::printable(broken)))?;
            }
        }
    }
    Ok(())
}

fn sources(context: &Context, status: &Status) -> Result<(), CliError> {
    let out = &context.output;
    let now = status.now;
    let rows = status
        .sources
        .iter()
        .map(|state| {
            let record = &state.record;
            vec![
                state.name.to_string(),
                state.state.clone(),
                output::ago(record.newest_event, now),
                record.lag.map_or_else(|| "-".to_owned(), |lag| time::show_duration(Duration::from_secs(lag))),
                output::ago(record.last_poll, now),
                state.next_poll.map_or_else(|| "-".to_owned(), |next| until(next, now)),
                state.drop_off.as_ref().map_or_else(
                    || "-".to_owned(),
                    |drop_off| {
                        let after = time::show_duration(Duration::from_secs(drop_off.after));
                        if drop_off.alarm { format!("ALARM (after {after})") } else { format!("after {after}") }
                    },
                ),
                record.stored.to_string(),
                record.quarantined.to_string(),
            ]
        })
        .collect();
    let header =
        ["source", "state", "newest event", "lag", "last poll", "next poll", "drop-off", "stored", "quarantined"];
    out.table(&header, rows)?;
    for state in &status.sources {
        if let Some(refetch) = &state.record.refetch {
            out.line("")?;
            out.line(&format!(
                "{}: fetching the log since {} UTC again: {} so far, {} of them new",
                state.name,
                output::time(refetch.since),
                if refetch.fetched == 1 { "1 entry".to_owned() } else { format!("{} entries", refetch.fetched) },
                refetch.found
            ))?;
            if let Some(error) = &refetch.error {
                out.line(&output::printable(&format!("  failed {} times: {error}", refetch.failures)))?;
            }
        }
        if let Some(error) = &state.record.error {
            out.line("")?;
            out.line(&output::printable(&format!("{}: {}", state.name, error.message)))?;
            out.line(&format!("  {}", error.kind.remedy()))?;
        }
    }
    Ok(())
}

fn until(time: Timestamp, now: Timestamp) -> String {
    let wait = time::since(time, now);
    if wait.is_zero() { "now".to_owned() } else { format!("in {}", time::show_duration(wait)) }
}
