//! Verifies a store: reads everything back and checks the invariants between records.

use std::{
    collections::{BTreeMap, HashSet},
    panic::AssertUnwindSafe,
};

use serde::{Deserialize, Serialize};

use super::{
    AlertCounts, CrashRecord, Delivery, DestinationRecord, Excepted, Quarantined, SourceRecord, Store, StoreError,
    block::{Contents, Directory},
    key, value,
};
use crate::model::{
    action::ActionRecord,
    alert::{Alert, LoggedChange},
    event::IncomingEvent,
    name::{AlertId, Sequence},
    outcome::{LoggedRules, LoggedWatermark},
    silence::Silence,
};

/// The number of problems that are listed.
const MAX_LISTED: usize = 50;

/// What a store contains, and its problems.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreCheck {
    pub events: u64,
    /// The blocks of these events.
    pub blocks: u64,
    pub alerts: u64,
    pub matches: u64,
    pub changes: u64,
    /// Pending deliveries.
    pub pending: u64,
    /// Dead letters.
    pub given_up: u64,
    /// Entries of detection state.
    pub state: u64,
    /// All other records.
    pub others: u64,
    /// Events, or other records, that the store has lost since it was created or recovered.
    #[serde(default)]
    pub lost: u64,
    /// The number of problems.
    pub wrong: u64,
    /// The first problems.
    pub problems: Vec<String>,
}

impl StoreCheck {
    fn wrong(&mut self, problem: impl FnOnce() -> String) {
        self.wrong += 1;
        if self.problems.len() < MAX_LISTED {
            self.problems.push(problem());
        }
    }

    fn expect(&mut self, condition: bool, problem: impl FnOnce() -> String) {
        if !condition {
            self.wrong(problem);
        }
    }
}

impl Store {
    /// Reads everything as of one moment. Writers wait in the meantime.
    pub fn verify(&self) -> Result<StoreCheck, StoreError> {
        let _guard = self.block_writes();
        let mut found = StoreCheck { lost: self.lost()?, ..StoreCheck::default() };
        let lost = found.lost;
        found.expect(lost == 0, || {
            format!(
                "at least {lost} written events or records are missing: sled once opened the store in an earlier state"
            )
        });
        // sled panics on some kinds of damage.
        let read = std::panic::catch_unwind(AssertUnwindSafe(|| self.verify_all(&mut found)));
        match read {
            Ok(read) => read?,
            Err(_) => found.wrong(|| "cannot read the rest: sled failed".to_owned()),
        }
        Ok(found)
    }

    fn verify_all(&self, found: &mut StoreCheck) -> Result<(), StoreError> {
        let last = self.reader().last_sequence()?;
        let checkpoint = self.reader().checkpoint()?;
        found.expect(checkpoint <= last, || {
            format!("the checkpoint is event {checkpoint}, but the last stored event is {last}")
        });
        let alerts = match self.verify_records(found) {
            Err(StoreError::Disk(error)) => {
                found.wrong(|| format!("sled cannot read its file: {error}"));
                return Ok(());
            }
            alerts => alerts?,
        };
        self.verify_blocks(found, last)?;
        self.verify_references(found, &alerts, last)
    }

    /// Decodes every record except events. Returns the ids of the alerts.
    fn verify_records(&self, found: &mut StoreCheck) -> Result<HashSet<AlertId>, StoreError> {
        let mut alerts = HashSet::new();
        let mut counts = AlertCounts::default();
        for item in self.tree() {
            let (name, bytes) = item?;
            let readable = match name.first().copied().unwrap_or_default() {
                key::ALERT => {
                    found.alerts += 1;
                    value::from_json::<Alert>("an alert", &bytes).and_then(|alert| {
                        if key::alert_at_end(&name) != Some(alert.id) {
                            return Err(StoreError::damaged("an alert", "its key belongs to another alert"));
                        }
                        alerts.insert(alert.id);
                        counts.add(&alert);
                        if !self.tree().contains_key(key::alert_time(alert.opened_at, alert.id))? {
                            return Err(StoreError::damaged("an alert", "it is missing in the index by time"));
                        }
                        Ok(())
                    })
                }
                key::CHANGE => {
                    found.changes += 1;
                    value::from_json::<LoggedChange>("a change", &bytes).map(drop)
                }
                key::DELIVERY => {
                    found.pending += 1;
                    value::from_json::<Delivery>("a delivery", &bytes).map(drop)
                }
                key::DEAD_LETTER => {
                    found.given_up += 1;
                    value::from_json::<Delivery>("a dead letter", &bytes).map(drop)
                }
                key::STATE => {
                    found.state += 1;
                    let state = String::from_utf8_lossy(name.get(1..).unwrap_or_default());
                    self.reader().whole_state(&state, &bytes).map(drop)
                }
                key::STATE_PIECE => Ok(()),
                key::MATCH => {
                    found.matches += 1;
                    std::str::from_utf8(&bytes).map(drop).map_err(|error| StoreError::damaged("a match", error))
                }
                key::EXCEPTED => {
                    found.matches += 1;
                    value::from_json::<Excepted>("a match", &bytes).map(drop)
                }
                key::WATERMARK => value::from_json::<LoggedWatermark>("a watermark", &bytes).map(drop),
                key::RULES => value::from_json::<LoggedRules>("a rule log entry", &bytes).map(drop),
                key::SOURCE => value::from_json::<SourceRecord>("a source's record", &bytes).map(drop),
                key::ACTION => value::from_json::<ActionRecord>("an action's record", &bytes).map(drop),
                key::DESTINATION => value::from_json::<DestinationRecord>("a destination's record", &bytes).map(drop),
                key::SILENCE => value::from_json::<Silence>("a silence", &bytes).map(drop),
                key::QUARANTINE => value::from_json::<Quarantined>("a quarantined entry", &bytes).map(drop),
                key::CRASH => value::from_json::<CrashRecord>("a record of crashes", &bytes).map(drop),
                key::META if &*name == key::ALERT_COUNTS => Ok(()),
                key::META | key::SKIPPED | key::SEEN | key::QUARANTINE_SEEN => {
                    let whole = bytes.len() == 8;
                    if whole { Ok(()) } else { Err(StoreError::damaged("a number", "it does not have eight bytes")) }
                }
                key::DIRECTORY | key::CHUNK | key::ALERT_TIME | key::REFERENCE | key::CHANGE_OF | key::SILENCED => {
                    Ok(())
                }
                unknown => Err(StoreError::damaged("an unknown record", format!("its key begins with {unknown}"))),
            };
            if !matches!(name.first(), Some(&(key::SEEN | key::CHUNK | key::DIRECTORY)))
                && !matches!(name.first(), Some(&(key::ALERT | key::CHANGE | key::DELIVERY | key::DEAD_LETTER)))
                && !matches!(name.first(), Some(&(key::STATE | key::STATE_PIECE | key::MATCH | key::EXCEPTED)))
            {
                found.others += 1;
            }
            if let Err(error) = readable {
                found.wrong(|| error.to_string());
            }
        }
        // With an alert that cannot be read, the numbers cannot be compared.
        if alerts.len() as u64 == found.alerts && self.tree().contains_key(key::ALERT_COUNTS)? {
            let stored = self.reader().alert_counts()?;
            found.expect(stored == counts, || "the stored alert counts do not match the alerts".to_owned());
        }
        Ok(alerts)
    }

    /// Checks that blocks decompress, do not overlap and match their directories, and that every event is found by its
    /// id.
    fn verify_blocks(&self, found: &mut StoreCheck, last: Sequence) -> Result<(), StoreError> {
        let mut before = Sequence(0);
        let mut chunks = 0_u64;
        for item in self.tree().scan_prefix([key::DIRECTORY]) {
            let directory = match Directory::parse(&item?.1) {
                Ok(directory) => directory,
                Err(error) => {
                    found.wrong(|| error.to_string());
                    continue;
                }
            };
            found.blocks += 1;
            chunks += u64::from(directory.chunks);
            found.expect(directory.first > before, || {
                format!("the block at event {} overlaps another", directory.first)
            });
            before = directory.last();
            found.expect(before <= last, || format!("event {before} is after the last stored event, {last}"));
            let contents = match Contents::read(self.tree(), &directory) {
                Ok(contents) => contents,
                Err(error) => {
                    found.wrong(|| format!("events {} to {}: {error}", directory.first, directory.last()));
                    continue;
                }
            };
            for index in 0..directory.entries.len() {
                let event = match contents.event(&directory, index) {
                    Ok(event) => event,
                    Err(error) => {
                        found.wrong(|| error.to_string());
                        continue;
                    }
                };
                found.events += 1;
                let seen = self.tree().get(key::seen(&event.source, &event.id))?;
                let number = seen.as_deref().and_then(value::number);
                found.expect(number == Some(event.sequence.0), || {
                    format!("event {} (`{}`) is not found by its ID", event.sequence, event.id)
                });
                let same = IncomingEvent::parse(&event.raw)
                    .is_ok_and(|read| read.id == event.id && read.action == event.action);
                found.expect(same, || {
                    format!("event {} (`{}`) does not match its block's directory", event.sequence, event.id)
                });
            }
        }
        let stored = self.tree().scan_prefix([key::CHUNK]).count() as u64;
        found.expect(stored == chunks, || format!("found {stored} block chunks, expected {chunks}"));
        let ids = self.tree().scan_prefix([key::SEEN]).count() as u64;
        let events = found.events;
        found.expect(ids == events, || format!("found {ids} event IDs, but {events} events"));
        Ok(())
    }

    /// Checks that every reference to an alert leads to an alert.
    fn verify_references(
        &self,
        found: &mut StoreCheck,
        alerts: &HashSet<AlertId>,
        last: Sequence,
    ) -> Result<(), StoreError> {
        let mut missing: BTreeMap<&'static str, u64> = BTreeMap::new();
        let mut named = |what: &'static str, alert: Option<AlertId>| {
            if alert.is_none_or(|alert| !alerts.contains(&alert)) {
                *missing.entry(what).or_default() += 1;
            }
        };
        let prefix = |name: &[u8]| name.get(1..17).and_then(|id| id.try_into().ok()).map(AlertId::from_bytes);
        for name in self.tree().scan_prefix([key::ALERT_TIME]).keys() {
            named("entries of the index by time", key::alert_at_end(&name?));
        }
        for name in self.tree().scan_prefix([key::MATCH]).keys() {
            let name = name?;
            named("matches", prefix(&name));
            let number = key::number_at_end(&name).unwrap_or(u64::MAX);
            found.expect(number <= last.0, || format!("a match refers to event {number}, which was never stored"));
        }
        for name in self.tree().scan_prefix([key::CHANGE_OF]).keys() {
            let name = name?;
            named("changes", prefix(&name));
            let number = key::number_at_end(&name).unwrap_or(0);
            let there = self.tree().contains_key(key::change(number))?;
            found.expect(there, || format!("missing change {number} of an alert"));
        }
        for item in self.tree().scan_prefix([key::DELIVERY]) {
            if let Ok(delivery) = value::from_json::<Delivery>("a delivery", &item?.1) {
                named("deliveries", Some(delivery.alert));
            }
        }
        for name in self.tree().scan_prefix([key::SILENCED]).keys() {
            named("silenced alerts", key::alert_at_end(&name?));
        }
        for (what, count) in missing {
            found.wrong(|| format!("{count} {what} refer to missing alerts"));
        }
        Ok(())
    }
}
