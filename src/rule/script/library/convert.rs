//! Converting values to the type that is meant: `number(event.attributes.count, 0)`.

use rhai::{Array, Dynamic};

use super::{HostFunction, Returned, Topic, argument, first, given, may, needs};
use crate::rule::manifest::value::data;
use crate::rule::script::host::Call;

pub(super) const TOPIC: Topic = Topic {
    title: "Values",
    about: "Fields of real events sometimes have another type than documented. These functions convert them.",
    functions: FUNCTIONS,
};

const FUNCTIONS: &[HostFunction] = &[
    HostFunction {
        name: "number",
        parameters: &[needs("value", "anything"), may("default", "anything")],
        gives: "a number, or the default",
        about: "Convert the value to an integer or a float; strings are parsed.",
        examples: &[(r#"number("42")"#, "42"), (r#"number("many", 0)"#, "0"), ("number(())", "()")],
        errors: "",
        run: number,
    },
    HostFunction {
        name: "as_list",
        parameters: &[needs("value", "anything")],
        gives: "a list",
        about: "Convert the value to a list: a list stays as it is, `()` becomes an empty list, and anything else a \
                list of one.",
        examples: &[("as_list(event.nothing)", "[]"), ("as_list(5)", "[5]"), ("as_list([1, 2])", "[1, 2]")],
        errors: "",
        run: as_list,
    },
    HostFunction {
        name: "join",
        parameters: &[needs("values", "list"), needs("separator", "string")],
        gives: "a string, or `()`",
        about: "Join the values of a list into one string. Absent values are skipped.",
        examples: &[(r#"join(["a", (), "b"], ", ")"#, r#""a, b""#), (r#"join((), ", ")"#, "()")],
        errors: "the separator is not a string, or the result is larger than 256 KiB",
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
        // The size of strings that a rule builds is limited, so it is limited here too.
        if text.len() > crate::rule::script::bounds::MAX_STRING {
            return Err("the result would be larger than 256 KiB".to_owned());
        }
    }
    Ok(text.into())
}
