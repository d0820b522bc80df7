//! A rule that can be called: its script, what it says of itself, and what is known of both.

use std::{path::PathBuf, sync::Arc, time::Duration};

use rhai::AST;

use crate::model::name::RuleId;
use crate::rule::{
    manifest::{
        metadata::{Metadata, Places, Stage},
        reads::Reads,
        selector::Selector,
    },
    script::{conditions::Conditions, cost::Cost, host::CurrentRun, lists::Lists},
};

/// The optional functions of a detection rule, each with one parameter.
pub const OPTIONAL_FUNCTIONS: [&str; 9] =
    ["title", "severity", "dedup", "description", "runbook", "reference", "destinations", "context", "unique"];

/// The function that is called when what is expected does not happen, with the key and the event.
pub const EXPIRED: &str = "expired";

/// What a file's functions make of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleKind {
    /// `fn rule(event)`: runs on events.
    Detection,
    /// `fn check(source)`: runs on a timer, once for each source.
    CheckSource,
    /// `fn check_agent(agent)`: runs on a timer.
    CheckAgent,
}

/// A rule that can be called.
#[derive(Debug, Clone)]
pub struct CompiledRule {
    /// What it says about itself.
    pub metadata: Metadata,
    /// What it runs on.
    pub kind: RuleKind,
    /// Its file.
    pub file: PathBuf,
    /// Hash of everything it was made of: its text, what it imports, its parameters.
    pub hash: String,
    pub(in crate::rule) ast: AST,
    /// Where what it says of itself stands in its file.
    pub(in crate::rule) places: Places,
    /// What it reads beside its event.
    pub(in crate::rule) reads: Reads,
    /// What its calls can reach.
    pub(in crate::rule) running: Arc<CurrentRun>,
    /// It imports: its top level runs before each call, so that its functions see the modules.
    pub(in crate::rule) imports: bool,
    /// The conditions that `fn rule` begins with, as far as they are understood.
    pub(in crate::rule) conditions: Conditions,
    /// It calls functions that remember.
    pub remembers: bool,
    /// It may use a memory that other rules use as well.
    pub(in crate::rule) shares: bool,
    /// How far back it looks: its windows, its dedup period, and the longest duration that is written anywhere in it.
    pub reach: Duration,
    /// It has `fn expired(key, event)`, for what is expected and does not happen.
    pub expires: bool,
    /// It assigns to a property or an index somewhere: it is given an event of its own (see `view`).
    pub assigns_properties: bool,
    pub(in crate::rule) functions: Vec<String>,
    /// What calling it has cost since it was compiled.
    pub cost: Cost,
}

impl CompiledRule {
    /// Its id.
    pub fn id(&self) -> &RuleId {
        &self.metadata.id
    }

    /// Whether it runs on the matches of another rule. What a shadow rule finds, only shadow rules hear of: it must not lead to
    /// alerts before it is trusted.
    pub fn listens_to(&self, other: &Metadata) -> bool {
        let selects = |selectors: &Vec<Selector>| selectors.iter().any(|selector| selector.selects(other));
        self.metadata.on.as_ref().is_some_and(selects)
            && (other.stage != Stage::Shadow || self.metadata.stage == Stage::Shadow)
    }

    /// The text of its file, as it was compiled.
    pub fn text(&self) -> Option<Arc<str>> {
        self.running.resources.imports.text(&self.file)
    }

    /// The lists that it can look into.
    pub(in crate::rule) fn lists(&self) -> &Lists {
        &self.running.resources.lists
    }

    /// Hashes of the address databases that it can look into.
    pub(in crate::rule) fn places(&self) -> &[blake3::Hash] {
        self.running.resources.geo.hashes()
    }

    /// Whether it may look into lists.
    pub fn looks_into_lists(&self) -> bool {
        self.reads.lists.is_any_read()
    }

    /// Whether the file has this optional function.
    pub fn has(&self, function: &str) -> bool {
        self.functions.iter().any(|found| found == function)
    }
}
