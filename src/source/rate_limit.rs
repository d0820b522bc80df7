//! Not asking too often: a client-side limit of requests in any minute.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);

/// At most so many requests in any minute.
#[derive(Debug)]
pub struct Pace {
    limit: usize,
    made: VecDeque<Instant>,
}

impl Pace {
    /// A pace of `limit` requests a minute.
    pub fn new(limit: u32) -> Self {
        Self { limit: (limit as usize).max(1), made: VecDeque::new() }
    }

    /// Waits until a request may be made, and counts it. Dropping the future counts nothing.
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
