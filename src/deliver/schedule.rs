//! When deliveries are due.

use std::time::Duration;

use crate::model::time::{self, Timestamp};

pub(super) const FIRST_RETRY: Duration = Duration::from_secs(2);
const LONGEST_RETRY: Duration = Duration::from_secs(10 * 60);
/// The period of `rate`, and the longest that a destination may ask to wait.
pub(super) const HOUR: Duration = Duration::from_secs(3_600);

/// When to check the outbox again if no signal comes first.
pub(super) type Again = Option<Timestamp>;

/// What sending deliveries one by one came to.
#[derive(Default)]
pub(super) struct Sending {
    /// The earliest time at which one of those that were skipped may be sent.
    pub(super) again: Again,
    pub(super) end: End,
}

/// Why sending one by one ended.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// There is nothing more to try now.
    #[default]
    Done,
    /// A summary has to be sent first.
    Summary,
    /// The destination fails.
    Failing,
}

/// The wait after `failures` failures and one more.
pub(super) fn backoff(failures: u32) -> Duration {
    FIRST_RETRY.saturating_mul(2_u32.saturating_pow(failures.min(20))).min(LONGEST_RETRY)
}

/// When something may be done that is due at `due`; `None` if now. No wait is longer than an hour: what is due later was
/// set while the clock was ahead.
pub(super) fn not_before(due: Timestamp, now: Timestamp) -> Option<Timestamp> {
    (due > now && time::since(due, now) <= HOUR).then_some(due)
}

pub(super) fn earliest(again: Again, due: Timestamp) -> Again {
    Some(again.map_or(due, |again| again.min(due)))
}
