//! Strings: comparison, patterns, parts of addresses, encodings.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rhai::{Dynamic, Map};

use super::{HostFunction, Returned, Texts, Topic, first, given, needs, or_unit, texts};
use crate::rule::manifest::value::data;
use crate::rule::script::host::Call;

pub(super) const TOPIC: Topic = Topic {
    title: "Strings",
    about: "Rhai's own `contains`, `starts_with`, `ends_with`, `to_lower`, `split`, `sub_string` and others are also \
            available. Those listed under \"Absent data\" accept absent data too.",
    functions: FUNCTIONS,
};

const FUNCTIONS: &[HostFunction] = &[
    HostFunction {
        name: "same",
        parameters: &[needs("text", "string"), needs("other", "string, list of strings, or named list")],
        gives: "true or false",
        about: "Test whether the text equals the other one, or one of the others, ignoring case.",
        examples: &[
            (r#"same(event.actor.email, "Dana.Wilson@EXAMPLE.com")"#, "true"),
            (r#"same("Root", ["admin", "root"])"#, "true"),
            (r#"same(event.nothing, "x")"#, "false"),
        ],
        errors: "`other` is not a string, a list or a named list",
        run: same,
    },
    HostFunction {
        name: "glob",
        parameters: &[needs("text", "string"), needs("pattern", "string, list of strings, or named list")],
        gives: "true or false",
        about: "Test whether the whole text matches a pattern, or one of several: `*` matches any text, `?` any \
                character, `[a-z]` one character of a range, `{a,b}` one of several alternatives. Matching is \
                case-sensitive; use `to_lower` on both to ignore case.",
        examples: &[
            (r#"glob(event.action, "user_*")"#, "true"),
            (r#"glob("bob@sub.example.com", ["*@example.com", "*@*.example.com"])"#, "true"),
            (r#"event.nothing.glob("*")"#, "false"),
        ],
        errors: "a pattern is invalid",
        run: glob,
    },
    HostFunction {
        name: "matches",
        parameters: &[needs("text", "string"), needs("regex", "string")],
        gives: "true or false",
        about: "Search the text for a regular expression; anchor it with `^` and `$` to match the whole text. `(?i)` \
                ignores case. The time is proportional to the length of the text, whatever the expression; \
                look-around and backreferences are not supported.",
        examples: &[
            (r#"matches(event.actor.email, `^[a-z.]+@example\.com$`)"#, "true"),
            (r#"matches(event.nothing, ".*")"#, "false"),
        ],
        errors: "the regular expression is invalid or too large",
        run: matches,
    },
    HostFunction {
        name: "captures",
        parameters: &[needs("text", "string"), needs("regex", "string")],
        gives: "a map, or `()`",
        about: "Search the text for a regular expression, and collect its groups by name and by number (as a \
                string). The result is `()` if there is no match.",
        examples: &[
            (r#"captures("ticket OPS-7", `(?<project>[A-Z]+)-(?<number>\d+)`).project"#, r#""OPS""#),
            (r#"captures("none", `(\d+)`)"#, "()"),
        ],
        errors: "the regular expression is invalid or too large",
        run: captures,
    },
    HostFunction {
        name: "domain",
        parameters: &[needs("email", "string")],
        gives: "a string, or `()`",
        about: "Extract what follows the last `@`, in lower case. Some actors of Atlassian have an `email` that is \
                not an address.",
        examples: &[(r#"domain("Dana@Example.com")"#, r#""example.com""#), (r#"domain("Atlassian app")"#, "()")],
        errors: "",
        run: domain,
    },
    HostFunction {
        name: "trimmed",
        parameters: &[needs("text", "string")],
        gives: "a string, or `()`",
        about: "Strip whitespace from both ends. (Rhai's `trim` changes the string in place, which is not allowed \
                for parts of an event.)",
        examples: &[(r#"trimmed("  a b ")"#, r#""a b""#), ("trimmed(())", "()")],
        errors: "",
        run: trimmed,
    },
    HostFunction {
        name: "base64_encode",
        parameters: &[needs("text", "string")],
        gives: "a string, or `()`",
        about: "Encode the text as base64.",
        examples: &[(r#"base64_encode("hi")"#, r#""aGk=""#)],
        errors: "",
        run: base64_encode,
    },
    HostFunction {
        name: "base64_decode",
        parameters: &[needs("text", "string")],
        gives: "a string, or `()`",
        about: "Decode base64. The result is `()` if the input is not valid base64 or does not decode to UTF-8.",
        examples: &[(r#"base64_decode("aGk=")"#, r#""hi""#), (r#"base64_decode("?")"#, "()")],
        errors: "",
        run: base64_decode,
    },
    HostFunction {
        name: "defang",
        parameters: &[needs("text", "string")],
        gives: "a string, or `()`",
        about: "Make URLs and addresses in the text unclickable, for titles and context.",
        examples: &[(r#"defang("https://evil.example/x")"#, r#""hxxps://evil[.]example/x""#)],
        errors: "",
        run: defang,
    },
];

fn same(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let (text, others) = (data(first(arguments, 0)), texts(first(arguments, 1), "`other`")?);
    let (Some(text), Some(others)) = (text, others) else {
        return Ok(false.into());
    };
    let lower = text.to_lowercase();
    Ok(match others {
        Texts::One(other) => other.to_lowercase() == lower,
        Texts::Many(others) => others.iter().any(|other| other.to_lowercase() == lower),
        Texts::Named(list) => list.contains_any_case(&text),
    }
    .into())
}

fn glob(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let (text, patterns) = (data(first(arguments, 0)), texts(first(arguments, 1), "the pattern")?);
    let (Some(text), Some(patterns)) = (text, patterns) else {
        return Ok(false.into());
    };
    match patterns {
        Texts::One(pattern) => call.glob(&pattern, &text).map(Dynamic::from),
        Texts::Many(patterns) => {
            for pattern in patterns {
                if call.glob(&pattern, &text)? {
                    return Ok(true.into());
                }
            }
            Ok(false.into())
        }
        Texts::Named(list) => {
            call.charge_search(&text, list.entries().len().saturating_mul(BYTES_OF_AN_ENTRY))?;
            list.glob(&text).map(Dynamic::from)
        }
    }
}

/// The cost of searching one pattern of a named list, in bytes: all patterns are searched at once.
const BYTES_OF_AN_ENTRY: usize = 64;

fn matches(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let (text, regex) = (data(first(arguments, 0)), given(first(arguments, 1), "the regular expression")?);
    let (Some(text), Some(regex)) = (text, regex) else {
        return Ok(false.into());
    };
    call.regex(&regex, &text).map(|regex| regex.is_match(&text).into())
}

fn captures(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let (text, regex) = (data(first(arguments, 0)), given(first(arguments, 1), "the regular expression")?);
    let (Some(text), Some(regex)) = (text, regex) else {
        return Ok(Dynamic::UNIT);
    };
    let regex = call.regex(&regex, &text)?;
    let Some(found) = regex.captures(&text) else {
        return Ok(Dynamic::UNIT);
    };
    let mut map = Map::new();
    for (index, name) in regex.capture_names().enumerate() {
        let value = or_unit(found.get(index).map(|part| part.as_str().to_owned()));
        map.insert(index.to_string().into(), value.clone());
        if let Some(name) = name {
            map.insert(name.into(), value);
        }
    }
    Ok(map.into())
}

fn domain(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let address = data(first(arguments, 0));
    let domain = address.as_ref().and_then(|address| address.rsplit_once('@')).map(|(_, domain)| domain);
    Ok(or_unit(domain.filter(|domain| !domain.is_empty()).map(str::to_lowercase)))
}

fn trimmed(_: &Call, arguments: &[&Dynamic]) -> Returned {
    Ok(or_unit(data(first(arguments, 0)).map(|text| text.trim().to_owned())))
}

fn base64_encode(_: &Call, arguments: &[&Dynamic]) -> Returned {
    Ok(or_unit(data(first(arguments, 0)).map(|text| STANDARD.encode(text.as_bytes()))))
}

fn base64_decode(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let decoded = data(first(arguments, 0)).and_then(|text| STANDARD.decode(text.trim()).ok());
    Ok(or_unit(decoded.and_then(|bytes| String::from_utf8(bytes).ok())))
}

fn defang(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let text = data(first(arguments, 0));
    Ok(or_unit(text.map(|text| {
        // A dot between two alphanumeric characters is one that programs turn into a link.
        let characters: Vec<char> = text.chars().collect();
        let mut result = String::with_capacity(text.len() + 8);
        for (index, character) in characters.iter().enumerate() {
            let beside = |offset: Option<usize>| {
                offset.and_then(|at| characters.get(at)).is_some_and(|character| character.is_alphanumeric())
            };
            if *character == '.' && beside(index.checked_sub(1)) && beside(Some(index + 1)) {
                result.push_str("[.]");
            } else {
                result.push(*character);
            }
        }
        result.replace("http://", "hxxp://").replace("https://", "hxxps://")
    })))
}
