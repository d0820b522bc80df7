//! How requests and answers travel: a POST of JSON to `/v1/NAME`, answered with lines of JSON. `docs/control-api.md` is the
//! same for people who write other clients.
//!
//! Each line of an answer is `{"item": …}`, and the last one `{"end": COUNT}` or `{"error": …}`. An answer without a last line
//! was cut off. Empty lines keep the connection alive while the next item takes its time.

use serde::{Deserialize, Serialize};

/// The version of requests and answers. It changes when a client written for an older one would misunderstand something.
pub const API_VERSION: u32 = 1;

/// The header in which client and agent name their version of the API.
pub(super) const API_HEADER: &str = "watchbell-api";

/// The header in which the agent names the version of the program.
pub(super) const PROGRAM_HEADER: &str = "watchbell-version";

/// The path of a request.
pub(super) fn path(name: &str) -> String {
    format!("/v{API_VERSION}/{name}")
}

/// A line of an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line<'a> {
    /// One item.
    #[serde(borrow)]
    Item(&'a serde_json::value::RawValue),
    /// The number of items; nothing follows.
    End(u64),
    /// Why there are no more items.
    Error(WireError),
}

/// Why a request was not answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WireError {
    pub(super) message: String,
    /// The request was wrong, rather than the store.
    pub(super) wrong: bool,
}
