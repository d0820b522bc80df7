//! `watchbell check`: is everything right, before the agent is trusted with it?

use std::time::Duration;

use clap::Args;
use serde_json::json;
use watchbell::{
    config::Config,
    diagnostic::any_error,
    rule::Loader,
    source::{Position, Settings, Source},
    time::{self, Clock, Timestamp},
};

use super::{CliError, Context, output, problems, runtime};

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Do not ask the sources
    #[arg(long)]
    offline: bool,
}

/// What came of asking a source.
struct Answer {
    source: String,
    state: &'static str,
    message: String,
    remedy: Option<String>,
}

/// A difference of clocks that matters: the first poll would begin at the wrong time, and drop-off be judged wrongly.
const SKEW: Duration = Duration::from_secs(120);

impl Check {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        let config = context.config()?;
        let loaded = Loader::new(config.rule_paths.clone(), config.overrides.clone()).load();
        context.output.diagnostics(&loaded.diagnostics);
        for id in config.overrides.keys().filter(|id| !loaded.set.all().any(|rule| rule.id() == *id)) {
            context.output.warning(&format!("`[checks.\"{id}\"]` names a rule that does not exist"));
        }
        let unwritable = writable(&config);
        let answers = if self.offline { Vec::new() } else { runtime()?.block_on(ask_all(&config)) };
        let rules = loaded.set.detections.len() + loaded.set.checks.len();
        if context.is_json() {
            let sources: Vec<_> = answers
                .iter()
                .map(|answer| json!({ "source": answer.source, "state": answer.state, "message": answer.message, "remedy": answer.remedy }))
                .collect();
            context.output.json(&json!({
                "config": config.file,
                "rules": rules,
                "broken": loaded.set.broken,
                "diagnostics": loaded.diagnostics,
                "data_dir": unwritable.clone().map_or("writable".to_owned(), |error| error),
                "sources": sources,
            }))?;
        } else {
            let out = &context.output;
            out.line(&format!(
                "ok       configuration {}: {}, {}",
                config.file.display(),
                output::count(config.sources.len() as u64, "source"),
                output::count(config.destinations.len() as u64, "destination")
            ))?;
            let word = if any_error(&loaded.diagnostics) { "FAILED  " } else { "ok      " };
            out.line(&format!(
                "{word} {} {}",
                output::count(rules as u64, "rule"),
                if loaded.set.broken.is_empty() {
                    "compiled".to_owned()
                } else {
                    format!("compiled, {} broken", loaded.set.broken.len())
                }
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
            if self.offline {
                out.line("skipped  sources were not asked (--offline)")?;
            }
        }
        if any_error(&loaded.diagnostics) {
            return Err(CliError::Rules(problems("rules do not load", &loaded.diagnostics)));
        }
        if unwritable.is_some() || config.sources.is_empty() || answers.iter().any(|answer| answer.state == "FAILED") {
            return Err(CliError::Usage("not everything is right".to_owned()));
        }
        Ok(())
    }
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

async fn ask_all(config: &Config) -> Vec<Answer> {
    let mut answers = Vec::new();
    for settings in &config.sources {
        answers.extend(ask(settings).await);
    }
    answers
}

/// Makes the request that the agent itself makes, so that a key which may do nothing else passes.
async fn ask(settings: &Settings) -> Vec<Answer> {
    let answer = |state, message: String, remedy: Option<String>| Answer {
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
    let mut answers = match source.fetch(&Position::From(from), 10, now).await {
        Ok(page) if page.entries() == 0 => vec![answer(
            "unclear",
            "the key is accepted, and no events are returned".to_owned(),
            Some("that proves neither health nor trouble: without Atlassian Guard or an Enterprise plan there is no organization audit log to return. Compare with admin.atlassian.com > Security > Audit log".to_owned()),
        )],
        Ok(page) => {
            let mut answers = vec![answer("ok", "the key is accepted, and events are returned".to_owned(), None)];
            answers.extend(clock_answer(page.server_time, now).map(|(message, remedy)| answer("warning", message, Some(remedy))));
            answers
        }
        Err(error) => vec![answer("FAILED", format!("{} ({})", error.message, error.kind.name()), Some(error.kind.remedy().to_owned()))],
    };
    if let Some(expires) = settings.key_expires() {
        let days = expires
            .to_zoned(jiff::tz::TimeZone::UTC)
            .map_or(i64::MAX, |midnight| midnight.timestamp().duration_since(now).as_secs() / 86_400);
        if days <= 30 {
            answers.push(answer(
                "warning",
                format!("the key expires on {expires}"),
                Some("create a new one in time, and change `api_key_expires`".to_owned()),
            ));
        }
    }
    answers
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
