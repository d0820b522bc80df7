//! A compiled rule: its script, its metadata, and what was derived from both.

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

/// The function that is called with the key and the event when an expectation is not met.
pub const EXPIRED: &str = "expired";

/// The kind of a rule, which depends on the functions in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleKind {
    /// `fn rule(event)`: runs on events.
    Detection,
    /// `fn check(source)`: runs on a timer, once for each source.
    CheckSource,
    /// `fn check_agent(agent)`: runs on a timer.
    CheckAgent,
}

/// A compiled rule.
#[derive(Debug, Clone)]
pub struct CompiledRule {
    /// The contents of `RULE`.
    pub metadata: Metadata,
    /// What the rule runs on.
    pub kind: RuleKind,
    /// The rule's file.
    pub file: PathBuf,
    /// Hash of everything that the rule was compiled from: its text, its imports, its parameters.
    pub hash: String,
    pub(in crate::rule) ast: AST,
    /// Source positions of the metadata.
    pub(in crate::rule) places: Places,
    /// What the rule reads besides its event.
    pub(in crate::rule) reads: Reads,
    /// What its calls can access.
    pub(in crate::rule) running: Arc<CurrentRun>,
    /// Whether it imports files: then its top level runs before each call, so that its functions see the modules.
    pub(in crate::rule) imports: bool,
    /// The conditions that `fn rule` starts with, as far as they are supported.
    pub(in crate::rule) conditions: Conditions,
    /// Whether it calls memory functions.
    pub remembers: bool,
    /// Whether it may use a memory that other rules also use.
    pub(in crate::rule) shares: bool,
    /// How far it looks back: the longest of its windows, its dedup period, and any duration in its script.
    pub reach: Duration,
    /// Whether it has `fn expired(key, event)`, for expectations that are not met.
    pub expires: bool,
    /// Whether it assigns to a property or an index anywhere: it then gets its own copy of the event (see `view`).
    pub assigns_properties: bool,
    pub(in crate::rule) functions: Vec<String>,
    /// The cost of its calls since it was compiled.
    pub cost: Cost,
}

impl CompiledRule {
    /// The rule's id.
    pub fn id(&self) -> &RuleId {
        &self.metadata.id
    }

    /// Whether it runs on the matches of another rule. Only shadow rules see the matches of a shadow rule: it must
    /// not lead to alerts before it is trusted.
    pub fn listens_to(&self, other: &Metadata) -> bool {
        let selects = |selectors: &Vec<Selector>| selectors.iter().any(|selector| selector.selects(other));
        self.metadata.on.as_ref().is_some_and(selects)
            && (other.stage != Stage::Shadow || self.metadata.stage == Stage::Shadow)
    }

    /// The source text that was compiled.
    pub fn text(&self) -> Option<Arc<str>> {
        self.running.resources.imports.text(&self.file)
    }

    /// The lists that it can use.
    pub(in crate::rule) fn lists(&self) -> &Lists {
        &self.running.resources.lists
    }

    /// Content hashes of the address databases that it can use.
    pub(in crate::rule) fn places(&self) -> &[blake3::Hash] {
        self.running.resources.geo.hashes()
    }

    /// Whether it may use named lists.
    pub fn looks_into_lists(&self) -> bool {
        self.reads.lists.is_any_read()
    }

    /// Whether the file has this function.
    pub fn has(&self, function: &str) -> bool {
        self.functions.iter().any(|found| found == function)
    }
}
