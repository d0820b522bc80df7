//! `event` as rules see it: one nested Rhai map, built once per event and shared by all rules without copying.
//!
//! The map is shared as a whole, and every value in it is read-only: assigning to an existing field, or calling a
//! method that changes something, is an error in the rule. Rhai still lets a script add a *new* key to a shared map,
//! so a rule that contains any assignment to a property gets its own view (`CompiledRule::assigns_properties`).
//! Together, these two measures guarantee that no rule can change what the next one sees.
//!
//! The values inside are not shared individually: Rhai's size limits do not work for shared values within lists and
//! maps (1.27). A path such as `event.attributes.actor.email` is still followed in place, and copies only the value
//! at its end.
//!
//! Absent data reads as `()`. Rhai itself does this for missing keys; `library::absent` allows going further from
//! there.

use std::fmt;

use rhai::{Array, Dynamic, Map};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::model::{
    action::Catalog,
    alert::Severity,
    event::{Event, NO_ACTION},
    name::RuleId,
    oversize,
};
use crate::rule::script::{bounds, fields, memory::Expectation};

/// A match, as passed to rules that subscribe to it with `on`.
#[derive(Debug, Clone)]
pub struct MatchInfo {
    /// The rule that matched.
    pub rule: RuleId,
    /// The match's severity.
    pub severity: Severity,
    /// The match's dedup key.
    pub key: String,
    /// The match's title.
    pub title: String,
    /// The risk that the rule adds to the actor.
    pub risk: u32,
    /// Whether the match opened its alert.
    pub opened: bool,
}

/// An event as rules see it.
#[derive(Debug, Clone)]
pub struct EventView(Dynamic);

impl EventView {
    /// The view of a stored event. Next to Atlassian's own names it has the short names `action`, `activity`,
    /// `category`, `actor`, `target`, `time` (RFC 3339, UTC), `ip`, `geo`, `source` and `flags`.
    pub fn new(event: &Event, catalog: &Catalog) -> Self {
        Self(share(Dynamic::from_map(top(event, catalog))))
    }

    /// The view of a match: its event, with `rule`, `severity`, `key`, `title`, `risk` and `opened` of the match.
    pub fn of_match(event: &Event, matched: &MatchInfo, catalog: &Catalog) -> Self {
        let mut top = top(event, catalog);
        top.insert("rule".into(), text(matched.rule.as_str()));
        top.insert("severity".into(), text(matched.severity.as_str()));
        top.insert("key".into(), text(&matched.key));
        top.insert("title".into(), text(&matched.title));
        top.insert("risk".into(), freeze(i64::from(matched.risk).into()));
        top.insert("opened".into(), freeze(matched.opened.into()));
        Self(share(Dynamic::from_map(top)))
    }

    /// The view of a missed expectation: the event that began it, with `key`, `expected` (the name) and `since`.
    pub fn of_failed(event: &Event, failed: &Expectation, catalog: &Catalog) -> Self {
        let mut top = top(event, catalog);
        top.insert("key".into(), text(&failed.key));
        top.insert("expected".into(), text(&failed.name));
        top.insert("since".into(), text(&failed.event.time.to_string()));
        Self(share(Dynamic::from_map(top)))
    }

    /// The value to pass to a rule: a pointer, not a copy.
    pub fn value(&self) -> Dynamic {
        self.0.clone()
    }
}

fn top(event: &Event, catalog: &Catalog) -> Map {
    let mut top = parse(&event.legible());
    // The event's own id, if it is usable.
    top.insert("id".into(), text(event.id.as_str()));
    let attribute = |path: &[&str]| top.get("attributes").map_or(Dynamic::UNIT, |attributes| walk(attributes, path));
    let actor = attribute(&["actor"]);
    let target = top.get("attributes").and_then(|attributes| fields::target(&*attributes.read_lock::<Map>()?));
    let target = target.unwrap_or(Dynamic::UNIT);
    let ip = attribute(&["location", "ip"]);
    let mut geo = Map::new();
    for (name, key) in [("country", "countryName"), ("city", "city"), ("region", "regionName")] {
        let value = attribute(&["location", key]);
        if value.read_lock::<rhai::ImmutableString>().is_some_and(|text| !text.is_empty()) {
            geo.insert(name.into(), value);
        }
    }
    let action = if &*event.action == NO_ACTION { Dynamic::UNIT } else { text(&event.action) };
    top.insert("action".into(), action);
    let flags: Array = event.flags.iter().map(|flag| text(flag.name())).collect();
    top.insert("flags".into(), freeze(flags.into()));
    top.insert("activity".into(), catalog.name(&event.action).map_or(Dynamic::UNIT, text));
    top.insert("category".into(), text(catalog.category(&event.action).as_str()));
    top.insert("actor".into(), freeze(actor));
    top.insert("target".into(), freeze(target));
    top.insert("ip".into(), freeze(ip));
    top.insert("geo".into(), if geo.is_empty() { Dynamic::UNIT } else { freeze(Dynamic::from_map(geo)) });
    top.insert("time".into(), text(&event.time.to_string()));
    top.insert("source".into(), text(event.source.as_str()));
    top
}

/// The value at the end of a path; nothing else is copied.
fn walk(value: &Dynamic, path: &[&str]) -> Dynamic {
    let Some((key, rest)) = path.split_first() else {
        return value.clone();
    };
    let map = value.read_lock::<Map>();
    map.and_then(|map| map.get(*key).map(|next| walk(next, rest))).unwrap_or(Dynamic::UNIT)
}

/// A JSON value as a read-only, shared Rhai value: the input of check rules.
pub fn frozen(value: &serde_json::Value) -> Dynamic {
    share(Seed.deserialize(value).unwrap_or(Dynamic::UNIT))
}

fn parse(raw: &str) -> Map {
    let seen = match oversize::cut_if_oversize(raw) {
        Some(cut) => Seed.deserialize(cut).ok(),
        None => Seed.deserialize(&mut serde_json::Deserializer::from_str(raw)).ok(),
    };
    seen.and_then(Dynamic::try_cast::<Map>).unwrap_or_default()
}

/// Makes a value read-only and cheap to hand out, without a copy.
pub(in crate::rule) fn share(value: Dynamic) -> Dynamic {
    bounds::trusted(value.into_read_only().into_shared().into_read_only())
}

fn freeze(value: Dynamic) -> Dynamic {
    value.into_read_only()
}

fn text(text: &str) -> Dynamic {
    freeze(Dynamic::from(rhai::ImmutableString::from(text)))
}

/// Deserializes JSON straight into read-only Rhai values, without an intermediate JSON tree.
struct Seed;

impl<'de> DeserializeSeed<'de> for Seed {
    type Value = Dynamic;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Dynamic, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed {
    type Value = Dynamic;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Dynamic, E> {
        Ok(Dynamic::UNIT)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Dynamic, E> {
        Ok(freeze(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Dynamic, E> {
        Ok(freeze(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Dynamic, E> {
        #[expect(clippy::cast_precision_loss, reason = "Rhai has no unsigned integers; larger ones become floats")]
        let or_float = |_| Dynamic::from(value as f64);
        Ok(freeze(i64::try_from(value).map_or_else(or_float, Dynamic::from)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Dynamic, E> {
        Ok(freeze(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Dynamic, E> {
        Ok(text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Dynamic, A::Error> {
        let mut array = Array::new();
        while let Some(item) = items.next_element_seed(Self)? {
            array.push(item);
        }
        Ok(freeze(Dynamic::from_array(array)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Dynamic, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<std::borrow::Cow<'de, str>>()? {
            let value = entries.next_value_seed(Self)?;
            map.insert(key.as_ref().into(), value);
        }
        Ok(freeze(Dynamic::from_map(map)))
    }
}
