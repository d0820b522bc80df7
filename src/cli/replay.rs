//! `watchbell replay`: what would these rules have caught?

use std::{
    io::IsTerminal,
    path::PathBuf,
    sync::{Arc, mpsc},
    time::Duration,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use watchbell::{
    alert::Notice,
    api::{Client, Request, wire},
    config::Config,
    deliver::{Message, render},
    detect,
    diagnostic::any_error,
    event::Event,
    name::SourceName,
    replay::{self, Progress, Report, RuleReport, Run},
    rule::{Loader, RuleSet, RuleSources},
    source::file,
    store::Block,
    time::{self, Clock, Timestamp},
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
    /// Only events with this action; `*` for any text
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// On how many threads; by default as many as there are processors
    #[arg(long, value_name = "NUMBER")]
    threads: Option<usize>,
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
        let loaded = Loader::new(sources.clone()).without_builtin().load();
        context.output.diagnostics(&loaded.diagnostics);
        if loaded.set.detections.is_empty() {
            return Err(CliError::Rules(problems("no rules to run", &loaded.diagnostics)));
        }
        let settings = config.as_ref().map_or_else(detect::Settings::default, |config| config.detection.clone());
        let report = self.replay(&sources, &loaded.set, &settings, config.as_ref(), context, now)?;
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

    fn replay(
        &self,
        sources: &RuleSources,
        rules: &Arc<RuleSet>,
        settings: &detect::Settings,
        config: Option<&Config>,
        context: &Context,
        now: Timestamp,
    ) -> Result<Report, CliError> {
        let (since, until) = self.range.bounds(now)?;
        let mut run = Run {
            since,
            until,
            warm_up: self.warm_up.unwrap_or_else(|| rules.longest_reach()),
            action: self.action.as_deref().map(glob).transpose()?,
            source: self.range.source(),
            threads: self.threads.unwrap_or_else(threads),
            ..Run::default()
        };
        let feed = self.feed(config, context, now, &mut run)?;
        let total = feed.events();
        if total > WORTH_COPYING && run.threads > 1 {
            let copy = || Loader::new(sources.clone()).without_builtin().load().set;
            run.copies = std::iter::repeat_with(copy).take(run.threads).collect();
        }
        let told = Progress::default();
        let bar = progress(total);
        let (sender, receiver) = mpsc::sync_channel(8);
        let report = std::thread::scope(|scope| {
            let told = &told;
            let interrupted = scope.spawn(move || on_interrupt(told));
            let running = scope.spawn(|| replay::run(rules, settings, &run, receiver, told));
            let shown = scope.spawn(|| {
                while !told.is_done() {
                    bar.set_position(told.events());
                    std::thread::park_timeout(Duration::from_millis(100));
                }
            });
            let fed = feed.send(|block| !told.is_stopped() && sender.send(block).is_ok());
            drop(sender);
            let report = running.join();
            told.done();
            shown.thread().unpark();
            interrupted.thread().unpark();
            fed.and(report.map_err(|_| CliError::Usage("the replay failed: please report this".to_owned())))
        })?;
        bar.finish_and_clear();
        if report.events == 0
            && let Some(source) = run.source
            && self.events.is_empty()
        {
            let range = if since.is_some() || until.is_some() { " in that range" } else { "" };
            return Err(CliError::Usage(format!("there are no events of a source \"{source}\"{range}")));
        }
        Ok(report)
    }

    /// Where the events come from.
    fn feed(
        &self,
        config: Option<&Config>,
        context: &Context,
        now: Timestamp,
        run: &mut Run,
    ) -> Result<Feed, CliError> {
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
            run.changes = client.all(Request::HandledChanges {})?;
            run.passes = client.all(Request::Passes {})?;
            return Ok(Feed::Stored(client, totals.map_or(0, |totals| totals.events)));
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
        // What a file says of its source is what we are told.
        let source = match run.source.take() {
            Some(source) => source,
            None => SourceName::parse("file").map_err(|error| CliError::Usage(error.to_string()))?,
        };
        Ok(Feed::File(replay::file_events(events, &source, now).collect()))
    }
}

/// Where events come from.
enum Feed {
    Stored(Client, u64),
    File(Vec<Event>),
}

impl Feed {
    fn events(&self) -> u64 {
        match self {
            Self::Stored(_, events) => *events,
            Self::File(events) => events.len() as u64,
        }
    }

    /// Hands on all events; `false` ends it.
    fn send(self, mut each: impl FnMut(Block) -> bool) -> Result<(), CliError> {
        match self {
            Self::Stored(client, _) => Ok(client.blocks(each)?),
            Self::File(mut events) => {
                while !events.is_empty() {
                    let rest = events.split_off(events.len().min(500));
                    if !each(Block::of(std::mem::replace(&mut events, rest))) {
                        break;
                    }
                }
                Ok(())
            }
        }
    }
}

/// Fewer events are done before the rules are loaded once more for each thread.
const WORTH_COPYING: u64 = 20_000;

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn glob(pattern: &str) -> Result<globset::GlobMatcher, CliError> {
    let glob = globset::Glob::new(pattern).map_err(|error| CliError::Usage(format!("`{pattern}`: {error}")))?;
    Ok(glob.compile_matcher())
}

/// Lets the replay end at the first Ctrl-C, and the program at the second.
#[expect(clippy::exit, clippy::disallowed_methods, reason = "the second Ctrl-C is the way out of whatever hangs")]
fn on_interrupt(told: &Progress) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return;
    };
    runtime.block_on(async {
        let mut pressed = false;
        while !told.is_done() {
            tokio::select! {
                result = tokio::signal::ctrl_c() => {
                    if result.is_err() {
                        return;
                    }
                    if pressed {
                        std::process::exit(130);
                    }
                    pressed = true;
                    told.stop();
                }
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
        }
    });
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
