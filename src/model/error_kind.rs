//! The closed list of ways a source or a destination can fail, each with its name and what to do about it.
//!
//! `check` prints them, `status` shows them, and check rules read them (`source.error_kind`).

use serde::{Deserialize, Serialize};

/// Why a source cannot be read or a destination cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// HTTP status 401.
    KeyRefused,
    /// HTTP status 403.
    KeyLacksScope,
    /// HTTP status 404.
    OrganizationNotFound,
    /// HTTP status 429.
    RateLimited,
    /// HTTP status 5xx.
    ServerError,
    /// No response in time.
    Timeout,
    /// The connection failed.
    Unreachable,
    /// The server's certificate is not accepted.
    Untrusted,
    /// The response is not what was requested.
    UnreadableAnswer,
    /// The response exceeds the size limit.
    OversizedAnswer,
    /// A redirect, which is never followed.
    Redirected,
    /// HTTP status 400 or 410 for a cursor.
    CursorRefused,
    /// The server keeps returning the same cursor although there are more events.
    CursorStuck,
    /// A secret that cannot be read.
    SecretMissing,
    /// The local disk failed.
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

    /// What the user can do about it, as a sentence without a final period.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::KeyRefused => {
                "the key is wrong, revoked or expired (keys expire after at most one year): create one at admin.atlassian.com > Settings > API keys and put it where the configuration reads it"
            }
            Self::KeyLacksScope => {
                "the key does not have permission to read this organization's audit log: create a key with the scope `read:events:admin` (or one without scopes) in the organization whose ID is configured; the scopes of a key cannot be changed later"
            }
            Self::OrganizationNotFound => {
                "the organization does not exist, or the key belongs to another one: set `org_id` to the organization ID that admin.atlassian.com shows next to the API key"
            }
            Self::RateLimited => {
                "Atlassian is limiting requests: the agent waits and retries; lower `rate_limit` if other tools use the same key"
            }
            Self::ServerError => "Atlassian has a problem: the agent retries; see status.atlassian.com",
            Self::Timeout => "the request timed out: check the network and any proxy in front of `base_url`",
            Self::Unreachable => "cannot connect: check the network, DNS, the firewall and `base_url`",
            Self::Untrusted => {
                "the server's certificate is not trusted: check the system clock, the certificate store, and whether a proxy intercepts TLS"
            }
            Self::UnreadableAnswer => {
                "the response is not an events page: check `base_url`, and whether a proxy responds instead of Atlassian"
            }
            Self::OversizedAnswer => {
                "the response is larger than 32 MiB, even for a single entry: check `base_url`, and whether a proxy responds instead of Atlassian"
            }
            Self::Redirected => {
                "the server responded with a redirect, which is never followed so that the key is not sent elsewhere: check `base_url`"
            }
            Self::CursorRefused => {
                "the cursor is no longer valid: the agent resumes from the time of the newest event and drops events that it already has"
            }
            Self::CursorStuck => {
                "Atlassian returns the same cursor although there are more events: the agent resumes from the time of the newest event; if this persists, report it to Atlassian"
            }
            Self::SecretMissing => "provide the secret where the configuration expects it",
            Self::StoreFailed => "cannot write to the data directory: check free space and permissions",
        }
    }

    /// Returns true if only a person can fix it, so that frequent retries are pointless.
    pub fn needs_a_person(self) -> bool {
        matches!(self, Self::KeyRefused | Self::KeyLacksScope | Self::OrganizationNotFound | Self::SecretMissing)
    }
}
