//! How sure a fact is that Atlassian has not written down.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// How sure something is that Atlassian has not written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Certainty {
    /// Seen in a real event.
    Verified,
    /// In a vendor's sample, or in a public data model.
    Sample,
    /// Atlassian documents the activity by its name; its id is not known.
    Documented,
    /// Nobody says so: it is likely.
    Assumed,
}

impl Certainty {
    /// All of them, the surest first.
    pub const ALL: [Self; 4] = [Self::Verified, Self::Sample, Self::Documented, Self::Assumed];

    /// Its name.
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
        let found = Self::ALL.into_iter().find(|certainty| certainty.as_str() == text);
        found.ok_or_else(|| format!("`{text}` is none of `{}`", Self::ALL.map(Self::as_str).join("`, `")))
    }
}
