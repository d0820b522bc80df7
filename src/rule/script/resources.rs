//! What a rule can access besides its event: importable files, named lists, address databases. It is a snapshot made
//! with the rule set, so that a rule sees the same data from one event to the next until the next load.

use std::sync::Arc;

use crate::rule::script::{import::Imports, lists::Lists, places::Geo};

/// The resources of the rules of one load.
#[derive(Debug, Default)]
pub(in crate::rule) struct Resources {
    pub(in crate::rule) imports: Imports,
    pub(in crate::rule) lists: Lists,
    pub(in crate::rule) geo: Arc<Geo>,
}
