//! `watchbell check`: checks the configuration, rules, sources and destinations before the agent runs with them.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use serde_json::json;
use watchbell::{
    config::{Config, diagnostic::any_error},
    model::time::{self, Clock, Timestamp},
    rule::{Loaded, Loader, RuleSet, RuleSources, Vocabulary, WatchMode, Watcher},
    source::{Position, Settings, Source, SourceKind},
};

use super::{
    CliError, Context, Format, ensure_readable, formats, output, problems,
    run::terminal,
    runtime,
    validate::{examine, report, vocabulary},
};

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Output format
    #[arg(long, value_name = "FORMAT", default_value = "human", value_parser = formats(&[Format::Github, Format::Sarif]))]
    format: Format, // In place of the global argument of this id, whose value is this one's.
    /// Rule files, or directories of rules; if given, only these rules are checked
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Skip the checks that need the network or secrets
    #[arg(long)]
    offline: bool,
    /// Exit with code 1 if there are warnings
    #[arg(long)]
    deny_warnings: bool,
    /// Check the rules again whenever a file changes, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

/// The result of querying a source.
struct SourceAnswer {
    source: String,
    state: &'static str,
    message: String,
    remedy: Option<String>,
}

/// From this clock skew on, the first poll would begin at the wrong time and drop-off would be judged wrongly.
const SKEW: Duration = Duration::from_secs(120);

impl Check {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        if self.watch {
            return self.watch(context);
        }
        if !self.paths.is_empty() {
            return self.rules_only(context);
        }
        let config = context.config()?;
        let loaded = examine(Loader::new(context.rule_sources(&config)), &vocabulary(&config));
        if matches!(context.format, Format::Sarif | Format::Github) {
            report(context, &loaded)?;
            return self.verdict(&loaded, 0);
        }
        context.output.diagnostics(&loaded.diagnostics);
        let warnings = warnings(&config, &loaded.set);
        for warning in &warnings {
            context.output.warning(warning);
        }
        let unwritable = unwritable(&config);
        // With `--offline` destinations are not opened: in a CI pipeline their secrets may be missing.
        let unready = if self.offline { Vec::new() } else { runtime()?.block_on(async { unready(&config) }) };
        let answers = if self.offline { Vec::new() } else { runtime()?.block_on(ask_all(&config)) };
        let (rules, checks) = (loaded.set.detections.len(), loaded.set.checks.len());
        if context.is_json() {
            let sources: Vec<_> = answers
                .iter()
                .map(|answer| json!({ "source": answer.source, "state": answer.state, "message": answer.message, "remedy": answer.remedy }))
                .collect();
            context.output.json(&json!({
                "config": config.file,
                "rules": rules,
                "checks": checks,
                "broken": loaded.set.context.broken,
                "diagnostics": loaded.diagnostics,
                "data_dir": unwritable.clone().map_or("writable".to_owned(), |error| error),
                "sources": sources,
                "destinations": unready.iter().map(|(name, error)| json!({ "destination": name, "state": "FAILED", "message": error })).collect::<Vec<_>>(),
                "warnings": warnings,
            }))?;
        } else {
            let out = &context.output;
            out.line(&format!(
                "ok       configuration {}: {}, {}",
                config.file.display(),
                output::count(config.sources.len() as u64, "source"),
                output::count(config.destinations.len() as u64, "destination")
            ))?;
            let word = if any_error(&loaded.diagnostics) { "FAILED" } else { "ok" };
            let broken = match loaded.set.context.broken.len() {
                0 => String::new(),
                count => format!(", {count} broken"),
            };
            out.line(&format!(
                "{word:<8} {} and {} compiled{broken}",
                output::count(rules as u64, "rule"),
                output::count(checks as u64, "check")
            ))?;
            match &unwritable {
                None => out.line(&format!("ok       data directory {}", config.data_dir.display()))?,
                Some(error) => out.line(&format!("FAILED   {error}"))?,
            }
            if config.sources.is_empty() {
                out.line("FAILED   the configuration has no `[[source]]`, so there is nothing to poll")?;
            }
            for answer in &answers {
                out.line(&format!("{:<8} source \"{}\": {}", answer.state, answer.source, answer.message))?;
                if let Some(remedy) = &answer.remedy {
                    out.line(&format!("         {remedy}"))?;
                }
            }
            for (name, error) in &unready {
                out.line(&format!("FAILED   destination \"{name}\": {error}"))?;
            }
            if self.offline {
                out.line("skipped  sources and secrets, because of `--offline`")?;
            }
        }
        if any_error(&loaded.diagnostics) {
            return self.verdict(&loaded, 0);
        }
        if unwritable.is_some()
            || !unready.is_empty()
            || config.sources.is_empty()
            || answers.iter().any(|answer| answer.state == "FAILED")
        {
            return Err(CliError::Usage("some checks failed (see above)".to_owned()));
        }
        if answers.iter().any(|answer| answer.state == "unclear") {
            return Err(CliError::Findings("it is unclear whether all sources work (see above)".to_owned()));
        }
        self.verdict(&loaded, warnings.len())
    }

    /// Checks only rules: those of the given paths, or of the configuration.
    fn rules_only(&self, context: &Context) -> Result<(), CliError> {
        let loaded = match (self.paths.is_empty(), context.config.exists()) {
            (true, _) => {
                let config = context.config()?;
                examine(Loader::new(context.rule_sources(&config)), &vocabulary(&config))
            }
            (false, true) => {
                let config = context.config()?;
                let sources = RuleSources { roots: self.paths.clone(), ..context.rule_sources(&config) };
                examine(Loader::new(sources).without_builtin(), &vocabulary(&config))
            }
            (false, false) => examine(Loader::of(self.paths.clone()).without_builtin(), &Vocabulary::default()),
        };
        report(context, &loaded)?;
        self.verdict(&loaded, 0)
    }

    fn watch(&self, context: &Context) -> Result<(), CliError> {
        let roots = if self.paths.is_empty() { context.config()?.rules.roots } else { self.paths.clone() };
        runtime()?.block_on(async {
            let mut watcher = Watcher::new(&roots, WatchMode::Auto);
            loop {
                if context.format == Format::Human {
                    context.output.raw("\x1b[2J\x1b[H")?;
                }
                match self.rules_only(context) {
                    Ok(()) => {}
                    Err(CliError::Output(error)) => return Err(CliError::Output(error)),
                    Err(error) => context.output.error(&error.to_string(), None),
                }
                context.output.note("\nwatching for changes; press Ctrl-C to stop");
                watcher.changed().await;
            }
        })
    }

    /// `other_warnings`: the number of warnings that are not about rules.
    fn verdict(&self, loaded: &Loaded, other_warnings: usize) -> Result<(), CliError> {
        ensure_readable(&loaded.diagnostics)?;
        if any_error(&loaded.diagnostics) {
            return Err(CliError::Rules(problems("some rules do not load", &loaded.diagnostics)));
        }
        let warnings = loaded.diagnostics.len() + other_warnings;
        if self.deny_warnings && warnings > 0 {
            let count = output::count(warnings as u64, "warning");
            return Err(CliError::Findings(format!("{count} found, and `--deny-warnings` is set")));
        }
        Ok(())
    }
}

/// What is valid, but probably a mistake.
fn warnings(config: &Config, rules: &RuleSet) -> Vec<String> {
    let now = Clock::system().now();
    let mut warnings = Vec::new();
    if rules.detections.is_empty() && rules.context.broken.is_empty() {
        warnings.push("no rules: the agent would only monitor itself; `watchbell init` writes some".to_owned());
    }
    for source in &config.sources {
        let SourceKind::Atlassian(atlassian) = &source.kind;
        if atlassian.org_id.bytes().all(|byte| matches!(byte, b'0' | b'-')) {
            warnings.push(format!("source \"{}\": `org_id` is still the placeholder", source.name));
        }
        let midnight = source.key_expires().and_then(|date| date.to_zoned(jiff::tz::TimeZone::UTC).ok());
        match midnight.map(|midnight| midnight.timestamp().duration_since(now).as_secs().div_euclid(86_400)) {
            Some(days) if days < 0 => {
                warnings.push(format!("source \"{}\": the key has expired (`api_key_expires`)", source.name))
            }
            Some(days) if days <= 30 => warnings.push(format!(
                "source \"{}\": the key expires in {}",
                source.name,
                output::count(days.unsigned_abs(), "day")
            )),
            _ => {}
        }
    }
    for destination in &config.destinations {
        if let Some(directory) = destination.directory().filter(|directory| !directory.is_dir()) {
            warnings.push(format!(
                "destination \"{}\": the directory `{}` does not exist",
                destination.name,
                directory.display()
            ));
        }
        if let Some(program) = destination.program().filter(|program| !program.is_file()) {
            warnings.push(format!(
                "destination \"{}\": the program `{}` does not exist",
                destination.name,
                program.display()
            ));
        }
        if let Some(patterns) = &destination.rules
            && !rules.all().any(|rule| patterns.is_match(rule.id().as_str()))
        {
            warnings.push(format!("destination \"{}\": `rules` matches no loaded rule", destination.name));
        }
        if let Some(tags) = &destination.tags
            && !rules.all().any(|rule| rule.metadata.tags.iter().any(|tag| tags.is_match(tag)))
        {
            warnings.push(format!("destination \"{}\": `tags` matches no loaded rule", destination.name));
        }
    }
    for rule in rules.all() {
        let known = |name: &String| config.destinations.iter().any(|destination| destination.name.as_str() == name);
        for name in rule.metadata.destinations.iter().flatten().filter(|name| !known(name)) {
            warnings.push(format!("rule `{}`: no destination \"{name}\" is configured", rule.id()));
        }
    }
    warnings
}

/// Destinations that keep the agent from starting, and why.
fn unready(config: &Config) -> Vec<(String, String)> {
    let (terminal, clock) = (terminal(Format::Human), Clock::system());
    let opened = config.destinations.iter().map(|settings| (settings, settings.open(&terminal, &clock)));
    opened.filter_map(|(settings, opened)| Some((settings.name.to_string(), opened.err()?.to_string()))).collect()
}

/// The error, if the data directory is not writable.
fn unwritable(config: &Config) -> Option<String> {
    let path = &config.data_dir;
    let probe = path.join(".writable");
    let result = std::fs::create_dir_all(path)
        .and_then(|()| std::fs::File::create(&probe))
        .and_then(|_| std::fs::remove_file(&probe));
    result.err().map(|error| format!("cannot write the data directory `{}`: {error}", path.display()))
}

async fn ask_all(config: &Config) -> Vec<SourceAnswer> {
    let mut answers = Vec::new();
    for settings in &config.sources {
        answers.extend(ask(settings).await);
    }
    answers
}

/// Sends the same request as the agent, so that a key without further permissions passes.
async fn ask(settings: &Settings) -> Vec<SourceAnswer> {
    let answer = |state, message: String, remedy: Option<String>| SourceAnswer {
        source: settings.name.to_string(),
        state,
        message,
        remedy,
    };
    let source = match Source::new(settings) {
        Ok(source) => source,
        Err(error) => return vec![answer("FAILED", error.to_string(), None)],
    };
    let now = Clock::system().now();
    let from = time::before(now, settings.backfill.max(Duration::from_secs(7 * 86_400)));
    let page = match source.fetch(&Position::From(from), 10, now).await {
        Ok(page) => page,
        Err(error) => {
            let remedy = error.kind.remedy().to_owned();
            return vec![answer("FAILED", format!("{} ({})", error.message, error.kind.name()), Some(remedy))];
        }
    };
    let accepted = if page.entries() == 0 {
        let remedy = "this may or may not be normal: without Atlassian Guard or an Enterprise plan there is no \
                      organization audit log to return. Compare with admin.atlassian.com > Security > Audit log";
        answer("unclear", "the key is accepted, but no events are returned".to_owned(), Some(remedy.to_owned()))
    } else {
        answer("ok", "the key is accepted, and events are returned".to_owned(), None)
    };
    let clock = clock_answer(page.server_time, now).map(|(message, remedy)| answer("warning", message, Some(remedy)));
    std::iter::once(accepted).chain(clock).collect()
}

fn clock_answer(server: Option<Timestamp>, now: Timestamp) -> Option<(String, String)> {
    let skew = time::distance(server?, now);
    (skew > SKEW).then(|| {
        (
            format!("this machine's clock differs from Atlassian's by {}", time::show_duration(skew)),
            "set the clock (NTP): polls, drop-off and certificates depend on it".to_owned(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_skew_is_reported() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(clock_answer(None, now), None);
        assert_eq!(clock_answer(Some(time::after(now, Duration::from_secs(60))), now), None);
        let (message, _) = clock_answer(Some(time::after(now, Duration::from_secs(7_200))), now).unwrap();
        assert_eq!(message, "this machine's clock differs from Atlassian's by 2h");
    }
}
