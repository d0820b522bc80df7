//! The values of some fields of an event, found in one pass over its JSON. What is not asked for is skipped.

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
    /// How many steps forgive that there is no object: those that the host follows for the short names.
    pub(in crate::rule) lenient: usize,
    /// Anything but a text that is not empty counts as absent.
    pub(in crate::rule) only_text: bool,
}

/// Longer events are left to the scripts, whose limits on texts and lists they may exceed.
const MAX_RAW: usize = 32 * 1024;

/// What stands at a path.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::rule) enum Seen<'a> {
    /// Nothing, or null.
    Absent,
    Text(Cow<'a, str>),
    Bool(bool),
    Int(i64),
    /// A list, an object, or a number that is not whole.
    Other,
    /// The path goes on from something that has no fields: a script that follows it fails.
    Trouble,
}

/// The paths that are asked for, as a tree.
#[derive(Debug, Default)]
pub(in crate::rule) struct Extract {
    paths: Vec<Path>,
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    names: Vec<(Box<str>, usize)>,
    items: Vec<(usize, usize)>,
    /// Places of the paths that end here.
    here: Vec<usize>,
    /// Places of those that go on, each with how many steps of it forgive that there is no object.
    below: Vec<(usize, usize)>,
}

impl Extract {
    /// The place at which the value of a path is found.
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

    /// The values, by place.
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
    /// A value that has no fields, or not those that are asked for.
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

    /// The same for an object or a list, before its parts are read; `named`: whether its parts have names.
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

/// A name, borrowed where it stands in the text as it is.
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
                    // A name that stands twice means what it says last.
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
