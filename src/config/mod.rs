//! `watchbell.toml`: combines the settings that each module owns.
//!
//! Reading is strict: unknown keys are errors, and all problems are reported at once. Relative paths are relative to
//! the file.

pub mod diagnostic;
pub mod secret;
pub mod settings;

use std::{
    collections::HashSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use toml::de::DeTable;

use crate::{
    config::{
        diagnostic::Diagnostic,
        settings::{Problems, TableReader},
    },
    deliver, detect,
    heartbeat::Heartbeat,
    model::name::DestinationName,
    rule::{Limits, Overrides, Quota, RuleSources, WatchMode, read_override},
    source,
};

const DAY: Duration = Duration::from_secs(86_400);

/// The complete configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file that the configuration was read from. Not a key.
    pub file: PathBuf,
    /// Directory of the store, relative to the configuration file. Default: `data`.
    pub data_dir: PathBuf,
    /// How long events and alerts are kept, from `1d` to `3660d`; not shorter than `max_age` or any `backfill`.
    /// Default: `180d`.
    pub retention: Duration,
    /// - `rules.paths`: Rule files and directories, relative to the configuration file. Default: `["rules"]`.
    /// - `rules.follow_links`: Follow symbolic links that lead out of `paths`. Default: `false`.
    /// - `rules.geoip`: IP address databases in MaxMind's format. Default: none.
    pub rules: RuleSources,
    /// - `rules.watch`: How rule files are watched for changes: `auto` or `poll`. Default: `auto`.
    pub watch: WatchMode,
    /// `[rules.guard]`. Default: new and changed rules run at once.
    pub guard: Option<Guard>,
    /// - `rules.retro_hunt`: How far back new rules are run over stored events, from `1h` to `3660d`. Default: they are
    ///   not.
    pub retro_hunt: Option<Duration>,
    /// - `rules.max_operations`: Maximum number of operations per call of a rule function, from 1,000 to 100,000,000.
    ///   Default: 500,000.
    /// - `rules.max_time`: Maximum duration of a call, from `1ms` to `1m`. Default: `1s`.
    /// - `rules.max_keys`: Maximum number of keys in a rule's state, from 100 to 10,000,000. Default: 200,000.
    /// - `alerts.max_age`: Events older than this when they arrive raise late alerts, from `1m` to `3660d`. Default:
    ///   `1d`.
    pub detection: detect::Settings,
    /// `[[source]]`: where events come from.
    pub sources: Vec<source::Settings>,
    /// `[[destination]]`: where alerts go. Default: the terminal.
    pub destinations: Vec<deliver::Settings>,
    /// - `metrics.listen`: Address and port that serve metrics and health, such as `127.0.0.1:9469`. Required.
    pub metrics: Option<SocketAddr>,
    /// `[heartbeat]`. Default: none is sent.
    pub heartbeat: Option<Heartbeat>,
}

/// `[rules.guard]`: when a new or changed rule runs in shadow mode instead of raising alerts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// Age of the oldest events over which a rule is replayed, from `1h` to `3660d`. Default: `7d`.
    pub since: Duration,
    /// Maximum number of new alerts that a rule may raise in the replay, from 0 to 1,000,000. A rule that raises more
    /// runs in shadow mode. Default: 20.
    pub max_new_alerts: u64,
}

impl Config {
    /// Reads the configuration from a file. Returns `None` with the diagnostics if there is any problem.
    pub fn load(file: &Path) -> (Option<Self>, Vec<Diagnostic>) {
        let text = match std::fs::read(file).map(String::from_utf8) {
            Ok(Ok(text)) => text,
            Ok(Err(error)) => {
                let at = error.utf8_error().valid_up_to();
                return (
                    None,
                    vec![Diagnostic::error("E002", file, format!("the file is not valid UTF-8 (at byte {at})"))],
                );
            }
            Err(error) => {
                let diagnostic = Diagnostic::error("E006", file, format!("cannot read the configuration: {error}"))
                    .help("create one with `watchbell init`, or name one with `--config FILE`");
                return (None, vec![diagnostic]);
            }
        };
        Self::parse(file, &text)
    }

    /// Parses the text of the configuration file `file`. Returns `None` with the diagnostics if there is any problem.
    pub fn parse(file: &Path, text: &str) -> (Option<Self>, Vec<Diagnostic>) {
        let problems = Problems::new(file, text);
        let (table, errors) = DeTable::parse_recoverable(text);
        let broken = !errors.is_empty();
        for error in errors {
            problems.push("E100", error.span().unwrap_or(0..0), error.message().to_owned(), None);
        }
        if broken {
            // Reading the rest around a syntax error would only report spurious problems.
            problems.hide_what_looks_secret();
            return (None, problems.into_sorted());
        }
        let base = file.parent().unwrap_or(Path::new(""));
        let config =
            read(file, base, TableReader::new(table.get_ref(), 0..0, "the configuration", &problems), &problems);
        let diagnostics = problems.into_sorted();
        (config.filter(|_| diagnostics.is_empty()), diagnostics)
    }
}

fn read(file: &Path, base: &Path, mut top: TableReader<'_>, problems: &Problems) -> Option<Config> {
    let data_dir = base.join(top.text("data_dir").unwrap_or("data"));
    let retention = top.duration("retention", DAY..=3_660 * DAY).unwrap_or(180 * DAY);

    let mut rules = RuleSources { roots: vec![base.join("rules")], ..RuleSources::default() };
    let mut watch = WatchMode::Auto;
    let mut limits = Limits::default();
    let mut quota = Quota::default();
    let (mut guard, mut retro_hunt) = (None, None);
    if let Some(mut table) = top.table("rules") {
        if let Some(paths) = table.texts("paths", |path| Ok(base.join(path))) {
            rules.roots = paths;
        }
        rules.follow_links = table.boolean("follow_links").unwrap_or(false);
        rules.geoip = table.texts("geoip", |path| Ok(base.join(path))).unwrap_or_default();
        watch = match table.text("watch") {
            None | Some("auto") => WatchMode::Auto,
            Some("poll") => WatchMode::Poll,
            Some(other) => {
                table.problem("watch", format!("`watch` must be `auto` or `poll`, found `{other}`"), None);
                WatchMode::Auto
            }
        };
        if let Some(operations) = table.number("max_operations", 1_000..=100_000_000) {
            limits.operations = operations;
        }
        if let Some(keys) = table.number("max_keys", 100..=10_000_000) {
            quota.keys = usize::try_from(keys).unwrap_or(usize::MAX);
        }
        if let Some(time) = table.duration("max_time", Duration::from_millis(1)..=Duration::from_secs(60)) {
            limits.time = time;
        }
        guard = table.table("guard").map(|mut table| {
            let since = table.duration("since", Duration::from_secs(3_600)..=3_660 * DAY).unwrap_or(7 * DAY);
            let max_new_alerts = table.number("max_new_alerts", 0..=1_000_000).unwrap_or(20);
            table.finish();
            Guard { since, max_new_alerts }
        });
        retro_hunt = table.duration("retro_hunt", Duration::from_secs(3_600)..=3_660 * DAY);
        table.finish();
    }
    let mut max_age = DAY;
    if let Some(mut table) = top.table("alerts") {
        max_age = table.duration("max_age", Duration::from_secs(60)..=3_660 * DAY).unwrap_or(max_age);
        table.finish();
    }
    let metrics = top.table("metrics").and_then(|mut table| {
        table.required_text("listen", "\"127.0.0.1:9469\"");
        let listen = table.has("listen").then(|| {
            table.parsed("listen", |text| {
                text.parse::<SocketAddr>()
                    .map_err(|_| format!("expected an address and port, such as `127.0.0.1:9469`, found `{text}`"))
            })
        });
        table.finish();
        listen.flatten()
    });
    let heartbeat = top.table("heartbeat").and_then(|table| Heartbeat::read(table, base));
    rules.overrides = top.table("checks").map(read_overrides).unwrap_or_default();

    let sources: Vec<_> = top
        .tables("source")
        .into_iter()
        .filter_map(|table| {
            let span = table.span();
            source::Settings::read(table, base).map(|settings| (settings, span))
        })
        .collect();
    let mut names = HashSet::new();
    for (source, span) in &sources {
        if !names.insert(source.name.clone()) {
            problems.push(
                "E106",
                span.clone(),
                format!("duplicate source name `{}`", source.name),
                Some("events are stored under the source's name: give each source a unique name".to_owned()),
            );
        }
    }
    let show = crate::model::time::show_duration;
    let shorter = |value: Duration, what: &str| {
        let message = format!("`retention` ({}) is shorter than {what} ({})", show(retention), show(value));
        let help = "events would be deleted while Atlassian still returns them, and then fetched again as new: \
                    increase `retention` or reduce the other value";
        (message, Some(help.to_owned()))
    };
    if retention < max_age {
        let (message, help) = shorter(max_age, "`max_age` in `[alerts]`");
        problems.push("E107", 0..0, message, help);
    }
    for (source, span) in &sources {
        if retention < source.backfill {
            let (message, help) = shorter(source.backfill, &format!("`backfill` of source `{}`", source.name));
            problems.push("E107", span.clone(), message, help);
        }
    }
    let has_destinations = top.has("destination");
    let destinations: Vec<_> = top
        .tables("destination")
        .into_iter()
        .filter_map(|table| {
            let span = table.span();
            deliver::Settings::read(table, base).map(|settings| (settings, span))
        })
        .collect();
    let mut names = HashSet::new();
    for (destination, span) in &destinations {
        if !names.insert(destination.name.clone()) {
            problems.push("E106", span.clone(), format!("duplicate destination name `{}`", destination.name), None);
        }
    }
    top.finish();
    let ignored = sources
        .iter()
        .filter(|(source, _)| !source.unwanted.ignore.texts().is_empty())
        .map(|(source, _)| (source.name.clone(), source.unwanted.ignore.clone()))
        .collect();
    rules.ignored = Arc::new(ignored);
    let mut destinations: Vec<deliver::Settings> = destinations.into_iter().map(|(settings, _)| settings).collect();
    if !has_destinations {
        destinations.push(deliver::Settings::terminal(DestinationName::parse("terminal").ok()?));
    }
    Some(Config {
        file: file.to_owned(),
        data_dir,
        retention,
        watch,
        guard,
        retro_hunt,
        rules,
        detection: detect::Settings { limits, max_age, quota, ..detect::Settings::default() },
        sources: sources.into_iter().map(|(settings, _)| settings).collect(),
        destinations,
        metrics,
        heartbeat,
    })
}

/// Reads tables such as `[checks."builtin.log_drop_off"]`, which disable a check rule or change its parameters.
fn read_overrides(mut table: TableReader<'_>) -> Overrides {
    table.named_tables().into_iter().filter_map(|(name, entry)| read_override(name, entry)).collect()
}
