//! Events from files: JSON lines, arrays, pages of the events stream, or any of these one after another.

use std::path::Path;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::event::{IncomingEvent, RejectedEntry};

/// What a file holds.
#[derive(Debug, Default)]
pub struct FileEvents {
    /// Its events, in order.
    pub events: Vec<IncomingEvent>,
    /// Its entries that are no events.
    pub rejected: Vec<RejectedEntry>,
    /// The first thing that could not be read, if anything.
    pub broken: Option<String>,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    data: Vec<&'a RawValue>,
}

/// Reads a file of events.
pub fn read(path: &Path) -> std::io::Result<FileEvents> {
    let bytes = std::fs::read(path)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(parse(&text))
}

/// Reads a text of events. What cannot be read is passed over up to the end of its line.
pub fn parse(text: &str) -> FileEvents {
    let mut found = FileEvents::default();
    let mut start = 0;
    while let Some(rest) = text.get(start..).filter(|rest| !rest.trim_start().is_empty()) {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<&RawValue>();
        // Where the last value that could be read ended.
        let mut end = 0;
        let mut problem = None;
        while let Some(value) = values.next() {
            match value {
                Ok(value) => take(value.get(), &mut found),
                Err(error) => {
                    problem = Some(error.to_string());
                    break;
                }
            }
            end = values.byte_offset();
        }
        let Some(problem) = problem else { break };
        found.broken.get_or_insert(problem);
        let bad = rest.get(end..).unwrap_or_default();
        let line = bad.len() - bad.trim_start().len();
        let line_end = bad.get(line..).and_then(|bad| bad.find('\n')).map_or(bad.len(), |index| line + index + 1);
        start += end + line_end;
    }
    found
}

fn take(raw: &str, found: &mut FileEvents) {
    let entries: Vec<&RawValue> = if raw.starts_with('[') {
        serde_json::from_str(raw).unwrap_or_default()
    } else {
        match serde_json::from_str::<Envelope<'_>>(raw) {
            Ok(page) => page.data,
            Err(_) => {
                push(raw, found);
                return;
            }
        }
    };
    for entry in entries {
        push(entry.get(), found);
    }
}

fn push(raw: &str, found: &mut FileEvents) {
    match IncomingEvent::parse(raw) {
        Ok(event) => found.events.push(event),
        Err(rejected) => found.rejected.push(rejected),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_arrays_and_pages() {
        let event = |id: u8| format!(r#"{{"id":"{id}","attributes":{{"action":"a"}}}}"#);
        let text = format!(
            "{}\n[{},{}]\n{{\"data\":[{}],\"meta\":{{}}}}\n5\n{{\n{}",
            event(1),
            event(2),
            event(3),
            event(4),
            event(5)
        );
        let found = parse(&text);
        let ids: Vec<&str> = found.events.iter().map(|event| event.id.as_str()).collect();
        assert_eq!(ids, ["1", "2", "3", "4", "5"]);
        assert_eq!(found.rejected.len(), 1);
        assert!(found.broken.is_some());
    }
}
