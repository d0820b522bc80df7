//! The protocol: a POST of JSON to `/v1/NAME`, answered with lines of JSON. `docs/control-api.md` describes it for
//! authors of other clients.
//!
//! Each line of an answer is `{"item": …}`, and the last one `{"end": COUNT}` or `{"error": …}`. An answer without a
//! last line was cut off. Empty lines keep the connection alive while the next item takes long.

use serde::{Deserialize, Serialize};

/// The version of the protocol. It changes when a client for an older version would misunderstand something.
pub const API_VERSION: u32 = 1;

/// The header in which client and agent send their version of the API.
pub(super) const API_HEADER: &str = "watchbell-api";

/// The header in which the agent sends the version of the program.
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
    /// True if the request was invalid, false if the store failed.
    pub(super) wrong: bool,
}
