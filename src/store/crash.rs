//! What is known about crashes of the agent's process: the suspects, and what no longer runs because of them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Reader, Store, StoreError, key, value};
use crate::model::{
    name::{RuleId, Sequence},
    time::Timestamp,
};

/// What may have crashed the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Suspect {
    /// A compiled rule.
    Rule { rule: RuleId, hash: String },
    /// A file that was being loaded.
    File {
        file: PathBuf,
        /// The hash of its text.
        hash: String,
    },
}

/// Something that crashed the process twice, and no longer runs as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspended {
    /// The rule or the file.
    pub suspect: Suspect,
    /// When it was suspended.
    pub since: Timestamp,
    /// The event that the rule was evaluating.
    pub event: Option<Sequence>,
}

/// What is known about crashes of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrashRecord {
    /// What was running when it crashed, alone or with others.
    pub suspects: Vec<Suspect>,
    /// The events that were being evaluated when it crashed.
    pub events: Vec<Sequence>,
    /// What no longer runs.
    pub suspended: Vec<Suspended>,
}

impl Store {
    /// Saves what is known about crashes of the process.
    pub fn save_crashes(&self, record: &CrashRecord) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        batch.insert(key::CRASHES, value::to_json(record)?);
        self.write(batch)
    }
}

impl Reader {
    /// What is known about crashes of the process.
    pub fn crashes(&self) -> Result<CrashRecord, StoreError> {
        let bytes = self.tree().get(key::CRASHES)?;
        Ok(bytes.map(|bytes| value::from_json("a record of crashes", &bytes)).transpose()?.unwrap_or_default())
    }
}
