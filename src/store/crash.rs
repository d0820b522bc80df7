//! What is known of deaths of the agent's process: what is suspected of them, and what no longer runs because of them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Reader, Store, StoreError, key, value};
use crate::model::{
    name::{RuleId, Sequence},
    time::Timestamp,
};

/// What may have ended the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Suspect {
    /// A rule, as it was compiled.
    Rule {
        /// Its id.
        rule: RuleId,
        /// Its hash.
        hash: String,
    },
    /// A file, while it was loaded.
    File {
        /// Where it is.
        file: PathBuf,
        /// The hash of its text.
        hash: String,
    },
}

/// Something that ended the process twice, and does not run any more as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspended {
    /// What it is.
    pub suspect: Suspect,
    /// When that was noticed.
    pub since: Timestamp,
    /// The event that a rule was evaluated on.
    pub event: Option<Sequence>,
}

/// What is known of the deaths of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrashRecord {
    /// What was running when it died, alone or with others.
    pub suspects: Vec<Suspect>,
    /// Events that were being evaluated when it died.
    pub events: Vec<Sequence>,
    /// What does not run any more.
    pub suspended: Vec<Suspended>,
}

impl Store {
    /// Saves what is known of the deaths of the process.
    pub fn save_crashes(&self, record: &CrashRecord) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        batch.insert(key::CRASHES, value::to_json(record)?);
        self.write(batch)
    }
}

impl Reader {
    /// What is known of the deaths of the process.
    pub fn crashes(&self) -> Result<CrashRecord, StoreError> {
        let bytes = self.tree().get(key::CRASHES)?;
        Ok(bytes.map(|bytes| value::from_json("a record of crashes", &bytes)).transpose()?.unwrap_or_default())
    }
}
