//! The read-only face of the store: what replay, status and the listing verbs get. It cannot write, by its type.

use std::collections::BTreeMap;

use super::{
    Delivery, Quarantined, SourceRecord, StoreError,
    block::{Contents, Directory, ScanFilter},
    key, value,
};
use crate::{
    alert::{Alert, Severity, Status},
    event::Event,
    name::{AlertId, DestinationName, EventId, Sequence, SourceName},
    time::{self, Timestamp},
};

/// Reads the store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {
    tree: sled::Tree,
}

/// What a destination is owed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Owed {
    /// Deliveries.
    pub count: u64,
    /// When the oldest came up.
    pub oldest: Timestamp,
    /// What the last attempt failed with, if it did.
    pub error: Option<String>,
}

/// Which alerts a listing wants. Empty: all.
#[derive(Debug, Clone, Default)]
pub struct AlertFilter {
    /// Opened at this time or later.
    pub since: Option<Timestamp>,
    /// Opened before this.
    pub until: Option<Timestamp>,
    /// At least so severe.
    pub min_severity: Option<Severity>,
    /// Rule ids with `*`.
    pub rule: Option<globset::GlobMatcher>,
    /// The source.
    pub source: Option<SourceName>,
    /// Where it stands.
    pub status: Option<Status>,
}

impl AlertFilter {
    fn wants(&self, alert: &Alert) -> bool {
        self.min_severity.is_none_or(|least| alert.severity >= least)
            && self.rule.as_ref().is_none_or(|glob| glob.is_match(alert.rule.as_str()))
            && self.source.as_ref().is_none_or(|source| alert.source.as_ref() == Some(source))
            && self.status.is_none_or(|status| alert.status == status)
    }
}

impl Reader {
    pub(super) fn new(tree: sled::Tree) -> Self {
        Self { tree }
    }

    /// The number of the last event that has been evaluated; zero if none was.
    pub fn mark(&self) -> Result<Sequence, StoreError> {
        let bytes = self.tree.get(key::MARK)?;
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

    /// What is known of a source.
    pub fn source(&self, source: &SourceName) -> Result<Option<SourceRecord>, StoreError> {
        self.tree.get(key::source(source))?.map(|bytes| value::from_json("a source's record", &bytes)).transpose()
    }

    /// All sources that ever were polled.
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

    /// At most `limit` events that follow `mark`, in order, and never more than a block at a time.
    pub fn events_after(&self, mark: Sequence, limit: usize) -> Result<Vec<Event>, StoreError> {
        let Some(directory) = self.directory_holding(mark.next())? else {
            return Ok(Vec::new());
        };
        let contents = Contents::read(&self.tree, &directory)?;
        let start = usize::try_from(mark.next().0.saturating_sub(directory.first.0)).unwrap_or(usize::MAX);
        (start..directory.entries.len()).take(limit).map(|index| contents.event(&directory, index)).collect()
    }

    /// The block that holds `sequence`, or the first one after it where retention has taken it.
    fn directory_holding(&self, sequence: Sequence) -> Result<Option<Directory>, StoreError> {
        if let Some(item) = self.tree.range(vec![key::DIRECTORY]..=key::directory(sequence)).next_back() {
            let directory = Directory::parse(&item?.1)?;
            if directory.last() >= sequence {
                return Ok(Some(directory));
            }
        }
        let next = self.tree.range(key::directory(sequence)..vec![key::DIRECTORY + 1]).next();
        next.map(|item| Directory::parse(&item?.1)).transpose()
    }

    /// Directories of all blocks, oldest first.
    pub(super) fn directories(&self) -> impl DoubleEndedIterator<Item = Result<Directory, StoreError>> + use<> {
        self.tree.scan_prefix([key::DIRECTORY]).map(|item| Directory::parse(&item?.1))
    }

    /// Events that pass the filter, in the order of arrival. Whole blocks without such are not decompressed.
    pub fn scan(&self, filter: ScanFilter) -> impl Iterator<Item = Result<Event, StoreError>> + use<> {
        let tree = self.tree.clone();
        self.directories().flat_map(move |directory| picked(&tree, directory, &filter, false))
    }

    /// Events that pass the filter, the newest arrival first.
    pub fn scan_newest_first(&self, filter: ScanFilter) -> impl Iterator<Item = Result<Event, StoreError>> + use<> {
        let tree = self.tree.clone();
        self.directories().rev().flat_map(move |directory| picked(&tree, directory, &filter, true))
    }

    /// The event of a source with this id.
    pub fn event(&self, source: &SourceName, id: &EventId) -> Result<Option<Event>, StoreError> {
        let Some(bytes) = self.tree.get(key::seen(source, id))? else {
            return Ok(None);
        };
        let sequence = Sequence(value::number(&bytes).unwrap_or(0));
        let Some(directory) = self.directory_holding(sequence)? else {
            return Ok(None);
        };
        let Some(index) = sequence.0.checked_sub(directory.first.0) else {
            return Ok(None);
        };
        let contents = Contents::read(&self.tree, &directory)?;
        contents.event(&directory, usize::try_from(index).unwrap_or(usize::MAX)).map(Some)
    }

    /// How many events are stored, and how many bytes they are before compression.
    pub fn event_totals(&self) -> Result<(u64, u64), StoreError> {
        self.directories().try_fold((0, 0), |(count, bytes), directory| {
            let directory = directory?;
            Ok((count + directory.entries.len() as u64, bytes + directory.raw_bytes))
        })
    }

    /// An alert.
    pub fn alert(&self, id: AlertId) -> Result<Option<Alert>, StoreError> {
        self.tree.get(key::alert(id))?.map(|bytes| value::from_json("an alert", &bytes)).transpose()
    }

    /// Alerts whose id begins with these hexadecimal digits, at most two: enough to know whether it is one.
    pub fn alerts_beginning(&self, digits: &str) -> Result<Vec<Alert>, StoreError> {
        let mut found = Vec::new();
        for item in self.tree.scan_prefix([key::ALERT]) {
            let (key, bytes) = item?;
            let id = key::alert_at_end(&key).ok_or_else(|| StoreError::damaged("an alert", "its key"))?;
            if id.to_string().starts_with(digits) {
                found.push(value::from_json("an alert", &bytes)?);
            }
            if found.len() == 2 {
                break;
            }
        }
        Ok(found)
    }

    /// Alerts that pass the filter, the newest first.
    pub fn alerts(&self, filter: AlertFilter) -> impl Iterator<Item = Result<Alert, StoreError>> + use<> {
        let reader = self.clone();
        let from = filter.since.map_or_else(|| vec![key::ALERT_TIME], key::alert_times_from);
        let to = filter.until.map_or_else(|| vec![key::ALERT_TIME + 1], key::alert_times_from);
        let keys = (from <= to).then(|| self.tree.range(from..to).rev());
        keys.into_iter().flatten().filter_map(move |item| {
            let alert = item.map_err(StoreError::from).and_then(|(key, _)| {
                let id = key::alert_at_end(&key).ok_or_else(|| StoreError::damaged("an alert", "its key"))?;
                reader.alert(id)
            });
            match alert {
                Ok(Some(alert)) if filter.wants(&alert) => Some(Ok(alert)),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            }
        })
    }

    /// Ids of all events of an alert, in the order of arrival.
    pub fn events_of_alert(&self, id: AlertId) -> impl Iterator<Item = Result<EventId, StoreError>> + use<> {
        self.tree.scan_prefix(key::matches(id)).values().map(|bytes| {
            let bytes = bytes?;
            let text = std::str::from_utf8(&bytes).map_err(|error| StoreError::damaged("an event's id", error))?;
            Ok(EventId::parse(text)?)
        })
    }

    /// All detection state.
    pub fn state(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let mut entries = Vec::new();
        for item in self.tree.scan_prefix([key::STATE]) {
            let (key, bytes) = item?;
            let name = String::from_utf8_lossy(key.get(1..).unwrap_or_default()).into_owned();
            entries.push((name, bytes.to_vec()));
        }
        Ok(entries)
    }

    /// At most `limit` deliveries owed to a destination, in the order they came up.
    pub fn owed(&self, destination: &DestinationName, limit: usize) -> Result<Vec<Delivery>, StoreError> {
        let mut owed = Vec::new();
        for item in self.tree.scan_prefix(key::deliveries(destination)).take(limit) {
            let (key, bytes) = item?;
            let mut delivery: Delivery = value::from_json("a delivery", &bytes)?;
            delivery.number = key::number_at_end(&key).unwrap_or(0);
            owed.push(delivery);
        }
        Ok(owed)
    }

    /// What each destination is owed; those that are owed nothing are left out.
    pub fn outbox(&self) -> Result<BTreeMap<DestinationName, Owed>, StoreError> {
        let mut outbox: BTreeMap<DestinationName, Owed> = BTreeMap::new();
        for item in self.tree.scan_prefix([key::DELIVERY]) {
            let delivery: Delivery = value::from_json("a delivery", &item?.1)?;
            let created = delivery.created;
            let owed = outbox.entry(delivery.destination).or_insert(Owed { count: 0, oldest: created, error: None });
            owed.count += 1;
            owed.oldest = owed.oldest.min(created);
            owed.error = owed.error.take().or(delivery.error);
        }
        Ok(outbox)
    }

    /// Quarantined entries, the newest first.
    pub fn quarantined(&self) -> impl Iterator<Item = Result<Quarantined, StoreError>> + use<> {
        self.tree.scan_prefix([key::QUARANTINE]).rev().map(|item| value::from_json("a quarantined entry", &item?.1))
    }
}

fn picked(
    tree: &sled::Tree,
    directory: Result<Directory, StoreError>,
    filter: &ScanFilter,
    newest_first: bool,
) -> Vec<Result<Event, StoreError>> {
    let read = || -> Result<Vec<Event>, StoreError> {
        let directory = directory?;
        let mut wanted = directory.wanted(filter);
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        if newest_first {
            wanted.reverse();
        }
        let contents = Contents::read(tree, &directory)?;
        wanted.into_iter().map(|index| contents.event(&directory, index)).collect()
    };
    match read() {
        Ok(events) => events.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(error)],
    }
}
