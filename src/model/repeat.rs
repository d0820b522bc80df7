//! Reports something that lasts at 1, 10, 100, … repetitions, so that an outage logs a few lines but is never silent.

/// Counts the repetitions of something, such as a failure.
#[derive(Debug, Clone, Copy, Default)]
pub struct Repeats(u64);

impl Repeats {
    /// Counts one more repetition. Returns the count if it should be reported.
    pub fn again(&mut self) -> Option<u64> {
        self.0 = self.0.saturating_add(1);
        is_worth_telling(self.0).then_some(self.0)
    }

    /// Resets the count: it has ended, and the next time is the first again.
    pub fn over(&mut self) {
        self.0 = 0;
    }
}

/// Returns true if the repetition with this number should be reported: 1, 10, 100, …
pub fn is_worth_telling(times: u64) -> bool {
    times > 0 && 10_u64.pow(times.ilog10()) == times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_are_reported_less_and_less_often() {
        let mut repeats = Repeats::default();
        let reported: Vec<u64> = (0..2_000).filter_map(|_| repeats.again()).collect();
        assert_eq!(reported, [1, 10, 100, 1_000]);
        repeats.over();
        assert_eq!(repeats.again(), Some(1));
        assert!(!is_worth_telling(0) && !is_worth_telling(u64::MAX));
    }
}
