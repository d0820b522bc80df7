//! Extracts the values of some fields from an event in one pass over its JSON; everything else is skipped.

use std::borrow::Cow;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::rule) enum Key {
    Name(Box<str>),
    Item(usize),
}

/// A path in the event's JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::rule) struct Path {
    pub(in crate::rule) keys: Vec<Key>,
    /// Number of leading steps that tolerate a missing object: those that the host follows for the short names.
    pub(in crate::rule) lenient: usize,
    /// Whether anything but a non-empty string counts as absent.
    pub(in crate::rule) only_text: bool,
}

/// Longer events are left to the scripts: they may exceed the scripts' limits on strings and lists.
const MAX_RAW: usize = 32 * 1024;

/// The value found at a path.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::rule) enum Seen<'a> {
    /// Missing or null.
    Absent,
    Text(Cow<'a, str>),
    Bool(bool),
    Int(i64),
    /// A list, an object, or a number that is not an integer.
    Other,
    /// The path continues below a value without fields: a script that follows it fails.
    Trouble,
}

/// The requested paths, as a tree.
#[derive(Debug, Default)]
pub(in crate::rule) struct Extract {
    paths: Vec<Path>,
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    names: Vec<(Box<str>, usize)>,
    items: Vec<(usize, usize)>,
    /// Slots of the paths that end here.
    here: Vec<usize>,
    /// Slots of the paths that continue, each with its number of lenient steps.
    below: Vec<(usize, usize)>,
}

impl Extract {
    /// The slot in which the value of a path is returned.
    pub(in crate::rule) fn slot(&mut self, path: &Path) -> usize {
        if let Some(known) = self.paths.iter().position(|known| known == path) {
            return known;
        }
        let slot = self.paths.len();
        self.paths.push(path.clone());
        if self.nodes.is_empty() {
            self.nodes.push(Node::default());
        }
        let mut at = 0;
        for key in &path.keys {
            let new = self.nodes.len();
            let Some(node) = self.nodes.get_mut(at) else {
                break;
            };
            node.below.push((slot, path.lenient));
            let next = match key {
                Key::Name(name) => match node.names.iter().find(|(known, _)| known == name) {
                    Some((_, next)) => *next,
                    None => {
                        node.names.push((name.clone(), new));
                        new
                    }
                },
                Key::Item(index) => match node.items.iter().find(|(known, _)| known == index) {
                    Some((_, next)) => *next,
                    None => {
                        node.items.push((*index, new));
                        new
                    }
                },
            };
            if next == new {
                self.nodes.push(Node::default());
            }
            at = next;
        }
        if let Some(node) = self.nodes.get_mut(at) {
            node.here.push(slot);
        }
        slot
    }

    /// The values, by slot.
    pub(in crate::rule) fn read<'a>(&self, raw: &'a str) -> Vec<Seen<'a>> {
        let mut seen = vec![Seen::Absent; self.paths.len()];
        let mut deserializer = serde_json::Deserializer::from_str(raw);
        let visit = Visit { extract: self, node: 0, depth: 0, seen: &mut seen };
        let read = visit.deserialize(&mut deserializer);
        if read.is_err() || deserializer.end().is_err() || raw.len() > MAX_RAW {
            return vec![Seen::Trouble; self.paths.len()];
        }
        for (value, path) in seen.iter_mut().zip(&self.paths) {
            let is_text = matches!(value, Seen::Text(text) if !text.is_empty());
            if path.only_text && !is_text {
                *value = Seen::Absent;
            }
        }
        seen
    }
}

struct Visit<'x, 'a> {
    extract: &'x Extract,
    node: usize,
    depth: usize,
    seen: &'x mut Vec<Seen<'a>>,
}

impl<'a> Visit<'_, 'a> {
    /// Records a value that has no fields, or not the requested ones.
    fn put(self, value: Seen<'a>) {
        let Some(node) = self.extract.nodes.get(self.node) else {
            return;
        };
        let absent = value == Seen::Absent;
        for (slot, lenient) in &node.below {
            if let Some(seen) = self.seen.get_mut(*slot) {
                *seen = if absent || self.depth <= *lenient { Seen::Absent } else { Seen::Trouble };
            }
        }
        for slot in &node.here {
            if let Some(seen) = self.seen.get_mut(*slot) {
                *seen = value.clone();
            }
        }
    }

    /// Records an object (`named`) or a list, before its parts are read.
    fn begin(&mut self, named: bool) {
        let Some(node) = self.extract.nodes.get(self.node) else {
            return;
        };
        for slot in &node.here {
            if let Some(seen) = self.seen.get_mut(*slot) {
                *seen = Seen::Other;
            }
        }
        for (slot, lenient) in &node.below {
            let fits = match self.extract.paths.get(*slot).and_then(|path| path.keys.get(self.depth)) {
                Some(Key::Name(_)) => named,
                Some(Key::Item(_)) => !named,
                None => true,
            };
            if let Some(seen) = self.seen.get_mut(*slot) {
                *seen = if fits || self.depth <= *lenient { Seen::Absent } else { Seen::Trouble };
            }
        }
    }
}

impl<'a> DeserializeSeed<'a> for Visit<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// An object key, borrowed from the JSON if possible.
struct Name<'x>(&'x Node);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<usize>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.names.iter().find(|(known, _)| **known == *name).map(|(_, next)| *next))
    }
}

impl<'a> Visitor<'a> for Visit<'_, 'a> {
    type Value = ();

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.put(Seen::Absent);
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.put(Seen::Bool(value));
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.put(Seen::Int(value));
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.put(i64::try_from(value).map_or(Seen::Other, Seen::Int));
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        self.put(Seen::Other);
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.put(Seen::Text(Cow::Owned(value.to_owned())));
        Ok(())
    }

    fn visit_borrowed_str<E>(self, value: &'a str) -> Result<(), E> {
        self.put(Seen::Text(Cow::Borrowed(value)));
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'a>>(mut self, mut items: A) -> Result<(), A::Error> {
        self.begin(false);
        let Some(node) = self.extract.nodes.get(self.node) else {
            while items.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(());
        };
        let mut index = 0;
        loop {
            let more = match node.items.iter().find(|(wanted, _)| *wanted == index) {
                Some((_, next)) => {
                    let visit =
                        Visit { extract: self.extract, node: *next, depth: self.depth + 1, seen: &mut *self.seen };
                    items.next_element_seed(visit)?.is_some()
                }
                None => items.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                return Ok(());
            }
            index += 1;
        }
    }

    fn visit_map<A: MapAccess<'a>>(mut self, mut entries: A) -> Result<(), A::Error> {
        self.begin(true);
        let Some(node) = self.extract.nodes.get(self.node) else {
            while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(());
        };
        while let Some(next) = entries.next_key_seed(Name(node))? {
            match next {
                Some(next) => {
                    // If a key occurs twice, the last one counts.
                    let visit =
                        Visit { extract: self.extract, node: next, depth: self.depth + 1, seen: &mut *self.seen };
                    entries.next_value_seed(visit)?;
                }
                None => {
                    entries.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}
