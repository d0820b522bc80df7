//! The read-only interface of the store, for replay, status and the listing commands. Its type does not allow writing.

use std::collections::BTreeMap;

use super::{
    Delivery, DestinationRecord, Excepted, Quarantined, SourceRecord, StoreError,
    block::{Contents, Directory, ScanFilter},
    key, value,
};
use crate::model::{
    alert::{Alert, AlertStatus, LoggedChange, Severity},
    event::Event,
    name::{AlertId, DestinationName, EventId, ExceptionId, RuleId, Sequence, SilenceId, SourceName},
    outcome::{LoggedRules, LoggedWatermark},
    silence::Silence,
    time::{self, Timestamp},
};

/// Reads the store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {
    tree: sled::Tree,
}

/// The pending deliveries of a destination.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Pending {
    /// The number of pending deliveries.
    pub count: u64,
    /// When the oldest pending delivery was created.
    pub oldest: Option<Timestamp>,
    /// The number of dead letters.
    pub given_up: u64,
    /// The error of the last attempt, if it failed.
    pub error: Option<String>,
}

impl Pending {
    fn none() -> Self {
        Self { count: 0, oldest: None, given_up: 0, error: None }
    }
}

/// A batch of events to evaluate.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The events, in order; empty if all that follow are stored but not evaluated.
    pub events: Vec<Event>,
    /// The checkpoint after these events were evaluated.
    pub last: Sequence,
}

/// Which alerts a listing returns. The default is all alerts.
#[derive(Debug, Clone, Default)]
pub struct AlertFilter {
    /// Only alerts that opened at this time or later.
    pub since: Option<Timestamp>,
    /// Only alerts that opened before this.
    pub until: Option<Timestamp>,
    /// Only alerts with at least this severity.
    pub min_severity: Option<Severity>,
    /// A pattern of rule ids.
    pub rule: Option<globset::GlobMatcher>,
    pub source: Option<SourceName>,
    pub status: Option<AlertStatus>,
}

impl AlertFilter {
    fn wants(&self, alert: &Alert) -> bool {
        self.min_severity.is_none_or(|least| alert.severity >= least)
            && self.rule.as_ref().is_none_or(|glob| glob.is_match(alert.rule.as_str()))
            && self.source.as_ref().is_none_or(|source| alert.source.as_ref() == Some(source))
            && self.status.is_none_or(|status| alert.status == status)
    }
}

/// A block as it is stored.
pub(super) struct StoredBlock {
    pub(super) last: Sequence,
    pub(super) directory: Vec<u8>,
    pub(super) events: Vec<u8>,
}

impl Reader {
    pub(super) fn new(tree: sled::Tree) -> Self {
        Self { tree }
    }

    /// The number of the last event that was evaluated; zero if none was.
    pub fn checkpoint(&self) -> Result<Sequence, StoreError> {
        let bytes = self.tree.get(key::CHECKPOINT)?;
        Ok(Sequence(bytes.as_deref().and_then(value::number).unwrap_or(0)))
    }

    /// The number of the last event that was stored; zero if none was.
    pub fn last_sequence(&self) -> Result<Sequence, StoreError> {
        let bytes = self.tree.get(key::NEXT_SEQUENCE)?;
        let next = bytes.as_deref().and_then(value::number).unwrap_or(1);
        Ok(Sequence(next.saturating_sub(1)))
    }

    /// When the agent was last alive.
    pub fn alive(&self) -> Result<Option<Timestamp>, StoreError> {
        let bytes = self.tree.get(key::ALIVE)?;
        Ok(bytes.as_deref().and_then(value::number).map(|millis| time::from_millis(millis.cast_signed())))
    }

    /// The record of a source.
    pub fn source(&self, source: &SourceName) -> Result<Option<SourceRecord>, StoreError> {
        self.tree.get(key::source(source))?.map(|bytes| value::from_json("a source's record", &bytes)).transpose()
    }

    /// The records of all sources that were ever polled.
    pub fn sources(&self) -> Result<BTreeMap<SourceName, SourceRecord>, StoreError> {
        let mut sources = BTreeMap::new();
        for item in self.tree.scan_prefix([key::SOURCE]) {
            let (key, bytes) = item?;
            let name = std::str::from_utf8(key.get(1..).unwrap_or_default())
                .map_err(|error| StoreError::damaged("a source's name", error))?;
            sources.insert(SourceName::parse(name)?, value::from_json("a source's record", &bytes)?);
        }
        Ok(sources)
    }

    /// Returns at most `limit` events after `checkpoint`, in order, and never more than one block.
    pub fn events_after(&self, checkpoint: Sequence, limit: usize) -> Result<Vec<Event>, StoreError> {
        let Some((directory, contents)) = self.block(|reader| reader.directory_containing(checkpoint.next()))? else {
            return Ok(Vec::new());
        };
        let start = usize::try_from(checkpoint.next().0.saturating_sub(directory.first.0)).unwrap_or(usize::MAX);
        (start..directory.entries.len()).take(limit).map(|index| contents.event(&directory, index)).collect()
    }

    /// Returns the next events to evaluate after `checkpoint`, at most `limit`, without those that are stored but not
    /// evaluated.
    pub fn batch_after(&self, checkpoint: Sequence, limit: usize) -> Result<Option<Batch>, StoreError> {
        let mut events = self.events_after(checkpoint, limit)?;
        let (Some(first), Some(last)) = (events.first(), events.last()) else {
            return Ok(None);
        };
        let (first, last) = (first.sequence, last.sequence);
        for item in self.tree.range(vec![key::SKIPPED]..=key::skipped(last)).rev() {
            let (run, end) = item?;
            let (Some(start), Some(end)) = (key::number_at_end(&run), value::number(&end)) else {
                return Err(StoreError::damaged("a range of skipped events", "invalid numbers"));
            };
            // Ranges do not overlap: if one ends too early, so do all before it.
            if end < first.0 {
                break;
            }
            events.retain(|event| !(start..=end).contains(&event.sequence.0));
        }
        Ok(Some(Batch { events, last }))
    }

    pub(super) fn tree(&self) -> &sled::Tree {
        &self.tree
    }

    /// Returns the block that contains a number, or else the next block, as it is stored.
    pub(super) fn packed(&self, from: Sequence) -> Result<Option<StoredBlock>, StoreError> {
        loop {
            let Some(directory) = self.directory_containing(from)? else {
                return Ok(None);
            };
            let events = Contents::packed(&self.tree, &directory)?;
            // Merging or retention may have removed it in the meantime.
            if let Some(bytes) = self.tree.get(key::directory(directory.first))?
                && Directory::parse(&bytes)? == directory
            {
                return Ok(Some(StoredBlock { last: directory.last(), directory: bytes.to_vec(), events }));
            }
        }
    }

    /// Reads a block consistently: merging or retention may remove it between finding and reading it, and then it is
    /// looked up again.
    fn block(
        &self,
        find: impl Fn(&Self) -> Result<Option<Directory>, StoreError>,
    ) -> Result<Option<(Directory, Contents)>, StoreError> {
        loop {
            let Some(directory) = find(self)? else {
                return Ok(None);
            };
            let contents = Contents::read(&self.tree, &directory);
            let now = self.tree.get(key::directory(directory.first))?;
            let unchanged = match now {
                Some(bytes) => Directory::parse(&bytes)? == directory,
                None => false,
            };
            if unchanged {
                return Ok(Some((directory, contents?)));
            }
        }
    }

    /// The block that contains `sequence`, or the first one after it if retention has removed that block.
    fn directory_containing(&self, sequence: Sequence) -> Result<Option<Directory>, StoreError> {
        if let Some(directory) = self.directory_up_to(sequence)?
            && directory.last() >= sequence
        {
            return Ok(Some(directory));
        }
        let next = self.tree.range(key::directory(sequence)..vec![key::DIRECTORY + 1]).next();
        next.map(|item| Directory::parse(&item?.1)).transpose()
    }

    /// The last block that begins at or before `sequence`.
    fn directory_up_to(&self, sequence: Sequence) -> Result<Option<Directory>, StoreError> {
        let last = self.tree.range(vec![key::DIRECTORY]..=key::directory(sequence)).next_back();
        last.map(|item| Directory::parse(&item?.1)).transpose()
    }

    /// The directories of all blocks, the oldest first.
    pub(super) fn directories(&self) -> impl DoubleEndedIterator<Item = Result<Directory, StoreError>> + use<> {
        self.tree.scan_prefix([key::DIRECTORY]).map(|item| Directory::parse(&item?.1))
    }

    /// Returns the events that match the filter, in order of arrival. Blocks without matching events are not
    /// decompressed. If blocks are merged or removed in the meantime, events are neither duplicated nor skipped.
    pub fn scan(&self, filter: ScanFilter) -> impl Iterator<Item = Result<Event, StoreError>> + use<> {
        self.scan_with(filter, false)
    }

    /// Like [`Reader::scan`], but logs and skips damaged blocks.
    pub fn scan_readable(&self, filter: ScanFilter) -> impl Iterator<Item = Result<Event, StoreError>> + use<> {
        self.scan_with(filter, true)
    }

    fn scan_with(&self, filter: ScanFilter, lenient: bool) -> impl Iterator<Item = Result<Event, StoreError>> + use<> {
        let reader = self.clone();
        block_by_block(filter.after.next(), move |from| {
            let Some(directory) = reader.directory_containing(from)? else {
                return Ok(None);
            };
            if directory.wanted(&filter).is_empty() {
                return Ok(Some((Vec::new(), Some(directory.last().next()))));
            }
            let read = || -> Step {
                let Some((directory, contents)) = reader.block(|reader| reader.directory_containing(from))? else {
                    return Ok(None);
                };
                let mut events = picked(&directory, &contents, &filter)?;
                events.retain(|event| event.sequence >= from);
                Ok(Some((events, Some(directory.last().next()))))
            };
            match read() {
                Err(error @ StoreError::Damaged { .. }) if lenient => {
                    tracing::warn!(%error, first = %directory.first, last = %directory.last(), "skipped unreadable events; see `watchbell store verify`");
                    Ok(Some((Vec::new(), Some(directory.last().next()))))
                }
                read => read,
            }
        })
    }

    /// Returns the events that match the filter, the newest arrival first.
    pub fn scan_newest_first(&self, filter: ScanFilter) -> impl Iterator<Item = Result<Event, StoreError>> + use<> {
        let reader = self.clone();
        block_by_block(Sequence(u64::MAX), move |to| {
            let Some(directory) = reader.directory_up_to(to)? else {
                return Ok(None);
            };
            let before = |directory: &Directory| directory.first.0.checked_sub(1).map(Sequence);
            if directory.last() <= filter.after {
                return Ok(None);
            }
            if directory.wanted(&filter).is_empty() {
                return Ok(Some((Vec::new(), before(&directory))));
            }
            let Some((directory, contents)) = reader.block(|reader| reader.directory_up_to(to))? else {
                return Ok(None);
            };
            let mut events = picked(&directory, &contents, &filter)?;
            events.retain(|event| event.sequence <= to && event.sequence > filter.after);
            events.reverse();
            Ok(Some((events, before(&directory))))
        })
    }

    /// The event of a source with this id.
    pub fn event(&self, source: &SourceName, id: &EventId) -> Result<Option<Event>, StoreError> {
        let Some(bytes) = self.tree.get(key::seen(source, id))? else {
            return Ok(None);
        };
        let sequence = Sequence(value::number(&bytes).unwrap_or(0));
        let Some((directory, contents)) = self.block(|reader| reader.directory_containing(sequence))? else {
            return Ok(None);
        };
        let Some(index) = sequence.0.checked_sub(directory.first.0) else {
            return Ok(None);
        };
        contents.event(&directory, usize::try_from(index).unwrap_or(usize::MAX)).map(Some)
    }

    /// Returns the number of stored events and their size in bytes before compression.
    pub fn event_totals(&self) -> Result<(u64, u64), StoreError> {
        self.directories().try_fold((0, 0), |(count, bytes), directory| {
            let directory = directory?;
            Ok((count + directory.entries.len() as u64, bytes + directory.raw_bytes))
        })
    }

    pub fn alert(&self, id: AlertId) -> Result<Option<Alert>, StoreError> {
        self.tree.get(key::alert(id))?.map(|bytes| value::from_json("an alert", &bytes)).transpose()
    }

    /// Returns alerts whose id begins with these hexadecimal digits, at most two: enough to know whether the id is
    /// unique.
    pub fn alerts_beginning(&self, digits: &str) -> Result<Vec<Alert>, StoreError> {
        let mut alerts = Vec::new();
        // The bytes that pairs of digits give; a last digit alone is compared below.
        let pairs = digits
            .as_bytes()
            .chunks_exact(2)
            .map_while(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
        for item in self.tree.scan_prefix(key::alerts_beginning(&pairs.take(16).collect::<Vec<u8>>())) {
            let (key, bytes) = item?;
            let id = key::alert_at_end(&key).ok_or_else(|| StoreError::damaged("an alert", "invalid key"))?;
            if id.to_string().starts_with(digits) {
                alerts.push(value::from_json("an alert", &bytes)?);
            }
            if alerts.len() == 2 {
                break;
            }
        }
        Ok(alerts)
    }

    /// Returns the alerts that match the filter, the newest first.
    pub fn alerts(&self, filter: AlertFilter) -> impl Iterator<Item = Result<Alert, StoreError>> + use<> {
        let reader = self.clone();
        let from = filter.since.map_or_else(|| vec![key::ALERT_TIME], key::alert_times_from);
        let to = filter.until.map_or_else(|| vec![key::ALERT_TIME + 1], key::alert_times_from);
        let keys = (from <= to).then(|| self.tree.range(from..to).rev());
        keys.into_iter().flatten().filter_map(move |item| {
            let alert = item.map_err(StoreError::from).and_then(|(key, _)| {
                let id = key::alert_at_end(&key).ok_or_else(|| StoreError::damaged("an alert", "invalid key"))?;
                reader.alert(id)
            });
            match alert {
                Ok(Some(alert)) if filter.wants(&alert) => Some(Ok(alert)),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            }
        })
    }

    /// The ids of all events of an alert, in order of arrival.
    pub fn events_of_alert(&self, id: AlertId) -> impl Iterator<Item = Result<EventId, StoreError>> + use<> {
        self.tree.scan_prefix(key::matches(id)).values().map(|bytes| {
            let bytes = bytes?;
            let text = std::str::from_utf8(&bytes).map_err(|error| StoreError::damaged("an event's ID", error))?;
            Ok(EventId::parse(text)?)
        })
    }

    /// The newest matches that an exception suppressed.
    pub fn excepted(
        &self,
        exception: &ExceptionId,
        limit: usize,
    ) -> impl Iterator<Item = Result<Excepted, StoreError>> + use<> {
        let newest = self.tree.scan_prefix(key::excepted_by(exception)).values().rev().take(limit);
        newest.map(|bytes| value::from_json("a match", &bytes?))
    }

    /// Returns at most `limit` pending deliveries of a destination, in order of creation.
    pub fn pending(&self, destination: &DestinationName, limit: usize) -> Result<Vec<Delivery>, StoreError> {
        self.pending_after(destination, 0, limit)
    }

    /// Like [`Self::pending`], only deliveries with a higher number.
    pub fn pending_after(
        &self,
        destination: &DestinationName,
        number: u64,
        limit: usize,
    ) -> Result<Vec<Delivery>, StoreError> {
        let prefix = key::deliveries(destination);
        let from = key::delivery(destination, number.saturating_add(1));
        let rest = self.tree.range(from..).take_while(|item| match item {
            Ok((key, _)) => key.starts_with(&prefix),
            Err(_) => true,
        });
        rest.take(limit).map(|item| read_delivery(&item?)).collect()
    }

    /// The dead letters of one destination or all, in order of creation.
    pub fn dead_letters(&self, destination: Option<&DestinationName>) -> Result<Vec<Delivery>, StoreError> {
        let prefix = destination.map_or_else(|| vec![key::DEAD_LETTER], key::dead_letters);
        self.tree.scan_prefix(prefix).map(|item| read_delivery(&item?)).collect()
    }

    /// The record of a destination.
    pub fn destination(&self, destination: &DestinationName) -> Result<DestinationRecord, StoreError> {
        let bytes = self.tree.get(key::destination(destination))?;
        bytes.map_or_else(
            || Ok(DestinationRecord::default()),
            |bytes| value::from_json("a destination's record", &bytes),
        )
    }

    /// The reference of a destination to an alert, if it returned one.
    pub fn reference(&self, alert: AlertId, destination: &DestinationName) -> Result<Option<String>, StoreError> {
        let bytes = self.tree.get(key::reference(alert, destination))?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// All silences, the oldest first.
    pub fn silences(&self) -> Result<Vec<Silence>, StoreError> {
        self.tree.scan_prefix([key::SILENCE]).map(|item| value::from_json("a silence", &item?.1)).collect()
    }

    /// The alerts that a silence kept from being delivered.
    pub fn silenced(&self, silence: SilenceId) -> Result<Vec<AlertId>, StoreError> {
        let keys = self.tree.scan_prefix(key::silenced(silence)).keys();
        keys.map(|key| key::alert_at_end(&key?).ok_or_else(|| StoreError::damaged("a silenced alert", "invalid key")))
            .collect()
    }

    /// Returns true if a silence kept an alert from being delivered.
    pub fn is_silenced(&self, silence: SilenceId, alert: AlertId) -> Result<bool, StoreError> {
        Ok(self.tree.contains_key(key::silenced_alert(silence, alert))?)
    }

    /// The number of the last change of an alert; zero if there was none.
    pub fn last_change(&self) -> Result<u64, StoreError> {
        Ok(self.tree.get(key::LAST_CHANGE)?.as_deref().and_then(value::number).unwrap_or(0))
    }

    /// The changes of alerts after a number, in order.
    pub fn changes_after(&self, number: u64) -> impl Iterator<Item = Result<LoggedChange, StoreError>> + use<> {
        self.tree
            .range(key::change(number.saturating_add(1))..vec![key::CHANGE + 1])
            .map(|item| value::from_json("a change", &item?.1))
    }

    /// The rules that ran, and from which position on, in order.
    pub fn logged_rules(&self) -> impl Iterator<Item = Result<LoggedRules, StoreError>> + use<> {
        self.tree.scan_prefix([key::RULES]).map(|item| value::from_json("a rule log entry", &item?.1))
    }

    /// The rules that ran last.
    pub fn last_rules(&self) -> Result<Option<LoggedRules>, StoreError> {
        let last = self.tree.scan_prefix([key::RULES]).next_back().transpose()?;
        last.map(|(_, bytes)| value::from_json("a rule log entry", &bytes)).transpose()
    }

    /// The rules with a pending retro-hunt, by the last event that was evaluated before they were added.
    pub fn hunts(&self) -> Result<BTreeMap<Sequence, Vec<RuleId>>, StoreError> {
        let mut hunts: BTreeMap<Sequence, Vec<RuleId>> = BTreeMap::new();
        let prefix = key::state("hunt/");
        for item in self.tree.scan_prefix(&prefix) {
            let (name, bytes) = item?;
            let rule = name.strip_prefix(prefix.as_slice()).and_then(|rule| std::str::from_utf8(rule).ok());
            if let Some(Ok(rule)) = rule.map(RuleId::parse)
                && let Some(checkpoint) = value::number(&bytes)
            {
                hunts.entry(Sequence(checkpoint)).or_default().push(rule);
            }
        }
        Ok(hunts)
    }

    /// The ranges of events that are stored but not evaluated: the first and the last number of each.
    pub fn skipped(&self) -> impl Iterator<Item = Result<(Sequence, Sequence), StoreError>> + use<> {
        self.tree.scan_prefix([key::SKIPPED]).map(|item| {
            let (first, last) = item?;
            match (key::number_at_end(&first), value::number(&last)) {
                (Some(first), Some(last)) => Ok((Sequence(first), Sequence(last))),
                _ => Err(StoreError::damaged("a range of skipped events", "invalid numbers")),
            }
        })
    }

    /// The recorded watermarks, in order: times up to which logs were known to be complete, where that had an effect.
    pub fn watermarks(&self) -> impl Iterator<Item = Result<LoggedWatermark, StoreError>> + use<> {
        self.tree.scan_prefix([key::WATERMARK]).map(|item| value::from_json("a watermark", &item?.1))
    }

    /// The changes of alerts, the newest first.
    pub fn changes_newest_first(&self) -> impl Iterator<Item = Result<LoggedChange, StoreError>> + use<> {
        self.tree.scan_prefix([key::CHANGE]).rev().map(|item| value::from_json("a change", &item?.1))
    }

    /// The changes of one alert, in order.
    pub fn changes_of(&self, alert: AlertId) -> Result<Vec<LoggedChange>, StoreError> {
        let mut changes = Vec::new();
        for item in self.tree.scan_prefix(key::changes_of(alert)).keys() {
            let number = key::number_at_end(&item?).unwrap_or(0);
            if let Some(bytes) = self.tree.get(key::change(number))? {
                changes.push(value::from_json("a change", &bytes)?);
            }
        }
        Ok(changes)
    }

    /// The pending deliveries and dead letters of each destination that has any.
    pub fn outbox(&self) -> Result<BTreeMap<DestinationName, Pending>, StoreError> {
        let mut outbox: BTreeMap<DestinationName, Pending> = BTreeMap::new();
        for item in self.tree.scan_prefix([key::DELIVERY]) {
            let delivery: Delivery = value::from_json("a delivery", &item?.1)?;
            let created = delivery.created;
            let pending = outbox.entry(delivery.destination).or_insert(Pending::none());
            pending.count += 1;
            pending.oldest = Some(pending.oldest.map_or(created, |oldest| oldest.min(created)));
            pending.error = pending.error.take().or(delivery.error);
        }
        for item in self.tree.scan_prefix([key::DEAD_LETTER]) {
            let letter: Delivery = value::from_json("a dead letter", &item?.1)?;
            let pending = outbox.entry(letter.destination).or_insert(Pending::none());
            pending.given_up += 1;
            pending.error = pending.error.take().or(letter.error);
        }
        Ok(outbox)
    }

    /// Quarantined entries, the newest first.
    pub fn quarantined(&self) -> impl Iterator<Item = Result<Quarantined, StoreError>> + use<> {
        self.tree.scan_prefix([key::QUARANTINE]).rev().map(|item| value::from_json("a quarantined entry", &item?.1))
    }
}

/// The events of a block, and where to look for the next block; absent if there are no more.
type Step = Result<Option<(Vec<Event>, Option<Sequence>)>, StoreError>;

/// Reads one block after another. `read` looks up the block at a number as it is at that time.
fn block_by_block(start: Sequence, read: impl Fn(Sequence) -> Step) -> impl Iterator<Item = Result<Event, StoreError>> {
    let mut at = Some(start);
    std::iter::from_fn(move || match read(at?) {
        Ok(Some((events, next))) => {
            at = next;
            Some(events.into_iter().map(Ok).collect::<Vec<_>>())
        }
        Ok(None) => {
            at = None;
            None
        }
        Err(error) => {
            at = None;
            Some(vec![Err(error)])
        }
    })
    .flatten()
}

fn picked(directory: &Directory, contents: &Contents, filter: &ScanFilter) -> Result<Vec<Event>, StoreError> {
    directory.wanted(filter).into_iter().map(|index| contents.event(directory, index)).collect()
}

fn read_delivery((key, bytes): &(sled::IVec, sled::IVec)) -> Result<Delivery, StoreError> {
    let mut delivery: Delivery = value::from_json("a delivery", bytes)?;
    delivery.number = key::number_at_end(key).unwrap_or(0);
    Ok(delivery)
}
