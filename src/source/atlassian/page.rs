//! A page of the events stream as it is sent: `{ data: […], meta: { next }, links }`. Ragged: entries that are no events are
//! set aside with the reason, unknown fields are kept, and a missing `meta` is an end without a cursor.

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use crate::{action::ListedAction, event::IncomingEvent, source::FetchedPage};

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    meta: Value,
}

pub(super) fn parse(text: &str) -> Result<FetchedPage, String> {
    let envelope: Envelope<'_> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let data = envelope.data.ok_or("it has no `data`")?;
    let entries: Vec<&RawValue> =
        serde_json::from_str(data.get()).map_err(|_| "its `data` is not a list".to_owned())?;
    let mut page = FetchedPage {
        next: envelope.meta.get("next").and_then(Value::as_str).filter(|next| !next.is_empty()).map(bare_cursor),
        ..FetchedPage::default()
    };
    for entry in entries {
        match IncomingEvent::parse(entry.get()) {
            Ok(event) => page.events.push(event),
            Err(rejected) => page.rejected.push(rejected),
        }
    }
    Ok(page)
}

/// A page of the list of actions, and the cursor of the next.
pub(super) fn parse_actions(text: &str) -> Result<(Vec<ListedAction>, Option<String>), String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let entries = value.get("data").and_then(Value::as_array).ok_or("it has no list `data`")?;
    let next = value.pointer("/meta/next").and_then(Value::as_str).filter(|next| !next.is_empty()).map(bare_cursor);
    Ok((entries.iter().filter_map(ListedAction::read).collect(), next))
}

/// `meta.next` is documented as the bare token. Should it ever be a URL, only its `cursor` is taken: the rest of a URL in an
/// answer is never used.
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
    fn both_endings() {
        assert_eq!(parse(r#"{"data":[],"meta":{"next":null}}"#).unwrap().next, None);
        assert_eq!(parse(r#"{"data":[],"links":{}}"#).unwrap().next, None);
        assert_eq!(
            parse(r#"{"data":[],"meta":{"next":"https://evil.example/x?cursor=abc&to=1"}}"#).unwrap().next.as_deref(),
            Some("abc")
        );
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
