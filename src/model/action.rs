//! Actions: what an organization calls the things that are done in it.
//!
//! Atlassian publishes no list of action ids. Each organization tells its own, with a name for people and a group
//! (`GET /event-actions`); what it has said is kept, and rules that name activities by their documented names are resolved with
//! it. Beside it stands what events have brought.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::{category::Category, time::Timestamp};

/// An action as an organization lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedAction {
    /// Its id, as events have it.
    pub id: Arc<str>,
    /// Its name for people.
    pub name: Option<String>,
    /// The group that it stands in.
    pub group: Option<String>,
}

impl ListedAction {
    /// Reads an entry of `data`: `{ id, attributes: { displayName, groupDisplayName } }`. Absent without an id.
    pub fn read(entry: &Value) -> Option<Self> {
        let text = |pointer: &str| {
            let text = entry.pointer(pointer).and_then(Value::as_str).map(str::trim);
            text.filter(|text| !text.is_empty()).map(str::to_owned)
        };
        Some(Self {
            id: text("/id")?.to_lowercase().into(),
            name: text("/attributes/displayName"),
            group: text("/attributes/groupDisplayName"),
        })
    }
}

/// What is kept of an action of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ActionRecord {
    /// Its name for people, as the organization lists it.
    pub name: Option<String>,
    /// Its group, as the organization lists it.
    pub group: Option<String>,
    /// When the organization was first found to list it.
    pub listed: Option<Timestamp>,
    /// When the first event with it arrived.
    pub seen: Option<Timestamp>,
    /// The time of the newest event with it.
    pub newest: Option<Timestamp>,
    /// Events with it that were stored.
    pub events: u64,
    /// Of these, the ones that rules were not to look at.
    pub ignored: u64,
    /// Events with it that were not stored, because they were not wanted.
    pub dropped: u64,
}

/// Actions by ids and patterns in which `*` is any text.
#[derive(Debug, Clone, Default)]
pub struct ActionPatterns {
    texts: Vec<String>,
    set: GlobSet,
}

impl ActionPatterns {
    /// Reads patterns: letters, digits, `_ - . :`, and `*`.
    pub fn parse(texts: Vec<String>) -> Result<Self, String> {
        let mut set = GlobSetBuilder::new();
        for text in &texts {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:*".contains(&byte);
            if text.is_empty() || !text.bytes().all(plain) {
                return Err(format!("`{text}` is not an action id: letters, digits, `_ - . :`, and `*` for any text"));
            }
            // Events' actions are in lower case.
            let glob = GlobBuilder::new(&text.to_lowercase())
                .literal_separator(false)
                .build()
                .map_err(|error| error.to_string())?;
            set.add(glob);
        }
        Ok(Self { set: set.build().map_err(|error| error.to_string())?, texts })
    }

    /// Whether the action is one of them.
    pub fn is_match(&self, action: &str) -> bool {
        self.set.is_match(action)
    }

    /// As they were written.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }
}

impl PartialEq for ActionPatterns {
    fn eq(&self, other: &Self) -> bool {
        self.texts == other.texts
    }
}

impl Eq for ActionPatterns {}

/// Actions of a source that are not wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unwanted {
    /// Events with these are stored, and no rule looks at them.
    pub ignore: ActionPatterns,
    /// Events with these are not stored.
    pub drop: ActionPatterns,
}

/// What organizations say of their actions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    actions: BTreeMap<Arc<str>, Described>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Described {
    name: Option<String>,
    group: Option<String>,
    category: Option<Category>,
}

impl Catalog {
    /// Adds what an organization says of an action; what another has said of it stays where this says nothing.
    pub fn add(&mut self, action: ListedAction) {
        let known = self.actions.entry(Arc::clone(&action.id)).or_default();
        known.name = action.name.or(known.name.take());
        known.group = action.group.or(known.group.take());
        known.category = Some(Category::of(&action.id, known.name.as_deref(), known.group.as_deref()));
    }

    /// Reads an answer of `GET /event-actions`, or a list of its entries.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| format!("not readable JSON: {error}"))?;
        let entries = value.as_array().or_else(|| value.get("data").and_then(Value::as_array));
        let entries = entries.ok_or("no list of actions: `{ \"data\": [ … ] }` as `GET /event-actions` returns it")?;
        Ok(entries.iter().filter_map(ListedAction::read).collect())
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }

    /// The ids that are known, in order.
    pub fn ids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.actions.keys()
    }

    /// The name for people.
    pub fn name(&self, action: &str) -> Option<&str> {
        self.actions.get(action)?.name.as_deref()
    }

    /// The group.
    pub fn group(&self, action: &str) -> Option<&str> {
        self.actions.get(action)?.group.as_deref()
    }

    /// The category, which has an answer for actions that are not listed as well.
    pub fn category(&self, action: &str) -> Category {
        let known = self.actions.get(action).and_then(|described| described.category);
        known.unwrap_or_else(|| Category::of(action, None, None))
    }

    /// The ids of all actions of this name, whatever the case of its letters.
    pub fn named<'a>(&'a self, activity: &'a str) -> impl Iterator<Item = &'a Arc<str>> {
        let is_named = |described: &Described| described.name.as_deref().is_some_and(|name| same(name, activity));
        self.actions.iter().filter(move |(_, described)| is_named(described)).map(|(id, _)| id)
    }
}

impl FromIterator<ListedAction> for Catalog {
    fn from_iter<T: IntoIterator<Item = ListedAction>>(actions: T) -> Self {
        let mut catalog = Self::default();
        actions.into_iter().for_each(|action| catalog.add(action));
        catalog
    }
}

fn same(one: &str, other: &str) -> bool {
    one.trim().to_lowercase() == other.trim().to_lowercase()
}

/// Of these actions, each with its name if it has one, those that have most words in common with an id, a pattern or a name: the
/// best first, at most `most`.
pub fn nearest<'a>(
    wanted: &str,
    actions: impl Iterator<Item = (&'a str, Option<&'a str>)>,
    most: usize,
) -> Vec<&'a str> {
    let wanted = words(wanted);
    let mut scored: Vec<(usize, usize, &str)> = Vec::new();
    for (id, name) in actions {
        let mut found = words(id);
        found.extend(words(name.unwrap_or_default()));
        let weight = |word: &String| if GENERAL.contains(&word.as_str()) { 1 } else { 2 };
        let common: usize = wanted.intersection(&found).map(weight).sum();
        // One word that half of all actions have, such as `user`, says nothing.
        if common >= 2 {
            scored.push((usize::MAX - common, found.len(), id));
        }
    }
    scored.sort_unstable();
    scored.dedup();
    scored.into_iter().take(most).map(|(.., id)| id).collect()
}

/// Beginnings of words that many actions have.
const GENERAL: &[&str] =
    &["user", "accoun", "org", "organi", "create", "update", "change", "delete", "remove", "added", "add"];

/// The beginnings of the words of a text: `deactivated` and `deactivate` are one.
fn words(text: &str) -> BTreeSet<String> {
    let words = text.split(|character: char| !character.is_alphanumeric()).filter(|word| word.len() > 1);
    words.map(|word| word.to_lowercase().chars().take(6).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalog_is_read_from_an_answer() {
        let catalog = Catalog::parse(
            r#"{"data":[{"id":"a_1","type":"x","attributes":{"displayName":"Deactivated account","groupDisplayName":"Atlassian accounts"}},{"id":""},{"id":"b"}]}"#,
        )
        .unwrap();
        assert_eq!(catalog.ids().count(), 2);
        assert_eq!(catalog.named("deactivated ACCOUNT").count(), 1);
        assert_eq!((catalog.name("b"), catalog.category("a_1")), (None, Category::Access));
        assert!(Catalog::parse("{}").unwrap_err().starts_with("no list of actions"));
    }

    #[test]
    fn the_nearest_have_most_words_in_common() {
        let known = [
            ("account_deactivated", Some("Deactivated account")),
            ("account_reactivated", Some("Reactivated account")),
            ("user_login", None),
        ];
        assert_eq!(nearest("user_deactivate*", known.into_iter(), 3), ["account_deactivated"]);
        assert_eq!(nearest("user_created", known.into_iter(), 3), Vec::<&str>::new());
    }
}
