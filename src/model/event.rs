//! Events: entries of an audit log, kept as the exact JSON received, with the few fields that the agent itself needs.
//!
//! The shape is Atlassian's `events-stream` (id and `attributes` with `action`, `time`, `processedAt`, `actor`,
//! `context`, `container`, `location`; `message` next to them). Real entries are irregular: any field may be absent,
//! null, or of another type, so fields are looked up leniently. An entry is never dropped because of its content:
//! unreadable parts are flagged (see [`legible`]), and the rest is used.

use std::{borrow::Cow, sync::Arc, time::Duration};

use serde_json::Value;

use crate::model::{
    legible::{self, Flag, Flags, Legible},
    name::{EventId, Sequence, SourceName},
    oversize,
    text::{is_ignorable, is_unsafe, shortened},
    time::{self, Timestamp},
};

/// An event as a source returned it, before the store assigns a sequence number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncomingEvent {
    /// Unique within the source.
    pub id: EventId,
    /// What was done, such as `user_logged_in_as_user`: in lower case, without surrounding spaces.
    pub action: Arc<str>,
    /// When it was done; absent if the entry does not have a readable time.
    pub time: Option<Timestamp>,
    /// When Atlassian processed it (`processedAt`), if the entry has it.
    pub processed: Option<Timestamp>,
    /// What is unusual about it.
    pub flags: Flags,
    /// The entry, byte for byte.
    pub raw: Arc<str>,
}

/// An entry that cannot be used as an event, and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedEntry {
    /// What is missing or wrong.
    pub reason: String,
    /// The entry, byte for byte.
    pub raw: Arc<str>,
}

/// The action of an event that does not have one.
pub const NO_ACTION: &str = "(none)";
/// Bytes of an action id; known ones have at most 60.
const MAX_ACTION: usize = 200;
/// No event is older: Atlassian did not have such a log before then.
const EARLIEST: i64 = 1_325_376_000; // 2012-01-01
/// How far an event's time may be ahead of its arrival, because clocks differ.
const AHEAD: Duration = Duration::from_secs(86_400);

impl IncomingEvent {
    /// Reads an entry. It must be a JSON object; everything else is read as far as possible and flagged where it is not
    /// readable.
    pub fn parse(raw: &str) -> Result<Self, RejectedEntry> {
        Self::read(raw).map_err(|reason| RejectedEntry { reason, raw: raw.into() })
    }

    fn read(raw: &str) -> Result<Self, String> {
        let Legible { text: legible, mut flags } = legible::read(raw)?;
        let value: Value = serde_json::from_str(&legible).map_err(|error| format!("invalid JSON: {error}"))?;
        if !value.is_object() {
            return Err("not a JSON object".to_owned());
        }
        if oversize::is_oversize(&legible, &value) {
            flags.set(Flag::TooLarge);
        }
        let time = |pointer: &str, flags: &mut Flags| {
            let written = value.pointer(pointer).filter(|written| !written.is_null());
            let time = written.and_then(Value::as_str).and_then(time::parse_timestamp);
            if written.is_some() && time.is_none() {
                flags.set(Flag::Time);
            }
            time
        };
        Ok(Self {
            id: id(&value, raw, &mut flags),
            action: action(&value, &mut flags),
            time: time("/attributes/time", &mut flags),
            processed: time("/attributes/processedAt", &mut flags),
            flags,
            raw: raw.into(),
        })
    }

    /// Turns this entry into an event that arrived at `arrived` with the number `sequence`. If its time is unreadable
    /// or implausible, the event takes the time of processing, or else the time of arrival.
    pub fn into_event(self, source: SourceName, sequence: Sequence, arrived: Timestamp) -> Event {
        let latest = time::after(arrived, AHEAD);
        let is_plausible = |time: &Timestamp| time.as_second() >= EARLIEST && *time <= latest;
        let mut flags = self.flags;
        if self.time.is_some_and(|time| !is_plausible(&time)) {
            flags.set(Flag::Time);
        }
        Event {
            sequence,
            source,
            arrived,
            time: self.time.filter(is_plausible).or(self.processed.filter(is_plausible)).unwrap_or(arrived),
            id: self.id,
            action: self.action,
            flags,
            raw: self.raw,
        }
    }
}

/// The id of an entry. If it is missing or cannot be kept, a hash replaces it: of the id, or else of the whole entry,
/// so that the same entry is the same event whenever it arrives.
fn id(value: &Value, raw: &str, flags: &mut Flags) -> EventId {
    let written = value.get("id").filter(|id| !id.is_null());
    // After unreadable characters were replaced, ids may no longer be distinct.
    let is_unclear = |character: char| is_unsafe(character) || character == char::REPLACEMENT_CHARACTER;
    let plain = written.and_then(Value::as_str).filter(|id| !id.chars().any(is_unclear));
    if let Some(id) = plain.and_then(|id| EventId::parse(id).ok()) {
        return id;
    }
    flags.set(Flag::Id);
    match written {
        Some(Value::Number(number)) => EventId::parse(&number.to_string()).unwrap_or_else(|_| EventId::of_hash(raw)),
        Some(Value::String(id)) if !id.is_empty() && !id.contains(char::REPLACEMENT_CHARACTER) => EventId::of_hash(id),
        _ => EventId::of_hash(raw),
    }
}

/// The action id of an entry, in the form in which Atlassian writes it.
fn action(value: &Value, flags: &mut Flags) -> Arc<str> {
    let written = value.pointer("/attributes/action").and_then(Value::as_str).unwrap_or_default();
    let action = usual_action(written);
    // An action that looks like another one to people must not be a different one to rules unnoticed.
    if action != written || !action.chars().all(is_usual) {
        flags.set(Flag::Action);
    }
    action.into()
}

/// Returns true if Atlassian uses the character in action ids, ignoring case.
fn is_usual(character: char) -> bool {
    character.is_ascii_alphanumeric() || "_.:-".contains(character)
}

/// The normal form of an action id: in lower case, without invisible characters.
pub(crate) fn usual_action(written: &str) -> Cow<'_, str> {
    let is_plain = |character: char| is_usual(character) && !character.is_ascii_uppercase();
    if !written.is_empty() && written.len() <= MAX_ACTION && written.chars().all(is_plain) {
        return Cow::Borrowed(written);
    }
    let safe: String = written.to_lowercase().chars().filter(|character| !is_ignorable(*character)).collect();
    let mut action = safe.trim().to_owned();
    if action.len() > MAX_ACTION {
        let hash = blake3::hash(action.as_bytes()).to_hex();
        action = format!("{}#{}", shortened(&action, MAX_ACTION / 4), hash.get(..16).unwrap_or_default());
    }
    if action.is_empty() {
        NO_ACTION.clone_into(&mut action);
    }
    Cow::Owned(action)
}

/// An event and its position in the store.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Event {
    /// The sequence number, in order of arrival.
    pub sequence: Sequence,
    /// The source that it came from.
    pub source: SourceName,
    /// When it arrived, by this machine's clock, or by the server's if this machine's clock is wrong.
    pub arrived: Timestamp,
    /// When it happened.
    pub time: Timestamp,
    /// Unique within the source.
    pub id: EventId,
    /// What was done.
    pub action: Arc<str>,
    /// What is unusual about it.
    #[serde(default, skip_serializing_if = "Flags::is_empty_ref")]
    pub flags: Flags,
    /// The entry, byte for byte.
    pub raw: Arc<str>,
}

impl Event {
    /// When it happened, limited to the time of arrival, so that one event with a wrong clock does not make all others
    /// look old.
    pub fn moment(&self) -> Timestamp {
        self.time.min(self.arrived)
    }

    /// The entry as JSON that a strict parser accepts.
    pub fn legible(&self) -> Cow<'_, str> {
        if !self.flags.needs_repair() {
            return Cow::Borrowed(&self.raw);
        }
        legible::read(&self.raw).map_or(Cow::Borrowed(&*self.raw), |legible| legible.text)
    }

    /// The entry as a JSON value; `null` if it cannot be parsed, which does not happen with stored events.
    pub fn value(&self) -> Value {
        serde_json::from_str(&self.legible()).unwrap_or(Value::Null)
    }

    /// Who did it and from where, for display.
    pub fn evidence(&self) -> Evidence {
        Evidence::of(&self.value())
    }
}

/// Who did something and from where, as far as the event has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Evidence {
    /// The name of the actor.
    pub actor: Option<String>,
    /// The email address of the actor; some apps write text here that is not an address.
    pub email: Option<String>,
    /// The IP address.
    pub ip: Option<String>,
    /// The city and the country.
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

    /// Returns true if the actor's name, email address or IP address contains `text`, ignoring case.
    pub fn mentions(&self, text: &str) -> bool {
        let text = text.to_lowercase();
        [&self.actor, &self.email, &self.ip].into_iter().flatten().any(|field| field.to_lowercase().contains(&text))
    }

    /// The actor for a line of output: the email address if it is one, else the name.
    pub fn who(&self) -> Option<&str> {
        self.email.as_deref().filter(|email| email.contains('@')).or(self.actor.as_deref()).or(self.email.as_deref())
    }

    /// The IP address and the place for a line of output: `203.0.113.7 (Riga, Latvia)`.
    pub fn whence(&self) -> Option<String> {
        match (&self.ip, &self.place) {
            (Some(ip), Some(place)) => Some(format!("{ip} ({place})")),
            (Some(one), None) | (None, Some(one)) => Some(one.clone()),
            (None, None) => None,
        }
    }
}

/// The string at a pointer, if it is not empty.
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
    fn unreadable_parts_of_an_entry_are_flagged() {
        let read = |raw: &str| {
            let event = IncomingEvent::parse(raw).unwrap();
            let flags: Vec<&str> = event.flags.iter().map(Flag::name).collect();
            (event.id.to_string(), event.action.to_string(), flags.join(" "))
        };
        let plain = |id: &str, action: &str, flags: &str| (id.to_owned(), action.to_owned(), flags.to_owned());
        assert_eq!(read(r#"{"id":"1","attributes":{"action":"a","actor":[]}}"#), plain("1", "a", ""));
        assert_eq!(
            read(r#"{"id":1,"attributes":{"action":" User_Login\n","time":7}}"#),
            plain("1", "user_login", "id action time")
        );
        assert_eq!(read(r#"{"id":"1","attributes":"x"}"#), plain("1", NO_ACTION, "action"));
        // The same entry is the same event, and different ones are different events.
        let (one, same, other) = (read("{}"), read("{}"), read(r#"{"x":1}"#));
        assert_eq!(one, same);
        assert_ne!(one.0, other.0);
        let long = |end: &str| read(&format!(r#"{{"id":"{}{end}","attributes":{{"action":"a"}}}}"#, "i".repeat(600)));
        assert_ne!(long("1").0, long("2").0);
        assert_eq!(long("1"), long("1"));
        assert_eq!(read(r#"{"id":"a\u0007","attributes":{"action":"a"}}"#).2, "control id");
        let (one, other) = (format!("{}1", "a".repeat(300)), format!("{}2", "a".repeat(300)));
        let action = |action: &str| read(&format!(r#"{{"id":"1","attributes":{{"action":"{action}"}}}}"#)).1;
        assert_ne!(action(&one), action(&other));
        assert!(action(&one).len() <= MAX_ACTION);
        assert_eq!(reason("[1]"), "not a JSON object");
        assert_eq!(reason("{"), "invalid JSON: expected a key (byte 1)");
    }

    #[test]
    fn implausible_times_are_replaced() {
        let arrived: Timestamp = "2026-11-20T10:00:00Z".parse().unwrap();
        let at = |time: &str, processed: &str| {
            let raw =
                format!(r#"{{"id":"1","attributes":{{"action":"a","time":"{time}","processedAt":"{processed}"}}}}"#);
            let source = SourceName::parse("s").unwrap();
            let event = IncomingEvent::parse(&raw).unwrap().into_event(source, Sequence(1), arrived);
            (event.time.to_string(), event.flags.has(Flag::Time))
        };
        let processed = "2026-11-20T09:00:00Z";
        for time in ["1970-01-01T00:00:10Z", "9999-12-31T23:59:59Z", "2026-11-22T10:00:00Z", "soon", ""] {
            assert_eq!(at(time, processed), (processed.to_owned(), true), "{time}");
        }
        assert_eq!(at("1970-01-01T00:00:10Z", "9999-01-01T00:00:00Z"), (arrived.to_string(), true));
        // A space instead of the `T`, as RFC 3339 allows.
        assert_eq!(at("2026-11-20 08:00:00Z", processed), ("2026-11-20T08:00:00Z".to_owned(), false));
        assert_eq!(at("2016-01-01T00:00:00Z", processed), ("2016-01-01T00:00:00Z".to_owned(), false));
    }

    #[test]
    fn a_missing_time_has_fallbacks() {
        let source = SourceName::parse("s").unwrap();
        let arrived: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let entry =
            IncomingEvent::parse(r#"{"id":"1","attributes":{"action":"a","processedAt":"2026-01-01T00:00:05Z"}}"#);
        let processed: Timestamp = "2026-01-01T00:00:05Z".parse().unwrap();
        assert_eq!(entry.unwrap().into_event(source.clone(), Sequence(1), arrived).time, processed);
        let entry = IncomingEvent::parse(r#"{"id":"1","attributes":{"action":"a","time":"?"}}"#);
        assert_eq!(entry.unwrap().into_event(source, Sequence(1), arrived).time, arrived);
    }
}
