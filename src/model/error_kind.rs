//! The closed list of ways a source or a destination can be unwell, each with its name, what it means, and what to do.
//!
//! `check` prints them, `status` shows them, and check rules read them (`source.error_kind`).

use serde::{Deserialize, Serialize};

/// What keeps a source from being read, or a destination from being reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// 401.
    KeyRefused,
    /// 403.
    KeyLacksScope,
    /// 404.
    OrganizationNotFound,
    /// 429.
    RateLimited,
    /// 5xx.
    ServerError,
    /// No answer in time.
    Timeout,
    /// No connection.
    Unreachable,
    /// The certificate is not accepted.
    Untrusted,
    /// An answer that is not what was asked for.
    UnreadableAnswer,
    /// An answer larger than is accepted.
    OversizedAnswer,
    /// A redirect, which is never followed.
    Redirected,
    /// 400 or 410 for a cursor.
    CursorRefused,
    /// The same cursor again and again, with events behind it.
    CursorStuck,
    /// A secret that cannot be read.
    SecretMissing,
    /// Our own disk.
    StoreFailed,
}

impl ErrorKind {
    /// The name in records, logs and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::KeyRefused => "key_refused",
            Self::KeyLacksScope => "key_lacks_scope",
            Self::OrganizationNotFound => "organization_not_found",
            Self::RateLimited => "rate_limited",
            Self::ServerError => "server_error",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Untrusted => "untrusted",
            Self::UnreadableAnswer => "unreadable_answer",
            Self::OversizedAnswer => "oversized_answer",
            Self::Redirected => "redirected",
            Self::CursorRefused => "cursor_refused",
            Self::CursorStuck => "cursor_stuck",
            Self::SecretMissing => "secret_missing",
            Self::StoreFailed => "store_failed",
        }
    }

    /// What the reader can do about it.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::KeyRefused => {
                "the key is wrong, revoked or expired (keys live a year at most): create one at admin.atlassian.com > Settings > API keys and put it where the configuration reads it"
            }
            Self::KeyLacksScope => {
                "the key may not read this organization's audit log: create a key with the scope `read:events:admin` (or one without scopes) in the organization whose id is configured; scopes of a key cannot be changed later"
            }
            Self::OrganizationNotFound => {
                "no such organization, or the key belongs to another one: copy the organization ID that admin.atlassian.com shows beside the API key into `org_id`"
            }
            Self::RateLimited => {
                "Atlassian asks to slow down: the agent waits by itself; lower `rate_limit` if other tools use the same key"
            }
            Self::ServerError => "Atlassian has a problem: the agent tries again by itself; see status.atlassian.com",
            Self::Timeout => "no answer in time: check the network and any proxy between here and `base_url`",
            Self::Unreachable => "no connection: check the network, DNS, the firewall and `base_url`",
            Self::Untrusted => {
                "the server's certificate is not accepted: check the machine's clock, its certificate store, and whether a proxy intercepts TLS"
            }
            Self::UnreadableAnswer => {
                "the answer is not an events page: check `base_url`, and whether a proxy answers in Atlassian's place"
            }
            Self::OversizedAnswer => {
                "the answer is larger than 32 MiB, even for a single entry: check `base_url`, and whether a proxy answers in Atlassian's place"
            }
            Self::Redirected => {
                "the server answered with a redirect, which is never followed, so that the key goes nowhere else: check `base_url`"
            }
            Self::CursorRefused => {
                "the place in the log is no longer valid: the agent goes back to the time of the newest event and drops what it already has"
            }
            Self::CursorStuck => {
                "Atlassian returns the same cursor with events behind it: the agent goes back to the time of the newest event; report it to Atlassian if it stays"
            }
            Self::SecretMissing => "put the secret where the configuration says it is",
            Self::StoreFailed => "the data directory cannot be written: check free space and permissions",
        }
    }

    /// Whether only a person can end it, so that trying often is of no use.
    pub fn needs_a_person(self) -> bool {
        matches!(self, Self::KeyRefused | Self::KeyLacksScope | Self::OrganizationNotFound | Self::SecretMissing)
    }
}
