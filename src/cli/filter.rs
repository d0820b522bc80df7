//! Flags that several verbs share.

use clap::Args;
use watchbell::model::{
    name::SourceName,
    time::{TimeArgument, Timestamp},
};

use super::CliError;

/// Selects by time and source.
#[derive(Debug, Args)]
pub(super) struct Range {
    /// Start of the time range: a time, a date, or a duration before now such as `24h`
    #[arg(long, value_name = "TIME")]
    since: Option<TimeArgument>,
    /// End of the time range (exclusive), in the same forms
    #[arg(long, value_name = "TIME")]
    until: Option<TimeArgument>,
    /// Only this source
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

    /// Start and end. Fails if the range is empty.
    pub(super) fn bounds(&self, now: Timestamp) -> Result<(Option<Timestamp>, Option<Timestamp>), CliError> {
        let (since, until) = (self.since(now), self.until(now));
        match (since, until) {
            (Some(since), Some(until)) if since >= until => {
                Err(CliError::Usage("`--until` must be after `--since`".to_owned()))
            }
            _ => Ok((since, until)),
        }
    }

    pub(super) fn source(&self) -> Option<SourceName> {
        self.source.clone()
    }
}

/// The author of a change, and a comment.
#[derive(Debug, Args)]
pub(super) struct Who {
    /// Your name
    #[arg(long, value_name = "NAME", env = "USER", hide_env_values = true)]
    author: Option<String>,
    /// Comment, such as the reason
    #[arg(long, short = 'm', value_name = "TEXT")]
    pub(super) comment: Option<String>,
}

impl Who {
    pub(super) fn author(&self) -> Result<String, CliError> {
        self.author
            .clone()
            .ok_or_else(|| CliError::Usage("missing author: use `--author NAME`, or set `USER`".to_owned()))
    }
}
