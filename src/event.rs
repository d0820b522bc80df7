//! An event: one entry of an audit log, kept as the exact JSON that came, with the few fields read from it that the agent
//! itself needs.
//!
//! The shape is Atlassian's `events-stream` (id and `attributes` with `action`, `time`, `processedAt`, `actor`, `context`,
//! `container`, `location`; `message` beside them). Real entries are ragged: any field may be absent, null, or of another
//! type, so fields are looked up leniently and only an id and an action are required.

use std::sync::Arc;

use serde_json::Value;

use crate::{
    name::{EventId, Sequence, SourceName},
    time::{self, Timestamp},
};

/// An event as it came from a source, before the store has given it a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncomingEvent {
    /// Unique within the source.
    pub id: EventId,
    /// What was done, such as `user_logged_in_as_user`.
    pub action: Arc<str>,
    /// When it was done, where the entry says so legibly.
    pub time: Option<Timestamp>,
    /// When Atlassian processed it (`processedAt`), where the entry says so.
    pub processed: Option<Timestamp>,
    /// The entry, byte for byte.
    pub raw: Arc<str>,
}

/// An entry that cannot be used as an event, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedEntry {
    /// What is missing or wrong.
    pub reason: String,
    /// The entry, byte for byte.
    pub raw: Arc<str>,
}

impl IncomingEvent {
    /// Reads an entry. It must be a JSON object with an `id` and an `attributes.action`, both texts that are not empty.
    pub fn parse(raw: &str) -> Result<Self, RejectedEntry> {
        Self::read(raw).map_err(|reason| RejectedEntry { reason, raw: raw.into() })
    }

    fn read(raw: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(raw).map_err(|error| format!("not readable JSON: {error}"))?;
        if !value.is_object() {
            return Err("not a JSON object".to_owned());
        }
        let id = text(&value, "/id").ok_or("no `id`")?;
        let action = text(&value, "/attributes/action").ok_or("no `attributes.action`")?;
        Ok(Self {
            id: EventId::parse(id).map_err(|error| error.to_string())?,
            action: action.into(),
            time: text(&value, "/attributes/time").and_then(time::parse_timestamp),
            processed: text(&value, "/attributes/processedAt").and_then(time::parse_timestamp),
            raw: raw.into(),
        })
    }

    /// The event that this entry becomes when it arrives at `arrived` as number `sequence`. An entry without a legible time
    /// takes that of its processing, else of its arrival.
    pub fn into_event(self, source: SourceName, sequence: Sequence, arrived: Timestamp) -> Event {
        Event {
            sequence,
            source,
            arrived,
            time: self.time.or(self.processed).unwrap_or(arrived),
            id: self.id,
            action: self.action,
            raw: self.raw,
        }
    }
}

/// An event with its place in the store.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Event {
    /// Its arrival number.
    pub sequence: Sequence,
    /// Where it came from.
    pub source: SourceName,
    /// When it came, by the agent's clock.
    pub arrived: Timestamp,
    /// When it happened.
    pub time: Timestamp,
    /// Unique within the source.
    pub id: EventId,
    /// What was done.
    pub action: Arc<str>,
    /// The entry, byte for byte.
    pub raw: Arc<str>,
}

impl Event {
    /// When it happened, as far as that can be: no event counts as later than its arrival, so that a clock which is wrong in one
    /// does not put all others into the past.
    pub fn moment(&self) -> Timestamp {
        self.time.min(self.arrived)
    }

    /// The entry as JSON; `null` if it is not readable, which stored events never are.
    pub fn value(&self) -> Value {
        serde_json::from_str(&self.raw).unwrap_or(Value::Null)
    }

    /// Who did it, from where: for people to read.
    pub fn evidence(&self) -> Evidence {
        Evidence::of(&self.value())
    }
}

/// Who did something, and from where, as far as the event says.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Evidence {
    /// Name of the actor.
    pub actor: Option<String>,
    /// Email address of the actor; some apps have a text here that is none.
    pub email: Option<String>,
    /// IP address.
    pub ip: Option<String>,
    /// City and country.
    pub place: Option<String>,
    /// Atlassian's sentence about it (`message.content`).
    pub message: Option<String>,
}

impl Evidence {
    fn of(event: &Value) -> Self {
        let owned = |pointer| text(event, pointer).map(str::to_owned);
        let place: Vec<&str> = ["/attributes/location/city", "/attributes/location/countryName"]
            .into_iter()
            .filter_map(|pointer| text(event, pointer))
            .collect();
        Self {
            actor: owned("/attributes/actor/name").or_else(|| owned("/attributes/actor/id")),
            email: owned("/attributes/actor/email"),
            ip: owned("/attributes/location/ip"),
            place: (!place.is_empty()).then(|| place.join(", ")),
            message: owned("/message/content"),
        }
    }

    /// Whether the actor's name, address or IP contains `text`, whatever the case of its letters.
    pub fn mentions(&self, text: &str) -> bool {
        let text = text.to_lowercase();
        [&self.actor, &self.email, &self.ip].into_iter().flatten().any(|field| field.to_lowercase().contains(&text))
    }

    /// The actor as shown in a line: email address if it is one, else the name.
    pub fn who(&self) -> Option<&str> {
        self.email.as_deref().filter(|email| email.contains('@')).or(self.actor.as_deref()).or(self.email.as_deref())
    }

    /// Address and place as shown in a line: `203.0.113.7 (Riga, Latvia)`.
    pub fn whence(&self) -> Option<String> {
        match (&self.ip, &self.place) {
            (Some(ip), Some(place)) => Some(format!("{ip} ({place})")),
            (Some(one), None) | (None, Some(one)) => Some(one.clone()),
            (None, None) => None,
        }
    }
}

/// A text that is not empty.
fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(raw: &str) -> String {
        IncomingEvent::parse(raw).unwrap_err().reason
    }

    #[test]
    fn only_id_and_action_are_needed() {
        let event = IncomingEvent::parse(r#"{"id":"1","attributes":{"action":"a","time":7,"actor":[]}}"#).unwrap();
        assert_eq!((&*event.action, event.time), ("a", None));
        assert_eq!(reason("[1]"), "not a JSON object");
        assert_eq!(reason(r#"{"id":1}"#), "no `id`");
        assert_eq!(reason(r#"{"id":"1","attributes":"x"}"#), "no `attributes.action`");
        let deep = format!(r#"{{"id":"1","x":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
        assert!(reason(&deep).contains("recursion limit"), "{}", reason(&deep));
    }

    #[test]
    fn an_event_without_time_takes_the_next_best() {
        let source = SourceName::parse("s").unwrap();
        let arrived = time::from_millis(9_000);
        let entry =
            IncomingEvent::parse(r#"{"id":"1","attributes":{"action":"a","processedAt":"1970-01-01T00:00:05Z"}}"#);
        assert_eq!(entry.unwrap().into_event(source.clone(), Sequence(1), arrived).time, time::from_millis(5_000));
        let entry = IncomingEvent::parse(r#"{"id":"1","attributes":{"action":"a","time":"?"}}"#);
        assert_eq!(entry.unwrap().into_event(source, Sequence(1), arrived).time, arrived);
    }
}
