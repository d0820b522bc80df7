//! `watchbell.toml`: composed of the settings that each module owns. Strict: unknown keys are errors, and everything that is
//! wrong is told at once. Relative paths are relative to the file.

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

/// Everything the configuration says.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it was read from.
    pub file: PathBuf,
    /// Where the store is.
    pub data_dir: PathBuf,
    /// How long events and alerts are kept.
    pub retention: Duration,
    /// Where rules are, and what is said of them.
    pub rules: RuleSources,
    /// How these are watched.
    pub watch: WatchMode,
    /// Whether rules are tried on recent events before they run.
    pub guard: Option<Guard>,
    /// How far back rules are run that are new to the agent, if they are.
    pub retro_hunt: Option<Duration>,
    /// What detection is told.
    pub detection: detect::Settings,
    /// Where events come from.
    pub sources: Vec<source::Settings>,
    /// Where alerts go.
    pub destinations: Vec<deliver::Settings>,
    /// Where metrics and health are served, if they are.
    pub metrics: Option<SocketAddr>,
    /// The heartbeat, if one is sent.
    pub heartbeat: Option<Heartbeat>,
}

/// When a rule that is new or has changed goes on trial in place of running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The events over which it is replayed: not older than this.
    pub since: Duration,
    /// It may raise so many alerts there that are new.
    pub max_new_alerts: u64,
}

impl Config {
    /// Reads the file. With errors among the diagnostics there is no configuration.
    pub fn load(file: &Path) -> (Option<Self>, Vec<Diagnostic>) {
        let text = match std::fs::read(file).map(String::from_utf8) {
            Ok(Ok(text)) => text,
            Ok(Err(error)) => {
                let at = error.utf8_error().valid_up_to();
                return (
                    None,
                    vec![Diagnostic::error("E002", file, format!("the file is not text: byte {at} is not UTF-8"))],
                );
            }
            Err(error) => {
                let diagnostic = Diagnostic::error("E006", file, format!("the configuration cannot be read: {error}"))
                    .help("`watchbell init` writes one; `--config FILE` names another");
                return (None, vec![diagnostic]);
            }
        };
        Self::parse(file, &text)
    }

    /// Reads the text of a configuration that stands in `file`.
    pub fn parse(file: &Path, text: &str) -> (Option<Self>, Vec<Diagnostic>) {
        let problems = Problems::new(file, text);
        let (table, errors) = DeTable::parse_recoverable(text);
        let broken = !errors.is_empty();
        for error in errors {
            problems.push("E100", error.span().unwrap_or(0..0), error.message().to_owned(), None);
        }
        if broken {
            // What could be read around a syntax error would only bring problems that are none.
            problems.hide_what_looks_secret();
            return (None, problems.into_sorted());
        }
        let base = file.parent().unwrap_or(Path::new(""));
        let config =
            read(file, base, TableReader::new(table.get_ref(), 0..0, "the configuration", &problems), &problems);
        let found = problems.into_sorted();
        (config.filter(|_| found.is_empty()), found)
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
                table.problem("watch", format!("`watch` is `auto` or `poll`, found \"{other}\""), None);
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
                    .map_err(|_| format!("`{text}` is not an address and a port, such as `127.0.0.1:9469`"))
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
                format!("two sources are called \"{}\"", source.name),
                Some("a source's name is what its events are kept under: give each its own".to_owned()),
            );
        }
    }
    let show = crate::model::time::show_duration;
    let shorter = |value: Duration, what: &str| {
        let message = format!("`retention` ({}) is shorter than {what} ({})", show(retention), show(value));
        let help = "events would be deleted while Atlassian still returns them, and fetched again as new: raise `retention` or lower the other";
        (message, Some(help.to_owned()))
    };
    if retention < max_age {
        let (message, help) = shorter(max_age, "`max_age` under `[alerts]`");
        problems.push("E107", 0..0, message, help);
    }
    for (source, span) in &sources {
        if retention < source.backfill {
            let (message, help) = shorter(source.backfill, &format!("`backfill` of source \"{}\"", source.name));
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
            problems.push("E106", span.clone(), format!("two destinations are called \"{}\"", destination.name), None);
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

/// `[checks."builtin.log_drop_off"]`: switch a check rule off, or change its parameters.
fn read_overrides(mut table: TableReader<'_>) -> Overrides {
    table.named_tables().into_iter().filter_map(|(name, entry)| read_override(name, entry)).collect()
}
