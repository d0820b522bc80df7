//! Taking values for what they are meant as: `number(event.attributes.count, 0)`.

use rhai::{Array, Dynamic};

use super::{HostFunction, Returned, Topic, argument, first, given, may, needs};
use crate::rule::manifest::value::data;
use crate::rule::script::host::Call;

pub(super) const TOPIC: Topic = Topic {
    title: "Values",
    about: "Fields of real events are sometimes of another type than documented. These take them for what is meant.",
    functions: FUNCTIONS,
};

const FUNCTIONS: &[HostFunction] = &[
    HostFunction {
        name: "number",
        parameters: &[needs("value", "anything"), may("default", "anything")],
        gives: "a number, or the default",
        about: "The value as a whole number or a fraction, read from a text if need be.",
        examples: &[(r#"number("42")"#, "42"), (r#"number("many", 0)"#, "0"), ("number(())", "()")],
        errors: "",
        run: number,
    },
    HostFunction {
        name: "as_list",
        parameters: &[needs("value", "anything")],
        gives: "a list",
        about: "A list as it is, nothing as an empty list, and anything else as a list of one.",
        examples: &[("as_list(event.nothing)", "[]"), ("as_list(5)", "[5]"), ("as_list([1, 2])", "[1, 2]")],
        errors: "",
        run: as_list,
    },
    HostFunction {
        name: "join",
        parameters: &[needs("values", "list"), needs("separator", "text")],
        gives: "a text, or `()`",
        about: "The values of a list in one text. Absent ones are left out.",
        examples: &[(r#"join(["a", (), "b"], ", ")"#, r#""a, b""#), (r#"join((), ", ")"#, "()")],
        errors: "the separator is no text",
        run: join,
    },
];

fn number(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let value = first(arguments, 0);
    let default = || argument(arguments, 1).cloned().unwrap_or(Dynamic::UNIT);
    if let Ok(number) = value.as_int() {
        return Ok(number.into());
    }
    if let Ok(number) = value.as_float() {
        return Ok(number.into());
    }
    let Some(text) = data(value) else {
        return Ok(default());
    };
    let text = text.trim();
    if let Ok(number) = text.parse::<i64>() {
        return Ok(number.into());
    }
    Ok(text.parse::<f64>().ok().filter(|number| number.is_finite()).map_or_else(default, Dynamic::from))
}

fn as_list(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let value = first(arguments, 0);
    if value.is_unit() {
        return Ok(Array::new().into());
    }
    if value.is_array() {
        return Ok(value.clone());
    }
    Ok(vec![value.clone()].into())
}

fn join(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let (Some(items), Some(separator)) =
        (first(arguments, 0).read_lock::<Array>(), given(first(arguments, 1), "the separator")?)
    else {
        return Ok(Dynamic::UNIT);
    };
    let mut text = String::new();
    for item in items.iter().filter(|item| !item.is_unit()) {
        if !text.is_empty() {
            text.push_str(&separator);
        }
        text.push_str(&item.to_string());
        // What a rule can build is bounded; so is what is built for it.
        if text.len() > crate::rule::script::bounds::MAX_STRING {
            return Err("the text would be larger than 256 KiB".to_owned());
        }
    }
    Ok(text.into())
}
