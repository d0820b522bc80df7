//! `watchbell replay`: shows what rules would have caught, and what a change to them would change.

use std::{
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;
use watchbell::{
    config::{Config, diagnostic::any_error},
    detect,
    model::{
        action::Catalog,
        time::{self, Clock, Timestamp},
    },
    replay::{self, Diff, ReplayProgress, Report, Run, Side},
    rule::{RuleSources, Selector},
};

use super::{CliError, Context, Format, ensure_readable, filter, formats, output, private_file, problems};

mod against;
mod feed;
mod html;
mod junit;
mod limit;
mod markdown;
mod page;
mod text;
mod verify;

use against::{Against, Rules};
pub(super) use feed::Feed;
pub(super) use feed::progress;
use limit::Limit;
use page::PageTemplate;

#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    /// Output format
    #[arg(long, value_name = "FORMAT", default_value = "human", value_parser = formats(&[Format::Jsonl, Format::Markdown, Format::Html, Format::Junit]))]
    format: Format, // In place of the global argument of this id, whose value is this one's.
    /// Directory or file of rules to run; by default the configured rules
    #[arg(long, value_name = "DIR")]
    rules: Vec<PathBuf>,
    /// Only these rules: an ID, a pattern such as `atlassian.*`, or `tag:NAME`
    #[arg(long, value_name = "ID", num_args = 1.., value_parser = Selector::parse)]
    rule: Vec<Selector>,
    /// Replay the events of these files instead of the stored events: JSON Lines, JSON arrays or API pages
    #[arg(long, value_name = "FILE", num_args = 1..)]
    events: Vec<PathBuf>,
    /// The organization's list of actions, as returned by `GET /event-actions`; by default the stored list
    #[arg(long, value_name = "FILE")]
    actions: Option<PathBuf>,
    #[command(flatten)]
    range: filter::Range,
    /// Only events with this action; `*` matches any text
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// Time before `--since` in which rules only build up state; by default as far back as they look, `0s` for none
    #[arg(long, value_name = "SPAN", value_parser = time::parse_duration, requires = "since")]
    warm_up: Option<Duration>,
    /// Compare with other rules: `live` (the configured ones), a directory, `git:REVISION`, or a file saved by `--save`
    #[arg(long, value_name = "OTHERS")]
    against: Option<String>,
    /// Exit with code 1 if the totals of all rules meet this condition, such as `alerts>100`, `added>20` or `gone>0`
    #[arg(long, value_name = "CONDITION", num_args = 1..)]
    fail_on: Vec<Limit>,
    /// Replay what the agent evaluated, and compare with the alerts that it raised, except those of rules changed since
    #[arg(long, conflicts_with_all = ["rules", "rule", "events", "since", "until", "source", "action", "against", "fail_on", "save", "profile"])]
    verify: bool,
    /// Number of alerts to show, per kind of difference
    #[arg(long, visible_alias = "show", value_name = "NUMBER", default_value_t = 3)]
    show_alerts: usize,
    /// Show the time spent in each rule and each of its functions
    #[arg(long)]
    profile: bool,
    /// Save the result for a later comparison with `--against FILE`
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Number of threads; by default the number of processors
    #[arg(long, value_name = "NUMBER")]
    threads: Option<usize>,
}

/// With fewer events, the replay is done before the rules are loaded again for each thread.
const WORTH_COPYING: u64 = 20_000;

/// A replay as JSON.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    report: &'a Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    diff: Option<&'a Diff>,
}

impl ReplayArgs {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        let now = Clock::system().now();
        if let Some(limit) = self.fail_on.iter().find(|limit| limit.compares() && self.against.is_none()) {
            return Err(CliError::Usage(format!("`{}` needs a comparison; add `--against live`", limit.text())));
        }
        let (config, sources) = sources(context, &self.rules, &self.events, self.actions.as_deref())?;
        let rules = Rules::load(sources.clone(), &self.rule);
        context.output.diagnostics(&rules.diagnostics);
        ensure_readable(&rules.diagnostics)?;
        if let (true, Some(config)) = (self.verify, &config) {
            if !matches!(context.format, Format::Human | Format::Json) {
                return Err(CliError::Usage("`--verify` supports only the formats `human` and `json`".to_owned()));
            }
            return verify::verify(context, config, &rules.set, self.show_alerts);
        }
        let live =
            config.as_ref().map(|config| RuleSources { catalog: Arc::clone(&sources.catalog), ..config.rules.clone() });
        let against =
            self.against.as_deref().map(|text| Against::find(text, live.as_ref(), &sources, &self.rule)).transpose()?;
        if let (Some(Against::Rules(other)), Some(name)) = (&against, &self.against)
            && any_error(&other.diagnostics)
        {
            context.output.diagnostics(&other.diagnostics);
            ensure_readable(&other.diagnostics)?;
            context.output.warning(&problems(&format!("some rules of {name} do not load"), &other.diagnostics));
        }
        let other = |against: &Against| match against {
            Against::Rules(rules) => !rules.set.detections.is_empty(),
            Against::Saved(_) => true,
        };
        if rules.set.detections.is_empty() && !against.as_ref().is_some_and(other) {
            if !self.rule.is_empty() && !any_error(&rules.diagnostics) {
                let named: Vec<&str> = self.rule.iter().map(Selector::as_str).collect();
                return Err(CliError::Usage(format!(
                    "no rule matches `{}`; `watchbell rules list` lists all rules",
                    named.join("`, `")
                )));
            }
            if !any_error(&rules.diagnostics) {
                return Err(CliError::Usage("no rules to run; `watchbell init` writes some".to_owned()));
            }
            return Err(CliError::Rules(problems("no rules to run", &rules.diagnostics)));
        }
        let settings = config.as_ref().map_or_else(detect::Settings::default, |config| config.detection.clone());
        let started = Instant::now();
        let (report, other) = self.replay(&rules, against.as_ref(), &settings, config.as_ref(), context, now)?;
        let took = started.elapsed();
        if let Some(path) = &self.save {
            save(path, &report)?;
        }
        let diff = other.map(|other| Diff::of(&other, &report));
        let broken: Vec<String> =
            self.fail_on.iter().filter_map(|limit| limit.broken_by(&report, diff.as_ref())).collect();
        let limits: Vec<String> = self.fail_on.iter().map(|limit| limit.text().to_owned()).collect();
        let page = PageTemplate {
            report: &report,
            diff: self.against.as_deref().zip(diff.as_ref()),
            broken: &broken,
            limits: &limits,
            show: self.show_alerts,
            profile: self.profile,
            took,
        };
        show(context, &page)?;
        if any_error(&rules.diagnostics) {
            return Err(CliError::Rules(problems("some rules do not load and were skipped", &rules.diagnostics)));
        }
        if !broken.is_empty() {
            return Err(CliError::Findings(format!("condition of `--fail-on` met: {}", broken.join(", "))));
        }
        let errors: u64 = report.rules.values().map(|rule| rule.errors).sum();
        if errors > 0 {
            return Err(CliError::Findings(format!("some rules failed on events: {}", output::count(errors, "error"))));
        }
        Ok(())
    }

    /// The report of the rules, and that of the rules they are compared with.
    fn replay(
        &self,
        rules: &Rules,
        against: Option<&Against>,
        settings: &detect::Settings,
        config: Option<&Config>,
        context: &Context,
        now: Timestamp,
    ) -> Result<(Report, Option<Report>), CliError> {
        let (since, until) = self.range.bounds(now)?;
        let threads = || std::thread::available_parallelism().map_or(1, usize::from);
        let mut run = Run {
            since,
            until,
            action: self.action.as_deref().map(glob).transpose()?,
            source: self.range.source(),
            threads: self.threads.unwrap_or_else(threads),
            ..Run::default()
        };
        let feed = if self.events.is_empty() {
            Feed::stored(config, &mut run)?
        } else {
            // Events of files get the source from `--source`, so they are not filtered by it.
            Feed::files(&self.events, run.source.take(), context, now)?
        };
        let total = feed.events();
        let copies = if total > WORTH_COPYING && run.threads > 1 { run.threads } else { 0 };
        let mut sides = vec![rules.side(copies)];
        if let Some(Against::Rules(other)) = against {
            sides.push(other.side(copies));
        }
        let reach = sides.iter().map(|side| side.rules.longest_reach()).max().unwrap_or_default();
        run.warm_up = self.warm_up.unwrap_or(reach);
        let mut reports = run_sides(feed, &sides, settings, &run)?.into_iter();
        let report = reports.next().unwrap_or_default();
        if report.events == 0
            && let Some(source) = run.source
            && self.events.is_empty()
        {
            let range = if since.is_some() || until.is_some() { " in that range" } else { "" };
            return Err(CliError::Usage(format!("no events of source \"{source}\"{range}")));
        }
        let other = match against {
            Some(Against::Saved(saved)) => Some((**saved).clone()),
            _ => reports.next(),
        };
        Ok((report, other))
    }
}

/// The configuration, and the rules: the given ones, or those of the configuration.
pub(super) fn sources(
    context: &Context,
    rules: &[PathBuf],
    events: &[PathBuf],
    actions: Option<&Path>,
) -> Result<(Option<Config>, RuleSources), CliError> {
    // With rules and events given, no configuration is needed.
    let config = if !rules.is_empty() && !events.is_empty() && !context.config.exists() {
        None
    } else {
        Some(context.config()?)
    };
    let mut sources = match (&config, actions) {
        (Some(config), None) => context.rule_sources(config),
        (Some(config), Some(_)) => config.rules.clone(),
        (None, _) => RuleSources::default(),
    };
    if let Some(path) = actions {
        let read = std::fs::read_to_string(path).map_err(|error| error.to_string());
        let catalog = read.and_then(|text| Catalog::parse(&text));
        let catalog = catalog.map_err(|error| CliError::Usage(format!("`{}`: {error}", path.display())))?;
        sources.catalog = Arc::new(catalog);
    }
    if !rules.is_empty() {
        sources.roots = rules.to_vec();
    }
    Ok((config, sources))
}

/// Runs the replay, shows its progress, and ends early on Ctrl-C.
fn run_sides(feed: Feed, sides: &[Side], settings: &detect::Settings, run: &Run) -> Result<Vec<Report>, CliError> {
    let state = ReplayProgress::default();
    let bar = progress(feed.events());
    let (sender, receiver) = mpsc::sync_channel(8);
    let reports = std::thread::scope(|scope| {
        let state = &state;
        let interrupted = scope.spawn(move || feed::on_interrupt(state));
        let running = scope.spawn(|| replay::run_sides(sides, settings, run, receiver, state));
        let shown = scope.spawn(|| {
            while !state.is_done() {
                bar.set_position(state.events());
                std::thread::park_timeout(Duration::from_millis(100));
            }
        });
        let fed = feed.send(|block| !state.is_stopped() && sender.send(block).is_ok());
        drop(sender);
        let reports = running.join();
        state.done();
        shown.thread().unpark();
        interrupted.thread().unpark();
        fed.and(reports.map_err(|_| CliError::Usage("the replay panicked; please report this".to_owned())))
    });
    bar.finish_and_clear();
    reports
}

fn glob(pattern: &str) -> Result<globset::GlobMatcher, CliError> {
    let glob = watchbell::model::pattern::glob(&pattern.to_lowercase()).map_err(CliError::Usage)?;
    Ok(glob.compile_matcher())
}

fn save(path: &std::path::Path, report: &Report) -> Result<(), CliError> {
    let mut file = std::io::BufWriter::new(private_file(path)?);
    let written = serde_json::to_writer(&mut file, report).map_err(std::io::Error::from).and_then(|()| file.flush());
    written.map_err(|error| CliError::Usage(format!("cannot write `{}`: {error}", path.display())))
}

fn show(context: &Context, page: &PageTemplate<'_>) -> Result<(), CliError> {
    let out = &context.output;
    match context.format {
        Format::Json => {
            let (against, diff) = page.diff.unzip();
            out.json(&Document { report: page.report, against, diff })?;
        }
        Format::Jsonl => lines(out, page)?,
        Format::Markdown => out.raw(&markdown::markdown(page))?,
        Format::Html => {
            if std::io::stdout().is_terminal() {
                out.note("this is an HTML page; write it to a file with `--format html > replay.html`");
            }
            out.raw(&html::html(page))?;
        }
        Format::Junit => out.raw(&junit::junit(page))?,
        Format::Human | Format::Github | Format::Sarif => text::show(out, page)?,
    }
    Ok(())
}

/// The alerts as JSON, one per line, or the differences if there is a comparison.
fn lines(out: &output::Output, page: &PageTemplate<'_>) -> Result<(), CliError> {
    let Some((_, diff)) = page.diff else {
        for alert in &page.report.alerts {
            out.json_line(alert)?;
        }
        return Ok(());
    };
    for (change, alerts) in [("added", &diff.added), ("gone", &diff.gone)] {
        for alert in alerts {
            out.json_line(&serde_json::json!({ "change": change, "alert": alert }))?;
        }
    }
    for changed in &diff.changed {
        out.json_line(&serde_json::json!({
            "change": "changed", "alert": changed.alert, "before": changed.before, "differences": changed.differences,
        }))?;
    }
    Ok(())
}
