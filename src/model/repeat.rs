//! Telling of what lasts: the first time, then at 10, 100, … times, so that an outage is a few lines and never silent.

/// Counts something that happens again and again.
#[derive(Debug, Clone, Copy, Default)]
pub struct Repeats(u64);

impl Repeats {
    /// It happened again: how often by now, where that is worth a line.
    pub fn again(&mut self) -> Option<u64> {
        self.0 = self.0.saturating_add(1);
        is_worth_telling(self.0).then_some(self.0)
    }

    /// It is over: the next time is the first again.
    pub fn over(&mut self) {
        self.0 = 0;
    }
}

/// Whether something is told of that has happened so often: once, 10, 100, … times.
pub fn is_worth_telling(times: u64) -> bool {
    times > 0 && 10_u64.pow(times.ilog10()) == times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ever_more_rarely() {
        let mut repeats = Repeats::default();
        let told: Vec<u64> = (0..2_000).filter_map(|_| repeats.again()).collect();
        assert_eq!(told, [1, 10, 100, 1_000]);
        repeats.over();
        assert_eq!(repeats.again(), Some(1));
        assert!(!is_worth_telling(0) && !is_worth_telling(u64::MAX));
    }
}
