//! Blocks as replays read them: handed on as they are stored, to be unpacked by whoever has time.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use super::{
    Reader, StoreError,
    block::{Contents, Directory, Entry},
    key,
};
use crate::model::{
    event::Event,
    legible::Flags,
    name::{Sequence, SourceName},
    time::{self, Timestamp},
};

/// Some hundred events that follow one another, packed.
#[derive(Debug)]
pub struct Block(Packed);

#[derive(Debug)]
enum Packed {
    /// In a store: the directory, and where the rest is.
    Stored { directory: sled::IVec, tree: sled::Tree },
    /// As it came through the agent's socket.
    Sent { directory: Vec<u8>, events: Vec<u8> },
    /// Not packed at all: out of a file.
    Loose(Vec<Event>),
}

/// A block on its way through the socket.
#[derive(Debug, Serialize, Deserialize)]
pub struct SentBlock {
    directory: String,
    events: String,
}

/// A block whose contents are known; its events themselves may still be packed.
#[derive(Debug)]
pub struct Unpacked {
    block: Packed,
    directory: Option<Directory>,
    contents: Option<Contents>,
}

/// What is known of an event without looking at it.
#[derive(Debug, Clone, Copy)]
pub struct EventHead<'a> {
    /// Its number.
    pub sequence: Sequence,
    /// Where it came from.
    pub source: &'a SourceName,
    /// What was done.
    pub action: &'a Arc<str>,
    /// When it happened.
    pub time: Timestamp,
    /// When it came.
    pub arrived: Timestamp,
    /// What is unusual about it.
    pub flags: Flags,
}

impl Block {
    /// Events of a file.
    pub fn of(events: Vec<Event>) -> Self {
        Self(Packed::Loose(events))
    }

    /// Reads what it says about its events.
    pub fn unpack(self) -> Result<Unpacked, StoreError> {
        let directory = match &self.0 {
            Packed::Stored { directory, .. } => Some(Directory::parse(directory)?),
            Packed::Sent { directory, .. } => Some(Directory::parse(directory)?),
            Packed::Loose(_) => None,
        };
        Ok(Unpacked { block: self.0, directory, contents: None })
    }
}

impl SentBlock {
    /// The block again.
    pub fn block(self) -> Result<Block, StoreError> {
        let bytes = |text: String| STANDARD.decode(text).map_err(|error| StoreError::damaged("a block", error));
        Ok(Block(Packed::Sent { directory: bytes(self.directory)?, events: bytes(self.events)? }))
    }
}

impl Unpacked {
    /// Actions of its events.
    pub fn actions(&self) -> Vec<Arc<str>> {
        match (&self.directory, &self.block) {
            (Some(directory), _) => directory.actions.clone(),
            (None, Packed::Loose(events)) => events.iter().map(|event| Arc::clone(&event.action)).collect(),
            (None, _) => Vec::new(),
        }
    }

    /// How many events there are.
    pub fn len(&self) -> usize {
        match (&self.directory, &self.block) {
            (Some(directory), _) => directory.entries.len(),
            (None, Packed::Loose(events)) => events.len(),
            (None, _) => 0,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is known of each event, in order.
    pub fn heads(&self) -> impl Iterator<Item = EventHead<'_>> {
        (0..self.len()).filter_map(|index| self.head(index))
    }

    fn head(&self, index: usize) -> Option<EventHead<'_>> {
        match (&self.directory, &self.block) {
            (Some(directory), _) => {
                let entry: &Entry = directory.entries.get(index)?;
                let (source, action) = directory.names(entry)?;
                Some(EventHead {
                    sequence: Sequence(directory.first.0 + index as u64),
                    source,
                    action,
                    time: time::from_millis(entry.time),
                    arrived: time::from_millis(entry.arrived),
                    flags: directory.flags(index),
                })
            }
            (None, Packed::Loose(events)) => events.get(index).map(|event| EventHead {
                sequence: event.sequence,
                source: &event.source,
                action: &event.action,
                time: event.time,
                arrived: event.arrived,
                flags: event.flags,
            }),
            (None, _) => None,
        }
    }

    /// The bytes of the event at a place. The first call decompresses the block.
    pub fn raw(&mut self, index: usize) -> Result<&str, StoreError> {
        self.open()?;
        match (&self.contents, &self.block) {
            (Some(contents), _) => contents.raw(index),
            (None, Packed::Loose(events)) => events.get(index).map(|event| &*event.raw).ok_or_else(missing),
            (None, _) => Err(missing()),
        }
    }

    /// The event at a place.
    pub fn event(&mut self, index: usize) -> Result<Event, StoreError> {
        self.open()?;
        match (&self.contents, &self.directory, &self.block) {
            (Some(contents), Some(directory), _) => contents.event(directory, index),
            (_, _, Packed::Loose(events)) => events.get(index).cloned().ok_or_else(missing),
            _ => Err(missing()),
        }
    }

    fn open(&mut self) -> Result<(), StoreError> {
        let (None, Some(directory)) = (&self.contents, &self.directory) else {
            return Ok(());
        };
        self.contents = match &self.block {
            Packed::Stored { tree, .. } => Some(Contents::read(tree, directory)?),
            Packed::Sent { events, .. } => Some(Contents::unpack(events, directory)?),
            Packed::Loose(_) => None,
        };
        Ok(())
    }
}

fn missing() -> StoreError {
    StoreError::damaged("a block", "an entry is missing")
}

impl Reader {
    /// All blocks, in order. For a store that nobody changes meanwhile.
    pub fn blocks(&self) -> impl Iterator<Item = Result<Block, StoreError>> + use<> {
        let tree = self.tree().clone();
        self.tree()
            .scan_prefix([key::DIRECTORY])
            .values()
            .map(move |directory| Ok(Block(Packed::Stored { directory: directory?, tree: tree.clone() })))
    }

    /// All blocks, in order, ready to be sent, while the store may change.
    pub fn sent_blocks(&self) -> impl Iterator<Item = Result<SentBlock, StoreError>> + use<> {
        let reader = self.clone();
        let mut next = Some(Sequence(1));
        std::iter::from_fn(move || {
            let from = next?;
            match reader.packed(from) {
                Ok(None) => None,
                Ok(Some(block)) => {
                    next = Some(block.last.next());
                    Some(Ok(SentBlock {
                        directory: STANDARD.encode(block.directory),
                        events: STANDARD.encode(block.events),
                    }))
                }
                Err(error @ StoreError::Damaged { .. }) => {
                    tracing::warn!(%error, "a block of events cannot be read");
                    let (damaged, after) = match reader.around(from) {
                        Ok(around) => around,
                        Err(error) => {
                            next = None;
                            return Some(Err(error));
                        }
                    };
                    next = after;
                    // Whoever receives it finds as well that it cannot be read, and counts it.
                    Some(Ok(SentBlock { directory: STANDARD.encode(damaged), events: String::new() }))
                }
                Err(error) => {
                    next = None;
                    Some(Err(error))
                }
            }
        })
    }

    /// What stands where the directory should be that holds a number, and where the next block begins.
    fn around(&self, sequence: Sequence) -> Result<(Vec<u8>, Option<Sequence>), StoreError> {
        let here = self.tree().range(vec![key::DIRECTORY]..=key::directory(sequence)).next_back().transpose()?;
        let next = self.tree().range(key::directory(sequence.next())..vec![key::DIRECTORY + 1]).next().transpose()?;
        let begins = next.and_then(|(name, _)| key::number_at_end(&name)).map(Sequence);
        Ok((here.map(|(_, bytes)| bytes.to_vec()).unwrap_or_default(), begins))
    }
}
