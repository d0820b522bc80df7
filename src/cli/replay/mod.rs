//! `watchbell replay`: what would these rules have caught, and what does a change of them change?

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

use super::{CliError, Context, Format, filter, output, private_file, problems, readable};

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
    /// Rules to run: a directory or a file; by default those of the configuration
    #[arg(long, value_name = "DIR")]
    rules: Vec<PathBuf>,
    /// Only these rules: by id, by a pattern such as `atlassian.*`, or `tag:NAME`
    #[arg(long, value_name = "ID", num_args = 1.., value_parser = Selector::parse)]
    rule: Vec<Selector>,
    /// Run over the events of these files instead of the stored ones: JSON lines, arrays, or pages of the API
    #[arg(long, value_name = "FILE", num_args = 1..)]
    events: Vec<PathBuf>,
    /// What the organization says of its actions, as `GET /event-actions` returns it; by default what is stored
    #[arg(long, value_name = "FILE")]
    actions: Option<PathBuf>,
    #[command(flatten)]
    range: filter::Range,
    /// Only events with this action; `*` for any text
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// How long before `--since` rules begin to learn, without being reported; by default as far back as they look, `0s` for not at
    /// all
    #[arg(long, value_name = "SPAN", value_parser = time::parse_duration, requires = "since")]
    warm_up: Option<Duration>,
    /// Say what differs from other rules over the same events: `live` (those of the configuration), a directory, `git:REVISION`, or
    /// a file that `--save` wrote
    #[arg(long, value_name = "OTHERS")]
    against: Option<String>,
    /// Exit with 1 where this holds of all rules together, such as `alerts>100`, `added>20` or `gone>0`
    #[arg(long, value_name = "CONDITION", num_args = 1..)]
    fail_on: Vec<Limit>,
    /// Replay what the agent evaluated, with the rules of that time where they have not changed, and compare with the alerts that it
    /// raised
    #[arg(long, conflicts_with_all = ["rules", "rule", "events", "since", "until", "source", "action", "against", "fail_on", "save", "profile"])]
    verify: bool,
    /// Show so many alerts, of each kind
    #[arg(long, visible_alias = "show", value_name = "NUMBER", default_value_t = 3)]
    show_alerts: usize,
    /// Show what each rule and each of its functions cost
    #[arg(long)]
    profile: bool,
    /// Keep what was found, to compare with later
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// On how many threads; by default as many as there are processors
    #[arg(long, value_name = "NUMBER")]
    threads: Option<usize>,
}

/// Fewer events are done before the rules are loaded once more for each thread.
const WORTH_COPYING: u64 = 20_000;

/// What a replay gives as JSON.
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
            return Err(CliError::Usage(format!("`{}` compares: say with what, `--against live`", limit.text())));
        }
        let (config, sources) = sources(context, &self.rules, &self.events, self.actions.as_deref())?;
        let rules = Rules::load(sources.clone(), &self.rule);
        context.output.diagnostics(&rules.diagnostics);
        readable(&rules.diagnostics)?;
        if let (true, Some(config)) = (self.verify, &config) {
            if !matches!(context.format, Format::Human | Format::Json) {
                return Err(CliError::Usage("`--verify` has the formats `human` and `json`".to_owned()));
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
            readable(&other.diagnostics)?;
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
                    "no rule is called `{}`: `watchbell rules` lists them",
                    named.join("`, `")
                )));
            }
            if !any_error(&rules.diagnostics) {
                return Err(CliError::Usage("there are no rules to run: `watchbell init` writes some".to_owned()));
            }
            return Err(CliError::Rules(problems("no rules to run", &rules.diagnostics)));
        }
        let settings = config.as_ref().map_or_else(detect::Settings::default, |config| config.detection.clone());
        let begun = Instant::now();
        let (report, other) = self.replay(&rules, against.as_ref(), &settings, config.as_ref(), context, now)?;
        let took = begun.elapsed();
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
            return Err(CliError::Rules(problems("some rules do not load and were left out", &rules.diagnostics)));
        }
        if !broken.is_empty() {
            return Err(CliError::Findings(format!("`--fail-on` {}", broken.join(", "))));
        }
        let errors: u64 = report.rules.values().map(|rule| rule.errors).sum();
        if errors > 0 {
            return Err(CliError::Findings(format!("rules failed on events: {}", output::count(errors, "error"))));
        }
        Ok(())
    }

    /// What the rules found, and what those found that they are compared with.
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
            // What a file says of its source is what we are told.
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
        let mut reports = run_beside(feed, &sides, settings, &run)?.into_iter();
        let report = reports.next().unwrap_or_default();
        if report.events == 0
            && let Some(source) = run.source
            && self.events.is_empty()
        {
            let range = if since.is_some() || until.is_some() { " in that range" } else { "" };
            return Err(CliError::Usage(format!("there are no events of a source \"{source}\"{range}")));
        }
        let other = match against {
            Some(Against::Saved(saved)) => Some((**saved).clone()),
            _ => reports.next(),
        };
        Ok((report, other))
    }
}

/// The configuration, and where the rules are: these, or those of the configuration.
pub(super) fn sources(
    context: &Context,
    rules: &[PathBuf],
    events: &[PathBuf],
    actions: Option<&Path>,
) -> Result<(Option<Config>, RuleSources), CliError> {
    // With rules and events given there is nothing that a configuration could add.
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

/// Replays, shows how far it has come, and ends early at Ctrl-C.
fn run_beside(feed: Feed, sides: &[Side], settings: &detect::Settings, run: &Run) -> Result<Vec<Report>, CliError> {
    let told = ReplayProgress::default();
    let bar = progress(feed.events());
    let (sender, receiver) = mpsc::sync_channel(8);
    let reports = std::thread::scope(|scope| {
        let told = &told;
        let interrupted = scope.spawn(move || feed::on_interrupt(told));
        let running = scope.spawn(|| replay::run_sides(sides, settings, run, receiver, told));
        let shown = scope.spawn(|| {
            while !told.is_done() {
                bar.set_position(told.events());
                std::thread::park_timeout(Duration::from_millis(100));
            }
        });
        let fed = feed.send(|block| !told.is_stopped() && sender.send(block).is_ok());
        drop(sender);
        let reports = running.join();
        told.done();
        shown.thread().unpark();
        interrupted.thread().unpark();
        fed.and(reports.map_err(|_| CliError::Usage("the replay failed: please report this".to_owned())))
    });
    bar.finish_and_clear();
    reports
}

fn glob(pattern: &str) -> Result<globset::GlobMatcher, CliError> {
    let glob = globset::Glob::new(&pattern.to_lowercase())
        .map_err(|error| CliError::Usage(format!("`{pattern}`: {error}")))?;
    Ok(glob.compile_matcher())
}

fn save(path: &std::path::Path, report: &Report) -> Result<(), CliError> {
    let mut file = std::io::BufWriter::new(private_file(path)?);
    let written = serde_json::to_writer(&mut file, report).map_err(std::io::Error::from).and_then(|()| file.flush());
    written.map_err(|error| CliError::Usage(format!("`{}` cannot be written: {error}", path.display())))
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
                out.note("a page for a browser: `… --format html > replay.html`");
            }
            out.raw(&html::html(page))?;
        }
        Format::Junit => out.raw(&junit::junit(page))?,
        Format::Human | Format::Github | Format::Sarif => text::show(out, page)?,
    }
    Ok(())
}

/// The alerts, one a line; or what differs of them.
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
