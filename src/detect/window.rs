//! Counting matches up to a threshold in a sliding window of event time.
//!
//! Matches are kept in the order of their times, so that one that arrives late counts where it belongs.

use std::{collections::HashSet, time::Duration};

use serde::{Deserialize, Serialize};

use crate::name::EventId;

/// Never more matches than this are remembered for one key; the oldest go first.
const MAX_PENDING: usize = 20_000;

/// A match that counts towards a threshold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counted {
    /// Event time, in milliseconds since 1970.
    pub(super) time: i64,
    pub(super) event: EventId,
    /// The value that must be distinct, where the rule has `fn unique`.
    pub(super) unique: Option<String>,
}

/// Adds a match. If a window that it lies in now holds `threshold` matches (distinct values, if `distinct`), these are taken
/// out, in order of time, and returned.
pub(super) fn count(
    pending: &mut Vec<Counted>,
    new: Counted,
    threshold: u32,
    window: Duration,
    distinct: bool,
) -> Option<Vec<EventId>> {
    if threshold <= 1 {
        return Some(vec![new.event]);
    }
    if distinct && new.unique.is_none() {
        return None;
    }
    let window = i64::try_from(window.as_millis()).unwrap_or(i64::MAX);
    let time = new.time;
    let at = pending.partition_point(|other| other.time <= time);
    pending.insert(at, new);
    // What lies a whole window before the newest cannot be reached by anything but a match as late as itself.
    let newest = pending.last().map_or(time, |last| last.time);
    let keep_from = newest.saturating_sub(window.saturating_mul(2));
    pending.retain(|other| other.time >= keep_from || other.time == time);
    if pending.len() > MAX_PENDING {
        pending.drain(..pending.len() - MAX_PENDING);
    }

    let starts = pending.iter().map(|other| other.time).filter(|start| *start <= time && time - start < window);
    let full = starts.collect::<Vec<_>>().into_iter().find(|start| {
        let inside = pending.iter().filter(|other| other.time >= *start && other.time - start < window);
        let count =
            if distinct { inside.map(|other| &other.unique).collect::<HashSet<_>>().len() } else { inside.count() };
        count >= threshold as usize
    })?;
    let mut events = Vec::new();
    pending.retain(|other| {
        let inside = other.time >= full && other.time - full < window;
        if inside {
            events.push(other.event.clone());
        }
        !inside
    });
    Some(events)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counted(time: i64, name: usize, unique: Option<u8>) -> Counted {
        Counted {
            time,
            event: EventId::parse(&format!("e{name}")).unwrap(),
            unique: unique.map(|value| value.to_string()),
        }
    }

    proptest! {
        /// Against the plainest definition: after each match, does any window that holds it hold enough of those not yet
        /// taken?
        #[test]
        fn agrees_with_brute_force(times in prop::collection::vec((0_i64..400, 0_u8..4), 1..60), threshold in 2_u32..5, distinct: bool) {
            let window = 50;
            let mut pending = Vec::new();
            let mut alive: Vec<(i64, u8)> = Vec::new();
            for (name, (offset, value)) in times.into_iter().enumerate() {
                // Roughly in order, as events arrive, so that nothing is old enough to have been forgotten.
                let time = i64::try_from(name).unwrap() * 10 + offset % 50;
                let found = count(&mut pending, counted(time, name, Some(value)), threshold, Duration::from_millis(50), distinct);
                alive.push((time, value));
                let full = (0..window).map(|back| time - back).find(|start| {
                    let inside = alive.iter().filter(|(other, _)| other >= start && other - start < window);
                    let size = if distinct { inside.map(|(_, value)| value).collect::<HashSet<_>>().len() } else { inside.count() };
                    size >= threshold as usize
                });
                prop_assert_eq!(found.is_some(), full.is_some());
                if let Some(events) = found {
                    // Which of several full windows is taken is ours to choose; keep the two in step.
                    let gone: HashSet<usize> = events.iter().map(|event| event.as_str()[1..].parse().unwrap()).collect();
                    prop_assert!(gone.contains(&name));
                    alive = pending.iter().map(|other| (other.time, other.unique.as_ref().unwrap().parse().unwrap())).collect();
                }
            }
        }
    }
}
