//! What calling rules costs, by function: counted as they run, for people to look at.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How often a rule's functions were called, and for how long they ran. For people to look at; detection does not read it.
#[derive(Debug, Default)]
pub struct Cost([FunctionMeter; COUNTED_FUNCTIONS.len()]);

/// What is counted by name, the most frequent first; all else stands under the last.
const COUNTED_FUNCTIONS: [&str; 13] = [
    "rule",
    "title",
    "dedup",
    "severity",
    "unique",
    "expired",
    "description",
    "runbook",
    "reference",
    "context",
    "destinations",
    "exceptions",
    "others",
];

#[derive(Debug, Default)]
struct FunctionMeter {
    calls: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Clone for Cost {
    /// A copy of a rule begins to count anew.
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Cost {
    pub(in crate::rule) fn add(&self, function: &str, time: Duration) {
        let place = COUNTED_FUNCTIONS.iter().position(|known| *known == function);
        if let Some(cost) = place.and_then(|place| self.0.get(place)).or(self.0.last()) {
            cost.calls.fetch_add(1, Ordering::Relaxed);
            cost.nanoseconds.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// Calls of its functions.
    pub fn calls(&self) -> u64 {
        self.by_function().map(|(_, calls, _)| calls).sum()
    }

    /// How long they took.
    pub fn time(&self) -> Duration {
        self.by_function().map(|(_, _, time)| time).sum()
    }

    /// Each function's calls, and how long they took.
    pub fn by_function(&self) -> impl Iterator<Item = (&'static str, u64, Duration)> {
        COUNTED_FUNCTIONS.into_iter().zip(&self.0).map(|(function, cost)| {
            let time = Duration::from_nanos(cost.nanoseconds.load(Ordering::Relaxed));
            (function, cost.calls.load(Ordering::Relaxed), time)
        })
    }
}
