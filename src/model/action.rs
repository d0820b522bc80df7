//! Actions: what organizations call the operations in their audit log.
//!
//! Atlassian does not publish a list of action ids. Each organization lists its own, with a display name and a group
//! (`GET /event-actions`). The agent stores that list, and rules that name activities by their documented names are
//! resolved with it. It also stores the actions that occurred in events.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::model::pattern;
use globset::GlobSet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::{category::Category, time::Timestamp};

/// An action as an organization lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedAction {
    /// The action id, as events have it.
    pub id: Arc<str>,
    /// The display name.
    pub name: Option<String>,
    /// The group it belongs to.
    pub group: Option<String>,
}

impl ListedAction {
    /// Reads an entry of `data`: `{ id, attributes: { displayName, groupDisplayName } }`. `None` if it does not have an
    /// id.
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

/// What the store keeps about an action of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ActionRecord {
    /// The display name in the organization's list.
    pub name: Option<String>,
    /// The group in the organization's list.
    pub group: Option<String>,
    /// When the action first appeared in the organization's list.
    pub listed: Option<Timestamp>,
    /// When the first event with this action arrived.
    pub seen: Option<Timestamp>,
    /// The time of the newest event with this action.
    pub newest: Option<Timestamp>,
    /// The number of stored events with this action.
    pub events: u64,
    /// The number of stored events that rules ignore because of [`Unwanted::ignore`].
    pub ignored: u64,
    /// The number of events not stored because of [`Unwanted::drop`].
    pub dropped: u64,
}

/// A set of action ids and patterns, in which `*` matches any text.
#[derive(Debug, Clone, Default)]
pub struct ActionPatterns {
    texts: Vec<String>,
    set: GlobSet,
}

impl ActionPatterns {
    /// Parses patterns of letters, digits, `_ - . :` and `*`.
    pub fn parse(texts: Vec<String>) -> Result<Self, String> {
        let mut globs = Vec::new();
        for text in &texts {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:*".contains(&byte);
            if text.is_empty() || !text.bytes().all(plain) {
                return Err(format!(
                    "`{text}` is not an action ID: use letters, digits, `_ - . :`, and `*` for any text"
                ));
            }
            // The actions of events are in lower case.
            globs.push(pattern::glob(&text.to_lowercase())?);
        }
        Ok(Self { set: pattern::set(globs)?, texts })
    }

    /// Returns true if a pattern matches the action.
    pub fn is_match(&self, action: &str) -> bool {
        self.set.is_match(action)
    }

    /// The patterns as they were written.
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

/// Actions of a source that the user does not want.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unwanted {
    /// Events with these actions are stored, but rules ignore them.
    pub ignore: ActionPatterns,
    /// Events with these actions are not stored.
    pub drop: ActionPatterns,
}

/// What organizations say about their actions: names, groups and categories by action id.
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
    /// Adds an action from an organization's list. A name or group from another organization is kept if this one has
    /// none.
    pub fn add(&mut self, action: ListedAction) {
        let known = self.actions.entry(Arc::clone(&action.id)).or_default();
        known.name = action.name.or(known.name.take());
        known.group = action.group.or(known.group.take());
        known.category = Some(Category::of(&action.id, known.name.as_deref(), known.group.as_deref()));
    }

    /// Parses a response of `GET /event-actions`, or a list of its entries.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| format!("invalid JSON: {error}"))?;
        let entries = value.as_array().or_else(|| value.get("data").and_then(Value::as_array));
        let entries =
            entries.ok_or("expected a list of actions, such as `{ \"data\": [ … ] }` from `GET /event-actions`")?;
        Ok(entries.iter().filter_map(ListedAction::read).collect())
    }

    /// Returns true if the catalog has no actions.
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }

    /// The known action ids, in order.
    pub fn ids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.actions.keys()
    }

    /// The display name of an action, if known.
    pub fn name(&self, action: &str) -> Option<&str> {
        self.actions.get(action)?.name.as_deref()
    }

    /// The group of an action, if known.
    pub fn group(&self, action: &str) -> Option<&str> {
        self.actions.get(action)?.group.as_deref()
    }

    /// The category of an action. Actions that are not listed have one as well.
    pub fn category(&self, action: &str) -> Category {
        let known = self.actions.get(action).and_then(|described| described.category);
        known.unwrap_or_else(|| Category::of(action, None, None))
    }

    /// The ids of all actions with this name, ignoring case.
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

/// Returns the ids of the actions whose id or name has the most words in common with an id, a pattern or a name: the
/// best match first, at most `most`.
pub fn nearest<'a>(
    wanted: &str,
    actions: impl Iterator<Item = (&'a str, Option<&'a str>)>,
    most: usize,
) -> Vec<&'a str> {
    let wanted = words(wanted);
    let mut scored: Vec<(usize, usize, &str)> = Vec::new();
    for (id, name) in actions {
        let mut candidate = words(id);
        candidate.extend(words(name.unwrap_or_default()));
        let weight = |word: &String| if GENERAL.contains(&word.as_str()) { 1 } else { 2 };
        let common: usize = wanted.intersection(&candidate).map(weight).sum();
        // A single word that half of all actions have, such as `user`, is not a useful match.
        if common >= 2 {
            scored.push((usize::MAX - common, candidate.len(), id));
        }
    }
    scored.sort_unstable();
    scored.dedup();
    scored.into_iter().take(most).map(|(.., id)| id).collect()
}

/// Word beginnings that many actions have in common.
const GENERAL: &[&str] =
    &["user", "accoun", "org", "organi", "create", "update", "change", "delete", "remove", "added", "add"];

/// The first letters of each word, so that `deactivated` and `deactivate` are the same.
fn words(text: &str) -> BTreeSet<String> {
    let words = text.split(|character: char| !character.is_alphanumeric()).filter(|word| word.len() > 1);
    words.map(|word| word.to_lowercase().chars().take(6).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalog_is_parsed_from_a_response() {
        let catalog = Catalog::parse(
            r#"{"data":[{"id":"a_1","type":"x","attributes":{"displayName":"Deactivated account","groupDisplayName":"Atlassian accounts"}},{"id":""},{"id":"b"}]}"#,
        )
        .unwrap();
        assert_eq!(catalog.ids().count(), 2);
        assert_eq!(catalog.named("deactivated ACCOUNT").count(), 1);
        assert_eq!((catalog.name("b"), catalog.category("a_1")), (None, Category::Access));
        assert!(Catalog::parse("{}").unwrap_err().starts_with("expected a list of actions"));
    }

    #[test]
    fn nearest_actions_share_the_most_words() {
        let known = [
            ("account_deactivated", Some("Deactivated account")),
            ("account_reactivated", Some("Reactivated account")),
            ("user_login", None),
        ];
        assert_eq!(nearest("user_deactivate*", known.into_iter(), 3), ["account_deactivated"]);
        assert_eq!(nearest("user_created", known.into_iter(), 3), Vec::<&str>::new());
    }
}
