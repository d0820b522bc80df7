//! Counts matches up to a threshold in a sliding window of event time.
//!
//! Matches are kept in the order of their times, so that one that arrives late counts at its own time.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::model::name::EventId;

/// The number of matches kept for one key beyond its threshold; the oldest are dropped first. Only matches that do not
/// add up, such as a thousand with the same value within a window, come near it.
const MAX_SPARE: usize = 1_000;

/// A match that counts towards a threshold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WindowCount {
    /// Event time, in milliseconds since 1970.
    pub(super) time: i64,
    pub(super) event: EventId,
    /// The value that must be distinct, if the rule has `fn unique`.
    pub(super) unique: Option<String>,
}

/// Adds a match. If a window that contains it now has `threshold` matches (distinct values, if `distinct`), these are
/// removed from `pending` and returned in order of time.
pub(super) fn count(
    pending: &mut Vec<WindowCount>,
    new: WindowCount,
    threshold: u32,
    window: Duration,
    distinct: bool,
) -> Option<Vec<WindowCount>> {
    if threshold <= 1 {
        return Some(vec![new]);
    }
    if distinct && new.unique.is_none() {
        return None;
    }
    let window = i64::try_from(window.as_millis()).unwrap_or(i64::MAX);
    let time = new.time;
    let at = pending.partition_point(|other| other.time <= time);
    pending.insert(at, new);
    // A match that is a whole window older than the newest can only be reached by another one that is as late as
    // itself.
    let newest = pending.last().map_or(time, |last| last.time);
    let keep_from = newest.saturating_sub(window.saturating_mul(2));
    pending.retain(|other| other.time >= keep_from || other.time == time);
    let most = threshold as usize + MAX_SPARE;
    if distinct && pending.len() > most {
        // Repetition must not displace distinct values: keep the newest match of each value.
        let mut newest: HashSet<Option<String>> = HashSet::new();
        let keep: Vec<bool> = pending.iter().rev().map(|other| newest.insert(other.unique.clone())).collect();
        let mut keep = keep.into_iter().rev();
        pending.retain(|_| keep.next().unwrap_or(true));
    }
    if pending.len() > most {
        pending.drain(..pending.len() - most);
    }
    let full = full_window(pending, time, threshold as usize, window, distinct)?;
    let mut events = Vec::new();
    pending.retain(|other| {
        let inside = other.time >= full && other.time - full < window;
        if inside {
            events.push(other.clone());
        }
        !inside
    });
    Some(events)
}

/// The start of the earliest window that contains `time` and enough matches. A single pass: matches enter at the end of
/// the window and leave at its start.
fn full_window(pending: &[WindowCount], time: i64, threshold: usize, window: i64, distinct: bool) -> Option<i64> {
    let mut inside: VecDeque<&WindowCount> = VecDeque::new();
    let mut values: HashMap<Option<&str>, usize> = HashMap::new();
    let mut later = pending.iter().skip_while(|other| time - other.time >= window).peekable();
    let starts: Vec<i64> = later.clone().map(|other| other.time).take_while(|start| *start <= time).collect();
    for start in starts {
        while let Some(entering) = later.next_if(|other| other.time - start < window) {
            *values.entry(entering.unique.as_deref()).or_default() += 1;
            inside.push_back(entering);
        }
        while inside.front().is_some_and(|first| first.time < start) {
            let Some(leaving) = inside.pop_front() else { break };
            let value = leaving.unique.as_deref();
            if let Some(count) = values.get_mut(&value) {
                *count -= 1;
                if *count == 0 {
                    values.remove(&value);
                }
            }
        }
        let count = if distinct { values.len() } else { inside.len() };
        if count >= threshold {
            return Some(start);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counted(time: i64, name: usize, unique: Option<u8>) -> WindowCount {
        WindowCount {
            time,
            event: EventId::parse(&format!("e{name}")).unwrap(),
            unique: unique.map(|value| value.to_string()),
        }
    }

    proptest! {
        /// Compares with the simplest definition: after each match, does any window that contains it have enough
        /// matches that are not yet taken?
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
                    // The implementation may take any of several full windows; keep the two in step.
                    let gone: HashSet<usize> = events.iter().map(|counted| counted.event.as_str()[1..].parse().unwrap()).collect();
                    prop_assert!(gone.contains(&name));
                    alive = pending.iter().map(|other| (other.time, other.unique.as_ref().unwrap().parse().unwrap())).collect();
                }
            }
        }
    }
}
