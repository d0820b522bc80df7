//! Not asking too often: a client-side limit of requests in any minute, and what servers say about waiting.

use std::{collections::VecDeque, time::Duration};

use reqwest::header::HeaderMap;
use tokio::time::Instant;

use crate::time::{self, Timestamp};

const MINUTE: Duration = Duration::from_secs(60);
/// However long a server asks to wait, we look again after this.
const LONGEST_WAIT: Duration = Duration::from_secs(15 * 60);

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

/// How long the answer asks to wait: `Retry-After` or `X-Retry-After` (seconds or an HTTP date), else `X-RateLimit-Reset`
/// (seconds or milliseconds since 1970, or ISO 8601 with or without seconds). All of these were seen or documented.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let wait = ["retry-after", "x-retry-after"]
        .into_iter()
        .filter_map(text)
        .find_map(|value| seconds(value).or_else(|| until(http_date(value)?, now)))
        .or_else(|| until(reset(text("x-ratelimit-reset")?)?, now))?;
    Some(wait.min(LONGEST_WAIT))
}

fn seconds(value: &str) -> Option<Duration> {
    let seconds: f64 = value.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

fn until(time: Timestamp, now: Timestamp) -> Option<Duration> {
    Some(time::since(time, now))
}

fn http_date(value: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::parse(value).ok().map(|zoned| zoned.timestamp())
}

fn reset(value: &str) -> Option<Timestamp> {
    if let Ok(number) = value.parse::<i64>() {
        // Seconds until some day in the year 5138, milliseconds from 1973 on.
        return if number.abs() < 100_000_000_000 {
            Timestamp::from_second(number).ok()
        } else {
            Timestamp::from_millisecond(number).ok()
        };
    }
    time::parse_timestamp(value).or_else(|| {
        // `2026-11-22T08:30Z` or `2026-11-22T08:30+0000`: without seconds.
        let minutes = value.get(..16)?;
        let offset = match value.get(16..)? {
            "" | "Z" | "z" => "Z".to_owned(),
            offset if offset.len() == 5 => format!("{}:{}", offset.get(..3)?, offset.get(3..)?),
            offset => offset.to_owned(),
        };
        time::parse_timestamp(&format!("{minutes}:00{offset}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::{HeaderName, HeaderValue};

    #[test]
    fn every_form_of_asking_to_wait() {
        let now: Timestamp = "2026-11-22T08:30:00Z".parse().unwrap();
        let cases = [
            ("retry-after", "17", 17),
            ("retry-after", "Sun, 22 Nov 2026 08:30:45 GMT", 45),
            ("retry-after", "Sun, 22 Nov 2026 08:29:00 GMT", 0),
            ("x-retry-after", "50", 50),
            ("x-ratelimit-reset", "2026-11-22T08:31Z", 60),
            ("x-ratelimit-reset", "2026-11-22T08:31+0000", 60),
            ("x-ratelimit-reset", "2026-11-22T08:31:30Z", 90),
            ("x-ratelimit-reset", "1795336230", 30),
            ("x-ratelimit-reset", "1795336230000", 30),
            ("retry-after", "99999999", 900),
        ];
        for (name, value, wait) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            assert_eq!(retry_after(&headers, now), Some(Duration::from_secs(wait)), "{name}: {value}");
        }
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", HeaderValue::from_static("soon"));
        assert_eq!(retry_after(&headers, now), None);
    }

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
