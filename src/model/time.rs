//! Points in time, durations as people write them, and the clock for tasks.
//!
//! Detection never reads a clock: it takes the time from events. Everything else asks a [`Clock`], which a test can
//! set.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Span, SpanRelativeTo};

pub use jiff::Timestamp;

/// Parses a time in Atlassian's format: RFC 3339 with or without fractions of a second (both occur). A time without an
/// offset is UTC.
pub fn parse_timestamp(text: &str) -> Option<Timestamp> {
    text.parse::<Timestamp>().ok().or_else(|| {
        let civil = text.parse::<jiff::civil::DateTime>().ok()?;
        civil.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
    })
}

/// Parses a duration as people write it: `30s`, `5m`, `1h30m`, `7d`. Units: ms, s, m, h, d, w.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("`{text}` is not a duration: write a number and a unit, such as `30s`, `5m`, `1h30m` or `7d`");
    if !text.starts_with(|first: char| first.is_ascii_digit()) {
        return Err(wrong());
    }
    let span: Span = text.parse().map_err(|_| wrong())?;
    if span.get_years() != 0 || span.get_months() != 0 {
        return Err(format!("`{text}` uses a unit whose length varies: write days (`d`) or smaller"));
    }
    let signed = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    Duration::try_from(signed).map_err(|_| wrong())
}

/// Formats a duration with at most two units: `7d`, `1h 30m`, `45s`, `0s`.
pub fn show_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds == 0 && duration.as_millis() > 0 {
        return format!("{}ms", duration.as_millis());
    }
    let mut parts = Vec::new();
    let mut rest = seconds;
    for (unit, length) in [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)] {
        let count = rest / length;
        rest %= length;
        if count > 0 {
            parts.push(format!("{count}{unit}"));
        } else if !parts.is_empty() {
            break;
        }
        if parts.len() == 2 {
            break;
        }
    }
    if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
}

/// The time from `earlier` to `later`; zero if `later` is not later.
pub fn since(later: Timestamp, earlier: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or(Duration::ZERO)
}

/// The distance between two times, in either order.
pub fn distance(one: Timestamp, other: Timestamp) -> Duration {
    one.duration_since(other).unsigned_abs()
}

/// `time` minus `duration`, limited to the earliest representable time.
pub fn before(time: Timestamp, duration: Duration) -> Timestamp {
    SignedDuration::try_from(duration)
        .ok()
        .and_then(|duration| time.checked_sub(duration).ok())
        .unwrap_or(Timestamp::MIN)
}

/// `time` plus `duration`, limited to the latest representable time.
pub fn after(time: Timestamp, duration: Duration) -> Timestamp {
    SignedDuration::try_from(duration)
        .ok()
        .and_then(|duration| time.checked_add(duration).ok())
        .unwrap_or(Timestamp::MAX)
}

/// Converts milliseconds since 1970 to a time, limited to the representable range.
pub fn from_millis(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(if millis < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

/// A time given on the command line: RFC 3339, a date (its midnight, UTC), or a duration before now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeArgument {
    /// A fixed point in time.
    At(Timestamp),
    /// This long before now.
    Ago(Duration),
}

impl TimeArgument {
    /// The point in time, given the present time `now`.
    pub fn resolve(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::Ago(duration) => before(now, duration),
        }
    }
}

impl FromStr for TimeArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(time) = parse_timestamp(text) {
            return Ok(Self::At(time));
        }
        if let Ok(date) = text.parse::<jiff::civil::Date>()
            && let Ok(zoned) = date.to_zoned(jiff::tz::TimeZone::UTC)
        {
            return Ok(Self::At(zoned.timestamp()));
        }
        parse_duration(text)
            .map(Self::Ago)
            .map_err(|_| format!("`{text}` is not a time: write `24h`, `7d`, `2026-11-22` or `2026-11-22T08:30:00Z`"))
    }
}

/// Where tasks read the time: the system clock, or a manual clock in tests.
#[derive(Clone)]
pub struct Clock(Inner);

#[derive(Clone)]
enum Inner {
    System,
    Manual(Arc<Mutex<Timestamp>>),
}

impl Clock {
    /// The system clock.
    pub fn system() -> Self {
        Self(Inner::System)
    }

    /// A clock that shows `start` until [`Clock::set`] changes it. Clones share the time.
    pub fn manual(start: Timestamp) -> Self {
        Self(Inner::Manual(Arc::new(Mutex::new(start))))
    }

    /// The present time.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            #[expect(clippy::disallowed_methods, reason = "the only place that reads the system clock")]
            Inner::System => Timestamp::now(),
            Inner::Manual(time) => *time.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Sets a manual clock; no effect on the system clock.
    pub fn set(&self, to: Timestamp) {
        if let Inner::Manual(time) = &self.0 {
            *time.lock().unwrap_or_else(PoisonError::into_inner) = to;
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Clock({})", self.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_parsed_and_formatted() {
        let read = |text| parse_duration(text).map(|duration| duration.as_secs());
        assert_eq!(read("30s"), Ok(30));
        assert_eq!(read("1h30m"), Ok(5_400));
        assert_eq!(read("7d"), Ok(604_800));
        assert_eq!(read("2w"), Ok(1_209_600));
        for wrong in ["", "5", "-5s", "1 moon", "P1D", "1mo"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert_eq!(show_duration(Duration::from_secs(5_400)), "1h 30m");
        assert_eq!(show_duration(Duration::from_secs(604_800)), "7d");
        assert_eq!(show_duration(Duration::from_millis(250)), "250ms");
    }

    #[test]
    fn times_parse_without_fractions_or_offset() {
        let whole = parse_timestamp("2022-05-12T19:13:13Z").unwrap();
        assert_eq!(parse_timestamp("2022-05-12T19:13:13.000Z"), Some(whole));
        assert_eq!(parse_timestamp("2022-05-12T19:13:13"), Some(whole));
        assert_eq!(parse_timestamp("yesterday"), None);
    }
}
