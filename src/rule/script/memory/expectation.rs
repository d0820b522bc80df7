//! Expectations: what a rule expects to happen, and when it fails.
//!
//! Each expectation is independent, so that the order of arrival makes no difference: it is met by anything that
//! happens after it began and up to its deadline, in event time. It fails once the log of its source is known to be
//! complete up to [`LATENESS`] after the deadline.

use std::collections::VecDeque;

use super::{
    Memory, Place,
    entry::{Content, Entry, Expectation, Moment, insert, prune},
    short,
};
use crate::model::{event::Event, name::SourceName};

/// How long after the deadline an event that meets the expectation may still arrive, in milliseconds. Atlassian says
/// that events may be late, but not by how much.
pub const LATENESS: i64 = 10 * 60 * 1_000;
/// Maximum number of expectations of one name under one key. Further ones are ignored, so that none is evicted.
const MOST: usize = 100;
/// How long the times of `met` are kept, in milliseconds, for expectations that arrive after what met them.
const KNOWN_FOR: i64 = 60 * 60 * 1_000;
/// Maximum number of such times.
const MOST_KNOWN: usize = 1_000;

impl Memory {
    /// Expects something under a key within `within` milliseconds after an event.
    pub(in crate::rule) fn expect(&mut self, place: Place<'_>, key: &str, name: &str, within: i64, event: &Event) {
        let due = event.time.as_millisecond().saturating_add(within);
        let expectation = Expectation { key: key.to_owned(), name: name.to_owned(), due, event: event.clone() };
        if let Some(Content::Met(times)) = self.entry(place.space, &met_key(key, name)).map(|entry| &entry.content)
            && times.iter().any(|met| self.keeps(met.0, KNOWN_FOR) && expectation.is_met_by(*met))
        {
            return;
        }
        // They end when they are met or fail, by the clock of their own source.
        self.change(
            place,
            &expected_key(key, name),
            i64::MAX,
            || Content::Expected(Vec::new()),
            |content| {
                if let Content::Expected(waiting) = content
                    && waiting.len() < MOST
                    && !waiting.iter().any(|other| other.since() == expectation.since())
                {
                    waiting.push(expectation);
                }
            },
        );
    }

    /// Records that what may be expected under a key happened; returns whether it was expected.
    pub(in crate::rule) fn meet(&mut self, place: Place<'_>, key: &str, name: &str, now: Moment) -> bool {
        if self.keeps(now.0, KNOWN_FOR) {
            let expires = now.0.saturating_add(KNOWN_FOR);
            self.change(
                place,
                &met_key(key, name),
                expires,
                || Content::Met(VecDeque::new()),
                |content| {
                    if let Content::Met(times) = content {
                        insert(times, now, |moment| *moment, now);
                        prune(times, KNOWN_FOR, MOST_KNOWN, |moment| moment.0);
                    }
                },
            );
        }
        self.drop_expected(place.space, &expected_key(key, name), |expectation| expectation.is_met_by(now)) > 0
    }

    /// Whether something is expected under a key and would be met now.
    pub(in crate::rule) fn is_expected(&self, space: &str, key: &str, name: &str, now: Moment) -> bool {
        match self.entry(space, &expected_key(key, name)).map(|entry| &entry.content) {
            Some(Content::Expected(waiting)) => waiting.iter().any(|expectation| expectation.is_met_by(now)),
            _ => false,
        }
    }

    /// Removes and returns the first expectation to fail, with its rule: of those that events of a source began, and
    /// whose deadline is at or before `end`.
    pub fn take_failed(&mut self, source: &SourceName, end: i64) -> Option<(String, Expectation)> {
        let first = self.spaces.iter().filter_map(|(name, space)| {
            let (due, key) = space.first_due(source)?;
            (due <= end).then_some((due, name, key))
        });
        let (due, space, key) = first.min()?;
        let (space, key) = (space.clone(), key.to_owned());
        let failed = match self.entry(&space, &key).map(|entry| &entry.content) {
            Some(Content::Expected(waiting)) => waiting
                .iter()
                .filter(|expectation| expectation.due == due && expectation.event.source == *source)
                .min_by_key(|expectation| expectation.since())
                .cloned(),
            _ => None,
        }?;
        self.drop_expected(&space, &key, |expectation| *expectation == failed);
        Some((space, failed))
    }

    /// Drops some expectations; returns how many.
    fn drop_expected(&mut self, space: &str, key: &str, gone: impl Fn(&Expectation) -> bool) -> usize {
        let Some(held) = self.spaces.get(space).and_then(|known| known.entries.get(key)) else {
            return 0;
        };
        let Content::Expected(waiting) = &held.entry.content else {
            return 0;
        };
        let left: Vec<Expectation> = waiting.iter().filter(|expectation| !gone(expectation)).cloned().collect();
        let dropped = waiting.len() - left.len();
        if dropped == 0 {
            return 0;
        }
        let (rule, expires) = (held.rule.clone(), held.entry.expires);
        if left.is_empty() {
            self.remove(space, key);
        } else {
            self.put(space, &rule, key.to_owned(), Entry { content: Content::Expected(left), expires });
        }
        self.changed.insert((space.to_owned(), key.to_owned()));
        dropped
    }
}

/// Keys and names may contain any text, so their lengths keep them apart.
fn expected_key(key: &str, name: &str) -> String {
    format!("expected/{}/{}/{}", name.len(), short(name), short(key))
}

fn met_key(key: &str, name: &str) -> String {
    format!("met/{}/{}/{}", name.len(), short(name), short(key))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        model::{
            name::{EventId, Sequence},
            time,
        },
        rule::Quota,
    };

    const WITHIN: i64 = 100_000;
    const R: Place<'static> = Place { space: "r", rule: "r" };

    /// A step: time offset in milliseconds, key, source, and whether it meets the expectation.
    type Step = (i64, u8, bool, bool);

    fn event(index: usize, time: i64, source: bool) -> Event {
        Event {
            sequence: Sequence(index as u64 + 1),
            source: SourceName::parse(if source { "one" } else { "two" }).unwrap(),
            arrived: time::from_millis(time),
            time: time::from_millis(time),
            id: EventId::parse(&format!("e{index}")).unwrap(),
            action: "x".into(),
            flags: crate::model::legible::Flags::default(),
            raw: r#"{"id":"1","attributes":{"action":"x"}}"#.into(),
        }
    }

    proptest! {
        /// Events are out of order by less than the allowed lateness, with restarts: exactly the expectations that
        /// nothing met fail.
        #[test]
        fn what_fails_is_what_nothing_met(
            steps in prop::collection::vec((0_i64..LATENESS, 0_u8..3, any::<bool>(), any::<bool>()), 1..60),
            restart in 0_usize..60,
        ) {
            let at = |index: usize, step: &Step| i64::try_from(index).unwrap() * 30_000 + step.0;
            let mut memory = Memory::new(Quota::default());
            let mut stored: BTreeMap<String, Vec<u8>> = BTreeMap::new();
            let mut failed: Vec<(String, u64)> = Vec::new();
            let mut take = |memory: &mut Memory, source: &SourceName, until: i64| {
                while let Some((space, failure)) = memory.take_failed(source, until - LATENESS) {
                    assert_eq!((&*space, &failure.event.source), ("r", source));
                    failed.push((failure.key, failure.event.sequence.0));
                }
            };
            for (index, step) in steps.iter().enumerate() {
                if index == restart {
                    memory = Memory::new(Quota::default());
                    for (name, bytes) in &stored {
                        memory.restore(name, bytes);
                    }
                }
                let (time, key) = (at(index, step), step.1.to_string());
                let event = event(index, time, step.2);
                memory.advance(time);
                take(&mut memory, &event.source, time);
                if step.3 {
                    memory.meet(R, &key, "n", (time, index as u64 + 1));
                } else {
                    memory.expect(R, &key, "n", WITHIN, &event);
                }
                for (name, bytes) in memory.take_changes() {
                    match bytes {
                        Some(bytes) => drop(stored.insert(name, bytes)),
                        None => drop(stored.remove(&name)),
                    }
                }
            }
            for source in [true, false] {
                take(&mut memory, &event(0, 0, source).source, i64::MAX);
            }
            let mut wanted: Vec<(String, u64)> = Vec::new();
            for (index, step) in steps.iter().enumerate().filter(|(_, step)| !step.3) {
                let since = (at(index, step), index);
                let met = steps.iter().enumerate().any(|(other, met)| {
                    let when = (at(other, met), other);
                    met.3 && met.1 == step.1 && since < when && when.0 <= since.0 + WITHIN
                });
                if !met {
                    wanted.push((step.1.to_string(), index as u64 + 1));
                }
            }
            wanted.sort();
            failed.sort();
            prop_assert_eq!(failed, wanted);
            // Nothing is left in memory.
            prop_assert!(memory.list().iter().all(|entry| !entry.key.starts_with("expected/")));
        }
    }
}
