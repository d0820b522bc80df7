//! What a rule can reach beside its event: the files it may import, named lists, address databases. A snapshot, made with the
//! rule set, so that a rule sees the same from one event to the next until the next load.

use std::sync::Arc;

use super::{import::Imports, lists::Lists, places::Geo};

/// What the rules of one load can reach.
#[derive(Debug, Default)]
pub(super) struct Resources {
    pub(super) imports: Imports,
    pub(super) lists: Lists,
    pub(super) geo: Arc<Geo>,
}
