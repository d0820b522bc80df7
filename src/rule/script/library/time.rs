//! Times as in events (RFC 3339 strings), time zones, durations.

use std::time::Duration;

use jiff::{Timestamp, Zoned, civil, tz::TimeZone};
use rhai::Dynamic;

use super::{HostFunction, Returned, Topic, argument, first, given, may, needs, or_unit};
use crate::rule::manifest::value::data;
use crate::{model::time, rule::script::host::Call};

pub(super) const TOPIC: Topic = Topic {
    title: "Times",
    about: "`event.time` is a string in UTC, such as `2026-03-01T12:00:00Z`. A rule cannot read the clock. Time \
            zones are names from the IANA database (`Europe/Berlin`), which is built in; the default is UTC. \
            Durations are strings such as `30s`, `1h30m`, `7d`.",
    functions: FUNCTIONS,
};

const FUNCTIONS: &[HostFunction] = &[
    HostFunction {
        name: "hour",
        parameters: &[needs("time", "string"), may("zone", "string")],
        gives: "a number, or `()`",
        about: "Get the hour of the day, 0 to 23.",
        examples: &[("hour(event.time)", "12"), (r#"hour(event.time, "Asia/Tokyo")"#, "21"), ("hour(())", "()")],
        errors: "the time zone is unknown",
        run: hour,
    },
    HostFunction {
        name: "weekday",
        parameters: &[needs("time", "string"), may("zone", "string")],
        gives: "a string, or `()`",
        about: "Get the day of the week, `monday` to `sunday`.",
        examples: &[("weekday(event.time)", r#""sunday""#), (r#"weekday("?")"#, "()")],
        errors: "the time zone is unknown",
        run: weekday,
    },
    HostFunction {
        name: "within",
        parameters: &[needs("time", "string"), needs("span", "string"), may("zone", "string")],
        gives: "true or false",
        about: "Test whether the time of day is within a span; the end is exclusive. A span may cross midnight, and \
                may be limited to days of the week: the days on which it begins.",
        examples: &[
            (r#"within(event.time, "09:00-18:00")"#, "true"),
            (r#"within(event.time, "22:00-06:00", "Asia/Tokyo")"#, "false"),
            (r#"within(event.time, "mon-fri 09:00-18:00")"#, "false"),
        ],
        errors: "the span is invalid, or the time zone is unknown",
        run: within,
    },
    HostFunction {
        name: "parse_time",
        parameters: &[needs("text", "string")],
        gives: "a number, or `()`",
        about: "Convert a time to seconds since 1970-01-01T00:00:00Z.",
        examples: &[(r#"parse_time("1970-01-02T00:00:00Z")"#, "86400"), (r#"parse_time("soon")"#, "()")],
        errors: "",
        run: parse_time,
    },
    HostFunction {
        name: "seconds_between",
        parameters: &[needs("earlier", "string"), needs("later", "string")],
        gives: "a number, or `()`",
        about: "Get the seconds from one time to another; negative if the first one is later.",
        examples: &[(r#"seconds_between("2026-03-01T11:59:00Z", event.time)"#, "60")],
        errors: "",
        run: seconds_between,
    },
    HostFunction {
        name: "time_plus",
        parameters: &[needs("time", "string"), needs("duration", "string")],
        gives: "a string, or `()`",
        about: "Add a duration to a time; use `-1h` for an earlier time.",
        examples: &[
            (r#"time_plus(event.time, "1h30m")"#, r#""2026-03-01T13:30:00Z""#),
            (r#"time_plus(event.time, "-1d")"#, r#""2026-02-28T12:00:00Z""#),
        ],
        errors: "the duration is invalid",
        run: time_plus,
    },
    HostFunction {
        name: "duration",
        parameters: &[needs("text", "string")],
        gives: "a number, or `()`",
        about: "Convert a duration to seconds.",
        examples: &[(r#"duration("1h30m")"#, "5400")],
        errors: "the duration is invalid",
        run: duration,
    },
    HostFunction {
        name: "duration_text",
        parameters: &[needs("seconds", "number")],
        gives: "a string, or `()`",
        about: "Format seconds as a duration for people.",
        examples: &[("duration_text(5400)", r#""1h 30m""#)],
        errors: "",
        run: duration_text,
    },
];

fn time_of(value: &Dynamic) -> Option<Timestamp> {
    data(value).and_then(|text| time::parse_timestamp(&text))
}

/// The time in the zone given by the argument, by default UTC.
fn zoned(arguments: &[&Dynamic], zone: usize) -> Result<Option<Zoned>, String> {
    let zone = match argument(arguments, zone) {
        Some(value) => given(value, "the time zone")?,
        None => None,
    };
    let zone = match zone {
        Some(name) => TimeZone::get(&name)
            .map_err(|_| format!("unknown time zone `{name}`: expected a name such as `Europe/Berlin` or `UTC`"))?,
        None => TimeZone::UTC,
    };
    Ok(time_of(first(arguments, 0)).map(|time| time.to_zoned(zone)))
}

fn hour(_: &Call, arguments: &[&Dynamic]) -> Returned {
    Ok(or_unit(zoned(arguments, 1)?.map(|time| i64::from(time.hour()))))
}

const DAYS: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

fn day(time: &Zoned) -> usize {
    usize::try_from(time.weekday().to_monday_zero_offset()).unwrap_or(0)
}

fn weekday(_: &Call, arguments: &[&Dynamic]) -> Returned {
    Ok(or_unit(zoned(arguments, 1)?.and_then(|time| DAYS.get(day(&time)).map(|name| (*name).to_owned()))))
}

fn within(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let Some(span) = given(first(arguments, 1), "the span")? else {
        return Ok(false.into());
    };
    let (days, from, to) = parse_span(&span)
        .ok_or_else(|| format!("invalid span `{span}`: expected `09:00-18:00` or `mon-fri 09:00-18:00`"))?;
    let Some(time) = zoned(arguments, 2)? else {
        return Ok(false.into());
    };
    let now = time.time();
    let day = day(&time);
    let on = |day: usize| match days {
        None => true,
        Some((begin, end)) if begin <= end => (begin..=end).contains(&day),
        Some((begin, end)) => day >= begin || day <= end,
    };
    Ok(if from <= to {
        on(day) && now >= from && now < to
    } else {
        // Across midnight: the early hours belong to the day on which the span begins.
        (on(day) && now >= from) || (on((day + 6) % 7) && now < to)
    }
    .into())
}

type Span = (Option<(usize, usize)>, civil::Time, civil::Time);

fn parse_span(text: &str) -> Option<Span> {
    let (days, times) = match text.trim().rsplit_once(' ') {
        Some((days, times)) => (Some(days.trim()), times),
        None => (None, text.trim()),
    };
    let day = |name: &str| {
        let name = name.trim().to_lowercase();
        (name.len() >= 3).then(|| DAYS.iter().position(|day| day.starts_with(&name))).flatten()
    };
    let days = match days {
        None => None,
        Some(days) => Some(match days.split_once('-') {
            Some((begin, end)) => (day(begin)?, day(end)?),
            None => (day(days)?, day(days)?),
        }),
    };
    let clock = |text: &str| {
        let (hour, minute) = text.trim().split_once(':')?;
        match (hour.parse::<i8>().ok()?, minute.parse::<i8>().ok()?) {
            // The end of the day. This excludes its last nanosecond, because the end of a span is exclusive.
            (24, 0) => Some(civil::Time::MAX),
            (hour, minute) => civil::Time::new(hour, minute, 0, 0).ok(),
        }
    };
    let (from, to) = times.split_once('-')?;
    Some((days, clock(from)?, clock(to)?))
}

fn parse_time(_: &Call, arguments: &[&Dynamic]) -> Returned {
    Ok(or_unit(time_of(first(arguments, 0)).map(Timestamp::as_second)))
}

fn seconds_between(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let (earlier, later) = (time_of(first(arguments, 0)), time_of(first(arguments, 1)));
    Ok(or_unit(earlier.zip(later).map(|(earlier, later)| later.duration_since(earlier).as_secs())))
}

fn time_plus(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let Some(text) = given(first(arguments, 1), "the duration")? else {
        return Ok(Dynamic::UNIT);
    };
    let (back, length) = text.strip_prefix('-').map_or((false, &*text), |rest| (true, rest));
    let duration = time::parse_duration(length)?;
    let moved = time_of(first(arguments, 0))
        .map(|time| if back { time::before(time, duration) } else { time::after(time, duration) });
    Ok(or_unit(moved.map(|time| time.to_string())))
}

fn duration(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let Some(text) = given(first(arguments, 0), "the duration")? else {
        return Ok(Dynamic::UNIT);
    };
    let seconds = time::parse_duration(&text)?.as_secs();
    Ok(i64::try_from(seconds).unwrap_or(i64::MAX).into())
}

fn duration_text(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let seconds = first(arguments, 0).as_int().ok();
    Ok(or_unit(seconds.map(|seconds| time::show_duration(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))))))
}
