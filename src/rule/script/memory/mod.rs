//! Rule memory: counts, seen values, marks and notes that rules keep from one event to the next, by key.
//!
//! Each rule has its own space; `common(…)` names a shared one. Time is event time, and the clock is the latest event
//! time so far: an entry is kept until the clock is twice its window (or lifetime) past it. From then on it is as if
//! it had never been recorded, and an event that arrives even later records nothing. So the same events in the same
//! order leave the same memory, no matter when expired entries are removed.
//!
//! Everything that a rule records counts towards its quota, in any space; the entries that expire first are evicted
//! first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

mod entry;
mod expectation;

pub use entry::Expectation;
pub(in crate::rule) use entry::Moment;
use entry::{Content, Entry, Holder, Space, insert, prune, within};
pub use expectation::LATENESS;

/// Maximum number of times per key: more than any rule counts to. The oldest are dropped.
const MAX_TIMES: usize = 10_000;
/// Maximum number of values per key.
const MAX_VALUES: usize = 10_000;
/// Maximum length of a key or a value, in bytes; longer ones are hashed.
const MAX_TEXT: usize = 256;

/// How much one rule may keep in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Maximum number of keys.
    pub keys: usize,
    /// Maximum number of bytes, as stored.
    pub bytes: usize,
}

impl Default for Quota {
    fn default() -> Self {
        Self { keys: 200_000, bytes: 64 * 1024 * 1024 }
    }
}

/// The memory of all rules.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    quota: Quota,
    spaces: BTreeMap<String, Space>,
    /// What counts towards each rule's quota. Entries that an earlier version stored in a shared space have no rule;
    /// they count towards the space.
    holders: BTreeMap<String, Holder>,
    /// Keys changed since the last [`Memory::take_changes`].
    changed: BTreeSet<(String, String)>,
    /// Rules with evictions since the last [`Memory::take_overflowed`].
    overflowed: BTreeSet<String>,
    clock: i64,
}

/// Where something is recorded, and by which rule.
#[derive(Debug, Clone, Copy)]
pub(in crate::rule) struct Place<'a> {
    /// The rule's own space, or `common/NAME`.
    pub(in crate::rule) space: &'a str,
    /// The rule whose quota it counts towards.
    pub(in crate::rule) rule: &'a str,
}

/// An entry, formatted for people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Remembered {
    /// The rule, or `common/NAME`.
    pub space: String,
    /// The function and the key: `count/ann@example.com`.
    pub key: String,
    /// A short summary of the content.
    pub what: String,
    /// Event time, in milliseconds since 1970, after which the entry expires.
    pub expires: i64,
}

/// Prefix of the names of stored entries.
pub const MEMORY: &str = "memory/";
/// Version of the encoding: key, entry, and the rule whose quota it counts towards. The first version had no rule.
const VERSION: u8 = 2;
const WITHOUT_RULE: u8 = 1;

impl Memory {
    /// An empty memory.
    pub fn new(quota: Quota) -> Self {
        Self { quota, ..Self::default() }
    }

    /// Restores an entry that [`Memory::take_changes`] returned before.
    pub fn restore(&mut self, name: &str, bytes: &[u8]) {
        let Some(space) = space_of(name) else {
            return;
        };
        let read = match bytes.split_first() {
            Some((&VERSION, rest)) => postcard::from_bytes::<(String, Entry, String)>(rest).ok(),
            Some((&WITHOUT_RULE, rest)) => {
                postcard::from_bytes::<(String, Entry)>(rest).ok().map(|(key, entry)| (key, entry, space.to_owned()))
            }
            // From an unknown version: it starts from scratch.
            _ => None,
        };
        if let Some((key, entry, rule)) = read {
            self.put(space, &rule, key, entry);
        }
    }

    /// Discards the list of changes.
    pub fn drop_changes(&mut self) {
        self.changed.clear();
    }

    /// The changes since the last call: names, each with its bytes or `None` if the entry is gone.
    pub fn take_changes(&mut self) -> Vec<(String, Option<Vec<u8>>)> {
        let changed = std::mem::take(&mut self.changed);
        changed
            .into_iter()
            .map(|(space, key)| {
                let held = self.spaces.get(&space).and_then(|space| space.entries.get(&key));
                let bytes =
                    held.and_then(|held| postcard::to_extend(&(&key, &held.entry, &held.rule), vec![VERSION]).ok());
                (name_of(&space, &key), bytes)
            })
            .collect()
    }

    /// Advances the event clock and drops expired entries.
    pub fn advance(&mut self, clock: i64) {
        if clock <= self.clock {
            return;
        }
        self.clock = clock;
        let mut ended: Vec<(String, String)> = Vec::new();
        for holder in self.holders.values() {
            let past = holder.expiry.iter().take_while(|(expires, ..)| *expires < clock);
            ended.extend(past.map(|(_, space, key)| (space.clone(), key.clone())));
        }
        for (space, key) in ended {
            self.remove(&space, &key);
            self.changed.insert((space, key));
        }
    }

    /// The rules with evictions since the last call.
    pub fn take_overflowed(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.overflowed)
    }

    /// The number of keys and bytes that count towards a rule's quota, and the number of its evictions.
    pub fn size(&self, rule: &str) -> (usize, usize, u64) {
        self.holders.get(rule).map_or((0, 0, 0), |holder| (holder.expiry.len(), holder.bytes, holder.evicted))
    }

    /// All entries, in order.
    pub fn list(&self) -> Vec<Remembered> {
        let mut all: Vec<Remembered> = Vec::new();
        for (name, space) in &self.spaces {
            let mut keys: Vec<(&String, &Entry)> = space.entries.iter().map(|(key, held)| (key, &held.entry)).collect();
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

    /// Whether a space has any entries.
    pub fn knows(&self, space: &str) -> bool {
        self.spaces.get(space).is_some_and(|space| !space.entries.is_empty())
    }

    /// Replaces a space with that of another memory.
    pub fn adopt(&mut self, space: &str, other: &Self) {
        self.clear(space);
        if let Some(adopted) = other.spaces.get(space) {
            for (key, held) in &adopted.entries {
                self.put(space, &held.rule, key.clone(), held.entry.clone());
                self.changed.insert((space.to_owned(), key.clone()));
            }
        }
    }

    /// Clears a space; returns the number of entries removed.
    pub fn clear(&mut self, space: &str) -> usize {
        let keys: Vec<String> =
            self.spaces.get(space).map_or_else(Vec::new, |space| space.entries.keys().cloned().collect());
        let count = keys.len();
        for key in keys {
            self.remove(space, &key);
            self.changed.insert((space.to_owned(), key));
        }
        self.spaces.remove(space);
        count
    }

    fn entry(&self, space: &str, key: &str) -> Option<&Entry> {
        self.spaces.get(space)?.entries.get(key).map(|held| &held.entry)
    }

    fn put(&mut self, space: &str, rule: &str, key: String, entry: Entry) {
        self.remove(space, &key);
        let holder = self.holders.entry(rule.to_owned()).or_default();
        holder.add(space, &key, &entry);
        self.spaces.entry(space.to_owned()).or_default().put(rule, key, entry);
    }

    fn remove(&mut self, space: &str, key: &str) -> Option<Entry> {
        let held = self.spaces.get_mut(space)?.remove(key)?;
        if let Some(holder) = self.holders.get_mut(&held.rule) {
            holder.subtract(space, key, &held.entry);
        }
        Some(held.entry)
    }

    /// Changes the entry of a key and extends its life to at least `expires`.
    fn change<T>(
        &mut self,
        place: Place<'_>,
        key: &str,
        expires: i64,
        empty: impl FnOnce() -> Content,
        change: impl FnOnce(&mut Content) -> T,
    ) -> T {
        let Place { space, rule } = place;
        let mut entry = self.remove(space, key).unwrap_or_else(|| Entry { content: empty(), expires });
        let answer = change(&mut entry.content);
        entry.expires = entry.expires.max(expires);
        self.put(space, rule, key.to_owned(), entry);
        self.changed.insert((space.to_owned(), key.to_owned()));
        while let Some((space, key)) =
            self.holders.get_mut(rule).and_then(|holder| holder.next_eviction(self.quota, (space, key)))
        {
            self.remove(&space, &key);
            self.changed.insert((space, key));
            self.overflowed.insert(rule.to_owned());
        }
        answer
    }

    /// Whether something that happened at `time` is still kept, or may still be recorded, if it is kept for
    /// `kept_for`.
    fn keeps(&self, time: i64, kept_for: i64) -> bool {
        time.saturating_add(kept_for) >= self.clock
    }

    /// Records an occurrence under a key, and returns how many there were in the window that ends now.
    pub(in crate::rule) fn count(
        &mut self,
        place: Place<'_>,
        key: &str,
        now: Moment,
        window: i64,
        write: bool,
    ) -> usize {
        let key = format!("count/{}", short(key));
        let kept_for = window.saturating_mul(2);
        if write && self.keeps(now.0, kept_for) {
            let expires = now.0.saturating_add(kept_for);
            self.change(
                place,
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
        match self.entry(place.space, &key).map(|entry| &entry.content) {
            Some(Content::Times(times)) => {
                let inside = within(times, now, window, |moment| *moment);
                inside.filter(|moment| self.keeps(moment.0, kept_for)).count()
            }
            _ => 0,
        }
    }

    /// Records a value under a key, and returns how many distinct ones there were in the window that ends now.
    pub(in crate::rule) fn distinct(
        &mut self,
        place: Place<'_>,
        key: &str,
        value: Option<&str>,
        now: Moment,
        window: i64,
        write: bool,
    ) -> usize {
        let key = format!("distinct/{}", short(key));
        let kept_for = window.saturating_mul(2);
        if let (true, Some(value)) = (write && self.keeps(now.0, kept_for), value) {
            let expires = now.0.saturating_add(kept_for);
            let value = short(value);
            self.change(
                place,
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
        match self.entry(place.space, &key).map(|entry| &entry.content) {
            Some(Content::Values(values)) => {
                let inside = within(values, now, window, |(moment, _)| *moment);
                let inside = inside.filter(|(moment, _)| self.keeps(moment.0, kept_for));
                inside.map(|(_, value)| value.as_str()).collect::<BTreeSet<&str>>().len()
            }
            _ => 0,
        }
    }

    /// Records a value under a key. Returns whether it was not seen within `lifetime`, and whether any other value
    /// was.
    pub(in crate::rule) fn see(
        &mut self,
        place: Place<'_>,
        key: &str,
        value: &str,
        now: Moment,
        lifetime: i64,
        write: bool,
    ) -> (bool, bool) {
        let (key, value) = (format!("seen/{}", short(key)), short(value));
        let kept_for = lifetime.saturating_mul(2);
        let near = |last: i64| self.keeps(last, kept_for) && now.0.saturating_sub(last).saturating_abs() < lifetime;
        let (new, others) = match self.entry(place.space, &key).map(|entry| &entry.content) {
            Some(Content::Seen(values)) => (
                !values.get(&value).is_some_and(|last| near(*last)),
                values.iter().any(|(other, last)| *other != value && near(*last)),
            ),
            _ => (true, false),
        };
        if write && self.keeps(now.0, kept_for) {
            let expires = now.0.saturating_add(kept_for);
            self.change(
                place,
                &key,
                expires,
                || Content::Seen(BTreeMap::new()),
                |content| {
                    if let Content::Seen(values) = content {
                        let last = values.entry(value).or_insert(now.0);
                        *last = now.0.max(*last);
                        let newest = values.values().copied().max().unwrap_or(now.0);
                        values.retain(|_, last| newest.saturating_sub(*last) <= kept_for);
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

    /// Records a mark of a name under a key.
    pub(in crate::rule) fn mark(&mut self, place: Place<'_>, key: &str, name: &str, now: Moment, lifetime: i64) {
        let key = mark_key(key, name);
        let kept_for = lifetime.saturating_mul(2);
        if !self.keeps(now.0, kept_for) {
            return;
        }
        let expires = now.0.saturating_add(kept_for);
        let empty = || Content::Marks(VecDeque::new(), lifetime);
        self.change(place, &key, expires, empty, |content| {
            if let Content::Marks(times, lives) = content {
                *lives = lifetime;
                insert(times, now, |moment| *moment, now);
                prune(times, lifetime, MAX_TIMES, |moment| moment.0);
            }
        });
    }

    /// The newest mark of a name that is at or before `before` and less than `window` before `now`.
    pub(in crate::rule) fn marked(
        &self,
        space: &str,
        key: &str,
        name: &str,
        before: Moment,
        now: Moment,
        window: i64,
    ) -> Option<Moment> {
        match self.entry(space, &mark_key(key, name)).map(|entry| &entry.content) {
            Some(Content::Marks(times, lifetime)) => times
                .iter()
                .rev()
                .find(|moment| **moment <= before)
                .filter(|moment| now.0.saturating_sub(moment.0) < window)
                .filter(|moment| self.keeps(moment.0, lifetime.saturating_mul(2)))
                .copied(),
            _ => None,
        }
    }

    /// Whether there is a mark of a name whose lifetime has not ended.
    pub(in crate::rule) fn is_marked(&self, space: &str, key: &str, name: &str, now: Moment) -> bool {
        match self.entry(space, &mark_key(key, name)).map(|entry| &entry.content) {
            Some(Content::Marks(_, lifetime)) => self.marked(space, key, name, now, now, *lifetime).is_some(),
            _ => false,
        }
    }

    /// Stores a value as JSON.
    pub(in crate::rule) fn remember(&mut self, place: Place<'_>, key: &str, value: String, now: Moment, lifetime: i64) {
        let key = format!("note/{}", short(key));
        let kept_for = lifetime.saturating_mul(2);
        if !self.keeps(now.0, kept_for) {
            return;
        }
        // A new lifetime replaces the previous one, even if it is shorter.
        self.forget_key(place.space, &key);
        let expires = now.0.saturating_add(kept_for);
        self.change(place, &key, expires, || Content::Note(value, now.0.saturating_add(lifetime)), |_| {});
    }

    /// The stored value, if its lifetime has not ended by `now`.
    pub(in crate::rule) fn recall(&self, space: &str, key: &str, now: Moment) -> Option<&str> {
        let entry = self.entry(space, &format!("note/{}", short(key)))?;
        match &entry.content {
            Content::Note(text, until) if now.0 < *until => Some(text),
            _ => None,
        }
    }

    /// Deletes the value stored under a key.
    pub(in crate::rule) fn forget(&mut self, space: &str, key: &str) {
        self.forget_key(space, &format!("note/{}", short(key)));
    }

    fn forget_key(&mut self, space: &str, key: &str) {
        if self.remove(space, key).is_some() {
            self.changed.insert((space.to_owned(), key.to_owned()));
        }
    }

    /// When a space began to learn something; if it has not begun, it begins now.
    pub(in crate::rule) fn learning_since(&mut self, place: Place<'_>, what: &str, now: Moment, write: bool) -> i64 {
        let key = format!("learning/{}", short(what));
        match self.entry(place.space, &key).map(|entry| &entry.content) {
            Some(Content::Since(since)) => *since,
            _ => {
                if write {
                    // Learning happens once, so its start never expires.
                    self.change(place, &key, i64::MAX, || Content::Since(now.0), |_| {});
                }
                now.0
            }
        }
    }
}

/// Keys and names may contain any text, so the length keeps them apart.
fn mark_key(key: &str, name: &str) -> String {
    format!("mark/{}/{}/{}", name.len(), short(name), short(key))
}

/// A string as it is, or its hash if it is long.
fn short(text: &str) -> String {
    if text.len() <= MAX_TEXT { text.to_owned() } else { format!("#{}", blake3::hash(text.as_bytes()).to_hex()) }
}

fn name_of(space: &str, key: &str) -> String {
    // Keys may be long and contain any text.
    let hash = blake3::hash(key.as_bytes()).to_hex();
    format!("{MEMORY}{space}/{}", hash.get(..32).unwrap_or_default())
}

fn space_of(name: &str) -> Option<&str> {
    name.strip_prefix(MEMORY)?.rsplit_once('/').map(|(space, _)| space)
}

#[cfg(test)]
mod tests;
