//! Reading everything back and holding it against everything else: what must be true of a store, as code.

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

/// Problems that are told one by one.
const TOLD: usize = 50;

/// What a store holds, and what is wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreCheck {
    /// Events.
    pub events: u64,
    /// Blocks they are in.
    pub blocks: u64,
    /// Alerts.
    pub alerts: u64,
    /// Matches of alerts.
    pub matches: u64,
    /// Changes of alerts.
    pub changes: u64,
    /// Deliveries pending.
    pub pending: u64,
    /// Deliveries given up.
    pub given_up: u64,
    /// Pieces of detection state.
    pub state: u64,
    /// Everything else.
    pub others: u64,
    /// Events, or other records, that the store has lost since it was made or recovered.
    #[serde(default)]
    pub lost: u64,
    /// How many things are wrong.
    pub wrong: u64,
    /// The first of them.
    pub problems: Vec<String>,
}

impl StoreCheck {
    fn wrong(&mut self, problem: impl FnOnce() -> String) {
        self.wrong += 1;
        if self.problems.len() < TOLD {
            self.problems.push(problem());
        }
    }

    fn expect(&mut self, holds: bool, problem: impl FnOnce() -> String) {
        if !holds {
            self.wrong(problem);
        }
    }
}

impl Store {
    /// Reads everything, as of one moment. Writers wait meanwhile.
    pub fn verify(&self) -> Result<StoreCheck, StoreError> {
        let _still = self.stand_still();
        let mut found = StoreCheck { lost: self.lost()?, ..StoreCheck::default() };
        let lost = found.lost;
        found.expect(lost == 0, || {
            format!("at least {lost} events or records that had been written are gone: the store once opened as it was earlier")
        });
        // sled panics on some kinds of damage.
        let read = std::panic::catch_unwind(AssertUnwindSafe(|| self.verify_all(&mut found)));
        match read {
            Ok(read) => read?,
            Err(_) => found.wrong(|| "the rest cannot be read: sled gave up on it".to_owned()),
        }
        Ok(found)
    }

    fn verify_all(&self, found: &mut StoreCheck) -> Result<(), StoreError> {
        let last = self.reader().last_sequence()?;
        let checkpoint = self.reader().checkpoint()?;
        found.expect(checkpoint <= last, || {
            format!("event {checkpoint} counts as evaluated, but the last stored is {last}")
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

    /// Every record but events decodes. Returns the alerts that are there.
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
                            return Err(StoreError::damaged("an alert", "it stands under another's key"));
                        }
                        alerts.insert(alert.id);
                        counts.add(&alert);
                        if !self.tree().contains_key(key::alert_time(alert.opened_at, alert.id))? {
                            return Err(StoreError::damaged("an alert", "it is not found by its time"));
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
                key::PASS => value::from_json::<LoggedWatermark>("a pass", &bytes).map(drop),
                key::RULES => value::from_json::<LoggedRules>("a note of which rules ran", &bytes).map(drop),
                key::SOURCE => value::from_json::<SourceRecord>("a source's record", &bytes).map(drop),
                key::ACTION => value::from_json::<ActionRecord>("what is known of an action", &bytes).map(drop),
                key::DESTINATION => value::from_json::<DestinationRecord>("a destination's record", &bytes).map(drop),
                key::SILENCE => value::from_json::<Silence>("a silence", &bytes).map(drop),
                key::QUARANTINE => value::from_json::<Quarantined>("a quarantined entry", &bytes).map(drop),
                key::CRASH => value::from_json::<CrashRecord>("a record of crashes", &bytes).map(drop),
                key::META if &*name == key::ALERT_COUNTS => Ok(()),
                key::META | key::SKIPPED | key::SEEN | key::QUARANTINE_SEEN => {
                    let whole = bytes.len() == 8;
                    if whole { Ok(()) } else { Err(StoreError::damaged("a number", "it has not eight bytes")) }
                }
                key::DIRECTORY | key::CHUNK | key::ALERT_TIME | key::REFERENCE | key::CHANGE_OF | key::SILENCED => {
                    Ok(())
                }
                unknown => Err(StoreError::damaged("something unknown", format!("its key begins with {unknown}"))),
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
            found.expect(stored == counts, || "the stored numbers of alerts by status are wrong".to_owned());
        }
        Ok(alerts)
    }

    /// Blocks decompress, do not overlap, hold what their directories say, and every event is found by its id.
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
            found.expect(before <= last, || format!("event {before} is beyond the last, {last}"));
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
                    format!("event {} (`{}`) is not found by its id", event.sequence, event.id)
                });
                let same = IncomingEvent::parse(&event.raw)
                    .is_ok_and(|read| read.id == event.id && read.action == event.action);
                found.expect(same, || format!("event {} (`{}`) is not what its block says", event.sequence, event.id));
            }
        }
        let stored = self.tree().scan_prefix([key::CHUNK]).count() as u64;
        found.expect(stored == chunks, || format!("there are {stored} pieces of blocks, and blocks have {chunks}"));
        let ids = self.tree().scan_prefix([key::SEEN]).count() as u64;
        let events = found.events;
        found.expect(ids == events, || format!("{ids} ids are known, and {events} events are there"));
        Ok(())
    }

    /// Whatever names an alert names one that is there.
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
            named("entries of the alerts' times", key::alert_at_end(&name?));
        }
        for name in self.tree().scan_prefix([key::MATCH]).keys() {
            let name = name?;
            named("matches", prefix(&name));
            let number = key::number_at_end(&name).unwrap_or(u64::MAX);
            found.expect(number <= last.0, || format!("a match names event {number}, which was never stored"));
        }
        for name in self.tree().scan_prefix([key::CHANGE_OF]).keys() {
            let name = name?;
            named("changes", prefix(&name));
            let number = key::number_at_end(&name).unwrap_or(0);
            let there = self.tree().contains_key(key::change(number))?;
            found.expect(there, || format!("change {number} of an alert is missing"));
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
            found.wrong(|| format!("{count} {what} name alerts that are not there"));
        }
        Ok(())
    }
}
