//! Looking into an event: `event.targets("users")`, `event.get("attributes.context[0].id", "none")`, `event.has(…)`.

use rhai::{Array, Dynamic, ImmutableString, Map};

use super::{Answer, HostFunction, Subject, argument, data, first, given, may, needs, or_unit};
use crate::rule::engine::Call;

pub(super) const SUBJECT: Subject = Subject {
    title: "The event",
    about: "`event` has everything under Atlassian's own names (`event.attributes.…`, `event.message.content`), and beside them \
            `action`, `activity` (the action's name for people, where the organization's list of actions has one), `category` (`admin`, \
            `security-policy`, `authentication`, `access`, `app`, `product`, `ai` or `unknown`), `actor`, `ip`, `time`, `geo` (a map with `country`, \
            `city`, `region`, as Atlassian says) and `source`. All of these \
            may be called as `event.targets(\"users\")` or `targets(event, \"users\")`; `get`, `has` and `all` work on any map. (For lists, `all` is Rhai's own: whether something holds of all items.)",
    functions: FUNCTIONS,
};

const FUNCTIONS: &[HostFunction] = &[
    HostFunction {
        name: "get",
        parameters: &[needs("map", "map"), needs("path", "text"), may("default", "anything")],
        gives: "what is there, or the default, or `()`",
        about: "The value at a path of keys joined by dots and indexes in brackets. A key that itself contains a dot is found only as \
                the whole path.",
        examples: &[
            (r#"event.get("attributes.context[0].id")"#, r#""712020:77c1-ines""#),
            (r#"event.get("attributes.nothing.at.all", "none")"#, r#""none""#),
        ],
        errors: "the path is no text",
        run: get,
    },
    HostFunction {
        name: "has",
        parameters: &[needs("map", "map"), needs("path", "text")],
        gives: "true or false",
        about: "Whether something stands at a path: not absent, and not null.",
        examples: &[(r#"event.has("attributes.actor.email")"#, "true"), (r#"event.has("a.b")"#, "false")],
        errors: "the path is no text",
        run: has,
    },
    HostFunction {
        name: "all",
        parameters: &[needs("map", "map"), needs("path", "text")],
        gives: "a list",
        about: "All values at a path in which `[]` stands for every item of a list. Where an object stands in place of a list, it is taken \
                as a list of one.",
        examples: &[
            (r#"event.all("attributes.context[].attributes.email")"#, r#"["ines.carvalho@example.com"]"#),
            (r#"event.all("nothing[].x")"#, "[]"),
        ],
        errors: "the path is no text",
        run: all,
    },
    HostFunction {
        name: "targets",
        parameters: &[needs("event", "event"), may("type", "text")],
        gives: "a list of maps",
        about: "What was acted on: the entries of `attributes.context` of one type (`users`, `groups`, `sites`, `orgs`, `apps`, `space` …), \
                or all. Where `context` is an object instead of a list (both were seen), it is a list of one.",
        examples: &[
            (r#"event.targets("users")[0].attributes.name"#, r#""Inês Carvalho""#),
            (r#"event.targets("groups").len()"#, "0"),
        ],
        errors: "the type is no text",
        run: targets,
    },
    HostFunction {
        name: "actor_name",
        parameters: &[needs("event", "event")],
        gives: "a text",
        about: "Who did it, for titles: the email address if there is one, else the name, else the id, else `somebody`.",
        examples: &[("event.actor_name()", r#""dana.wilson@example.com""#), ("actor_name(())", r#""somebody""#)],
        errors: "",
        run: actor_name,
    },
    HostFunction {
        name: "actor_is_app",
        parameters: &[needs("event", "event")],
        gives: "true or false",
        about: "Whether an app or Atlassian itself did it: the actor has an `app`, or an email that is no address (`Atlassian app` was \
                seen).",
        examples: &[("event.actor_is_app()", "false")],
        errors: "",
        run: actor_is_app,
    },
    HostFunction {
        name: "target_name",
        parameters: &[needs("event", "event"), may("type", "text")],
        gives: "a text",
        about: "What was acted on, for titles: of the first target (of one type) the email address, else the name, else what else tells \
                it apart, else its id. Without a type, sites and organizations are passed over where something else stands beside them. \
                Where there is no target, `an unknown target`.",
        examples: &[
            (r#"event.target_name()"#, r#""ines.carvalho@example.com""#),
            (r#"event.target_name("groups")"#, r#""an unknown target""#),
        ],
        errors: "the type is no text",
        run: target_name,
    },
    HostFunction {
        name: "target_id",
        parameters: &[needs("event", "event"), may("type", "text")],
        gives: "a text, or `()`",
        about: "The id of what was acted on, for `dedup` and `unique`: of the first target (of one type). Without a type, sites and \
                organizations are passed over: they say where it was.",
        examples: &[(r#"event.target_id()"#, r#""712020:77c1-ines""#), (r#"event.target_id("groups")"#, "()")],
        errors: "the type is no text",
        run: target_id,
    },
    HostFunction {
        name: "origin",
        parameters: &[needs("event", "event")],
        gives: "a text",
        about: "Where it came from, for titles: the address with city and country behind it, as far as the event says; else \
                `an unknown address`.",
        examples: &[
            ("event.origin()", r#""203.0.113.21 (Berlin, Germany)""#),
            ("origin(())", r#""an unknown address""#),
        ],
        errors: "",
        run: origin,
    },
    HostFunction {
        name: "site",
        parameters: &[needs("event", "event")],
        gives: "a text, or `()`",
        about: "The site that it happened on: the name, else the address, of the first site in `attributes.container` or \
                `attributes.context`.",
        examples: &[("event.site()", r#""example-corp""#)],
        errors: "",
        run: site,
    },
    HostFunction {
        name: "link",
        parameters: &[needs("event", "event")],
        gives: "a text, or `()`",
        about: "Where people look the event up: the organization's audit log at admin.atlassian.com, where the event names its \
                organization. (Atlassian does not document the page's address.)",
        examples: &[(
            "event.link()",
            r#""https://admin.atlassian.com/o/00000000-0000-0000-0000-000000000000/audit-log""#,
        )],
        errors: "",
        run: link,
    },
];

fn path_of(arguments: &[&Dynamic]) -> Result<Option<ImmutableString>, String> {
    given(first(arguments, 1), "the path")
}

fn get(_: &Call, arguments: &[&Dynamic]) -> Answer {
    let found =
        path_of(arguments)?.and_then(|path| follow(first(arguments, 0), &path)).filter(|value| !value.is_unit());
    Ok(found.or_else(|| argument(arguments, 2).cloned()).unwrap_or(Dynamic::UNIT))
}

fn has(_: &Call, arguments: &[&Dynamic]) -> Answer {
    let found = path_of(arguments)?.and_then(|path| follow(first(arguments, 0), &path));
    Ok(found.is_some_and(|value| !value.is_unit()).into())
}

fn all(_: &Call, arguments: &[&Dynamic]) -> Answer {
    let Some(path) = path_of(arguments)? else {
        return Ok(Array::new().into());
    };
    Ok(follow_all(first(arguments, 0), &path).into())
}

/// All values at a path in which `[]` stands for every item of a list.
pub(in crate::rule) fn follow_all(value: &Dynamic, path: &str) -> Vec<Dynamic> {
    let mut values = vec![value.clone()];
    for (index, part) in path.split("[]").enumerate() {
        if index > 0 {
            values = values.into_iter().flat_map(items).collect();
        }
        let part = part.trim_start_matches('.');
        if !part.is_empty() {
            values = values.iter().filter_map(|value| follow(value, part)).collect();
        }
    }
    values.retain(|value| !value.is_unit());
    values
}

/// The items of a list; an object instead of a list is a list of one.
fn items(value: Dynamic) -> Array {
    if let Some(items) = value.read_lock::<Array>() {
        return items.clone();
    }
    if value.is_map() { vec![value] } else { Array::new() }
}

/// The value at a path of keys and indexes.
pub(in crate::rule) fn follow(value: &Dynamic, path: &str) -> Option<Dynamic> {
    let map = value.read_lock::<Map>()?;
    if let Some(value) = map.get(path) {
        return Some(value.clone());
    }
    let mut value: Option<Dynamic> = None;
    for step in path.split('.') {
        let (key, indexes) = step.split_once('[').map_or((step, ""), |(key, rest)| (key, rest));
        if !key.is_empty() {
            value = match &value {
                None => map.get(key).cloned(),
                Some(value) => value.read_lock::<Map>().and_then(|map| map.get(key).cloned()),
            };
        }
        for index in indexes.split('[').filter(|index| !index.is_empty()) {
            let index: usize = index.strip_suffix(']')?.parse().ok()?;
            value = value?.read_lock::<Array>().and_then(|array| array.get(index).cloned());
        }
        value.as_ref()?;
    }
    value
}

fn text_at(value: &Dynamic, path: &str) -> Option<ImmutableString> {
    follow(value, path).as_ref().and_then(data).filter(|text| !text.is_empty())
}

fn is_of_type(item: &Dynamic, kind: &str) -> bool {
    text_at(item, "type").is_some_and(|found| found == kind)
}

fn targets(_: &Call, arguments: &[&Dynamic]) -> Answer {
    let kind = match argument(arguments, 1) {
        // `event.targets(event.nothing)`: nothing is of a type that is absent.
        Some(kind) if kind.is_unit() => return Ok(Array::new().into()),
        Some(kind) => given(kind, "the type")?,
        None => None,
    };
    let context = follow(first(arguments, 0), "attributes.context").map_or_else(Array::new, items);
    let wanted = |item: &Dynamic| item.is_map() && kind.as_ref().is_none_or(|kind| is_of_type(item, kind));
    Ok(context.into_iter().filter(wanted).collect::<Array>().into())
}

fn actor_name(_: &Call, arguments: &[&Dynamic]) -> Answer {
    let event = first(arguments, 0);
    let email = text_at(event, "attributes.actor.email").filter(|email| email.contains('@'));
    let name = email
        .or_else(|| text_at(event, "attributes.actor.name"))
        .or_else(|| text_at(event, "attributes.actor.id"))
        .unwrap_or_else(|| "somebody".into());
    Ok(name.into())
}

fn actor_is_app(_: &Call, arguments: &[&Dynamic]) -> Answer {
    let event = first(arguments, 0);
    let app = follow(event, "attributes.actor.app").is_some_and(|app| app.is_map());
    let no_address = text_at(event, "attributes.actor.email").is_some_and(|email| !email.contains('@'));
    Ok((app || no_address).into())
}

/// Names of targets, the one that tells most first.
const NAMES: [&str; 8] =
    ["email", "name", "groupName", "permissionName", "settingName", "key", "siteName", "siteHostName"];
/// Types of targets that say where something happened rather than to what.
const PLACES: [&str; 5] = ["sites", "orgs", "organization", "organizations", "unit"];

fn target_name(call: &Call, arguments: &[&Dynamic]) -> Answer {
    let found = targets(call, arguments)?;
    let found = found.read_lock::<Array>().map(|found| found.clone()).unwrap_or_default();
    let is_place = |item: &&Dynamic| PLACES.iter().any(|place| is_of_type(item, place));
    let wanted = found.iter().find(|item| !is_place(item)).or_else(|| found.first());
    let name = wanted.and_then(|item| {
        let named = NAMES.iter().find_map(|key| text_at(item, &format!("attributes.{key}")));
        named.or_else(|| text_at(item, "id"))
    });
    Ok(name.unwrap_or_else(|| "an unknown target".into()).into())
}

fn target_id(call: &Call, arguments: &[&Dynamic]) -> Answer {
    let found = targets(call, arguments)?;
    let found = found.read_lock::<Array>().map(|found| found.clone()).unwrap_or_default();
    let typed = argument(arguments, 1).is_some();
    let is_place = |item: &&Dynamic| !typed && PLACES.iter().any(|place| is_of_type(item, place));
    Ok(or_unit(found.iter().find(|item| !is_place(item)).and_then(|item| text_at(item, "id"))))
}

fn origin(_: &Call, arguments: &[&Dynamic]) -> Answer {
    let text = |key: &str| text_at(first(arguments, 0), &format!("attributes.location.{key}"));
    let place: Vec<ImmutableString> = ["city", "countryName"].into_iter().filter_map(text).collect();
    let place = place.join(", ");
    let origin = match (text("ip"), place.is_empty()) {
        (Some(ip), true) => ip.to_string(),
        (Some(ip), false) => format!("{ip} ({place})"),
        (None, false) => place,
        (None, true) => "an unknown address".to_owned(),
    };
    Ok(origin.into())
}

fn site(_: &Call, arguments: &[&Dynamic]) -> Answer {
    let event = first(arguments, 0);
    let entries = ["attributes.container", "attributes.context"];
    let found = entries.into_iter().filter_map(|path| follow(event, path)).flat_map(items).find_map(|entry| {
        let name = |key: &str| text_at(&entry, key);
        name("attributes.siteName").or_else(|| name("attributes.siteHostName")).or_else(|| name("attributes.cloudUrl"))
    });
    Ok(or_unit(found))
}

fn link(_: &Call, arguments: &[&Dynamic]) -> Answer {
    let address = text_at(first(arguments, 0), "links.self");
    let organization = address.as_ref().and_then(|address| address.split_once("/orgs/")).map(|(_, rest)| {
        rest.chars().take_while(|character| character.is_ascii_alphanumeric() || *character == '-').collect::<String>()
    });
    let organization = organization.filter(|id| !id.is_empty());
    Ok(or_unit(organization.map(|id| format!("https://admin.atlassian.com/o/{id}/audit-log"))))
}
