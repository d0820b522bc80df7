//! Reads events from files: JSON Lines, arrays, pages of the events stream, or any sequence of these, optionally
//! compressed with gzip. JSON Lines files are read in pieces, so that a history of any length needs little memory.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use crate::model::{
    event::{IncomingEvent, RejectedEntry},
    legible,
};

/// The content of a file, or of a piece of it.
#[derive(Debug, Default)]
pub struct FileEvents {
    /// The events, in the order of the file.
    pub events: Vec<IncomingEvent>,
    /// Entries that are not events, with the reason.
    pub rejected: Vec<RejectedEntry>,
    /// The first part that could not be read, as an error message; `None` if everything was.
    pub broken: Option<String>,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    /// Present in events, but not in pages.
    attributes: Option<IgnoredAny>,
}

/// Maximum number of entries in a list. More of them, however short, would take gigabytes.
const MAX_ENTRIES: usize = 1_000_000;

/// Number of bytes of a JSON Lines file to read at a time.
const PIECE: usize = 4 * 1024 * 1024;
/// Maximum size of a line or an entry in bytes: the same as that of an API response.
const LINE: u64 = 32 * 1024 * 1024;
/// Maximum size in bytes of a file that is not JSON Lines, because it has to be read as a whole.
const WHOLE: u64 = 256 * 1024 * 1024;

/// Iterator over the pieces of a file of events. See [`open`].
pub struct Pieces {
    input: Box<dyn BufRead>,
    /// True if there is a value on each line; `None` before the first line has been read.
    lines: Option<bool>,
    read: Arc<AtomicU64>,
}

impl std::fmt::Debug for Pieces {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Pieces({} bytes read)", self.bytes_read())
    }
}

/// Opens a file of events to read it piece by piece; `-` is standard input.
pub fn open(path: &Path) -> io::Result<Pieces> {
    let read = Arc::new(AtomicU64::new(0));
    let input: Box<dyn Read> = if path == Path::new("-") { Box::new(io::stdin()) } else { Box::new(File::open(path)?) };
    let mut input = BufReader::with_capacity(64 * 1024, Counting { inner: input, read: Arc::clone(&read) });
    let gzip = input.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    let input: Box<dyn BufRead> =
        if gzip { Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(input))) } else { Box::new(input) };
    Ok(Pieces { input, lines: None, read })
}

/// Reads a complete file of events. See [`open`].
pub fn read(path: &Path) -> io::Result<FileEvents> {
    let mut found = FileEvents::default();
    for piece in open(path)? {
        let piece = piece?;
        found.events.extend(piece.events);
        found.rejected.extend(piece.rejected);
        found.broken = found.broken.or(piece.broken);
    }
    Ok(found)
}

impl Pieces {
    /// Number of bytes of the file that have been read, before decompression.
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    fn piece(&mut self) -> io::Result<Option<FileEvents>> {
        let mut bytes = Vec::new();
        if self.lines.is_none() {
            (&mut self.input).take(LINE).read_until(b'\n', &mut bytes)?;
            if bytes.starts_with(b"\xef\xbb\xbf") {
                bytes.drain(..3);
            }
            let legible = || legible::first(&String::from_utf8_lossy(&bytes)).is_ok();
            self.lines = Some(serde_json::from_slice::<&RawValue>(&bytes).is_ok() || legible());
        }
        if self.lines == Some(true) {
            while bytes.len() < PIECE && (&mut self.input).take(LINE).read_until(b'\n', &mut bytes)? > 0 {}
        } else {
            let more = (&mut self.input).take(WHOLE).read_to_end(&mut bytes)?;
            if more as u64 >= WHOLE {
                return Err(io::Error::other("a file larger than 256 MiB must be JSON Lines, with one entry per line"));
            }
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        Ok(Some(parse(&String::from_utf8_lossy(&bytes))))
    }
}

impl Iterator for Pieces {
    type Item = io::Result<FileEvents>;

    fn next(&mut self) -> Option<Self::Item> {
        self.piece().transpose()
    }
}

struct Counting<R> {
    inner: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Parses events. Input that cannot be read is skipped up to the end of its line.
pub fn parse(text: &str) -> FileEvents {
    let mut found = FileEvents::default();
    let mut start = 0;
    // Finding out whether a value continues on the next lines means reading all of them. The budget limits the bytes
    // spent on that.
    let mut budget = text.len().saturating_mul(8);
    while let Some(rest) = text.get(start..).filter(|rest| !rest.trim_start().is_empty()) {
        let rest = if budget == 0 { first_line(rest) } else { rest };
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<&RawValue>();
        // End of the last value that could be read.
        let mut end = 0;
        let mut problem = None;
        while let Some(value) = values.next() {
            match value {
                Ok(value) => take(value.get(), &mut found),
                Err(error) => {
                    problem = Some(error);
                    break;
                }
            }
            end = values.byte_offset();
        }
        let Some(problem) = problem else {
            start += rest.len();
            continue;
        };
        let bad = rest.get(end..).unwrap_or_default();
        let blanks = bad.len() - bad.trim_start().len();
        let bad = bad.trim_start();
        let line = first_line(bad);
        if problem.is_eof() {
            budget = budget.saturating_sub(bad.len());
        }
        // The lenient parser may still read it: a single line, or a value over several lines.
        let read = if take_leniently(line.trim_end(), &mut found) {
            Some(line.len())
        } else if budget > 0 {
            let value = legible::first(bad).ok();
            let read = value.filter(|value| take_leniently(value, &mut found)).map(str::len);
            // Successful reads do not count, since they are not scanned again.
            if read.is_none() {
                budget = budget.saturating_sub(value.map_or(bad.len(), str::len));
            }
            read
        } else {
            None
        };
        if read.is_none() {
            found.broken.get_or_insert_with(|| problem.to_string());
        }
        start += end + blanks + read.unwrap_or(line.len());
    }
    found
}

/// Returns `text` up to the end of its first non-blank line.
fn first_line(text: &str) -> &str {
    let blanks = text.len() - text.trim_start().len();
    let line = text.get(blanks..).and_then(|text| text.find('\n'));
    line.and_then(|line| text.get(..=blanks + line)).unwrap_or(text)
}

fn take(raw: &str, found: &mut FileEvents) {
    let list = if raw.starts_with('[') {
        raw
    } else {
        match serde_json::from_str::<Envelope<'_>>(raw) {
            Ok(Envelope { data: Some(data), attributes: None }) if data.get().starts_with('[') => data.get(),
            Ok(_) => {
                push(raw, found);
                return;
            }
            // A duplicate key, as in a page with two `data` lists.
            Err(_) => {
                if !take_leniently(raw, found) {
                    push(raw, found);
                }
                return;
            }
        }
    };
    match legible::items(list, MAX_ENTRIES) {
        Ok(entries) => entries.into_iter().for_each(|entry| push_entry(entry, found)),
        Err(problem) => drop(found.broken.get_or_insert(problem)),
    }
}

/// Like [`take`], for input that a strict parser refuses. Returns false if the lenient parser refuses it, too.
fn take_leniently(raw: &str, found: &mut FileEvents) -> bool {
    if let Some(entries) = entries(raw) {
        entries.into_iter().for_each(|entry| push_entry(entry, found));
        return true;
    }
    let event = IncomingEvent::parse(raw);
    let read = event.is_ok();
    found.events.extend(event);
    read
}

/// Returns the entries of a list or a page.
fn entries(raw: &str) -> Option<Vec<&str>> {
    if raw.starts_with('[') {
        return legible::items(raw, MAX_ENTRIES).ok();
    }
    let members = legible::members(raw).ok()?;
    let member = |key: &str| members.iter().rev().find(|(name, _)| name == key).map(|(_, value)| *value);
    if member("attributes").is_some() { None } else { legible::items(member("data")?, MAX_ENTRIES).ok() }
}

/// Adds an entry of a list: an event, or a page with its events, as `jq -s` puts several pages into one list.
fn push_entry(raw: &str, found: &mut FileEvents) {
    let page = raw.trim_start().starts_with('{') && raw.contains("\"data\"");
    match page.then(|| entries(raw)).flatten() {
        Some(entries) => entries.into_iter().for_each(|entry| push(entry, found)),
        None => push(raw, found),
    }
}

fn push(raw: &str, found: &mut FileEvents) {
    if raw.len() as u64 > LINE {
        found.broken.get_or_insert_with(|| "an entry is larger than 32 MiB".to_owned());
        return;
    }
    match IncomingEvent::parse(raw) {
        Ok(event) => found.events.push(event),
        Err(rejected) => found.rejected.push(rejected),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_strict_reader_refuses_is_read_and_an_event_is_no_page() {
        let lines = [
            r#"{"id":"1","attributes":{"action":"a"}}"#,
            "{\"id\":\"2\",\"attributes\":{\"action\":\"a\u{1}\"}}",
            r#"{"id":"3","attributes":{"action":"\q"}}"#,
            r#"{"id":"4","attributes":{"action":"a"},"data":[{"id":"9"}]}"#,
        ];
        let found = parse(&lines.join("\n"));
        assert_eq!(found.events.iter().map(|event| &*event.raw).collect::<Vec<_>>(), lines);
        assert_eq!((found.broken, found.rejected.len()), (None, 0));
    }

    #[test]
    fn a_list_of_pages_is_read_page_by_page() {
        let page = |ids: [u32; 2]| format!(r#"{{"data":[{{"id":"{}"}},{{"id":"{}"}}],"links":{{}}}}"#, ids[0], ids[1]);
        let found = parse(&format!("[{},\n {}]", page([1, 2]), page([3, 4])));
        let ids: Vec<&str> = found.events.iter().map(|event| event.id.as_str()).collect();
        assert_eq!((ids, found.rejected.len()), (vec!["1", "2", "3", "4"], 0));
    }

    #[test]
    fn one_entry_that_a_strict_reader_refuses_hides_no_other_of_its_page() {
        let entries = [r#"{"id":"1"}"#, "{\"id\":\"2\",\"x\":\"a\u{1}\"}", r#"{"id":"3","x":["\q"]}"#].join(",\n");
        for text in [
            format!("[{entries}]"),
            format!("{{\"data\":[{entries}],\"meta\":{{}}}}"),
            format!("{{\n \"data\": [\n{entries}\n]\n}}"),
        ] {
            for text in [text.replace('\n', ""), text] {
                let found = parse(&format!("{{\"id\":\"0\"}}\n{text}\n{{\"id\":\"4\"}}\n"));
                let ids: Vec<&str> = found.events.iter().map(|event| event.id.as_str()).collect();
                assert_eq!(ids, ["0", "1", "2", "3", "4"], "{text}");
                assert_eq!((found.broken, found.rejected.len()), (None, 0), "{text}");
            }
        }
        // The last of duplicate keys wins.
        let found = parse(r#"{"data":[{"id":"1"}],"data":[{"id":"2"},{"id":"3"}]}"#);
        assert_eq!(found.events.iter().map(|event| event.id.as_str()).collect::<Vec<_>>(), ["2", "3"]);
        // Many pages in one file.
        let page = "{\n \"data\": [\n  {\"id\": \"1\", \"x\": \"a\u{1}\"},\n  {\"id\": \"2\"}\n ]\n}\n";
        let found = parse(&page.repeat(200));
        assert_eq!((found.events.len(), found.broken), (400, None));
        // A truncated line does not affect others.
        let found = parse("{\"id\":\"1\",\"x\":{\n{\"id\":\"2\"}\n[{\"id\":\"3\n{\"id\":\"4\"}\n");
        let ids: Vec<&str> = found.events.iter().map(|event| event.id.as_str()).collect();
        assert_eq!(ids, ["2", "4"]);
        assert!(found.broken.is_some());
    }

    #[test]
    fn what_opens_and_never_closes_is_read_in_time_that_follows_its_size() {
        for line in ["{\"a\":\n", "[\n", "{\"a\":\"\n"] {
            let text = format!("{}{{\"id\":\"1\"}}\n", line.repeat(100_000));
            let found = parse(&text);
            assert!(found.broken.is_some());
            assert_eq!(found.events.len(), 1, "{line}");
        }
    }

    #[test]
    fn a_list_without_end_is_refused() {
        let text = format!("[{}{{}}]", "{},".repeat(MAX_ENTRIES));
        let found = parse(&text);
        assert_eq!((found.events.len(), found.broken.as_deref()), (0, Some("a list has more than 1000000 entries")));
    }

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
