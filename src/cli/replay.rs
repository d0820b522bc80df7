//! `watchbell replay`: what would these rules have caught?

use std::{io::IsTerminal, path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use watchbell::{
    alert::{LoggedChange, Notice},
    api::{Client, Request, wire},
    config::Config,
    deliver::{Message, render},
    detect,
    diagnostic::any_error,
    event::Event,
    name::SourceName,
    outcome::LoggedPass,
    replay::{self, Report, RuleReport},
    rule::{Loader, RuleSources},
    source::file,
    time::{self, Clock},
};

use super::{CliError, Context, filter, output, problems};

#[derive(Debug, Args)]
pub(super) struct Replay {
    /// Rules to run: a directory or a file; by default those of the configuration
    #[arg(long, value_name = "DIR")]
    rules: Vec<PathBuf>,
    /// Run over the events of these files instead of the stored ones: JSON lines, arrays, or pages of the API
    #[arg(long, value_name = "FILE", num_args = 1..)]
    events: Vec<PathBuf>,
    #[command(flatten)]
    range: filter::Range,
    /// How long before `--since` rules begin to learn, without being reported; by default as far back as they look, `0s` for not at
    /// all
    #[arg(long, value_name = "SPAN", value_parser = time::parse_duration, requires = "since")]
    warm_up: Option<Duration>,
    /// Show at most so many alerts
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    show: usize,
}

impl Replay {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        let now = Clock::system().now();
        // With rules and events given there is nothing that a configuration could add.
        let config = if !self.rules.is_empty() && !self.events.is_empty() && !context.config.exists() {
            None
        } else {
            Some(context.config()?)
        };
        let mut sources = config.as_ref().map_or_else(RuleSources::default, |config| config.rules.clone());
        if !self.rules.is_empty() {
            sources.roots.clone_from(&self.rules);
        }
        let loaded = Loader::new(sources).without_builtin().load();
        context.output.diagnostics(&loaded.diagnostics);
        if loaded.set.detections.is_empty() {
            return Err(CliError::Rules(problems("no rules to run", &loaded.diagnostics)));
        }
        let settings = config.as_ref().map_or_else(detect::Settings::default, |config| config.detection.clone());
        let replay = replay::Replay::new(Arc::clone(&loaded.set), settings);
        let warm_up = self.warm_up.unwrap_or_else(|| loaded.set.longest_reach());
        let report = super::on_a_rules_thread(|| self.feed(replay, warm_up, config.as_ref(), context, now))??;
        show(context, &report, self.show)?;
        if any_error(&loaded.diagnostics) {
            return Err(CliError::Rules(problems("some rules do not load and were left out", &loaded.diagnostics)));
        }
        let errors: u64 = report.rules.values().map(|rule| rule.errors).sum();
        if errors > 0 {
            return Err(CliError::Findings(format!("rules failed on events: {}", output::count(errors, "error"))));
        }
        Ok(())
    }

    fn feed(
        &self,
        replay: replay::Replay,
        warm_up: Duration,
        config: Option<&Config>,
        context: &Context,
        now: watchbell::time::Timestamp,
    ) -> Result<Report, CliError> {
        let (since, until) = self.range.bounds(now)?;
        // Where the reading begins; what is before `since` is learned from.
        let begin = since.map(|since| time::before(since, warm_up));
        let wanted = |time| begin.is_none_or(|begin| time >= begin) && until.is_none_or(|until| time < until);
        let evaluate = |replay: &mut replay::Replay, event: &Event| {
            if since.is_some_and(|since| event.time < since) { replay.warm_up(event) } else { replay.event(event) }
        };
        if self.events.is_empty() {
            let config =
                config.ok_or_else(|| CliError::Usage("there is no configuration that names a store".to_owned()))?;
            if !config.data_dir.join("store").exists() {
                return Err(CliError::Usage(
                    "there are no stored events yet: `--events FILE` replays a file".to_owned(),
                ));
            }
            let client = Client::open(config, &Clock::system())?;
            let totals: Option<wire::EventTotals> = client.one(Request::EventTotals {})?;
            let changes: Vec<LoggedChange> = client.all(Request::HandledChanges {})?;
            let passes: Vec<LoggedPass> = client.all(Request::Passes {})?;
            let mut replay = replay.with_changes(changes).with_passes(passes);
            let progress = progress(totals.map_or(0, |totals| totals.events));
            let source = self.range.source();
            let query = wire::EventQuery { since: begin, until, source: source.clone(), ..wire::EventQuery::default() };
            let mut count = 0_u64;
            client.each(Request::Events(query), |event: Event| {
                evaluate(&mut replay, &event);
                progress.inc(1);
                count += 1;
                Ok(())
            })?;
            if until.is_none() {
                replay.follow_all();
            }
            progress.finish_and_clear();
            if let (Some(source), 0) = (source, count) {
                let range = if since.is_some() || until.is_some() { " in that range" } else { "" };
                return Err(CliError::Usage(format!("there are no events of a source \"{source}\"{range}")));
            }
            return Ok(replay.finish());
        }
        let mut events = Vec::new();
        for path in &self.events {
            let found = file::read(path)
                .map_err(|error| CliError::Usage(format!("`{}` cannot be read: {error}", path.display())))?;
            if let Some(reason) = &found.broken {
                context
                    .output
                    .warning(&format!("`{}` has parts that cannot be read and are left out: {reason}", path.display()));
                if found.events.is_empty() {
                    return Err(CliError::Usage(format!("`{}` holds no events", path.display())));
                }
            }
            if !found.rejected.is_empty() {
                let first = found.rejected.first().map_or("", |entry| entry.reason.as_str());
                context.output.warning(&format!(
                    "`{}`: {} left out, the first: {first}",
                    path.display(),
                    output::count(found.rejected.len() as u64, "entry that is no event")
                ));
            }
            events.extend(found.events);
        }
        let source = match self.range.source() {
            Some(source) => source,
            None => SourceName::parse("file").map_err(|error| CliError::Usage(error.to_string()))?,
        };
        let mut replay = replay;
        let progress = progress(events.len() as u64);
        for event in replay::file_events(events, &source, now) {
            if wanted(event.time) {
                evaluate(&mut replay, &event);
            }
            progress.inc(1);
        }
        progress.finish_and_clear();
        Ok(replay.finish())
    }
}

/// A progress bar where there is a terminal to show it.
pub(super) fn progress(total: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    let style = ProgressStyle::with_template("{bar:32} {human_pos} of {human_len} events, {eta} left");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

fn problem(rule: &RuleReport) -> String {
    let error = rule.first_error.clone().unwrap_or_default();
    if rule.suspended { format!("suspended after this: {error}") } else { error }
}

fn show(context: &Context, report: &Report, limit: usize) -> Result<(), CliError> {
    if context.is_json() {
        return Ok(context.output.json(report)?);
    }
    let out = &context.output;
    let range = match (report.earliest, report.latest) {
        (Some(earliest), Some(latest)) => format!(", {} to {} UTC", output::time(earliest), output::time(latest)),
        _ => String::new(),
    };
    out.line(&format!("{}{range}", output::count(report.events, "event")))?;
    if let Some(warm_up) = &report.warm_up {
        out.line(&format!(
            "after learning from {}, from {} UTC on",
            output::count(warm_up.events, "event"),
            output::time(warm_up.earliest)
        ))?;
    }
    out.line("")?;
    let rows = report
        .rules
        .iter()
        .map(|(id, rule)| {
            vec![
                id.to_string(),
                rule.matches.to_string(),
                rule.alerts.to_string(),
                rule.errors.to_string(),
                problem(rule),
            ]
        })
        .collect();
    out.table(&["rule", "matches", "alerts", "errors", "first error"], rows)?;
    out.line("")?;
    for (exception, matches) in &report.excepted {
        out.line(&format!("exception {exception} hides {matches} of these matches"))?;
    }
    if !report.excepted.is_empty() {
        out.line("")?;
    }
    for alert in report.alerts.iter().take(limit) {
        let message = Message::alert(Notice::Opened, alert.clone());
        out.line(render(&message).trim_end())?;
        out.line("")?;
    }
    if report.alerts.len() > limit {
        out.line(&format!(
            "… and {} more: `--show {}`",
            output::count((report.alerts.len() - limit) as u64, "alert"),
            report.alerts.len()
        ))?;
    }
    Ok(())
}
