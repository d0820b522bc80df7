//! What a rule, or an exception, reads beside its event and its own files.

use std::collections::BTreeSet;

/// What a rule reads that is neither its event nor written in its files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::rule) struct Reads {
    /// Named lists.
    pub(in crate::rule) lists: ReadLists,
    /// What organizations say of actions.
    pub(in crate::rule) catalog: bool,
    /// Address databases.
    pub(in crate::rule) geo: bool,
}

/// The named lists that a rule looks into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::rule) enum ReadLists {
    /// These.
    Named(BTreeSet<String>),
    /// The tree does not say which.
    Any,
}

impl Default for ReadLists {
    fn default() -> Self {
        Self::Named(BTreeSet::new())
    }
}

impl ReadLists {
    /// Whether it may look into any.
    pub(in crate::rule) fn is_any_read(&self) -> bool {
        match self {
            Self::Named(names) => !names.is_empty(),
            Self::Any => true,
        }
    }

    /// Adds a list; `None` for one that the tree does not name.
    pub(in crate::rule) fn add(&mut self, name: Option<&str>) {
        match (self, name) {
            (Self::Named(names), Some(name)) => drop(names.insert(name.to_owned())),
            (lists, None) => *lists = Self::Any,
            (Self::Any, Some(_)) => {}
        }
    }
}
