//! Texts: comparing, patterns, parts of addresses, encodings.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rhai::{Dynamic, Map};

use super::{HostFunction, Returned, Texts, Topic, first, given, needs, or_unit, texts};
use crate::rule::manifest::value::data;
use crate::rule::script::host::Call;

pub(super) const TOPIC: Topic = Topic {
    title: "Texts",
    about: "Rhai's own `contains`, `starts_with`, `ends_with`, `to_lower`, `split`, `sub_string` and others work as well, also on \
            absent data.",
    functions: FUNCTIONS,
};

const FUNCTIONS: &[HostFunction] = &[
    HostFunction {
        name: "same",
        parameters: &[needs("text", "text"), needs("other", "text, list of texts, or named list")],
        gives: "true or false",
        about: "Whether the text is the other one, or one of the others, whatever the case of its letters.",
        examples: &[
            (r#"same(event.actor.email, "Dana.Wilson@EXAMPLE.com")"#, "true"),
            (r#"same("Root", ["admin", "root"])"#, "true"),
            (r#"same(event.nothing, "x")"#, "false"),
        ],
        errors: "the other is neither",
        run: same,
    },
    HostFunction {
        name: "glob",
        parameters: &[needs("text", "text"), needs("pattern", "text, list of texts, or named list")],
        gives: "true or false",
        about: "Whether the whole text is as a pattern says: `*` is any text, `?` any character, `[a-z]` one of these, `{a,b}` \
                one of those. Letters must match in case; `to_lower` both for less.",
        examples: &[
            (r#"glob(event.action, "user_*")"#, "true"),
            (r#"glob("bob@sub.example.com", ["*@example.com", "*@*.example.com"])"#, "true"),
            (r#"event.nothing.glob("*")"#, "false"),
        ],
        errors: "a pattern that is none",
        run: glob,
    },
    HostFunction {
        name: "matches",
        parameters: &[needs("text", "text"), needs("regex", "text")],
        gives: "true or false",
        about: "Whether a regular expression is found in the text (`^` and `$` for the whole of it). It takes time in proportion to the \
                text, whatever the expression; there are no look-arounds and no back references. `(?i)` ignores case.",
        examples: &[
            (r#"matches(event.actor.email, `^[a-z.]+@example\.com$`)"#, "true"),
            (r#"matches(event.nothing, ".*")"#, "false"),
        ],
        errors: "an expression that is none, or too large",
        run: matches,
    },
    HostFunction {
        name: "captures",
        parameters: &[needs("text", "text"), needs("regex", "text")],
        gives: "a map, or `()`",
        about: "What the groups of a regular expression found, by name and by number as text; `()` where it is not found.",
        examples: &[
            (r#"captures("ticket OPS-7", `(?<project>[A-Z]+)-(?<number>\d+)`).project"#, r#""OPS""#),
            (r#"captures("none", `(\d+)`)"#, "()"),
        ],
        errors: "an expression that is none, or too large",
        run: captures,
    },
    HostFunction {
        name: "domain",
        parameters: &[needs("email", "text")],
        gives: "a text, or `()`",
        about: "What follows the last `@`, in lower case. Some actors of Atlassian's have an email that is none.",
        examples: &[(r#"domain("Dana@Example.com")"#, r#""example.com""#), (r#"domain("Atlassian app")"#, "()")],
        errors: "",
        run: domain,
    },
    HostFunction {
        name: "trimmed",
        parameters: &[needs("text", "text")],
        gives: "a text, or `()`",
        about: "The text without space at its ends. (Rhai's `trim` changes the text in place, which nothing of an event allows.)",
        examples: &[(r#"trimmed("  a b ")"#, r#""a b""#), ("trimmed(())", "()")],
        errors: "",
        run: trimmed,
    },
    HostFunction {
        name: "base64_encode",
        parameters: &[needs("text", "text")],
        gives: "a text, or `()`",
        about: "The text in base64.",
        examples: &[(r#"base64_encode("hi")"#, r#""aGk=""#)],
        errors: "",
        run: base64_encode,
    },
    HostFunction {
        name: "base64_decode",
        parameters: &[needs("text", "text")],
        gives: "a text, or `()`",
        about: "What stands in base64; `()` where it is no base64 of a text.",
        examples: &[(r#"base64_decode("aGk=")"#, r#""hi""#), (r#"base64_decode("?")"#, "()")],
        errors: "",
        run: base64_decode,
    },
    HostFunction {
        name: "defang",
        parameters: &[needs("text", "text")],
        gives: "a text, or `()`",
        about: "The text with addresses that nobody can click on by mistake: for titles and context.",
        examples: &[(r#"defang("https://evil.example/x")"#, r#""hxxps://evil[.]example/x""#)],
        errors: "",
        run: defang,
    },
];

fn same(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let (text, others) = (data(first(arguments, 0)), texts(first(arguments, 1), "the other")?);
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

/// What a pattern of a named list counts for: all of them are searched at once.
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
        // A dot between two characters of a name is one that a program would make a link of.
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
