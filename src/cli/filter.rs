//! Flags that listing verbs share.

use clap::Args;
use globset::{GlobBuilder, GlobMatcher};
use watchbell::{
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

/// A pattern with `*`.
pub(super) fn glob(text: Option<&str>) -> Result<Option<GlobMatcher>, CliError> {
    text.map(|text| {
        GlobBuilder::new(text)
            .literal_separator(false)
            .build()
            .map(|glob| glob.compile_matcher())
            .map_err(|error| CliError::Usage(format!("`{text}` is not a pattern: {error}")))
    })
    .transpose()
}

/// Whether one of the texts contains `wanted`, whatever the case.
pub(super) fn mentions(wanted: &str, texts: [Option<&str>; 3]) -> bool {
    let wanted = wanted.to_lowercase();
    texts.into_iter().flatten().any(|text| text.to_lowercase().contains(&wanted))
}
