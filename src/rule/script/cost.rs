//! The cost of calling rules, counted per function while they run.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Number of calls and total run time of a rule's functions. Shown to people; detection does not read it.
#[derive(Debug, Default)]
pub struct Cost([FunctionMeter; COUNTED_FUNCTIONS.len()]);

/// The functions counted by name, most frequent first; all others count as the last entry.
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
    /// A cloned rule starts counting from zero.
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

    /// The number of calls of all functions.
    pub fn calls(&self) -> u64 {
        self.by_function().map(|(_, calls, _)| calls).sum()
    }

    /// The total run time of all functions.
    pub fn time(&self) -> Duration {
        self.by_function().map(|(_, _, time)| time).sum()
    }

    /// Each function's name, number of calls and total run time.
    pub fn by_function(&self) -> impl Iterator<Item = (&'static str, u64, Duration)> {
        COUNTED_FUNCTIONS.into_iter().zip(&self.0).map(|(function, cost)| {
            let time = Duration::from_nanos(cost.nanoseconds.load(Ordering::Relaxed));
            (function, cost.calls.load(Ordering::Relaxed), time)
        })
    }
}
