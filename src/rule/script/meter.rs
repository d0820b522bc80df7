//! Measures what a call of a rule's function uses: operations, time, memory.
//!
//! Operations are the budget, because they are the same on every machine. They are counted here and not by Rhai,
//! which does not count the operations of functions called by its own functions, such as the closure of `map`. Time
//! and memory are safety nets for what operations do not cover. A call that has exceeded a limit cannot continue,
//! even if the rule catches the error.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::rule::manifest::problem::Exceeded;

/// The clock is read once per this many operations, because reading it costs more than most of them.
const LOOK_AT_CLOCK: u64 = 64;
/// The same for memory.
const LOOK_AT_MEMORY: u64 = 256;
/// A single copy that costs this many operations is also checked for memory.
const LARGE: u64 = 16;
/// Maximum growth of the process during a call, in bytes. Other threads may cause much of it; no realistic rule comes
/// close.
const MAX_GROWTH: u64 = 256 * 1024 * 1024;

/// Limits of one call of a rule's function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of operations: the budget.
    pub operations: u64,
    /// Maximum wall-clock time: the safety net.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { operations: 500_000, time: Duration::from_secs(1) }
    }
}

/// Measures consecutive calls on one thread.
#[derive(Debug)]
pub(in crate::rule) struct Meter {
    budget: u64,
    started: Instant,
    /// End of the call, in nanoseconds after `started`; 0 for no limit.
    deadline: AtomicU64,
    operations: AtomicU64,
    /// The [`Exceeded`] limit; 0 for none.
    exceeded: AtomicU8,
    /// The file in which the system reports the memory of the process, if there is one.
    memory: Option<File>,
    /// Memory of the process at the first check of this call, in bytes; 0 if not yet checked.
    memory_before: AtomicU64,
}

impl Meter {
    pub(in crate::rule) fn new(limits: &Limits) -> Self {
        Self {
            budget: limits.operations,
            started: Instant::now(),
            deadline: AtomicU64::new(0),
            operations: AtomicU64::new(0),
            exceeded: AtomicU8::new(0),
            memory: File::open("/proc/self/statm").ok(),
            memory_before: AtomicU64::new(0),
        }
    }

    /// Begins a call with this time limit and returns its start time.
    pub(in crate::rule) fn begin(&self, limit: Duration) -> Duration {
        let now = self.started.elapsed();
        let end = now.saturating_add(limit);
        self.deadline.store(u64::try_from(end.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        self.operations.store(0, Relaxed);
        self.exceeded.store(0, Relaxed);
        self.memory_before.store(0, Relaxed);
        now
    }

    /// Monotonic time since the meter was created.
    pub(in crate::rule) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Counts one operation; returns the limit that the call has exceeded.
    pub(in crate::rule) fn operation(&self) -> Option<Exceeded> {
        self.charge(1)
    }

    /// Counts several operations at once; returns the limit that the call has exceeded.
    pub(in crate::rule) fn charge(&self, count: u64) -> Option<Exceeded> {
        if count == 0 {
            return self.exceeded();
        }
        // Only one thread counts, so nothing is lost between load and store.
        let before = self.operations.load(Relaxed);
        let operations = before.saturating_add(count);
        self.operations.store(operations, Relaxed);
        if operations > self.budget {
            return self.exceed(Exceeded::Budget);
        }
        let passed = |step: u64| operations / step != before / step;
        if passed(LOOK_AT_CLOCK) {
            self.look_at_clock();
        }
        if (passed(LOOK_AT_MEMORY) || count >= LARGE) && self.grew().is_some_and(|bytes| bytes > MAX_GROWTH) {
            return self.exceed(Exceeded::Memory);
        }
        self.exceeded()
    }

    /// Checks the time limit; returns the limit that the call has exceeded, now or before.
    pub(in crate::rule) fn look_at_clock(&self) -> Option<Exceeded> {
        let deadline = self.deadline.load(Relaxed);
        if deadline > 0 && self.started.elapsed().as_nanos() > u128::from(deadline) {
            return self.exceed(Exceeded::Deadline);
        }
        self.exceeded()
    }

    /// The limit that the call has exceeded, if any.
    pub(in crate::rule) fn exceeded(&self) -> Option<Exceeded> {
        match self.exceeded.load(Relaxed) {
            1 => Some(Exceeded::Budget),
            2 => Some(Exceeded::Deadline),
            3 => Some(Exceeded::Memory),
            _ => None,
        }
    }

    /// Only the first exceeded limit is reported.
    fn exceed(&self, exceeded: Exceeded) -> Option<Exceeded> {
        self.exceeded.compare_exchange(0, exceeded as u8, Relaxed, Relaxed).ok();
        self.exceeded()
    }

    /// Growth of the process since the first check of this call, in bytes.
    fn grew(&self) -> Option<u64> {
        let bytes = self.resident()?;
        let before = self.memory_before.load(Relaxed);
        if before == 0 {
            self.memory_before.store(bytes, Relaxed);
            return None;
        }
        Some(bytes.saturating_sub(before))
    }

    /// Memory in use, in bytes. On Linux, the second number in `statm` is the resident set in pages.
    fn resident(&self) -> Option<u64> {
        let mut text = [0; 128];
        let length = self.memory.as_ref()?.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(text.get(..length)?).ok()?;
        let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
        Some(pages.saturating_mul(rustix::param::page_size() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_exceeded_stays_so_until_the_next_call() {
        let meter = Meter::new(&Limits { operations: 100, time: Duration::from_secs(60) });
        meter.begin(Duration::from_secs(60));
        assert!((0..100).all(|_| meter.operation().is_none()));
        assert_eq!(meter.operation(), Some(Exceeded::Budget));
        assert_eq!(meter.operation(), Some(Exceeded::Budget));
        meter.begin(Duration::from_nanos(1));
        assert_eq!(meter.look_at_clock(), Some(Exceeded::Deadline));
        assert_eq!(meter.operation(), Some(Exceeded::Deadline));
        meter.begin(Duration::from_secs(60));
        assert_eq!(meter.operation(), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_is_seen() {
        let meter = Meter::new(&Limits::default());
        assert!(meter.resident().unwrap() > 1024 * 1024);
    }
}
