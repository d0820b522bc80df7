//! `watchbell silence add|list|expire`: mutes the deliveries of matching alerts for a while.

use std::time::Duration;

use clap::{Args, Subcommand};
use watchbell::{
    api::request,
    model::{
        name::{SilenceId, SourceName},
        silence::{NewSilence, Silence, rule_pattern},
        time::{self, Clock},
    },
};

use super::{CliError, Context, filter, output};

#[derive(Debug, Args)]
pub(super) struct Silences {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a silence: matching alerts are recorded but not delivered, and summarized when it ends
    Add {
        /// Alerts of rules whose ID matches this pattern; `*` matches any text
        #[arg(long, value_name = "PATTERN")]
        rule: String,
        /// Only alerts whose actor's name, email address or IP address contains this text
        #[arg(long, value_name = "TEXT")]
        actor: Option<String>,
        /// Only alerts of this source
        #[arg(long, value_name = "NAME")]
        source: Option<SourceName>,
        /// Duration of the silence, such as `2h`
        #[arg(long = "for", value_name = "DURATION", value_parser = time::parse_duration)]
        duration: Duration,
        #[command(flatten)]
        who: filter::Who,
    },
    /// List silences, newest first
    List {
        /// Include silences that have ended
        #[arg(long)]
        all: bool,
    },
    /// End a silence now
    Expire {
        /// Number of the silence
        id: SilenceId,
    },
}

impl Silences {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        let now = Clock::system().now();
        match self.verb {
            Verb::Add { rule, actor, source, duration, who } => {
                rule_pattern(&rule).map_err(CliError::Usage)?;
                let author = who.author()?;
                let (_, client) = context.client_or_new_store()?;
                let until = time::after(now, duration);
                let wanted = NewSilence { rule, actor, source, until, author, comment: who.comment };
                client.each(request::AddSilence(wanted), |silence: Silence| {
                    if context.is_json() {
                        return Ok(context.output.json(&silence)?);
                    }
                    let until = output::time(silence.until);
                    Ok(context.output.line(&format!("silence {} until {until} UTC", silence.id))?)
                })?;
                Ok(())
            }
            Verb::List { all } => {
                let (_, client) = context.client()?;
                let silences: Vec<Silence> = client.all(request::Silences { all })?;
                list(context, &silences)
            }
            Verb::Expire { id } => {
                let (_, client) = context.client()?;
                client.each(request::EndSilence { id }, |silence: Silence| {
                    if context.is_json() {
                        return Ok(context.output.json(&silence)?);
                    }
                    let silenced = output::count(silence.silenced, "alert");
                    Ok(context.output.line(&format!("silence {} has ended; it muted {silenced}", silence.id))?)
                })?;
                Ok(())
            }
        }
    }
}

fn list(context: &Context, silences: &[Silence]) -> Result<(), CliError> {
    if context.is_json() {
        for silence in silences {
            context.output.json_line(silence)?;
        }
        return Ok(());
    }
    if silences.is_empty() {
        context.output.note("no silences");
        return Ok(());
    }
    let rows = silences
        .iter()
        .map(|silence| {
            vec![
                silence.id.to_string(),
                silence.rule.clone(),
                silence.actor.clone().unwrap_or_else(|| "-".to_owned()),
                silence.source.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
                match silence.ended {
                    Some(ended) => format!("ended {}", output::time(ended)),
                    None => output::time(silence.until),
                },
                silence.silenced.to_string(),
                silence.author.clone(),
                silence.comment.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let header = ["silence", "rule", "actor", "source", "until (utc)", "alerts", "author", "comment"];
    Ok(context.output.table(&header, rows)?)
}
