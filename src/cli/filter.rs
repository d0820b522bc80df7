//! Flags that listing verbs share.

use clap::Args;
use watchbell::model::{
    name::SourceName,
    time::{TimeArgument, Timestamp},
};

use super::CliError;

/// Since when, until when, how many, from which source.
#[derive(Debug, Args)]
pub(super) struct Range {
    /// From this time on: a time, a date, or a duration before now such as `24h`
    #[arg(long, value_name = "TIME")]
    since: Option<TimeArgument>,
    /// Before this time
    #[arg(long, value_name = "TIME")]
    until: Option<TimeArgument>,
    /// Only of this source
    #[arg(long, value_name = "NAME")]
    source: Option<SourceName>,
}

impl Range {
    pub(super) fn since(&self, now: Timestamp) -> Option<Timestamp> {
        self.since.map(|time| time.resolve(now))
    }

    pub(super) fn until(&self, now: Timestamp) -> Option<Timestamp> {
        self.until.map(|time| time.resolve(now))
    }

    /// Both ends, the earlier first.
    pub(super) fn bounds(&self, now: Timestamp) -> Result<(Option<Timestamp>, Option<Timestamp>), CliError> {
        let (since, until) = (self.since(now), self.until(now));
        match (since, until) {
            (Some(since), Some(until)) if since >= until => {
                Err(CliError::Usage("`--until` is not after `--since`: nothing lies between".to_owned()))
            }
            _ => Ok((since, until)),
        }
    }

    pub(super) fn source(&self) -> Option<SourceName> {
        self.source.clone()
    }
}

/// Who does something, and what they say about it.
#[derive(Debug, Args)]
pub(super) struct Who {
    /// Who you are
    #[arg(long, value_name = "NAME", env = "USER", hide_env_values = true)]
    author: Option<String>,
    /// What you have to say about it
    #[arg(long, short = 'm', value_name = "TEXT")]
    pub(super) comment: Option<String>,
}

impl Who {
    pub(super) fn author(&self) -> Result<String, CliError> {
        self.author.clone().ok_or_else(|| CliError::Usage("say who you are: `--author NAME`".to_owned()))
    }
}
