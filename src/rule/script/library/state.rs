//! Remembering from one event to the next: how often, how many different, for the first time, in which order.

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
    about: "What a rule knows of earlier events, by a key of your choice: an actor, an address, both. Each rule has a memory of its own; \
            `common(\"name\")` is one that rules share on purpose: `common(\"logins\").count(key, \"10m\")`. It survives restarts, is the same in a \
            replay, and follows the times of events: an event that comes late counts where it belongs.\n\n\
            What is noted is kept until the newest event is twice its window (or lifetime) past it. From then on it is as if it had never been \
            noted, and an event that comes later than that notes nothing. Ask with the window that was noted with, or a shorter one. What \
            `remember` writes replaces what was there.\n\n\
            Only `fn rule` writes; in all other functions the same calls only look. Put the calls last in a condition: what stands before \
            an `&&` that is false keeps them from being reached. A key that is absent remembers nothing, and gives 0 or false. A rule may keep \
            200,000 keys and 64 MiB, in its own memory and those that it shares; then those nearest to their end are forgotten, and an alert \
            says so.",
    functions: FUNCTIONS,
};

/// How long a country is known, where the rule does not say.
pub(crate) const NEW_COUNTRY: Duration = Duration::from_secs(90 * 86_400);

const WINDOW: super::Parameter = needs("window", "duration");

const FUNCTIONS: &[HostFunction] = &[
    HostFunction {
        name: "count",
        parameters: &[needs("key", "text"), WINDOW],
        gives: "a number",
        about: "Notes this event under the key, and says how many were noted in the window that ends with it.",
        examples: &[("count(event.actor.email, \"10m\")", "1"), ("count(event.nothing, \"10m\")", "0")],
        errors: "a window that is no duration",
        run: count,
    },
    HostFunction {
        name: "counted",
        parameters: &[needs("key", "text"), WINDOW],
        gives: "a number",
        about: "How many events `count` noted under the key in the window that ends with this one, which itself is not noted.",
        examples: &[
            ("counted(event.actor.email, \"10m\")", "0"),
            ("count(\"k\", \"10m\") == 1 && counted(\"k\", \"10m\") == 1", "true"),
        ],
        errors: "a window that is no duration",
        run: counted,
    },
    HostFunction {
        name: "rate",
        parameters: &[needs("key", "text"), WINDOW],
        gives: "a number",
        about: "The same, as events a minute.",
        examples: &[("rate(event.actor.email, \"2m\")", "0.5")],
        errors: "a window that is no duration",
        run: rate,
    },
    HostFunction {
        name: "distinct",
        parameters: &[needs("key", "text"), needs("value", "text"), WINDOW],
        gives: "a number",
        about: "Notes the value under the key, and says how many different ones were noted in the window that ends with this event.",
        examples: &[
            ("distinct(event.actor.email, event.geo.country, \"1h\")", "1"),
            ("distinct(event.actor.email, event.nothing, \"1h\")", "0"),
        ],
        errors: "a window that is no duration",
        run: distinct,
    },
    HostFunction {
        name: "first_seen",
        parameters: &[
            needs("key", "text"),
            needs("value", "text"),
            needs("lifetime", "duration"),
            may("options", "map"),
        ],
        gives: "true or false",
        about: "Notes the value under the key, and says whether it had not been there for that long. With `#{ learn: \"7d\" }` the first so long \
                after the rule began to look are for learning: nothing is new then. A rule that is new to an agent begins to look in the events \
                that are stored already.",
        examples: &[
            ("first_seen(event.actor.email, event.geo.country, \"30d\")", "true"),
            ("first_seen(event.actor.email, event.geo.country, \"30d\", #{ learn: \"7d\" })", "false"),
        ],
        errors: "a lifetime that is no duration, or an unknown option",
        run: first_seen,
    },
    HostFunction {
        name: "new_country",
        parameters: &[needs("actor", "text"), needs("country", "text"), may("lifetime", "duration")],
        gives: "true or false",
        about: "Whether an actor who was in other countries is in this one for the first time within the lifetime (`90d`).",
        examples: &[("new_country(event.actor.email, event.geo.country)", "false")],
        errors: "a lifetime that is no duration",
        run: new_country,
    },
    HostFunction {
        name: "mark",
        parameters: &[needs("key", "text"), needs("name", "text"), needs("lifetime", "duration")],
        gives: "true",
        about: "Notes that something with this name happened under the key. It gives true, so that it can stand in a condition.",
        examples: &[("mark(event.actor.email, \"failed\", \"15m\")", "true")],
        errors: "a lifetime that is no duration, or a name that is no text",
        run: mark,
    },
    HostFunction {
        name: "marked",
        parameters: &[needs("key", "text"), needs("name", "text")],
        gives: "true or false",
        about: "Whether it was marked, by this or an earlier event, within the mark's lifetime.",
        examples: &[
            ("marked(event.actor.email, \"failed\")", "false"),
            ("mark(\"k\", \"failed\", \"15m\") && marked(\"k\", \"failed\")", "true"),
        ],
        errors: "a name that is no text",
        run: marked,
    },
    HostFunction {
        name: "sequence",
        parameters: &[needs("key", "text"), needs("names", "list of texts"), WINDOW],
        gives: "true or false",
        about: "Whether all these were marked under the key in this order, the last by this event or before it, all within the window that ends \
                with this event. Marks must live as long as the window.",
        examples: &[(
            "mark(\"k\", \"failed\", \"15m\") && mark(\"k\", \"signed-in\", \"15m\") && sequence(\"k\", [\"failed\", \"signed-in\"], \"15m\")",
            "true",
        )],
        errors: "a window that is no duration, or names that are no list of texts",
        run: sequence,
    },
    HostFunction {
        name: "remember",
        parameters: &[needs("key", "text"), needs("value", "anything"), needs("lifetime", "duration")],
        gives: "true",
        about: "Writes a value down under the key: a text, a number, a list or a map of such, of 4 KiB at most as JSON.",
        examples: &[("remember(\"last\", event.ip, \"1d\") && recall(\"last\") == event.ip", "true")],
        errors: "a lifetime that is no duration, or a value that is too large",
        run: remember,
    },
    HostFunction {
        name: "recall",
        parameters: &[needs("key", "text")],
        gives: "the value, or `()`",
        about: "What was written down under the key, within its lifetime.",
        examples: &[("recall(\"nothing\")", "()")],
        errors: "",
        run: recall,
    },
    HostFunction {
        name: "forget",
        parameters: &[needs("key", "text")],
        gives: "true",
        about: "Forgets what was written down under the key.",
        examples: &[("remember(\"k\", 1, \"1d\") && forget(\"k\") && recall(\"k\") == ()", "true")],
        errors: "",
        run: forget,
    },
    HostFunction {
        name: "expect",
        parameters: &[needs("key", "text"), needs("within", "duration"), needs("name", "text")],
        gives: "true",
        about: "Expects that something with this name happens under the key within so long after this event. If no `met` says so, \
                `fn expired(key, event)` of the rule is called, and its true is a match like one of `fn rule`. The event it is given is this \
                one, with the end of waiting as its `time`, and with `since`, `key` and `expected` (the name) beside it. It is called ten \
                minutes after the end, so that events which come late still count, when a later event shows that time has passed, or by the \
                clock if there is none. Each call expects anew, up to a hundred at a time under a key.",
        examples: &[("expect(event.actor.email, \"1h\", \"approval\")", "true")],
        errors: "a time that is no duration, a name that is no text, or a rule without `fn expired(key, event)`",
        run: expect,
    },
    HostFunction {
        name: "met",
        parameters: &[needs("key", "text"), needs("name", "text")],
        gives: "true or false",
        about: "Says that what may be expected under the key happened with this event: it is expected no longer. It gives whether it was. \
                Elsewhere than in `fn rule` it only looks.",
        examples: &[("met(event.actor.email, \"approval\")", "false")],
        errors: "a name that is no text",
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
                    "`{name}` is not a name for a shared memory: write letters, digits, `_`, `-`, `.`"
                ));
            }
            Ok((remembering.shared(&name), arguments.get(1..).unwrap_or(&[])))
        }
        None => Ok((remembering, arguments)),
    }
}

/// A key or a value, from data: texts, numbers and truth values.
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
        return Err(format!("{what} must be more than nothing and at most 366d, found `{text}`"));
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
    let a_minute = count as f64 * 60_000.0 / window as f64;
    Ok(a_minute.into())
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
        return Err(format!("unknown option `{unknown}`: there is `learn`"));
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
    given(value, "the name")?.ok_or_else(|| "the name must be a text".to_owned())
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
    let names = names.filter(|names| !names.is_empty()).ok_or("the names must be a list of texts")?;
    let Some(key) = key(first(rest, 0)) else {
        return Ok(false.into());
    };
    let memory = call.memory();
    // From the end: the latest of each that is not later than the one after it leaves the most room for those before.
    let mut before = to.now;
    for name in names.iter().rev() {
        match memory.marked(&to.space, &key, name, before, to.now, length) {
            Some(moment) => before = moment,
            None => return Ok(false.into()),
        }
    }
    Ok(true.into())
}

/// What is written down may not be larger, as JSON.
const MAX_NOTE: usize = 4_096;

fn remember(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let (to, rest) = memory(call, arguments)?;
    let lifetime = window(first(rest, 2), "the lifetime")?;
    let value = to_json_value(first(rest, 1)).to_string();
    if value.len() > MAX_NOTE {
        return Err(format!("the value has {} bytes as JSON: {MAX_NOTE} can be remembered", value.len()));
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
        .ok_or("`expect` needs `fn expired(key, event)` in the rule: what is to be done if it does not happen")?;
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

/// The rule's own memory: what it expects, it alone can be told of.
fn own_memory<'a>(call: &Call, arguments: &'a [&'a Dynamic]) -> Result<(Remembering, &'a [&'a Dynamic]), String> {
    if arguments.first().is_some_and(|first| first.is::<Shared>()) {
        return Err(
            "what a rule expects is its own: write `expect(key, …)` and `met(key, …)` without `common`".to_owned()
        );
    }
    memory(call, arguments)
}
