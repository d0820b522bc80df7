//! How certain a fact is that Atlassian does not document.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// How certain a fact is that Atlassian does not document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Certainty {
    /// Seen in a real event.
    Verified,
    /// Found in a vendor's sample or in a public data model.
    Sample,
    /// Atlassian documents the activity by its name, but not its id.
    Documented,
    /// Likely, but without a source.
    Assumed,
}

impl Certainty {
    /// All levels, the most certain first.
    pub const ALL: [Self; 4] = [Self::Verified, Self::Sample, Self::Documented, Self::Assumed];

    /// The name in JSON and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Sample => "sample",
            Self::Documented => "documented",
            Self::Assumed => "assumed",
        }
    }
}

impl fmt::Display for Certainty {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

impl FromStr for Certainty {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let certainty = Self::ALL.into_iter().find(|certainty| certainty.as_str() == text);
        certainty.ok_or_else(|| format!("`{text}` is not one of `{}`", Self::ALL.map(Self::as_str).join("`, `")))
    }
}
