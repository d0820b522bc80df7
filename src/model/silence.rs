//! Silences: for a period, matching alerts are recorded and counted but not delivered. They are listed when the silence
//! ends.
//!
//! A silence affects deliveries only. Detection does not know about silences, so they do not change a replay.

use crate::model::pattern;
use globset::GlobMatcher;
use serde::{Deserialize, Serialize};

use crate::model::{
    alert::Alert,
    name::{SilenceId, SourceName},
    time::Timestamp,
};

/// A silence: which alerts are not delivered, and until when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    /// The number of the silence.
    pub id: SilenceId,
    /// A pattern of rule ids, in which `*` matches any text.
    pub rule: String,
    /// Part of the actor's name, email address or IP address, ignoring case; absent: every actor.
    pub actor: Option<String>,
    /// The source; absent: every source.
    pub source: Option<SourceName>,
    /// When the silence starts.
    pub from: Timestamp,
    /// When the silence expires.
    pub until: Timestamp,
    /// Who created it.
    pub author: String,
    /// Why it was created.
    pub comment: Option<String>,
    /// The number of alerts that it kept from being delivered.
    pub silenced: u64,
    /// When it ended, because it expired or a user ended it.
    pub ended: Option<Timestamp>,
}

/// A silence that a user asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewSilence {
    /// A pattern of rule ids, in which `*` matches any text.
    pub rule: String,
    /// See [`Silence::actor`].
    pub actor: Option<String>,
    /// See [`Silence::source`].
    pub source: Option<SourceName>,
    /// When the silence expires.
    pub until: Timestamp,
    /// Who creates it.
    pub author: String,
    /// Why it is created.
    pub comment: Option<String>,
}

/// Compiles a pattern of rule ids, in which `*` matches any text.
pub fn rule_pattern(text: &str) -> Result<GlobMatcher, String> {
    pattern::glob(text).map(|glob| glob.compile_matcher())
}

impl Silence {
    /// Returns true if the silence applies to an alert at `now`.
    pub fn covers(&self, alert: &Alert, now: Timestamp) -> bool {
        self.ended.is_none()
            && self.from <= now
            && now < self.until
            && self.source.as_ref().is_none_or(|source| alert.source.as_ref() == Some(source))
            && self.actor.as_deref().is_none_or(|actor| alert.evidence.mentions(actor))
            && rule_pattern(&self.rule).is_ok_and(|pattern| pattern.is_match(alert.rule.as_str()))
    }
}
