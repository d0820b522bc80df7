//! Event fields as rules see them: by path, and derived ones such as the target.

use rhai::{Array, Dynamic, ImmutableString, Map};

use crate::rule::manifest::value::data;

/// All values at a path in which `[]` stands for every item of a list.
pub(in crate::rule) fn follow_all(value: &Dynamic, path: &str) -> Vec<Dynamic> {
    let mut values = vec![value.clone()];
    for (index, part) in path.split("[]").enumerate() {
        if index > 0 {
            values = values.into_iter().flat_map(items).collect();
        }
        let part = part.trim_start_matches('.');
        if !part.is_empty() {
            values = values.iter().filter_map(|value| follow(value, part)).collect();
        }
    }
    values.retain(|value| !value.is_unit());
    values
}

/// The items of a list; an object in place of a list is a list of one.
pub(in crate::rule) fn items(value: Dynamic) -> Array {
    if let Some(items) = value.read_lock::<Array>() {
        return items.clone();
    }
    if value.is_map() { vec![value] } else { Array::new() }
}

/// The value at a path of keys and indexes.
pub(in crate::rule) fn follow(value: &Dynamic, path: &str) -> Option<Dynamic> {
    let map = value.read_lock::<Map>()?;
    if let Some(value) = map.get(path) {
        return Some(value.clone());
    }
    let mut value: Option<Dynamic> = None;
    for step in path.split('.') {
        let (key, indexes) = step.split_once('[').map_or((step, ""), |(key, rest)| (key, rest));
        if !key.is_empty() {
            value = match &value {
                None => map.get(key).cloned(),
                Some(value) => value.read_lock::<Map>().and_then(|map| map.get(key).cloned()),
            };
        }
        for index in indexes.split('[').filter(|index| !index.is_empty()) {
            let index: usize = index.strip_suffix(']')?.parse().ok()?;
            value = value?.read_lock::<Array>().and_then(|array| array.get(index).cloned());
        }
        value.as_ref()?;
    }
    value
}

pub(in crate::rule) fn text_at(value: &Dynamic, path: &str) -> Option<ImmutableString> {
    follow(value, path).as_ref().and_then(data).filter(|text| !text.is_empty())
}

pub(in crate::rule) fn is_of_type(item: &Dynamic, kind: &str) -> bool {
    text_at(item, "type").is_some_and(|found| found == kind)
}

/// The actor's name, if the event has one.
pub(in crate::rule) fn actor_name_of(event: &Dynamic) -> Option<String> {
    let email = text_at(event, "attributes.actor.email").filter(|email| email.contains('@'));
    let name =
        email.or_else(|| text_at(event, "attributes.actor.name")).or_else(|| text_at(event, "attributes.actor.id"));
    name.map(|name| name.to_string())
}

/// The target's name, if the event has one.
pub(in crate::rule) fn target_name_of(event: &Dynamic) -> Option<String> {
    let attributes = follow(event, "attributes")?;
    let found = target(&*attributes.read_lock::<Map>()?)?;
    name_of(&found).map(|name| name.to_string())
}

/// Attributes that name a target, most telling first.
const NAMES: [&str; 8] =
    ["email", "name", "groupName", "permissionName", "settingName", "key", "siteName", "siteHostName"];
/// Types of targets that are where something happened, not what it happened to.
const PLACES: [&str; 7] = ["sites", "orgs", "organization", "organizations", "unit", "workspace", "workspaces"];
/// Types of targets that contain the actual target, if there is another one.
const HOLDERS: [&str; 4] = ["space", "spaces", "project", "projects"];

/// The target of an event: the first entry of `context` that is neither the actor, nor a place, nor a container of
/// the target; else the container; else an entry of `container`, because it is not known for all products where they
/// name the target; else the actor.
pub(in crate::rule) fn target(attributes: &Map) -> Option<Dynamic> {
    let entries = |key: &str| attributes.get(key).cloned().map_or_else(Array::new, items);
    let is = |item: &Dynamic, kinds: &[&str]| kinds.iter().any(|kind| is_of_type(item, kind));
    let (context, container) = (entries("context"), entries("container"));
    let things = || context.iter().filter(|item| item.is_map() && !is(item, &PLACES));
    let others = || things().filter(|item| !is_actor(attributes, item));
    let found = others().find(|item| !is(item, &HOLDERS)).or_else(|| others().next());
    let contained = || container.iter().find(|item| item.is_map() && !is(item, &PLACES));
    found.or_else(contained).or_else(|| things().next()).cloned()
}

pub(in crate::rule) fn is_actor(attributes: &Map, item: &Dynamic) -> bool {
    let actor = |key: &str| attributes.get("actor").and_then(|actor| text_at(actor, key));
    let same_id = actor("id").is_some_and(|id| !id.trim().is_empty() && text_at(item, "id") == Some(id));
    // Some events have a placeholder, such as `hidden`, in place of an address: that says nothing.
    let same_address =
        |mine: ImmutableString, theirs: ImmutableString| mine.contains('@') && mine.eq_ignore_ascii_case(&theirs);
    same_id
        || actor("email")
            .zip(text_at(item, "attributes.email"))
            .is_some_and(|(mine, theirs)| same_address(mine, theirs))
}

pub(in crate::rule) fn name_of(target: &Dynamic) -> Option<ImmutableString> {
    let named = NAMES.iter().find_map(|key| text_at(target, &format!("attributes.{key}")));
    named.or_else(|| text_at(target, "id"))
}

pub(in crate::rule) fn origin_of(event: &Dynamic) -> Option<String> {
    let text = |key: &str| text_at(event, &format!("attributes.location.{key}"));
    let place: Vec<ImmutableString> = ["city", "countryName"].into_iter().filter_map(text).collect();
    let place = place.join(", ");
    match (text("ip"), place.is_empty()) {
        (Some(ip), true) => Some(ip.to_string()),
        (Some(ip), false) => Some(format!("{ip} ({place})")),
        (None, false) => Some(place),
        (None, true) => None,
    }
}
