//! Entries that are too large for rules: cut to the limits, so that an attacker cannot hide an event from rules by
//! adding data to it.
//!
//! The data that rules can process is limited, and an event beyond the limits would make every rule fail. Such an event
//! is stored whole; only what rules see of it is cut: long strings first, then long lists. The fields of Atlassian's
//! events come before all others, so that who did what is always present, whatever else the entry contains.

use serde_json::{Map, Value};

use crate::model::text::clipped;

/// Values of an entry that rules see, counting all levels.
const MAX_VALUES: usize = 5_000;
/// Bytes of all strings and names of an entry that rules see.
const MAX_TEXT: usize = 64 * 1024;
/// A shorter entry is never too large, because each value takes at least two bytes.
const ALWAYS_FITS: usize = 2 * MAX_VALUES;

/// How to cut an entry: the UTF-16 units of a string, and the items of a list or an object. The first cut that makes
/// the entry fit is used.
const CUTS: [(usize, usize); 4] = [(16 * 1024, 1_000), (2 * 1024, 200), (256, 50), (64, 20)];

/// The names in Atlassian's events, in the order in which they are kept.
const KNOWN: [&str; 21] = [
    "attributes",
    "id",
    "type",
    "action",
    "time",
    "actor",
    "email",
    "name",
    "context",
    "location",
    "ip",
    "container",
    "message",
    "content",
    "format",
    "countryName",
    "regionName",
    "city",
    "geo",
    "processedAt",
    "links",
];

/// Returns true if an entry is too large for rules.
pub fn is_oversize(raw: &str, value: &Value) -> bool {
    raw.len() > ALWAYS_FITS && !Left::default().take(value)
}

/// Returns what rules see of an entry if it is too large.
pub fn cut_if_oversize(raw: &str) -> Option<Value> {
    if raw.len() <= ALWAYS_FITS {
        return None;
    }
    let value = serde_json::from_str(raw).ok()?;
    is_oversize(raw, &value).then(|| cut(&value))
}

/// Cuts an entry that is too large to what rules see of it.
fn cut(value: &Value) -> Value {
    let mut cut = Value::Null;
    for (text, items) in CUTS {
        let mut left = Left::default();
        cut = left.cut(value, text, items);
        if !left.is_short {
            break;
        }
    }
    cut
}

/// The remaining capacity.
struct Left {
    values: usize,
    text: usize,
    /// Something did not fit.
    is_short: bool,
}

impl Default for Left {
    fn default() -> Self {
        Self { values: MAX_VALUES, text: MAX_TEXT, is_short: false }
    }
}

impl Left {
    fn value(&mut self) -> bool {
        self.is_short |= self.values == 0;
        self.values = self.values.saturating_sub(1);
        !self.is_short
    }

    fn text(&mut self, bytes: usize) -> bool {
        self.is_short |= bytes > self.text;
        self.text = self.text.saturating_sub(bytes);
        !self.is_short
    }

    /// Counts a value and everything in it; returns false if it does not fit.
    fn take(&mut self, value: &Value) -> bool {
        self.value()
            && match value {
                Value::String(text) => self.text(text.len()),
                Value::Array(items) => items.iter().all(|item| self.take(item)),
                Value::Object(map) => map.iter().all(|(name, item)| self.text(name.len()) && self.take(item)),
                _ => true,
            }
    }

    /// Returns the part of the value that fits; null if nothing does.
    fn cut(&mut self, value: &Value, most_text: usize, most_items: usize) -> Value {
        if !self.value() {
            return Value::Null;
        }
        match value {
            Value::String(text) => {
                let text = clipped(text, most_text);
                if self.text(text.len()) { Value::String(text) } else { Value::Null }
            }
            Value::Array(items) => {
                let mut kept = Vec::new();
                for item in items.iter().take(most_items) {
                    if self.is_short {
                        break;
                    }
                    kept.push(self.cut(item, most_text, most_items));
                }
                Value::Array(kept)
            }
            Value::Object(map) => {
                let known = KNOWN.iter().filter_map(|name| map.get_key_value(*name));
                let others = map.iter().filter(|(name, _)| !KNOWN.contains(&name.as_str()));
                let mut kept = Map::new();
                for (name, item) in known.chain(others.take(most_items)) {
                    let name = clipped(name, most_text);
                    if self.is_short || !self.text(name.len()) {
                        break;
                    }
                    kept.insert(name, self.cut(item, most_text, most_items));
                }
                Value::Object(kept)
            }
            other => other.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(extra: (&str, Value)) -> Value {
        let mut event = json!({"id": "1", "attributes": {
            "action": "user_login", "actor": {"id": "a", "name": "Ann", "email": "ann@example.com"},
            "context": [{"id": "c", "attributes": {"name": "first"}}],
        }});
        event["attributes"][extra.0] = extra.1;
        event
    }

    #[test]
    fn added_data_hides_no_known_field() {
        let deep = (0..60).fold(json!(0), |inner, _| json!([inner, "x".repeat(2_000)]));
        let names: Map<String, Value> = (0..25_000).map(|index| (format!("!{index}"), json!(index))).collect();
        let wide: Vec<Value> = (0..300).map(|_| json!([[[[0, 1], [2, 3]]], vec!["y".repeat(300); 300]])).collect();
        let extras = [
            ("aaa", json!("x".repeat(300_000))),
            ("aaa", Value::Object(names)),
            ("aaa", json!(vec![0; 100_000])),
            ("aaa", deep),
            ("aaa", json!(wide)),
            ("message", json!({"content": "é".repeat(200_000)})),
        ];
        for extra in extras {
            let event = event(extra);
            assert!(is_oversize(&event.to_string(), &event));
            let cut = cut(&event);
            assert!(Left::default().take(&cut), "the cut fits");
            assert_eq!(cut["id"], event["id"]);
            for name in ["action", "actor", "context"] {
                assert_eq!(cut["attributes"][name], event["attributes"][name], "{name}");
            }
        }
    }

    #[test]
    fn an_actor_with_a_long_name_keeps_the_id() {
        let event = event(("actor", json!({"id": "a", "name": "n".repeat(500_000), "email": "ann@example.com"})));
        let actor = &cut(&event)["attributes"]["actor"];
        assert_eq!((&actor["id"], &actor["email"]), (&json!("a"), &json!("ann@example.com")));
        assert!(actor["name"].as_str().is_some_and(|name| name.ends_with('…')));
    }

    #[test]
    fn long_lists_keep_their_beginning() {
        let entries: Vec<Value> = (0..9_000).map(|index| json!({"id": index})).collect();
        let event = event(("context", json!(entries)));
        let context = &cut(&event)["attributes"]["context"];
        assert_eq!((&context[0]["id"], &context[999]["id"]), (&json!(0), &json!(999)));
    }

    #[test]
    fn an_ordinary_event_is_unchanged() {
        let event = event(("message", json!({"content": "x".repeat(20_000)})));
        assert!(!is_oversize(&event.to_string(), &event));
    }
}
