//! Client-side rate limit: a maximum number of requests in any minute.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);

/// A sliding-window rate limiter of one minute.
#[derive(Debug)]
pub struct Pace {
    limit: usize,
    made: VecDeque<Instant>,
}

impl Pace {
    /// Creates a limiter of `limit` requests per minute, at least 1.
    pub fn new(limit: u32) -> Self {
        Self { limit: (limit as usize).max(1), made: VecDeque::new() }
    }

    /// Waits until a request is allowed, and counts it. If the future is dropped, nothing is counted.
    pub async fn turn(&mut self) {
        loop {
            let now = Instant::now();
            while self.made.front().is_some_and(|oldest| now.duration_since(*oldest) >= MINUTE) {
                self.made.pop_front();
            }
            match self.made.front() {
                Some(oldest) if self.made.len() >= self.limit => tokio::time::sleep_until(*oldest + MINUTE).await,
                _ => break,
            }
        }
        self.made.push_back(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_minute_holds_no_more_than_the_limit() {
        let mut pace = Pace::new(3);
        let start = Instant::now();
        let mut turns = Vec::new();
        for _ in 0..7 {
            pace.turn().await;
            turns.push(start.elapsed().as_secs());
        }
        assert_eq!(turns, [0, 0, 0, 60, 60, 60, 120]);
    }
}
