//! What rules remember from one event to the next: counts, values seen, marks, notes, by key.
//!
//! Each rule has a space of its own; `common(…)` names one on purpose. Time is that of events: a key is forgotten when the clock of
//! events has passed its end, never by the machine's clock, so that the same events in the same order leave the same memory.
//! Each space is bounded; what is nearest to its end goes first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

mod entry;
mod expectation;

pub(super) use entry::Moment;
use entry::{Content, Entry, Space, insert, prune, within};
pub use expectation::{Expectation, LATENESS};

/// Times kept for one key: more than anybody counts to. The oldest go first.
const MAX_TIMES: usize = 10_000;
/// Values kept for one key.
const MAX_VALUES: usize = 10_000;
/// Length of a key or a value, in bytes; what is longer is hashed.
const MAX_TEXT: usize = 256;

/// How much one space may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Keys.
    pub keys: usize,
    /// Bytes, as they are stored.
    pub bytes: usize,
}

impl Default for Quota {
    fn default() -> Self {
        Self { keys: 200_000, bytes: 64 * 1024 * 1024 }
    }
}

/// Everything that rules remember.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    quota: Quota,
    spaces: BTreeMap<String, Space>,
    /// Keys that changed since they were last handed out.
    changed: BTreeSet<(String, String)>,
    /// Spaces that had to forget something since this was last asked.
    overflowed: BTreeSet<String>,
    clock: i64,
}

/// A key as people look at it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Remembered {
    /// The rule, or `common/NAME`.
    pub space: String,
    /// The function and the key: `count/ann@example.com`.
    pub key: String,
    /// What is there, in a few words.
    pub what: String,
    /// Event time, in milliseconds since 1970, after which it is forgotten.
    pub expires: i64,
}

/// Names of stored entries begin so.
pub const MEMORY: &str = "memory/";
/// Version of the bytes.
const VERSION: u8 = 1;

impl Memory {
    /// Nothing is remembered yet.
    pub fn new(quota: Quota) -> Self {
        Self { quota, ..Self::default() }
    }

    /// Takes up what was handed out before by [`Memory::take_changes`].
    pub fn restore(&mut self, name: &str, bytes: &[u8]) {
        let Some((&VERSION, rest)) = bytes.split_first() else {
            // Another version's: it begins anew.
            return;
        };
        if let (Some(space), Ok((key, entry))) = (space_of(name), postcard::from_bytes::<(String, Entry)>(rest)) {
            let space = self.spaces.entry(space.to_owned()).or_default();
            space.put(key, entry);
        }
    }

    /// Forgets what changed.
    pub fn drop_changes(&mut self) {
        self.changed.clear();
    }

    /// What changed since the last time: names, and bytes or that they are gone.
    pub fn take_changes(&mut self) -> Vec<(String, Option<Vec<u8>>)> {
        let changed = std::mem::take(&mut self.changed);
        changed
            .into_iter()
            .map(|(space, key)| {
                let entry = self.spaces.get(&space).and_then(|space| space.entries.get(&key));
                let bytes = entry.and_then(|entry| postcard::to_extend(&(&key, entry), vec![VERSION]).ok());
                (name_of(&space, &key), bytes)
            })
            .collect()
    }

    /// Moves the clock of events on, and forgets what is past.
    pub fn advance(&mut self, clock: i64) {
        if clock <= self.clock {
            return;
        }
        self.clock = clock;
        for (name, space) in &mut self.spaces {
            while let Some((expires, key)) = space.expiry.first() {
                if *expires >= clock {
                    break;
                }
                let key = key.clone();
                space.remove(&key);
                self.changed.insert((name.clone(), key));
            }
        }
    }

    /// Spaces that had to forget something since this was last asked, for want of room.
    pub fn take_overflowed(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.overflowed)
    }

    /// Keys and bytes of a space, and how often something had to be forgotten for want of room.
    pub fn size(&self, space: &str) -> (usize, usize, u64) {
        self.spaces.get(space).map_or((0, 0, 0), |space| (space.entries.len(), space.bytes, space.evicted))
    }

    /// All keys, in order.
    pub fn list(&self) -> Vec<Remembered> {
        let mut all: Vec<Remembered> = Vec::new();
        for (name, space) in &self.spaces {
            let mut keys: Vec<(&String, &Entry)> = space.entries.iter().collect();
            keys.sort_by_key(|(key, _)| *key);
            all.extend(keys.into_iter().map(|(key, entry)| Remembered {
                space: name.clone(),
                key: key.clone(),
                what: entry.describe(),
                expires: entry.expires,
            }));
        }
        all
    }

    /// Whether anything is in a space.
    pub fn knows(&self, space: &str) -> bool {
        self.spaces.get(space).is_some_and(|space| !space.entries.is_empty())
    }

    /// Takes over a space of another memory, in place of its own.
    pub fn adopt(&mut self, space: &str, other: &Self) {
        self.clear(space);
        if let Some(adopted) = other.spaces.get(space) {
            self.changed.extend(adopted.entries.keys().map(|key| (space.to_owned(), key.clone())));
            self.spaces.insert(space.to_owned(), adopted.clone());
        }
    }

    /// Forgets all of a space.
    pub fn clear(&mut self, space: &str) -> usize {
        let Some(removed) = self.spaces.remove(space) else {
            return 0;
        };
        let count = removed.entries.len();
        self.changed.extend(removed.entries.into_keys().map(|key| (space.to_owned(), key)));
        count
    }

    fn entry(&self, space: &str, key: &str) -> Option<&Entry> {
        self.spaces.get(space)?.entries.get(key)
    }

    /// Changes what is under a key, and lets it live until `expires` at least.
    fn change<T>(
        &mut self,
        space: &str,
        key: &str,
        expires: i64,
        empty: impl FnOnce() -> Content,
        change: impl FnOnce(&mut Content) -> T,
    ) -> T {
        let (quota, known) = (self.quota, self.spaces.entry(space.to_owned()).or_default());
        let mut entry = known.remove(key).unwrap_or_else(|| Entry { content: empty(), expires });
        let answer = change(&mut entry.content);
        entry.expires = entry.expires.max(expires);
        known.put(key.to_owned(), entry);
        self.changed.insert((space.to_owned(), key.to_owned()));
        while known.entries.len() > quota.keys || known.bytes > quota.bytes {
            // What is nearest to its end goes first, and never what was just written.
            let Some(oldest) = known.expiry.iter().map(|(_, oldest)| oldest).find(|oldest| *oldest != key).cloned()
            else {
                break;
            };
            known.remove(&oldest);
            known.evicted = known.evicted.saturating_add(1);
            self.changed.insert((space.to_owned(), oldest));
            self.overflowed.insert(space.to_owned());
        }
        answer
    }

    /// Notes that something happened under a key, and says how often it did in the window that ends now.
    pub(super) fn count(&mut self, space: &str, key: &str, now: Moment, window: i64, write: bool) -> usize {
        let key = format!("count/{}", short(key));
        if write {
            let expires = now.0.saturating_add(window.saturating_mul(2));
            self.change(
                space,
                &key,
                expires,
                || Content::Times(VecDeque::new()),
                |content| {
                    if let Content::Times(times) = content {
                        insert(times, now, |moment| *moment, now);
                        prune(times, window, MAX_TIMES, |moment| moment.0);
                    }
                },
            );
        }
        match self.entry(space, &key).map(|entry| &entry.content) {
            Some(Content::Times(times)) => within(times, now, window, |moment| *moment).count(),
            _ => 0,
        }
    }

    /// Notes a value under a key, and says how many different ones there were in the window that ends now.
    pub(super) fn distinct(
        &mut self,
        space: &str,
        key: &str,
        value: Option<&str>,
        now: Moment,
        window: i64,
        write: bool,
    ) -> usize {
        let key = format!("distinct/{}", short(key));
        if let (true, Some(value)) = (write, value) {
            let expires = now.0.saturating_add(window.saturating_mul(2));
            let value = short(value);
            self.change(
                space,
                &key,
                expires,
                || Content::Values(VecDeque::new()),
                |content| {
                    if let Content::Values(values) = content {
                        insert(values, (now, value), |(moment, _)| *moment, now);
                        prune(values, window, MAX_VALUES, |(moment, _)| moment.0);
                    }
                },
            );
        }
        match self.entry(space, &key).map(|entry| &entry.content) {
            Some(Content::Values(values)) => {
                let inside = within(values, now, window, |(moment, _)| *moment);
                inside.map(|(_, value)| value.as_str()).collect::<BTreeSet<&str>>().len()
            }
            _ => 0,
        }
    }

    /// Notes a value under a key. The first says whether it had not been seen for `lifetime`, the second whether any other had been.
    pub(super) fn see(
        &mut self,
        space: &str,
        key: &str,
        value: &str,
        now: Moment,
        lifetime: i64,
        write: bool,
    ) -> (bool, bool) {
        let (key, value) = (format!("seen/{}", short(key)), short(value));
        let near = |last: i64| now.0.saturating_sub(last).saturating_abs() < lifetime;
        let (new, others) = match self.entry(space, &key).map(|entry| &entry.content) {
            Some(Content::Seen(values)) => (
                !values.get(&value).is_some_and(|last| near(*last)),
                values.iter().any(|(other, last)| *other != value && near(*last)),
            ),
            _ => (true, false),
        };
        if write {
            let expires = now.0.saturating_add(lifetime.saturating_mul(2));
            self.change(
                space,
                &key,
                expires,
                || Content::Seen(BTreeMap::new()),
                |content| {
                    if let Content::Seen(values) = content {
                        let last = values.entry(value).or_insert(now.0);
                        *last = now.0.max(*last);
                        let newest = values.values().copied().max().unwrap_or(now.0);
                        values.retain(|_, last| newest.saturating_sub(*last) < lifetime.saturating_mul(2));
                        while values.len() > MAX_VALUES {
                            let Some(oldest) =
                                values.iter().min_by_key(|(_, last)| **last).map(|(value, _)| value.clone())
                            else {
                                break;
                            };
                            values.remove(&oldest);
                        }
                    }
                },
            );
        }
        (new, others)
    }

    /// Notes that something of a name happened under a key.
    pub(super) fn mark(&mut self, space: &str, key: &str, name: &str, now: Moment, lifetime: i64) {
        let key = mark_key(key, name);
        let expires = now.0.saturating_add(lifetime.saturating_mul(2));
        let empty = || Content::Marks(VecDeque::new(), lifetime);
        self.change(space, &key, expires, empty, |content| {
            if let Content::Marks(times, lives) = content {
                *lives = lifetime;
                insert(times, now, |moment| *moment, now);
                prune(times, lifetime, MAX_TIMES, |moment| moment.0);
            }
        });
    }

    /// The newest time, at or before a moment and less than `window` before `now`, at which something of a name happened.
    pub(super) fn marked(
        &self,
        space: &str,
        key: &str,
        name: &str,
        before: Moment,
        now: Moment,
        window: i64,
    ) -> Option<Moment> {
        match self.entry(space, &mark_key(key, name)).map(|entry| &entry.content) {
            Some(Content::Marks(times, _)) => times
                .iter()
                .rev()
                .find(|moment| **moment <= before)
                .filter(|moment| now.0.saturating_sub(moment.0) < window)
                .copied(),
            _ => None,
        }
    }

    /// Whether something of a name happened, and its mark still lives.
    pub(super) fn is_marked(&self, space: &str, key: &str, name: &str, now: Moment) -> bool {
        match self.entry(space, &mark_key(key, name)).map(|entry| &entry.content) {
            Some(Content::Marks(_, lifetime)) => self.marked(space, key, name, now, now, *lifetime).is_some(),
            _ => false,
        }
    }

    /// Writes a value down, as JSON.
    pub(super) fn remember(&mut self, space: &str, key: &str, value: String, now: Moment, lifetime: i64) {
        let key = format!("note/{}", short(key));
        // Another lifetime replaces the one before, be it shorter.
        self.forget_key(space, &key);
        let expires = now.0.saturating_add(lifetime.saturating_mul(2));
        self.change(space, &key, expires, || Content::Note(value, now.0.saturating_add(lifetime)), |_| {});
    }

    /// The value that was written down, if it has not been forgotten by `now`.
    pub(super) fn recall(&self, space: &str, key: &str, now: Moment) -> Option<&str> {
        let entry = self.entry(space, &format!("note/{}", short(key)))?;
        match &entry.content {
            Content::Note(text, until) if now.0 < *until => Some(text),
            _ => None,
        }
    }

    /// Forgets what was written down under a key.
    pub(super) fn forget(&mut self, space: &str, key: &str) {
        self.forget_key(space, &format!("note/{}", short(key)));
    }

    fn forget_key(&mut self, space: &str, key: &str) {
        if let Some(known) = self.spaces.get_mut(space)
            && known.remove(key).is_some()
        {
            self.changed.insert((space.to_owned(), key.to_owned()));
        }
    }

    /// When a space began to learn something: now, if it had not begun.
    pub(super) fn learning_since(&mut self, space: &str, what: &str, now: Moment, write: bool) -> i64 {
        let key = format!("learning/{}", short(what));
        match self.entry(space, &key).map(|entry| &entry.content) {
            Some(Content::Since(since)) => *since,
            _ => {
                if write {
                    // Learning is done once: it is not forgotten.
                    self.change(space, &key, i64::MAX, || Content::Since(now.0), |_| {});
                }
                now.0
            }
        }
    }
}

/// A key may hold anything, and so may a name: neither can be taken for a part of the other.
fn mark_key(key: &str, name: &str) -> String {
    format!("mark/{}/{}/{}", name.len(), short(name), short(key))
}

/// A text that is kept as it is, or by its hash where it is long.
fn short(text: &str) -> String {
    if text.len() <= MAX_TEXT { text.to_owned() } else { format!("#{}", blake3::hash(text.as_bytes()).to_hex()) }
}

fn name_of(space: &str, key: &str) -> String {
    // Keys may be long and hold anything.
    let hash = blake3::hash(key.as_bytes()).to_hex();
    format!("{MEMORY}{space}/{}", hash.get(..32).unwrap_or_default())
}

fn space_of(name: &str) -> Option<&str> {
    name.strip_prefix(MEMORY)?.rsplit_once('/').map(|(space, _)| space)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: i64 = 50;

    /// What is asked of a memory, and what the plainest definition says.
    #[derive(Debug, Clone)]
    struct Step {
        time: i64,
        key: u8,
        value: u8,
    }

    /// Roughly in order, as events arrive: never later than a window.
    fn steps() -> impl Strategy<Value = Vec<Step>> {
        prop::collection::vec((0_i64..WINDOW, 0_u8..3, 0_u8..4), 1..80).prop_map(|steps| {
            let step = |(index, (offset, key, value)): (usize, (i64, u8, u8))| Step {
                time: i64::try_from(index).unwrap() * 10 + offset,
                key,
                value,
            };
            steps.into_iter().enumerate().map(step).collect()
        })
    }

    proptest! {
        #[test]
        fn agrees_with_brute_force(steps in steps(), restart in 0_usize..80) {
            let mut memory = Memory::new(Quota::default());
            let mut stored: BTreeMap<String, Vec<u8>> = BTreeMap::new();
            for (index, step) in steps.iter().enumerate() {
                if index == restart {
                    // As after a restart: from what was stored.
                    memory = Memory::new(Quota::default());
                    for (name, bytes) in &stored {
                        memory.restore(name, bytes);
                    }
                }
                let now = (step.time, index as u64 + 1);
                let clock = steps[..=index].iter().map(|step| step.time).max().unwrap();
                memory.advance(clock);
                let (key, value) = (step.key.to_string(), step.value.to_string());
                let before: Vec<&Step> = steps[..=index].iter().filter(|other| other.key == step.key).collect();
                let inside: Vec<&&Step> =
                    before.iter().filter(|other| other.time <= step.time && other.time > step.time - WINDOW).collect();
                prop_assert_eq!(memory.count("r", &key, now, WINDOW, true), inside.len());
                let values: BTreeSet<u8> = inside.iter().map(|other| other.value).collect();
                prop_assert_eq!(memory.distinct("r", &key, Some(&value), now, WINDOW, true), values.len());
                let earlier = &steps[..index];
                // Only the newest sighting counts.
                let last = earlier.iter().filter(|other| other.key == step.key && other.value == step.value).map(|other| other.time).max();
                let new = last.is_none_or(|last| (step.time - last).abs() >= WINDOW);
                prop_assert_eq!(memory.see("r", &key, &value, now, WINDOW, true).0, new);
                // Marks of a name at or before now.
                let newest = before.iter().filter(|other| other.value == 1 && other.time <= step.time && other.time > step.time - WINDOW).map(|other| other.time).max();
                if step.value == 1 {
                    memory.mark("r", &key, "one", now, WINDOW);
                }
                prop_assert_eq!(memory.marked("r", &key, "one", now, now, WINDOW).map(|moment| moment.0), newest);
                for (name, bytes) in memory.take_changes() {
                    match bytes {
                        Some(bytes) => drop(stored.insert(name, bytes)),
                        None => drop(stored.remove(&name)),
                    }
                }
            }
            // What is stored is what is there.
            let mut again = Memory::new(Quota::default());
            for (name, bytes) in &stored {
                again.restore(name, bytes);
            }
            prop_assert_eq!(again.list(), memory.list());
        }
    }

    #[test]
    fn a_space_is_bounded_and_says_so() {
        let mut memory = Memory::new(Quota { keys: 10, bytes: 10_000 });
        for number in 0..100_u64 {
            memory.count("r", &number.to_string(), (i64::try_from(number).unwrap(), number), 1_000, true);
        }
        let (keys, bytes, evicted) = memory.size("r");
        assert_eq!((keys, evicted), (10, 90));
        assert!(bytes < 1_000);
        assert_eq!(memory.take_overflowed().into_iter().collect::<Vec<_>>(), ["r"]);
        // The newest are there.
        assert_eq!(memory.count("r", "99", (100, 100), 1_000, false), 1);
        assert_eq!(memory.count("r", "1", (100, 100), 1_000, false), 0);
    }

    #[test]
    fn notes_end_when_they_should() {
        let mut memory = Memory::new(Quota::default());
        memory.remember("r", "k", "5".to_owned(), (0, 1), 100);
        assert_eq!(memory.recall("r", "k", (99, 2)), Some("5"));
        assert_eq!(memory.recall("r", "k", (100, 2)), None);
        assert_eq!(memory.recall("other", "k", (1, 2)), None);
        memory.forget("r", "k");
        assert_eq!(memory.recall("r", "k", (1, 2)), None);
        assert_eq!(memory.clear("r"), 0);
    }

    #[test]
    fn keys_and_names_are_held_apart() {
        let mut memory = Memory::new(Quota::default());
        memory.mark("r", "b/c", "a", (0, 1), 100);
        assert!(memory.is_marked("r", "b/c", "a", (1, 2)));
        assert!(!memory.is_marked("r", "c", "a/b", (1, 2)) && !memory.is_marked("r", "b/c", "a", (100, 2)));
    }
}
