//! Rule memory: how often, how many distinct values, for the first time, in which order.

use std::time::Duration;

use rhai::{Array, Dynamic, Engine, ImmutableString, Map};

use super::{HostFunction, Returned, Topic, argument, first, given, may, needs};
use crate::rule::manifest::value::data;
use crate::{
    model::time,
    rule::{
        manifest::value::to_json_value,
        script::{
            host::{Call, Remembering},
            view::frozen,
        },
    },
};

pub(super) const TOPIC: Topic = Topic {
    title: "Memory",
    about: "What a rule knows about earlier events, by a key of your choice: an actor, an address, or both. Each \
            rule has its own memory; `common(\"name\")` is a memory that several rules share: \
            `common(\"logins\").count(key, \"10m\")`. Memory survives restarts, is the same in a replay, and uses \
            event time: a late event counts at the time it happened.\n\n\
            An entry is kept until the newest event is twice the entry's window (or lifetime) past it. From then on \
            it is as if it had never been recorded, and an event that arrives even later records nothing. Query with \
            the window that was used to record, or a shorter one. Windows and lifetimes are durations of at most \
            `366d`. `remember` replaces the previous value.\n\n\
            Only `fn rule` writes; in all other functions the same calls only read. Put the calls last in a \
            condition: they are not reached if something before an `&&` is false. An absent key records nothing, and \
            gives 0 or false. A rule may keep 200,000 keys and 64 MiB, in its own memory and in those it shares; \
            beyond that, the entries closest to their end are dropped, and an alert reports it.",
    functions: FUNCTIONS,
};

/// Default lifetime of a country in `new_country`.
pub(crate) const NEW_COUNTRY: Duration = Duration::from_secs(90 * 86_400);

const WINDOW: super::Parameter = needs("window", "duration");

const FUNCTIONS: &[HostFunction] = &[
    HostFunction {
        name: "count",
        parameters: &[needs("key", "string"), WINDOW],
        gives: "a number",
        about: "Record this event under the key, and count the events recorded in the window that ends with it.",
        examples: &[("count(event.actor.email, \"10m\")", "1"), ("count(event.nothing, \"10m\")", "0")],
        errors: "the window is not a valid duration",
        run: count,
    },
    HostFunction {
        name: "counted",
        parameters: &[needs("key", "string"), WINDOW],
        gives: "a number",
        about: "Count the events that `count` recorded under the key in the window that ends with this event, \
                without recording this event.",
        examples: &[
            ("counted(event.actor.email, \"10m\")", "0"),
            ("count(\"k\", \"10m\") == 1 && counted(\"k\", \"10m\") == 1", "true"),
        ],
        errors: "the window is not a valid duration",
        run: counted,
    },
    HostFunction {
        name: "rate",
        parameters: &[needs("key", "string"), WINDOW],
        gives: "a number",
        about: "Like `count`, but return events per minute.",
        examples: &[("rate(event.actor.email, \"2m\")", "0.5")],
        errors: "the window is not a valid duration",
        run: rate,
    },
    HostFunction {
        name: "distinct",
        parameters: &[needs("key", "string"), needs("value", "string"), WINDOW],
        gives: "a number",
        about: "Record a value under the key, and count the distinct values recorded in the window that ends with \
                this event.",
        examples: &[
            ("distinct(event.actor.email, event.geo.country, \"1h\")", "1"),
            ("distinct(event.actor.email, event.nothing, \"1h\")", "0"),
        ],
        errors: "the window is not a valid duration",
        run: distinct,
    },
    HostFunction {
        name: "first_seen",
        parameters: &[
            needs("key", "string"),
            needs("value", "string"),
            needs("lifetime", "duration"),
            may("options", "map"),
        ],
        gives: "true or false",
        about: "Record a value under the key, and test whether it is new: not recorded within `lifetime`. With `#{ \
                learn: \"7d\" }`, nothing counts as new in the first 7 days after the rule started to record. A rule \
                that is new to an agent starts with the events that are already stored.",
        examples: &[
            ("first_seen(event.actor.email, event.geo.country, \"30d\")", "true"),
            ("first_seen(event.actor.email, event.geo.country, \"30d\", #{ learn: \"7d\" })", "false"),
        ],
        errors: "the lifetime is not a valid duration, or an option is unknown",
        run: first_seen,
    },
    HostFunction {
        name: "new_country",
        parameters: &[needs("actor", "string"), needs("country", "string"), may("lifetime", "duration")],
        gives: "true or false",
        about: "Record the actor's country, and test whether it is new: the actor was in other countries within \
                `lifetime` (default `90d`), but not in this one.",
        examples: &[("new_country(event.actor.email, event.geo.country)", "false")],
        errors: "the lifetime is not a valid duration",
        run: new_country,
    },
    HostFunction {
        name: "mark",
        parameters: &[needs("key", "string"), needs("name", "string"), needs("lifetime", "duration")],
        gives: "true",
        about: "Record that something with this name happened under the key. The result is always true, so that the \
                call can be part of a condition.",
        examples: &[("mark(event.actor.email, \"failed\", \"15m\")", "true")],
        errors: "the lifetime is not a valid duration, or the name is not a string",
        run: mark,
    },
    HostFunction {
        name: "marked",
        parameters: &[needs("key", "string"), needs("name", "string")],
        gives: "true or false",
        about: "Test whether `mark` recorded the name under the key, for this event or an earlier one, and its \
                lifetime has not ended.",
        examples: &[
            ("marked(event.actor.email, \"failed\")", "false"),
            ("mark(\"k\", \"failed\", \"15m\") && marked(\"k\", \"failed\")", "true"),
        ],
        errors: "the name is not a string",
        run: marked,
    },
    HostFunction {
        name: "sequence",
        parameters: &[needs("key", "string"), needs("names", "list of strings"), WINDOW],
        gives: "true or false",
        about: "Test whether `mark` recorded all names under the key in this order within the window that ends with \
                this event. The last one may be recorded by this event. The marks must live at least as long as the \
                window.",
        examples: &[(
            "mark(\"k\", \"failed\", \"15m\") && mark(\"k\", \"signed-in\", \"15m\") && sequence(\"k\", [\"failed\", \"signed-in\"], \"15m\")",
            "true",
        )],
        errors: "the window is not a valid duration, or the names are not a list of strings",
        run: sequence,
    },
    HostFunction {
        name: "remember",
        parameters: &[needs("key", "string"), needs("value", "anything"), needs("lifetime", "duration")],
        gives: "true",
        about: "Store a value under the key: a string, a number, a boolean, or a list or map of these, of at most 4 \
                KiB as JSON.",
        examples: &[("remember(\"last\", event.ip, \"1d\") && recall(\"last\") == event.ip", "true")],
        errors: "the lifetime is not a valid duration, or the value is too large",
        run: remember,
    },
    HostFunction {
        name: "recall",
        parameters: &[needs("key", "string")],
        gives: "the value, or `()`",
        about: "Read the value that `remember` stored under the key, if its lifetime has not ended.",
        examples: &[("recall(\"nothing\")", "()")],
        errors: "",
        run: recall,
    },
    HostFunction {
        name: "forget",
        parameters: &[needs("key", "string")],
        gives: "true",
        about: "Delete the value that `remember` stored under the key.",
        examples: &[("remember(\"k\", 1, \"1d\") && forget(\"k\") && recall(\"k\") == ()", "true")],
        errors: "",
        run: forget,
    },
    HostFunction {
        name: "expect",
        parameters: &[needs("key", "string"), needs("within", "duration"), needs("name", "string")],
        gives: "true",
        about: "Expect something with this name to happen under the key within this time after the event. If `met` \
                does not report it in time, `fn expired(key, event)` of the rule is called; if that returns true, it \
                is a match like one of `fn rule`. Its event is this one, with the deadline as `time`, and with \
                `since`, `key` and `expected` (the name). It is called ten minutes after the deadline, so that late \
                events still count: when a later event shows that the time has passed, or by the wall clock if there \
                is none. Each call adds an expectation, up to 100 at a time under a key and name.",
        examples: &[("expect(event.actor.email, \"1h\", \"approval\")", "true")],
        errors: "the time is not a valid duration, the name is not a string, or the rule has no `fn expired(key, \
                 event)`",
        run: expect,
    },
    HostFunction {
        name: "met",
        parameters: &[needs("key", "string"), needs("name", "string")],
        gives: "true or false",
        about: "Report that what is expected under the key happened with this event, which ends the expectation. The \
                result says whether it was expected. Outside `fn rule` it only reads.",
        examples: &[("met(event.actor.email, \"approval\")", "false")],
        errors: "the name is not a string",
        run: met,
    },
];

/// A memory that rules share.
#[derive(Debug, Clone)]
struct Shared(ImmutableString);

pub(super) fn register(engine: &mut Engine) {
    engine.register_type_with_name::<Shared>("common memory");
    engine.register_fn("common", |name: ImmutableString| Shared(name));
}

/// Splits off the memory that a call is about: `common("name")`, or the rule's own.
fn memory<'a>(call: &Call, arguments: &'a [&'a Dynamic]) -> Result<(Remembering, &'a [&'a Dynamic]), String> {
    let remembering = call.remembering()?;
    let shared = arguments.first().and_then(|first| first.read_lock::<Shared>().map(|shared| shared.0.clone()));
    match shared {
        Some(name) => {
            let plain = |character: char| character.is_ascii_alphanumeric() || "_-.".contains(character);
            if name.is_empty() || name.len() > 100 || !name.chars().all(plain) {
                return Err(format!(
                    "invalid name `{name}` for a shared memory: use up to 100 letters, digits, `_`, `-` and `.`"
                ));
            }
            Ok((remembering.shared(&name), arguments.get(1..).unwrap_or(&[])))
        }
        None => Ok((remembering, arguments)),
    }
}

/// A key or value taken from data: a string, number or boolean.
fn key(value: &Dynamic) -> Option<String> {
    if let Some(text) = data(value) {
        return Some(text.to_string()).filter(|text| !text.is_empty());
    }
    (value.is_int() || value.is_bool() || value.is_float()).then(|| value.to_string())
}

/// A duration in milliseconds.
fn window(value: &Dynamic, what: &str) -> Result<i64, String> {
    let text = given(value, what)?.ok_or_else(|| format!("{what} must be a duration, such as \"10m\""))?;
    let duration = time::parse_duration(&text)?;
    let year = Duration::from_secs(366 * 86_400);
    if duration.is_zero() || duration > year {
        return Err(format!("{what} must be between 1ms and 366d, found `{text}`"));
    }
    Ok(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX))
}

fn tally(call: &Call, arguments: &[&Dynamic], writes: bool) -> Result<(usize, i64), String> {
    let (to, rest) = memory(call, arguments)?;
    let length = window(first(rest, 1), "the window")?;
    let Some(key) = key(first(rest, 0)) else {
        return Ok((0, length));
    };
    Ok((call.memory().count(to.place(), &key, to.now, length, to.writes && writes), length))
}

fn count(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let (count, _) = tally(call, arguments, true)?;
    Ok(i64::try_from(count).unwrap_or(i64::MAX).into())
}

fn counted(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let (count, _) = tally(call, arguments, false)?;
    Ok(i64::try_from(count).unwrap_or(i64::MAX).into())
}

fn rate(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let (count, window) = tally(call, arguments, true)?;
    #[expect(clippy::cast_precision_loss, reason = "counts and windows are far below what a float holds exactly")]
    let per_minute = count as f64 * 60_000.0 / window as f64;
    Ok(per_minute.into())
}

fn distinct(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let (to, rest) = memory(call, arguments)?;
    let length = window(first(rest, 2), "the window")?;
    let (Some(key), value) = (key(first(rest, 0)), key(first(rest, 1))) else {
        return Ok(0_i64.into());
    };
    let count = call.memory().distinct(to.place(), &key, value.as_deref(), to.now, length, to.writes);
    Ok(i64::try_from(count).unwrap_or(i64::MAX).into())
}

fn first_seen(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let (to, rest) = memory(call, arguments)?;
    let lifetime = window(first(rest, 2), "the lifetime")?;
    let learn = match argument(rest, 3) {
        Some(options) => learn(options)?,
        None => None,
    };
    let (Some(key), Some(value)) = (key(first(rest, 0)), key(first(rest, 1))) else {
        return Ok(false.into());
    };
    let mut memory = call.memory();
    let learning = learn.is_some_and(|learn| {
        let since = memory.learning_since(to.place(), "first_seen", to.now, to.writes);
        to.now.0.saturating_sub(since) < learn
    });
    let (new, _) = memory.see(to.place(), &key, &value, to.now, lifetime, to.writes);
    Ok((new && !learning).into())
}

fn learn(options: &Dynamic) -> Result<Option<i64>, String> {
    let Some(options) = options.read_lock::<Map>() else {
        return Err("the options must be a map, such as `#{ learn: \"7d\" }`".to_owned());
    };
    if let Some(unknown) = options.keys().find(|name| *name != "learn") {
        return Err(format!("unknown option `{unknown}`: expected `learn`"));
    }
    options.get("learn").map(|learn| window(learn, "`learn`")).transpose()
}

fn new_country(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let (to, rest) = memory(call, arguments)?;
    let lifetime = match argument(rest, 2) {
        Some(lifetime) => window(lifetime, "the lifetime")?,
        None => i64::try_from(NEW_COUNTRY.as_millis()).unwrap_or(i64::MAX),
    };
    let (Some(actor), Some(country)) = (key(first(rest, 0)), key(first(rest, 1))) else {
        return Ok(false.into());
    };
    let key = format!("country of {actor}");
    let (new, others) = call.memory().see(to.place(), &key, &country, to.now, lifetime, to.writes);
    Ok((new && others).into())
}

fn name(value: &Dynamic) -> Result<ImmutableString, String> {
    given(value, "the name")?.ok_or_else(|| "the name must be a string".to_owned())
}

fn mark(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let (to, rest) = memory(call, arguments)?;
    let (name, lifetime) = (name(first(rest, 1))?, window(first(rest, 2), "the lifetime")?);
    if let (Some(key), true) = (key(first(rest, 0)), to.writes) {
        call.memory().mark(to.place(), &key, &name, to.now, lifetime);
    }
    Ok(true.into())
}

fn marked(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let (to, rest) = memory(call, arguments)?;
    let name = name(first(rest, 1))?;
    Ok(key(first(rest, 0)).is_some_and(|key| call.memory().is_marked(&to.space, &key, &name, to.now)).into())
}

fn sequence(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let (to, rest) = memory(call, arguments)?;
    let length = window(first(rest, 2), "the window")?;
    let names: Option<Vec<ImmutableString>> =
        first(rest, 1).read_lock::<Array>().and_then(|names| names.iter().map(data).collect());
    let names = names.filter(|names| !names.is_empty()).ok_or("the names must be a list of strings")?;
    let Some(key) = key(first(rest, 0)) else {
        return Ok(false.into());
    };
    let memory = call.memory();
    // Backwards: taking the latest mark of each name that is not later than its successor leaves the most room for
    // the names before it.
    let mut before = to.now;
    for name in names.iter().rev() {
        match memory.marked(&to.space, &key, name, before, to.now, length) {
            Some(moment) => before = moment,
            None => return Ok(false.into()),
        }
    }
    Ok(true.into())
}

/// Maximum size of a remembered value, in bytes of JSON.
const MAX_NOTE: usize = 4_096;

fn remember(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let (to, rest) = memory(call, arguments)?;
    let lifetime = window(first(rest, 2), "the lifetime")?;
    let value = to_json_value(first(rest, 1)).to_string();
    if value.len() > MAX_NOTE {
        return Err(format!("the value has {} bytes as JSON, but at most {MAX_NOTE} can be remembered", value.len()));
    }
    if let (Some(key), true) = (key(first(rest, 0)), to.writes) {
        call.memory().remember(to.place(), &key, value, to.now, lifetime);
    }
    Ok(true.into())
}

fn recall(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let (to, rest) = memory(call, arguments)?;
    let Some(key) = key(first(rest, 0)) else {
        return Ok(Dynamic::UNIT);
    };
    let memory = call.memory();
    let value = memory.recall(&to.space, &key, to.now).and_then(|text| serde_json::from_str(text).ok());
    Ok(value.map_or(Dynamic::UNIT, |value: serde_json::Value| frozen(&value)))
}

fn forget(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let (to, rest) = memory(call, arguments)?;
    if let (Some(key), true) = (key(first(rest, 0)), to.writes) {
        call.memory().forget(&to.space, &key);
    }
    Ok(true.into())
}

fn expect(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let (to, rest) = own_memory(call, arguments)?;
    let (within, name) = (window(first(rest, 1), "the time")?, name(first(rest, 2))?);
    let event = to
        .event
        .clone()
        .ok_or("the rule has no `fn expired(key, event)`, which is called if the expectation is not met")?;
    if let (Some(key), true) = (key(first(rest, 0)), to.writes) {
        call.memory().expect(to.place(), &key, &name, within, &event);
    }
    Ok(true.into())
}

fn met(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let (to, rest) = own_memory(call, arguments)?;
    let name = name(first(rest, 1))?;
    let Some(key) = key(first(rest, 0)) else {
        return Ok(false.into());
    };
    let mut memory = call.memory();
    let met = if to.writes {
        memory.meet(to.place(), &key, &name, to.now)
    } else {
        memory.is_expected(&to.space, &key, &name, to.now)
    };
    Ok(met.into())
}

/// The rule's own memory: expectations cannot be shared, because only the rule that made one can be called when it
/// fails.
fn own_memory<'a>(call: &Call, arguments: &'a [&'a Dynamic]) -> Result<(Remembering, &'a [&'a Dynamic]), String> {
    if arguments.first().is_some_and(|first| first.is::<Shared>()) {
        return Err("expectations cannot be shared: use `expect(key, …)` and `met(key, …)` without `common`".to_owned());
    }
    memory(call, arguments)
}
