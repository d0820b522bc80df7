//! Parses a page of the events stream: `{ data: […], meta: { next }, links }`.
//!
//! Parsing is lenient: entries that are not events are set aside with the reason, unknown fields are kept, and a
//! missing `meta` means an end without a cursor.

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use crate::{
    model::{action::ListedAction, event::IncomingEvent, legible},
    source::FetchedPage,
};

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    meta: Value,
}

/// Maximum number of entries. A page has far fewer.
const MAX_ENTRIES: usize = 100_000;

/// Maximum length of a cursor in bytes. A longer one does not fit into a URL.
const MAX_CURSOR: usize = 8 * 1024;

pub(super) fn parse(text: &str) -> Result<FetchedPage, String> {
    let text = text.trim_start_matches('\u{feff}');
    let (entries, meta) = match serde_json::from_str::<Envelope<'_>>(text) {
        Ok(envelope) => {
            let data = envelope.data.ok_or("missing `data`")?;
            let entries = legible::items(data.get(), MAX_ENTRIES).map_err(|problem| format!("in `data`: {problem}"))?;
            (entries, envelope.meta)
        }
        // The error may be within one entry, which must not hide the others.
        Err(error) => leniently(text).ok_or_else(|| error.to_string())?,
    };
    let mut page = FetchedPage { next: cursor(&meta), ..FetchedPage::default() };
    for entry in entries {
        match IncomingEvent::parse(entry) {
            Ok(event) => page.events.push(event),
            Err(rejected) => page.rejected.push(rejected),
        }
    }
    Ok(page)
}

/// Reads the entries and `meta` of a page that a strict parser refuses.
fn leniently(text: &str) -> Option<(Vec<&str>, Value)> {
    let members = legible::members(text).ok()?;
    let member = |key: &str| members.iter().rev().find(|(name, _)| name == key).map(|(_, value)| *value);
    let meta = match member("meta") {
        Some(meta) => serde_json::from_str(meta).ok()?,
        None => Value::Null,
    };
    Some((legible::items(member("data")?, MAX_ENTRIES).ok()?, meta))
}

/// Parses a page of the list of actions, with the cursor of the next page.
pub(super) fn parse_actions(text: &str) -> Result<(Vec<ListedAction>, Option<String>), String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let entries = value.get("data").and_then(Value::as_array).ok_or("missing list `data`")?;
    let next = value.get("meta").and_then(cursor);
    Ok((entries.iter().filter_map(ListedAction::read).collect(), next))
}

/// Returns the cursor of the next page. Without one, the next poll starts by time.
fn cursor(meta: &Value) -> Option<String> {
    let next = meta.get("next").and_then(Value::as_str).filter(|next| !next.is_empty()).map(bare_cursor);
    next.filter(|next| next.len() <= MAX_CURSOR)
}

/// Returns the token in `meta.next`. It is documented as the bare token; if it is a URL, only its `cursor` parameter is
/// used, because the rest of a URL in a response must not be trusted.
fn bare_cursor(next: &str) -> String {
    let from_url = reqwest::Url::parse(next)
        .ok()
        .and_then(|url| url.query_pairs().find(|(name, _)| name == "cursor").map(|(_, value)| value.into_owned()));
    from_url.unwrap_or_else(|| next.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn good_entries_are_used_and_others_set_aside() {
        let page =
            parse(r#"{"data":[{"id":"1","attributes":{"action":"a"},"x":1.10},7,{"id":"2"}],"meta":{"next":"c"}}"#)
                .unwrap();
        assert_eq!(page.events.len(), 2);
        // Byte for byte, `1.10` included.
        assert_eq!(&*page.events[0].raw, r#"{"id":"1","attributes":{"action":"a"},"x":1.10}"#);
        assert_eq!(page.rejected.iter().map(|entry| entry.reason.as_str()).collect::<Vec<_>>(), ["not a JSON object"]);
        assert_eq!(page.next.as_deref(), Some("c"));
    }

    #[test]
    fn an_entry_that_a_strict_reader_refuses_spoils_no_other() {
        let odd = ["{\"id\":\"2\",\"x\":\"a\u{1}b\"}", r#"{"id":"2","x":"\q"}"#, r#"{"id":"2","x":"\u12"}"#];
        for odd in odd {
            let text = format!(r#"{{"data":[{{"id":"1"}},{odd},{{"id":"3"}}, 01],"meta":{{"next":"c"}}}}"#);
            assert!(serde_json::from_str::<Value>(&text).is_err());
            // `01` is not a JSON value at all, so the page is not usable.
            assert!(parse(&text).is_err(), "{text}");
            let page = parse(&text.replace(", 01", "")).unwrap();
            let ids: Vec<&str> = page.events.iter().map(|event| event.id.as_str()).collect();
            assert_eq!(ids, ["1", "2", "3"], "{text}");
            assert_eq!(&*page.events[1].raw, odd);
            assert!(!page.events[1].flags.is_empty());
            assert_eq!(page.next.as_deref(), Some("c"));
        }
        // A truncated page is refused.
        assert!(parse("{\"data\":[{\"id\":\"1\"},{\"id\":\"a\u{1}").is_err());
    }

    #[test]
    fn both_endings() {
        assert_eq!(parse(r#"{"data":[],"meta":{"next":null}}"#).unwrap().next, None);
        assert_eq!(parse(r#"{"data":[],"links":{}}"#).unwrap().next, None);
        assert_eq!(
            parse(r#"{"data":[],"meta":{"next":"https://evil.example/x?cursor=abc&to=1"}}"#).unwrap().next.as_deref(),
            Some("abc")
        );
        let long = format!(r#"{{"data":[],"meta":{{"next":"{}"}}}}"#, "x".repeat(9_000));
        assert_eq!(parse(&long).unwrap().next, None);
        assert_eq!(parse("\u{feff}{\"data\":[],\"meta\":{\"next\":\"c\"}}").unwrap().next.as_deref(), Some("c"));
        assert!(parse("<html>").is_err());
        assert!(parse("{}").is_err());
        assert!(parse(r#"{"data":{}}"#).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,300}") {
            parse(&text).ok();
        }
    }
}
