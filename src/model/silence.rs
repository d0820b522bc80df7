//! A silence: for some time, matching alerts are recorded and counted but not delivered; they are listed when it ends.
//!
//! It stops deliveries only: detection does not know of silences, so a replay is not changed by them.

use globset::{GlobBuilder, GlobMatcher};
use serde::{Deserialize, Serialize};

use crate::model::{
    alert::Alert,
    name::{SilenceId, SourceName},
    time::Timestamp,
};

/// Which alerts are not delivered, and until when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    /// Its number.
    pub id: SilenceId,
    /// Rule ids with `*`.
    pub rule: String,
    /// Part of the actor's name, email address or IP address, whatever the case of its letters; absent: every actor.
    pub actor: Option<String>,
    /// The source; absent: every source.
    pub source: Option<SourceName>,
    /// Since when.
    pub from: Timestamp,
    /// Until when.
    pub until: Timestamp,
    /// Who made it.
    pub author: String,
    /// Why.
    pub comment: Option<String>,
    /// Alerts it kept from being delivered.
    pub silenced: u64,
    /// When it ended: by itself, or because somebody ended it.
    pub ended: Option<Timestamp>,
}

/// What a silence shall cover, as a person asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewSilence {
    /// Rule ids with `*`.
    pub rule: String,
    /// See [`Silence::actor`].
    pub actor: Option<String>,
    /// See [`Silence::source`].
    pub source: Option<SourceName>,
    /// Until when.
    pub until: Timestamp,
    /// Who asks.
    pub author: String,
    /// Why.
    pub comment: Option<String>,
}

/// A pattern of rule ids: `*` stands for any text.
pub fn rule_pattern(text: &str) -> Result<GlobMatcher, String> {
    GlobBuilder::new(text)
        .literal_separator(false)
        .build()
        .map(|glob| glob.compile_matcher())
        .map_err(|error| format!("`{text}` is not a pattern: {}", error.kind()))
}

impl Silence {
    /// Whether it covers an alert at `now`.
    pub fn covers(&self, alert: &Alert, now: Timestamp) -> bool {
        self.ended.is_none()
            && self.from <= now
            && now < self.until
            && self.source.as_ref().is_none_or(|source| alert.source.as_ref() == Some(source))
            && self.actor.as_deref().is_none_or(|actor| alert.evidence.mentions(actor))
            && rule_pattern(&self.rule).is_ok_and(|pattern| pattern.is_match(alert.rule.as_str()))
    }
}
