//! What a rule can reach beside its event: the files it may import, named lists, address databases. A snapshot, made with the
//! rule set, so that a rule sees the same from one event to the next until the next load.

use std::sync::Arc;

use crate::rule::script::{import::Imports, lists::Lists, places::Geo};

/// What the rules of one load can reach.
#[derive(Debug, Default)]
pub(in crate::rule) struct Resources {
    pub(in crate::rule) imports: Imports,
    pub(in crate::rule) lists: Lists,
    pub(in crate::rule) geo: Arc<Geo>,
}
