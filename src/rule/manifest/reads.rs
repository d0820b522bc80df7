//! What a rule or an exception reads in addition to its event and its own files.

use std::collections::BTreeSet;

/// What a rule reads in addition to its event and its own files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::rule) struct Reads {
    /// The named lists that it reads.
    pub(in crate::rule) lists: ReadLists,
    /// Whether it reads the organizations' action lists.
    pub(in crate::rule) catalog: bool,
    /// Whether it reads the address databases.
    pub(in crate::rule) geo: bool,
}

/// The named lists that a rule reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::rule) enum ReadLists {
    /// The lists with these names.
    Named(BTreeSet<String>),
    /// Possibly any list, because a name is not a literal.
    Any,
}

impl Default for ReadLists {
    fn default() -> Self {
        Self::Named(BTreeSet::new())
    }
}

impl ReadLists {
    /// Whether it may read any list at all.
    pub(in crate::rule) fn is_any_read(&self) -> bool {
        match self {
            Self::Named(names) => !names.is_empty(),
            Self::Any => true,
        }
    }

    /// Adds a list; `None` if its name is not a literal.
    pub(in crate::rule) fn add(&mut self, name: Option<&str>) {
        match (self, name) {
            (Self::Named(names), Some(name)) => drop(names.insert(name.to_owned())),
            (lists, None) => *lists = Self::Any,
            (Self::Any, Some(_)) => {}
        }
    }
}
