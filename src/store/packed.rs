//! Blocks for replays: passed on as they are stored, and unpacked by the thread that needs them.

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

/// Some hundred consecutive events, packed.
#[derive(Debug)]
pub struct Block(Packed);

#[derive(Debug)]
enum Packed {
    /// In a store: the directory, and the tree with the chunks.
    Stored { directory: sled::IVec, tree: sled::Tree },
    /// Received through the agent's socket.
    Sent { directory: Vec<u8>, events: Vec<u8> },
    /// Not packed: read from a file.
    Loose(Vec<Event>),
}

/// A block in the form in which it is sent through the socket.
#[derive(Debug, Serialize, Deserialize)]
pub struct SentBlock {
    directory: String,
    events: String,
}

/// A block with its directory read; the events may still be compressed.
#[derive(Debug)]
pub struct Unpacked {
    block: Packed,
    directory: Option<Directory>,
    contents: Option<Contents>,
}

/// The fields of an event that are known without decompressing it.
#[derive(Debug, Clone, Copy)]
pub struct EventHead<'a> {
    pub sequence: Sequence,
    pub source: &'a SourceName,
    /// The action id.
    pub action: &'a Arc<str>,
    /// When it happened.
    pub time: Timestamp,
    /// When it arrived.
    pub arrived: Timestamp,
    /// What is unusual about it.
    pub flags: Flags,
}

impl Block {
    /// Creates a block of the events of a file.
    pub fn of(events: Vec<Event>) -> Self {
        Self(Packed::Loose(events))
    }

    /// Reads the directory.
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
    /// Decodes the block.
    pub fn block(self) -> Result<Block, StoreError> {
        let bytes = |text: String| STANDARD.decode(text).map_err(|error| StoreError::damaged("a block", error));
        Ok(Block(Packed::Sent { directory: bytes(self.directory)?, events: bytes(self.events)? }))
    }
}

impl Unpacked {
    /// The actions of the events.
    pub fn actions(&self) -> Vec<Arc<str>> {
        match (&self.directory, &self.block) {
            (Some(directory), _) => directory.actions.clone(),
            (None, Packed::Loose(events)) => events.iter().map(|event| Arc::clone(&event.action)).collect(),
            (None, _) => Vec::new(),
        }
    }

    /// The number of events.
    pub fn len(&self) -> usize {
        match (&self.directory, &self.block) {
            (Some(directory), _) => directory.entries.len(),
            (None, Packed::Loose(events)) => events.len(),
            (None, _) => 0,
        }
    }

    /// Returns true if there are no events.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The heads of all events, in order.
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

    /// The bytes of the event at a position. The first call decompresses the block.
    pub fn raw(&mut self, index: usize) -> Result<&str, StoreError> {
        self.open()?;
        match (&self.contents, &self.block) {
            (Some(contents), _) => contents.raw(index),
            (None, Packed::Loose(events)) => events.get(index).map(|event| &*event.raw).ok_or_else(missing),
            (None, _) => Err(missing()),
        }
    }

    /// The event at a position.
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
    StoreError::damaged("a block", "missing entry")
}

impl Reader {
    /// All blocks, in order. The store must not change in the meantime.
    pub fn blocks(&self) -> impl Iterator<Item = Result<Block, StoreError>> + use<> {
        let tree = self.tree().clone();
        self.tree()
            .scan_prefix([key::DIRECTORY])
            .values()
            .map(move |directory| Ok(Block(Packed::Stored { directory: directory?, tree: tree.clone() })))
    }

    /// All blocks, in order, ready to be sent. The store may change in the meantime.
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
                    tracing::warn!(%error, "cannot read a block of events");
                    let (damaged, after) = match reader.around(from) {
                        Ok(around) => around,
                        Err(error) => {
                            next = None;
                            return Some(Err(error));
                        }
                    };
                    next = after;
                    // The receiver also finds that it cannot be read, and counts it.
                    Some(Ok(SentBlock { directory: STANDARD.encode(damaged), events: String::new() }))
                }
                Err(error) => {
                    next = None;
                    Some(Err(error))
                }
            }
        })
    }

    /// Returns the bytes of the damaged directory that should contain a number, and the start of the next block.
    fn around(&self, sequence: Sequence) -> Result<(Vec<u8>, Option<Sequence>), StoreError> {
        let here = self.tree().range(vec![key::DIRECTORY]..=key::directory(sequence)).next_back().transpose()?;
        let next = self.tree().range(key::directory(sequence.next())..vec![key::DIRECTORY + 1]).next().transpose()?;
        let begins = next.and_then(|(name, _)| key::number_at_end(&name)).map(Sequence);
        Ok((here.map(|(_, bytes)| bytes.to_vec()).unwrap_or_default(), begins))
    }
}
