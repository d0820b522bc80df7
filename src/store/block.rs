//! Blocks: up to some hundred events, compressed together, with a small directory of their numbers, times, sources and
//! actions, which can be read without decompressing.
//!
//! A block is a directory value and the compressed events in chunks of a few kilobytes each (see `store` for the
//! reason). A scan by time or action skips whole blocks by their directories.

use std::{borrow::Cow, ops::Range, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{StoreError, files::Pair, frame, key, value};
use crate::model::{
    event::{Event, usual_action},
    legible::Flags,
    name::{EventId, Sequence, SourceName},
    time::{self, Timestamp},
};

/// Blocks are merged up to this number of events.
pub(super) const FULL_BLOCK: usize = 500;
/// Larger values make sled write nodes to separate files: a node has up to 17 values and may have 128 KiB.
const CHUNK_BYTES: usize = 6 * 1024;
/// zstd's default: 223 bytes for an event of 1.3 KB, in half a microsecond.
const COMPRESSION: i32 = 3;
/// No block decompresses to more than this: a page has at most 32 MiB.
const MAX_BLOCK_BYTES: usize = 256 * 1024 * 1024;

/// The directory of a block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Directory {
    pub(super) first: Sequence,
    /// The earliest and the latest event time, in milliseconds.
    pub(super) times: (i64, i64),
    /// When the last of the events arrived, for retention.
    pub(super) newest: i64,
    pub(super) sources: Vec<SourceName>,
    pub(super) actions: Vec<Arc<str>>,
    pub(super) entries: Vec<Entry>,
    pub(super) chunks: u32,
    /// Bytes of the events before compression.
    pub(super) raw_bytes: u64,
    /// The positions of events with flags, in order, and the flags. Stored after the rest, if there are any.
    #[serde(skip)]
    flagged: Vec<(u16, u16)>,
}

/// The directory entry of one event.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) time: i64,
    pub(super) arrived: i64,
    source: u16,
    action: u16,
}

/// Which events a scan returns. The default is all events.
#[derive(Debug, Clone, Default)]
pub struct ScanFilter {
    /// Only events with this event time or later.
    pub since: Option<Timestamp>,
    /// Only events with an event time before this.
    pub until: Option<Timestamp>,
    /// A pattern of action ids; absent: every action.
    pub action: Option<globset::GlobMatcher>,
    /// The source; absent: every source.
    pub source: Option<SourceName>,
    /// Only events that arrived after this one.
    pub after: Sequence,
}

impl ScanFilter {
    /// Returns true if the block may contain a matching event.
    fn may_contain(&self, directory: &Directory) -> bool {
        self.since.is_none_or(|since| directory.times.1 >= since.as_millisecond())
            && self.until.is_none_or(|until| directory.times.0 < until.as_millisecond())
            && self.source.as_ref().is_none_or(|source| directory.sources.contains(source))
            && self.action.as_ref().is_none_or(|glob| directory.actions.iter().any(|action| glob.is_match(&**action)))
    }

    fn wants(&self, directory: &Directory, entry: &Entry) -> bool {
        self.since.is_none_or(|since| entry.time >= since.as_millisecond())
            && self.until.is_none_or(|until| entry.time < until.as_millisecond())
            && self
                .source
                .as_ref()
                .is_none_or(|source| directory.sources.get(usize::from(entry.source)) == Some(source))
            && self.action.as_ref().is_none_or(|glob| {
                directory.actions.get(usize::from(entry.action)).is_some_and(|action| glob.is_match(&**action))
            })
    }
}

impl Directory {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, StoreError> {
        let (mut directory, rest) = value::from_postcard::<Self>("a block's directory", bytes)?;
        // Earlier versions kept an action as it was written.
        for action in &mut directory.actions {
            if let Cow::Owned(usual) = usual_action(action) {
                *action = usual.into();
            }
        }
        if !rest.is_empty() {
            directory.flagged =
                postcard::from_bytes(rest).map_err(|error| StoreError::damaged("a block's directory", error))?;
        }
        Ok(directory)
    }

    fn to_bytes(&self) -> Result<Vec<u8>, StoreError> {
        let bytes = value::to_postcard(self)?;
        if self.flagged.is_empty() {
            return Ok(bytes);
        }
        postcard::to_extend(&self.flagged, bytes).map_err(|error| StoreError::damaged("a record", error))
    }

    /// The flags of the event at a position.
    pub(super) fn flags(&self, place: usize) -> Flags {
        let index = self.flagged.binary_search_by_key(&place, |(flagged, _)| usize::from(*flagged));
        Flags::of_bits(index.ok().and_then(|index| self.flagged.get(index)).map_or(0, |(_, bits)| *bits))
    }

    pub(super) fn last(&self) -> Sequence {
        Sequence(self.first.0 + (self.entries.len() as u64).saturating_sub(1))
    }

    /// The source and the action of an event.
    pub(super) fn names(&self, entry: &Entry) -> Option<(&SourceName, &Arc<str>)> {
        Some((self.sources.get(usize::from(entry.source))?, self.actions.get(usize::from(entry.action))?))
    }

    /// The positions of the matching events.
    pub(super) fn wanted(&self, filter: &ScanFilter) -> Vec<usize> {
        if !filter.may_contain(self) {
            return Vec::new();
        }
        self.entries.iter().enumerate().filter(|(_, entry)| filter.wants(self, entry)).map(|(index, _)| index).collect()
    }
}

/// Adds a block of these events to a batch. Their sequence numbers must be consecutive.
pub(super) fn write(batch: &mut sled::Batch, events: &[Event]) -> Result<(), StoreError> {
    for (name, bytes) in pairs(events)? {
        batch.insert(name, bytes);
    }
    Ok(())
}

/// The keys and values of a block of these events.
pub(super) fn pairs(events: &[Event]) -> Result<Vec<Pair>, StoreError> {
    let Some(first) = events.first() else {
        return Ok(Vec::new());
    };
    let mut pairs = Vec::new();
    let mut sources: Vec<SourceName> = Vec::new();
    let mut actions: Vec<Arc<str>> = Vec::new();
    let mut entries = Vec::with_capacity(events.len());
    let mut raw = Vec::new();
    for event in events {
        entries.push(Entry {
            time: event.time.as_millisecond(),
            arrived: event.arrived.as_millisecond(),
            source: index_of(&mut sources, &event.source)?,
            action: index_of(&mut actions, &event.action)?,
        });
    }
    let lengths: Vec<(&EventId, u32)> = events
        .iter()
        .map(|event| {
            Ok((&event.id, u32::try_from(event.raw.len()).map_err(|error| StoreError::damaged("an event", error))?))
        })
        .collect::<Result<_, StoreError>>()?;
    raw.extend_from_slice(&value::to_postcard(&lengths)?);
    for event in events {
        raw.extend_from_slice(event.raw.as_bytes());
    }
    let compressed = zstd::bulk::compress(&raw, COMPRESSION).map_err(|error| StoreError::damaged("a block", error))?;
    let times = entries.iter().map(|entry| entry.time);
    let directory = Directory {
        first: first.sequence,
        times: (times.clone().min().unwrap_or(0), times.max().unwrap_or(0)),
        newest: entries.iter().map(|entry| entry.arrived).max().unwrap_or(0),
        sources,
        actions,
        entries,
        chunks: u32::try_from(compressed.len().div_ceil(CHUNK_BYTES)).unwrap_or(u32::MAX),
        raw_bytes: raw.len() as u64,
        flagged: (0_u16..)
            .zip(events)
            .filter(|(_, event)| !event.flags.is_empty())
            .map(|(place, event)| (place, event.flags.bits()))
            .collect(),
    };
    for (index, chunk) in (0_u32..).zip(compressed.chunks(CHUNK_BYTES)) {
        let name = key::chunk(first.sequence, index);
        pairs.push((name.clone(), frame::framed(&name, chunk.to_vec())));
    }
    let name = key::directory(first.sequence);
    pairs.push((name.clone(), frame::framed(&name, directory.to_bytes()?)));
    Ok(pairs)
}

/// Removes a block in a batch.
pub(super) fn remove(batch: &mut sled::Batch, directory: &Directory) {
    batch.remove(key::directory(directory.first));
    for index in 0..directory.chunks {
        batch.remove(key::chunk(directory.first, index));
    }
}

/// The decompressed events of a block.
#[derive(Debug)]
pub(super) struct Contents {
    bytes: Vec<u8>,
    /// The ranges of the events' ids; most are never read.
    ids: Vec<Range<usize>>,
    places: Vec<Range<usize>>,
}

impl Contents {
    pub(super) fn read(tree: &sled::Tree, directory: &Directory) -> Result<Self, StoreError> {
        Self::unpack(&Self::packed(tree, directory)?, directory)
    }

    /// The compressed events.
    pub(super) fn packed(tree: &sled::Tree, directory: &Directory) -> Result<Vec<u8>, StoreError> {
        let mut compressed = Vec::new();
        // One by one, and not with a scan: sled maintains its cache after each of its 256 shards was accessed 64 times,
        // and a scan accesses a shard only once for each page. A replay of a large store would load most of it into
        // memory before anything is evicted.
        for index in 0..directory.chunks {
            if let Some(chunk) = tree.get(key::chunk(directory.first, index))? {
                compressed.extend_from_slice(value::whole("a chunk of a block", &chunk)?);
            }
        }
        Ok(compressed)
    }

    /// Decompresses events.
    pub(super) fn unpack(compressed: &[u8], directory: &Directory) -> Result<Self, StoreError> {
        let size = usize::try_from(directory.raw_bytes).unwrap_or(usize::MAX);
        if size > MAX_BLOCK_BYTES {
            return Err(StoreError::damaged("a block", format!("its directory claims {size} bytes")));
        }
        let bytes = zstd::bulk::decompress(compressed, size).map_err(|error| StoreError::damaged("a block", error))?;
        let (lengths, rest) = value::from_postcard::<Vec<(&str, u32)>>("a block", &bytes)?;
        let mut at = bytes.len() - rest.len();
        let mut ids = Vec::with_capacity(lengths.len());
        let mut places = Vec::with_capacity(lengths.len());
        for (id, length) in lengths {
            let begin = id.as_ptr().addr().wrapping_sub(bytes.as_ptr().addr());
            ids.push(begin..begin.wrapping_add(id.len()));
            places.push(at..at + length as usize);
            at += length as usize;
        }
        if at != bytes.len() || ids.len() != directory.entries.len() {
            return Err(StoreError::damaged("a block", "its directory does not match its contents"));
        }
        Ok(Self { bytes, ids, places })
    }

    fn id(&self, index: usize) -> Result<EventId, StoreError> {
        let missing = || StoreError::damaged("a block", "missing entry");
        let id = self.ids.get(index).and_then(|place| self.bytes.get(place.clone())).ok_or_else(missing)?;
        let id = std::str::from_utf8(id).map_err(|error| StoreError::damaged("an event's ID", error))?;
        EventId::parse(id).map_err(|error| StoreError::damaged("an event's ID", error))
    }

    /// The bytes of the event at a position.
    pub(super) fn raw(&self, index: usize) -> Result<&str, StoreError> {
        let missing = || StoreError::damaged("a block", "missing entry");
        let raw = self.places.get(index).and_then(|place| self.bytes.get(place.clone())).ok_or_else(missing)?;
        std::str::from_utf8(raw).map_err(|error| StoreError::damaged("an event", error))
    }

    /// The event at a position.
    pub(super) fn event(&self, directory: &Directory, index: usize) -> Result<Event, StoreError> {
        let missing = || StoreError::damaged("a block", "missing entry");
        let entry = directory.entries.get(index).ok_or_else(missing)?;
        let raw = self.raw(index)?;
        Ok(Event {
            sequence: Sequence(directory.first.0 + index as u64),
            source: directory.sources.get(usize::from(entry.source)).ok_or_else(missing)?.clone(),
            arrived: time::from_millis(entry.arrived),
            time: time::from_millis(entry.time),
            id: self.id(index)?,
            action: Arc::clone(directory.actions.get(usize::from(entry.action)).ok_or_else(missing)?),
            flags: directory.flags(index),
            raw: raw.into(),
        })
    }

    /// All events of the block.
    pub(super) fn all(&self, directory: &Directory) -> Result<Vec<Event>, StoreError> {
        (0..directory.entries.len()).map(|index| self.event(directory, index)).collect()
    }
}

fn index_of<T: Clone + PartialEq>(list: &mut Vec<T>, item: &T) -> Result<u16, StoreError> {
    let index = list.iter().position(|other| other == item).unwrap_or_else(|| {
        list.push(item.clone());
        list.len() - 1
    });
    u16::try_from(index).map_err(|error| StoreError::damaged("a block", error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(sequence: u64, time: i64, action: u8, raw: &str) -> Event {
        Event {
            sequence: Sequence(sequence),
            source: SourceName::parse(&format!("s{}", action % 2)).unwrap(),
            arrived: time::from_millis(time + 5),
            time: time::from_millis(time),
            id: EventId::parse(&format!("id-{sequence}")).unwrap(),
            action: format!("action_{action}").into(),
            flags: Flags::of_bits(u16::from(action) % 3),
            raw: raw.into(),
        }
    }

    /// An earlier version stored the action like this.
    #[test]
    fn old_actions_are_normalized() {
        let mut old = event(1, 0, 1, "{}");
        old.action = " User_Login\0 ".into();
        let pairs = pairs(&[old]).unwrap();
        let directory = Directory::parse(&pairs.last().unwrap().1).unwrap();
        assert_eq!(directory.actions, ["user_login".into()]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn blocks_round_trip(
            made in prop::collection::vec((-4_000_000_000_000_i64..4_000_000_000_000, 0_u8..6, ".{0,200}"), 1..40),
            first in 1_u64..1_000_000,
        ) {
            let db = sled::Config::new().temporary(true).open().unwrap();
            let events: Vec<Event> = made
                .iter()
                .enumerate()
                .map(|(index, (time, action, raw))| event(first + index as u64, *time, *action, raw))
                .collect();
            let mut batch = sled::Batch::default();
            write(&mut batch, &events).unwrap();
            db.apply_batch(batch).unwrap();
            let directory = Directory::parse(&db.get(key::directory(Sequence(first))).unwrap().unwrap()).unwrap();
            prop_assert_eq!(directory.last(), events.last().unwrap().sequence);
            let contents = Contents::read(&db, &directory).unwrap();
            prop_assert_eq!(contents.all(&directory).unwrap(), events.clone());
            // Selecting by time and action finds the same events as checking each event.
            let filter = ScanFilter {
                since: Some(time::from_millis(0)),
                action: Some(globset::Glob::new("action_[123]").unwrap().compile_matcher()),
                ..ScanFilter::default()
            };
            let expected: Vec<usize> = events
                .iter()
                .enumerate()
                .filter(|(_, event)| event.time >= time::from_millis(0) && ["action_1", "action_2", "action_3"].contains(&&*event.action))
                .map(|(index, _)| index)
                .collect();
            prop_assert_eq!(directory.wanted(&filter), expected);
        }
    }
}
