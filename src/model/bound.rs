//! Limits on the size of an alert, so that every store and service accepts it whatever an event contains or a rule
//! builds.

use serde_json::{Map, Value};

use crate::model::{alert::Alert, text::shortened};

/// UTF-16 units of a name, an address or a place.
const NAME: usize = 255;
/// UTF-16 units of Atlassian's sentence about the event.
const MESSAGE: usize = 1_000;
/// UTF-16 units of the title.
const TITLE: usize = 500;
/// UTF-16 units of the description and of the runbook.
const LONG: usize = 20_000;
/// UTF-16 units of the error of one function, of which there are at most nine.
const ERROR: usize = 500;
/// Bytes of a link.
const LINK: usize = 2_000;
/// UTF-16 units of one string of the context.
const TEXT: usize = 4_000;
/// Items of one list or map of the context.
const ITEMS: usize = 200;
/// Bytes of the whole context as JSON.
const CONTEXT: usize = 64 * 1024;
/// Destinations that a rule names.
const DESTINATIONS: usize = 50;

/// Returns the alert cut to the limits.
#[must_use]
pub fn bounded(mut alert: Alert) -> Alert {
    alert.title = shortened(&alert.title, TITLE);
    for text in [&mut alert.description, &mut alert.runbook].into_iter().flatten() {
        *text = shortened(text, LONG);
    }
    let evidence = &mut alert.evidence;
    for text in [&mut evidence.actor, &mut evidence.email, &mut evidence.ip, &mut evidence.place].into_iter().flatten()
    {
        *text = shortened(text, NAME);
    }
    if let Some(message) = &mut evidence.message {
        *message = shortened(message, MESSAGE);
    }
    for error in &mut alert.errors {
        error.error = shortened(&error.error, ERROR);
    }
    // A truncated link would point somewhere else.
    alert.reference = alert.reference.filter(|link| link.len() <= LINK);
    if let Some(destinations) = &mut alert.destinations {
        destinations.truncate(DESTINATIONS);
        destinations.iter_mut().for_each(|name| *name = shortened(name, NAME));
    }
    alert.context = context(alert.context);
    alert
}

/// Returns the context cut to the limits: each string and list is cut, and the last entries are left out if that is not
/// enough.
pub fn context(context: Map<String, Value>) -> Map<String, Value> {
    let mut left = CONTEXT;
    let mut kept = Map::new();
    let mut left_out = 0_usize;
    for (name, mut value) in context {
        cut(&mut value);
        let name = shortened(&name, NAME);
        let bytes = name.len() + value.to_string().len() + 4;
        if bytes > left || kept.len() >= ITEMS {
            left_out += 1;
            continue;
        }
        left -= bytes;
        kept.insert(name, value);
    }
    if left_out > 0 {
        kept.insert("…".to_owned(), format!("{left_out} more entries left out: too large").into());
    }
    kept
}

fn cut(value: &mut Value) {
    match value {
        Value::String(text) => *text = shortened(text, TEXT),
        Value::Array(items) => {
            items.truncate(ITEMS);
            items.iter_mut().for_each(cut);
        }
        Value::Object(map) => {
            *map = std::mem::take(map)
                .into_iter()
                .take(ITEMS)
                .map(|(name, value)| (shortened(&name, NAME), value))
                .collect();
            map.values_mut().for_each(cut);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_context_of_any_size_is_bounded() {
        let long = "x".repeat(1_000_000);
        let many: Vec<Value> = (0..100_000).map(|_| json!(["y".repeat(100)])).collect();
        let given = json!({ "a": long, "b": many, "c": { "d": "z".repeat(5_000) }, "e": 1 });
        let kept = context(given.as_object().unwrap().clone());
        assert!(serde_json::to_string(&kept).unwrap().len() < CONTEXT + 200);
        assert_eq!(kept["a"].as_str().unwrap().encode_utf16().count(), TEXT);
        assert_eq!(kept["b"].as_array().unwrap().len(), ITEMS);
        assert_eq!(kept["e"], 1);
        let entries: Map<String, Value> =
            (0..1_000).map(|number| (number.to_string(), json!("w".repeat(3_000)))).collect();
        let kept = context(entries);
        assert!(kept["…"].as_str().unwrap().contains("more entries"));
    }
}
