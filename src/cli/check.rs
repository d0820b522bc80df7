//! `watchbell check`: is everything right, before the agent is trusted with it?

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
    CliError, Context, Format, output, problems, readable,
    run::terminal,
    runtime,
    validate::{examine, report, vocabulary},
};

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Directories of rules or rule files: only these are checked, and no source is asked
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Do not ask the sources
    #[arg(long)]
    offline: bool,
    /// Warnings make exit code 1
    #[arg(long)]
    deny_warnings: bool,
    /// Check the rules again whenever a file is saved, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

/// What came of asking a source.
struct SourceAnswer {
    source: String,
    state: &'static str,
    message: String,
    remedy: Option<String>,
}

/// A difference of clocks that matters: the first poll would begin at the wrong time, and drop-off be judged wrongly.
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
        let doubts = doubtful(&config, &loaded.set);
        for warning in &doubts {
            context.output.warning(warning);
        }
        let unwritable = writable(&config);
        // Their secrets may not be where the configuration is only read, as in a pipeline.
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
                "broken": loaded.set.broken,
                "diagnostics": loaded.diagnostics,
                "data_dir": unwritable.clone().map_or("writable".to_owned(), |error| error),
                "sources": sources,
                "destinations": unready.iter().map(|(name, error)| json!({ "destination": name, "state": "FAILED", "message": error })).collect::<Vec<_>>(),
                "warnings": doubts,
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
            let broken = match loaded.set.broken.len() {
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
                out.line("FAILED   the configuration has no `[[source]]`: there is nothing to poll")?;
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
                out.line("skipped  sources were not asked, and secrets not read (--offline)")?;
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
            return Err(CliError::Usage("not everything is right".to_owned()));
        }
        if answers.iter().any(|answer| answer.state == "unclear") {
            return Err(CliError::Findings("whether a source works is unclear".to_owned()));
        }
        self.verdict(&loaded, doubts.len())
    }

    /// Only the rules, of these paths or those of the configuration; nothing else is asked.
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
                context.output.note("\nwatching: save a file to check again, Ctrl-C to end");
                watcher.changed().await;
            }
        })
    }

    /// `doubts`: warnings beside those about rules.
    fn verdict(&self, loaded: &Loaded, doubts: usize) -> Result<(), CliError> {
        readable(&loaded.diagnostics)?;
        if any_error(&loaded.diagnostics) {
            return Err(CliError::Rules(problems("rules do not load", &loaded.diagnostics)));
        }
        let warnings = loaded.diagnostics.len() + doubts;
        if self.deny_warnings && warnings > 0 {
            let count = output::count(warnings as u64, "warning");
            return Err(CliError::Findings(format!("{count}, and `--deny-warnings`")));
        }
        Ok(())
    }
}

/// What is allowed and yet probably not meant.
fn doubtful(config: &Config, rules: &RuleSet) -> Vec<String> {
    let now = Clock::system().now();
    let mut found = Vec::new();
    if rules.detections.is_empty() && rules.broken.is_empty() {
        found.push(
            "there are no rules: the agent would only watch over itself; `watchbell init` writes some".to_owned(),
        );
    }
    for source in &config.sources {
        let SourceKind::Atlassian(atlassian) = &source.kind;
        if atlassian.org_id.bytes().all(|byte| matches!(byte, b'0' | b'-')) {
            found.push(format!("source \"{}\": `org_id` is still the placeholder", source.name));
        }
        let midnight = source.key_expires().and_then(|date| date.to_zoned(jiff::tz::TimeZone::UTC).ok());
        match midnight.map(|midnight| midnight.timestamp().duration_since(now).as_secs().div_euclid(86_400)) {
            Some(days) if days < 0 => {
                found.push(format!("source \"{}\": by `api_key_expires` the key has expired", source.name))
            }
            Some(days) if days <= 30 => found.push(format!(
                "source \"{}\": the key expires in {}",
                source.name,
                output::count(days.unsigned_abs(), "day")
            )),
            _ => {}
        }
    }
    for destination in &config.destinations {
        if let Some(directory) = destination.directory().filter(|directory| !directory.is_dir()) {
            found.push(format!(
                "destination \"{}\": there is no directory `{}`",
                destination.name,
                directory.display()
            ));
        }
        if let Some(program) = destination.program().filter(|program| !program.is_file()) {
            found.push(format!("destination \"{}\": there is no program `{}`", destination.name, program.display()));
        }
        if let Some(patterns) = &destination.rules
            && !rules.all().any(|rule| patterns.is_match(rule.id().as_str()))
        {
            found.push(format!("destination \"{}\": its `rules` fit no rule", destination.name));
        }
        if let Some(tags) = &destination.tags
            && !rules.all().any(|rule| rule.metadata.tags.iter().any(|tag| tags.is_match(tag)))
        {
            found.push(format!("destination \"{}\": its `tags` fit no rule", destination.name));
        }
    }
    for rule in rules.all() {
        let known = |name: &String| config.destinations.iter().any(|destination| destination.name.as_str() == name);
        for name in rule.metadata.destinations.iter().flatten().filter(|name| !known(name)) {
            found.push(format!("rule {}: there is no destination \"{name}\"", rule.id()));
        }
    }
    found
}

/// Destinations with which the agent would not start, and why.
fn unready(config: &Config) -> Vec<(String, String)> {
    let (terminal, clock) = (terminal(Format::Human), Clock::system());
    let opened = config.destinations.iter().map(|settings| (settings, settings.open(&terminal, &clock)));
    opened.filter_map(|(settings, opened)| Some((settings.name.to_string(), opened.err()?.to_string()))).collect()
}

/// Why the data directory cannot be written, if it cannot.
fn writable(config: &Config) -> Option<String> {
    let path = &config.data_dir;
    let probe = path.join(".writable");
    let made = std::fs::create_dir_all(path)
        .and_then(|()| std::fs::File::create(&probe))
        .and_then(|_| std::fs::remove_file(&probe));
    made.err().map(|error| format!("the data directory `{}` cannot be written: {error}", path.display()))
}

async fn ask_all(config: &Config) -> Vec<SourceAnswer> {
    let mut answers = Vec::new();
    for settings in &config.sources {
        answers.extend(ask(settings).await);
    }
    answers
}

/// Makes the request that the agent itself makes, so that a key which may do nothing else passes.
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
        let remedy = "that proves neither health nor trouble: without Atlassian Guard or an Enterprise plan there is no \
                      organization audit log to return. Compare with admin.atlassian.com > Security > Audit log";
        answer("unclear", "the key is accepted, and no events are returned".to_owned(), Some(remedy.to_owned()))
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
            "set the clock (NTP): times of polls, drop-off and certificates depend on it".to_owned(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_clock_is_told() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(clock_answer(None, now), None);
        assert_eq!(clock_answer(Some(time::after(now, Duration::from_secs(60))), now), None);
        let (message, _) = clock_answer(Some(time::after(now, Duration::from_secs(7_200))), now).unwrap();
        assert_eq!(message, "this machine's clock differs from Atlassian's by 2h");
    }
}
