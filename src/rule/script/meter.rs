//! What a call of a rule's function has used: operations, time, memory.
//!
//! Operations are the budget: they are the same on every machine. They are counted here and not by Rhai, which forgets those of
//! functions that its own functions call, such as the closure of `map`. Time and memory are safety nets for what operations do not
//! see. A call that has exceeded a limit goes nowhere any more, whatever it catches.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::rule::manifest::problem::Exceeded;

/// The clock is read once in so many operations: it costs more than most of them.
const LOOK_AT_CLOCK: u64 = 64;
/// The same for memory.
const LOOK_AT_MEMORY: u64 = 256;
/// What is copied is looked at as well: a copy that costs so many operations.
const LARGE: u64 = 16;
/// How much the process may grow during a call, in bytes. Much of it may be others' doing; no rule in earnest comes near it.
const MAX_GROWTH: u64 = 256 * 1024 * 1024;

/// What one call of a rule's function may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Operations: the budget.
    pub operations: u64,
    /// Wall-clock time: the safety net.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { operations: 500_000, time: Duration::from_secs(1) }
    }
}

/// Measures one call after another on one thread.
#[derive(Debug)]
pub(in crate::rule) struct Meter {
    budget: u64,
    started: Instant,
    /// Nanoseconds after `started` at which the call must end; 0: no limit.
    deadline: AtomicU64,
    operations: AtomicU64,
    /// The [`Exceeded`] limit; 0: none.
    exceeded: AtomicU8,
    /// How the system says what the process takes, where it does.
    memory: Option<File>,
    /// What the process took when this call was first looked at, in bytes; 0: not yet.
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

    /// Begins a call that may take so long; returns when that was.
    pub(in crate::rule) fn begin(&self, limit: Duration) -> Duration {
        let now = self.started.elapsed();
        let end = now.saturating_add(limit);
        self.deadline.store(u64::try_from(end.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        self.operations.store(0, Relaxed);
        self.exceeded.store(0, Relaxed);
        self.memory_before.store(0, Relaxed);
        now
    }

    /// The time that has passed since the first call, by a clock that only goes on.
    pub(in crate::rule) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Counts an operation; says whether the call must end.
    pub(in crate::rule) fn operation(&self) -> Option<Exceeded> {
        self.charge(1)
    }

    /// Counts operations at once; says whether the call must end.
    pub(in crate::rule) fn charge(&self, count: u64) -> Option<Exceeded> {
        if count == 0 {
            return self.exceeded();
        }
        // One thread counts: nothing is lost between the two.
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

    /// Whether the call has taken longer than it may, or had exceeded a limit before.
    pub(in crate::rule) fn look_at_clock(&self) -> Option<Exceeded> {
        let deadline = self.deadline.load(Relaxed);
        if deadline > 0 && self.started.elapsed().as_nanos() > u128::from(deadline) {
            return self.exceed(Exceeded::Deadline);
        }
        self.exceeded()
    }

    /// The limit that the call has exceeded.
    pub(in crate::rule) fn exceeded(&self) -> Option<Exceeded> {
        match self.exceeded.load(Relaxed) {
            1 => Some(Exceeded::Budget),
            2 => Some(Exceeded::Deadline),
            3 => Some(Exceeded::Memory),
            _ => None,
        }
    }

    /// The first limit that was exceeded is what is told.
    fn exceed(&self, exceeded: Exceeded) -> Option<Exceeded> {
        self.exceeded.compare_exchange(0, exceeded as u8, Relaxed, Relaxed).ok();
        self.exceeded()
    }

    /// By how many bytes the process has grown since the call was first looked at.
    fn grew(&self) -> Option<u64> {
        let bytes = self.resident()?;
        let before = self.memory_before.load(Relaxed);
        if before == 0 {
            self.memory_before.store(bytes, Relaxed);
            return None;
        }
        Some(bytes.saturating_sub(before))
    }

    /// Linux: the second number of `statm` is the resident set, in pages.
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
