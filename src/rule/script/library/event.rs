//! Accessing an event: `event.targets("users")`, `event.get("attributes.context[0].id", "none")`, `event.has(…)`.

use rhai::{Array, Dynamic, ImmutableString, Map};

use super::{HostFunction, Returned, Texts, Topic, argument, first, given, may, needs, or_unit, texts};
use crate::rule::script::fields::{
    actor_name_of, follow, follow_all, is_actor, is_of_type, items, name_of, origin_of, target, text_at,
};
use crate::rule::script::host::Call;

pub(super) const TOPIC: Topic = Topic {
    title: "The event",
    about: "`event` has everything under Atlassian's own names (`event.attributes.…`, `event.message.content`), and \
            these short names:\n\n\
            - `action`, `ip`, `source`, `time` (in UTC) and `flags` (see \"Unusual events\")\n\
            - `activity`: the action's display name, if the organization's list of actions has one\n\
            - `category`: `admin`, `security-policy`, `authentication`, `access`, `app`, `product`, `ai` or \
            `unknown`\n\
            - `actor`: who acted\n\
            - `target`: what was acted on, the first entry of `attributes.context` that is neither a place, such as a \
            site or the organization, nor the actor; a space or a project only if there is nothing else; if `context` \
            has none, one of `attributes.container`\n\
            - `geo`: a map with `country`, `city` and `region`, according to Atlassian\n\n\
            Each function can be called as `event.targets(\"users\")` or as `targets(event, \"users\")`; `get`, `has` \
            and `all` work on any map. (For lists, `all` is Rhai's own, which tests whether all items match.)",
    functions: FUNCTIONS,
};

/// What a function reads of the event that is passed to it as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::rule) enum EventUse {
    /// Only the event's own fields.
    Fields,
    /// The value at the path that it is given.
    Paths,
    /// Data from the organization's catalog of actions.
    Catalog,
}

/// What a function reads of an event; `None` for a function of another topic.
pub(in crate::rule) fn use_of_event(function: &str) -> Option<EventUse> {
    match function {
        "get" | "has" | "all" => Some(EventUse::Paths),
        "what" => Some(EventUse::Catalog),
        "targets" | "actor_name" | "actor_key" | "actor_is_app" | "target" | "target_name" | "target_id"
        | "target_key" | "is_actor" | "action_has" | "origin" | "from" | "site" | "link" => Some(EventUse::Fields),
        _ => None,
    }
}

const FUNCTIONS: &[HostFunction] = &[
    HostFunction {
        name: "get",
        parameters: &[needs("map", "map"), needs("path", "string"), may("default", "anything")],
        gives: "the value, else the default, else `()`",
        about: "Look up the value at a path of keys joined by dots, with indexes in brackets. A key that itself \
                contains a dot is found only as the whole path.",
        examples: &[
            (r#"event.get("attributes.context[0].id")"#, r#""712020:77c1-ines""#),
            (r#"event.get("attributes.nothing.at.all", "none")"#, r#""none""#),
        ],
        errors: "the path is not a string",
        run: get,
    },
    HostFunction {
        name: "has",
        parameters: &[needs("map", "map"), needs("path", "string")],
        gives: "true or false",
        about: "Test whether a path leads to a value that is neither absent nor null.",
        examples: &[(r#"event.has("attributes.actor.email")"#, "true"), (r#"event.has("a.b")"#, "false")],
        errors: "the path is not a string",
        run: has,
    },
    HostFunction {
        name: "all",
        parameters: &[needs("map", "map"), needs("path", "string")],
        gives: "a list",
        about: "Collect all values at a path, in which `[]` stands for every item of a list. An object in place of a \
                list counts as a list of one.",
        examples: &[
            (r#"event.all("attributes.context[].attributes.email")"#, r#"["ines.carvalho@example.com"]"#),
            (r#"event.all("nothing[].x")"#, "[]"),
        ],
        errors: "the path is not a string",
        run: all,
    },
    HostFunction {
        name: "targets",
        parameters: &[needs("event", "event"), may("type", "string")],
        gives: "a list of maps",
        about: "List what was acted on: the entries of `attributes.context` of one type (`users`, `groups`, `sites`, \
                `orgs`, `apps`, `space` …), or all of them. If `context` is an object instead of a list (both \
                occur), it counts as a list of one.",
        examples: &[
            (r#"event.targets("users")[0].attributes.name"#, r#""Inês Carvalho""#),
            (r#"event.targets("groups").len()"#, "0"),
        ],
        errors: "the type is not a string",
        run: targets,
    },
    HostFunction {
        name: "actor_name",
        parameters: &[needs("event", "event")],
        gives: "a string",
        about: "Name the actor, for titles: the email address if there is one, else the name, else the id, else \
                `somebody`.",
        examples: &[("event.actor_name()", r#""dana.wilson@example.com""#), ("actor_name(())", r#""somebody""#)],
        errors: "",
        run: actor_name,
    },
    HostFunction {
        name: "actor_key",
        parameters: &[needs("event", "event")],
        gives: "a string",
        about: "Identify the actor, for `dedup` and memory keys: the id, else the email address, the name or the IP \
                address. If the event has none of them, the result is the event's own id, so that events without an \
                actor are not counted together.",
        examples: &[("event.actor_key()", r#""712020:0f3a-dana""#)],
        errors: "",
        run: actor_key,
    },
    HostFunction {
        name: "actor_is_app",
        parameters: &[needs("event", "event")],
        gives: "true or false",
        about: "Test whether an app or Atlassian itself acted: the actor has an `app`, or an `email` that is not an \
                address (such as `Atlassian app`).",
        examples: &[("event.actor_is_app()", "false")],
        errors: "",
        run: actor_is_app,
    },
    HostFunction {
        name: "target",
        parameters: &[needs("event", "event"), may("type", "string, or list of strings")],
        gives: "a map, or `()`",
        about: "Find what was acted on: without a type, as in `event.target`; otherwise the first target of one of \
                the types, which is the actor only if there is no other.",
        examples: &[
            (r#"event.target("users").attributes.name"#, r#""Inês Carvalho""#),
            (r#"event.target(["groups", "roles"])"#, "()"),
        ],
        errors: "the type is neither a string nor a list of strings",
        run: target_of,
    },
    HostFunction {
        name: "target_name",
        parameters: &[needs("event", "event"), may("type", "string, or list of strings")],
        gives: "a string",
        about: "Name what was acted on, for titles: the email address of the target, else its name, else another \
                attribute that identifies it, else its id. The target is `event.target`, or the first one of the \
                given types. Without a type, a site or the organization is named if nothing else was acted on. If \
                there is no target, the result is `an unknown target`.",
        examples: &[
            (r#"event.target_name()"#, r#""ines.carvalho@example.com""#),
            (r#"event.target_name("groups")"#, r#""an unknown target""#),
        ],
        errors: "the type is neither a string nor a list of strings",
        run: target_name,
    },
    HostFunction {
        name: "target_id",
        parameters: &[needs("event", "event"), may("type", "string, or list of strings")],
        gives: "a string, or `()`",
        about: "Get the ID of what was acted on: of `event.target`, or of the first target of the given types.",
        examples: &[(r#"event.target_id()"#, r#""712020:77c1-ines""#), (r#"event.target_id("groups")"#, "()")],
        errors: "the type is neither a string nor a list of strings",
        run: target_id,
    },
    HostFunction {
        name: "target_key",
        parameters: &[needs("event", "event"), may("type", "string, or list of strings")],
        gives: "a string",
        about: "Identify what was acted on, for `dedup`, `unique` and memory keys: the ID of `event.target`, or of \
                the first target of the given types, else its name. If there is no target, the result is the event's \
                own id, so that different unnamed targets are never treated as the same.",
        examples: &[
            (r#"event.target_key()"#, r#""712020:77c1-ines""#),
            (r#"event.target_key("groups") == event.id"#, "true"),
        ],
        errors: "the type is neither a string nor a list of strings",
        run: target_key,
    },
    HostFunction {
        name: "is_actor",
        parameters: &[needs("event", "event"), needs("target", "map")],
        gives: "true or false",
        about: "Test whether a target is the actor, by ID or by email address.",
        examples: &[
            (r#"event.is_actor(event.target("users"))"#, "false"),
            (r#"event.is_actor(event.nothing)"#, "false"),
        ],
        errors: "",
        run: is_the_actor,
    },
    HostFunction {
        name: "action_has",
        parameters: &[needs("event", "event"), needs("words", "string, or list of strings")],
        gives: "true or false",
        about: "Test whether the action's id contains one of these words as a whole: `view*` matches `page_viewed`, \
                but not `review_started`. In a word, `*` matches any text.",
        examples: &[(r#"event.action_has(["view*", "logged"])"#, "true"), (r#"event.action_has("use")"#, "false")],
        errors: "the words are neither a string nor a list of strings, or a pattern is invalid",
        run: action_has,
    },
    HostFunction {
        name: "what",
        parameters: &[needs("event", "event")],
        gives: "a string",
        about: "Describe what was done, for titles: the action's display name, else its id; then a colon and the \
                name of the target, if the event has one.",
        examples: &[("event.what()", r#""user_logged_in_as_user: ines.carvalho@example.com""#)],
        errors: "",
        run: what,
    },
    HostFunction {
        name: "origin",
        parameters: &[needs("event", "event")],
        gives: "a string",
        about: "Describe where the event came from: the IP address followed by city and country, as far as the event \
                has them, else `an unknown address`.",
        examples: &[
            ("event.origin()", r#""203.0.113.21 (Berlin, Germany)""#),
            ("origin(())", r#""an unknown address""#),
        ],
        errors: "",
        run: origin,
    },
    HostFunction {
        name: "from",
        parameters: &[needs("event", "event")],
        gives: "a string",
        about: "Describe where the event came from as the end of a title: ` from ` and the origin, or an empty \
                string if the event does not say where.",
        examples: &[("event.from()", r#"" from 203.0.113.21 (Berlin, Germany)""#), ("from(())", r#""""#)],
        errors: "",
        run: from,
    },
    HostFunction {
        name: "site",
        parameters: &[needs("event", "event")],
        gives: "a string, or `()`",
        about: "Name the site where it happened: the name, else the address, of the first site in \
                `attributes.container` or `attributes.context`.",
        examples: &[("event.site()", r#""example-corp""#)],
        errors: "",
        run: site,
    },
    HostFunction {
        name: "link",
        parameters: &[needs("event", "event")],
        gives: "a string, or `()`",
        about: "Link to the organization's audit log at admin.atlassian.com, if the event names its organization. \
                (Atlassian does not document the address of that page.)",
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

fn get(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let found =
        path_of(arguments)?.and_then(|path| follow(first(arguments, 0), &path)).filter(|value| !value.is_unit());
    Ok(found.or_else(|| argument(arguments, 2).cloned()).unwrap_or(Dynamic::UNIT))
}

fn has(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let found = path_of(arguments)?.and_then(|path| follow(first(arguments, 0), &path));
    Ok(found.is_some_and(|value| !value.is_unit()).into())
}

fn all(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let Some(path) = path_of(arguments)? else {
        return Ok(Array::new().into());
    };
    Ok(follow_all(first(arguments, 0), &path).into())
}

fn targets(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let kind = match argument(arguments, 1) {
        // `event.targets(event.nothing)`: no target has an absent type.
        Some(kind) if kind.is_unit() => return Ok(Array::new().into()),
        Some(kind) => given(kind, "the type")?,
        None => None,
    };
    let context = follow(first(arguments, 0), "attributes.context").map_or_else(Array::new, items);
    let wanted = |item: &Dynamic| item.is_map() && kind.as_ref().is_none_or(|kind| is_of_type(item, kind));
    Ok(context.into_iter().filter(wanted).collect::<Array>().into())
}

fn actor_name(_: &Call, arguments: &[&Dynamic]) -> Returned {
    Ok(actor_name_of(first(arguments, 0)).unwrap_or_else(|| "somebody".to_owned()).into())
}

fn actor_is_app(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let event = first(arguments, 0);
    let app = follow(event, "attributes.actor.app").is_some_and(|app| app.is_map());
    let no_address = text_at(event, "attributes.actor.email").is_some_and(|email| !email.contains('@'));
    Ok((app || no_address).into())
}

fn actor_key(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let event = first(arguments, 0);
    let keys =
        ["attributes.actor.id", "attributes.actor.email", "attributes.actor.name", "attributes.location.ip", "id"];
    Ok(keys.into_iter().find_map(|path| text_at(event, path)).unwrap_or_default().into())
}

fn is_the_actor(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let attributes = follow(first(arguments, 0), "attributes");
    let attributes = attributes.as_ref().and_then(|attributes| attributes.read_lock::<Map>());
    Ok(attributes.is_some_and(|attributes| is_actor(&attributes, first(arguments, 1))).into())
}

/// The target that a call refers to, of one of the types if any are given.
fn wanted(arguments: &[&Dynamic]) -> Result<Option<Dynamic>, String> {
    let Some(attributes) = follow(first(arguments, 0), "attributes") else {
        return Ok(None);
    };
    let Some(attributes) = attributes.read_lock::<Map>() else {
        return Ok(None);
    };
    let Some(types) = argument(arguments, 1) else {
        return Ok(target(&attributes));
    };
    let types = match texts(types, "the type")? {
        Some(Texts::One(kind)) => vec![kind],
        Some(Texts::Many(kinds)) => kinds,
        Some(Texts::Named(_)) => return Err("the type must be a string or a list of strings".to_owned()),
        None => return Ok(None),
    };
    let context = attributes.get("context").cloned().map_or_else(Array::new, items);
    let of_type = || context.iter().filter(|item| types.iter().any(|kind| is_of_type(item, kind)));
    Ok(of_type().find(|item| !is_actor(&attributes, item)).or_else(|| of_type().next()).cloned())
}

fn target_of(_: &Call, arguments: &[&Dynamic]) -> Returned {
    Ok(or_unit(wanted(arguments)?))
}

fn target_name(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let name = match wanted(arguments)? {
        Some(target) => name_of(&target),
        // Something that happened to a site or to the organization as a whole.
        None => follow(first(arguments, 0), "attributes.context[0]")
            .filter(|_| argument(arguments, 1).is_none())
            .and_then(|place| name_of(&place)),
    };
    Ok(name.unwrap_or_else(|| "an unknown target".into()).into())
}

fn target_id(_: &Call, arguments: &[&Dynamic]) -> Returned {
    Ok(or_unit(wanted(arguments)?.and_then(|target| text_at(&target, "id"))))
}

fn target_key(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let key = wanted(arguments)?.and_then(|target| text_at(&target, "id").or_else(|| name_of(&target)));
    Ok(key.or_else(|| text_at(first(arguments, 0), "id")).unwrap_or_default().into())
}

fn action_has(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let action = text_at(first(arguments, 0), "attributes.action").unwrap_or_default();
    let patterns = match texts(first(arguments, 1), "the words")? {
        Some(Texts::One(word)) => vec![word],
        Some(Texts::Many(words)) => words,
        Some(Texts::Named(_)) => return Err("the words must be a string or a list of strings".to_owned()),
        None => return Ok(false.into()),
    };
    let words = || action.split(['_', '-', '.', ':', ' ']).filter(|word| !word.is_empty());
    for pattern in &patterns {
        let begin = pattern.strip_suffix('*').unwrap_or(pattern);
        let found = if begin.contains(['*', '?', '[', '{', '\\']) {
            let fits = words().map(|word| call.glob(pattern, word)).collect::<Result<Vec<bool>, String>>()?;
            fits.contains(&true)
        } else {
            // Most patterns are a whole word or a prefix.
            words().any(|word| word.starts_with(begin) && (pattern.ends_with('*') || word == begin))
        };
        if found {
            return Ok(true.into());
        }
    }
    Ok(false.into())
}

fn what(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let event = first(arguments, 0);
    let done = text_at(event, "activity").or_else(|| text_at(event, "attributes.action"));
    let done = done.unwrap_or_else(|| "an unknown action".into());
    let to = wanted(arguments)?.and_then(|target| name_of(&target));
    Ok(to.map_or_else(|| done.to_string(), |to| format!("{done}: {to}")).into())
}

fn origin(_: &Call, arguments: &[&Dynamic]) -> Returned {
    Ok(origin_of(first(arguments, 0)).unwrap_or_else(|| "an unknown address".to_owned()).into())
}

fn from(_: &Call, arguments: &[&Dynamic]) -> Returned {
    Ok(origin_of(first(arguments, 0)).map_or_else(String::new, |origin| format!(" from {origin}")).into())
}

fn site(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let event = first(arguments, 0);
    let entries = ["attributes.container", "attributes.context"];
    let found = entries.into_iter().filter_map(|path| follow(event, path)).flat_map(items).find_map(|entry| {
        let name = |key: &str| text_at(&entry, key);
        name("attributes.siteName").or_else(|| name("attributes.siteHostName")).or_else(|| name("attributes.cloudUrl"))
    });
    Ok(or_unit(found))
}

fn link(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let address = text_at(first(arguments, 0), "links.self");
    let organization = address.as_ref().and_then(|address| address.split_once("/orgs/")).map(|(_, rest)| {
        rest.chars().take_while(|character| character.is_ascii_alphanumeric() || *character == '-').collect::<String>()
    });
    let organization = organization.filter(|id| !id.is_empty());
    Ok(or_unit(organization.map(|id| format!("https://admin.atlassian.com/o/{id}/audit-log"))))
}
