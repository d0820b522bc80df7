//! Conversion of Rhai values to and from JSON, and their description in messages.

use rhai::{Array, Dynamic, ImmutableString, Map};

/// Converts a Rhai value to JSON for display.
pub(in crate::rule) fn to_json_value(value: &Dynamic) -> serde_json::Value {
    to_json(value, 0)
}

/// Converts a Rhai value to JSON. Values that JSON cannot represent are described in words; nesting is bounded.
fn to_json(value: &Dynamic, depth: usize) -> serde_json::Value {
    use serde_json::Value;
    if depth > 32 {
        return Value::String("…".to_owned());
    }
    if let Some(map) = value.read_lock::<Map>() {
        return Value::Object(map.iter().map(|(key, value)| (key.to_string(), to_json(value, depth + 1))).collect());
    }
    if let Some(items) = value.read_lock::<Array>() {
        return items.iter().map(|item| to_json(item, depth + 1)).collect();
    }
    if value.is_unit() {
        return Value::Null;
    }
    if let Ok(value) = value.as_bool() {
        return Value::from(value);
    }
    if let Ok(value) = value.as_int() {
        return Value::from(value);
    }
    if let Ok(value) = value.as_float() {
        return serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number);
    }
    match value.read_lock::<ImmutableString>() {
        Some(text) => Value::from(text.as_str()),
        None => Value::from(describe(value)),
    }
}

/// Converts parameters from the configuration to Rhai values.
pub(in crate::rule) fn params_from_json(value: &serde_json::Value) -> Map {
    rhai::serde::to_dynamic(value).ok().and_then(Dynamic::try_cast::<Map>).unwrap_or_default()
}

/// Describes a value for messages: `the string "x"`, `a list`.
pub(in crate::rule) fn describe(value: &Dynamic) -> String {
    match value.type_name() {
        "()" => "`()`".to_owned(),
        "bool" => format!("`{value}`"),
        "i64" | "f64" => format!("the number {value}"),
        "string" => {
            let text: String = value.to_string().chars().take(40).collect();
            format!("the string \"{text}\"")
        }
        "array" => "a list".to_owned(),
        "map" => "a map".to_owned(),
        "Fn" => "a function".to_owned(),
        other => format!("a value of type {other}"),
    }
}

/// Returns the value if it is a string.
pub(in crate::rule) fn data(value: &Dynamic) -> Option<ImmutableString> {
    value.read_lock::<ImmutableString>().map(|text| text.clone())
}
