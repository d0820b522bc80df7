//! The vocabulary of events: known fields and action ids. Atlassian documents the fields in part and the action ids
//! not at all, so what the organization's stored events contain is added.
//!
//! It is used to warn about likely misspellings, never to reject anything.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::model::{action::Catalog, certainty::Certainty};

mod activities;

use activities::DOCUMENTED;

/// Event fields that are documented or occur in vendors' samples, as paths in which `[]` is any item of a list.
/// (developer.atlassian.com, organization REST API, events; samples of collectors.)
const FIELDS: &[&str] = &[
    "id",
    "type",
    "attributes.time",
    "attributes.processedAt",
    "attributes.action",
    "attributes.actor.id",
    "attributes.actor.name",
    "attributes.actor.email",
    "attributes.actor.picture",
    "attributes.actor.type",
    "attributes.actor.auth.authType",
    "attributes.actor.auth.tokenId",
    "attributes.actor.auth.tokenLabel",
    "attributes.actor.auth.tokenName",
    "attributes.actor.onBehalfOf.id",
    "attributes.actor.onBehalfOf.name",
    "attributes.actor.onBehalfOf.email",
    "attributes.actor.app.id",
    "attributes.actor.app.type",
    "attributes.actor.app.attributes.name",
    "attributes.actor.links.self",
    "attributes.actor.links.alt",
    "attributes.context[].id",
    "attributes.context[].type",
    "attributes.context[].links.self",
    "attributes.context[].links.alt",
    "attributes.context[].attributes.name",
    "attributes.context[].attributes.email",
    "attributes.context[].attributes.accountType",
    "attributes.context[].attributes.groupName",
    "attributes.context[].attributes.siteHostName",
    "attributes.context[].attributes.siteName",
    "attributes.context[].attributes.cloudUrl",
    "attributes.context[].attributes.settingName",
    "attributes.context[].attributes.settingValues",
    "attributes.context[].attributes.permissionName",
    "attributes.context[].attributes.vendor",
    "attributes.context[].attributes.key",
    "attributes.container[].id",
    "attributes.container[].type",
    "attributes.container[].links.self",
    "attributes.container[].links.alt",
    "attributes.container[].attributes.name",
    "attributes.container[].attributes.siteHostName",
    "attributes.container[].attributes.siteName",
    "attributes.container[].attributes.cloudUrl",
    "attributes.container[].attributes.settingName",
    "attributes.container[].attributes.settingValues",
    "attributes.location.ip",
    "attributes.location.geo",
    "attributes.location.countryName",
    "attributes.location.regionName",
    "attributes.location.city",
    "message.content",
    "message.format",
    "links.self",
    "relations",
];

/// The short names next to Atlassian's own, and the path that each stands for, if there is one.
const SHORT: &[(&str, &str)] = &[
    ("actor", "attributes.actor"),
    ("target", "attributes.context[]"),
    ("action", ""),
    ("activity", ""),
    ("category", ""),
    ("ip", ""),
    ("time", ""),
    ("source", ""),
    ("geo", ""),
    ("flags", ""),
];

/// The fields of `event.geo`.
const GEO: [&str; 3] = ["country", "city", "region"];

/// Action ids in public rules, data models and samples. Atlassian publishes no list; only the first one is from a
/// real event.
const ACTIONS: &[&str] = &[
    "user_logged_in_as_user",
    "added_org_admin",
    "api_token_created",
    "confluence_added_space_permission",
    "confluence_audit_record_removed_content_restriction",
    "data_classification_policy_update",
    "group_created",
    "group_deleted",
    "group_granted_admin_access",
    "marketplace_app_installed",
    "org_settings_update",
    "organization_users_viewed",
    "rovo_agent_chat_started",
    "rovo_agent_created",
    "rovo_agent_updated",
    "rovo_search_performed",
    "twosv_disabled_for_user",
    "user_added",
    "user_created",
    "user_granted_role",
    "user_invitation_sent",
    "user_login",
    "user_login_failed",
    "user_logout",
    "user_profile_viewed",
    "user_revoked_role",
];

/// The names of all documented fields, at any place in an event.
pub(in crate::rule) fn names() -> BTreeSet<&'static str> {
    let short = SHORT.iter().map(|(name, _)| *name).chain(GEO);
    let documented = FIELDS.iter().flat_map(|path| path.split('.')).map(|name| name.trim_end_matches("[]"));
    documented.chain(short).collect()
}

/// How certain an entry of a rule's `actions` is, according to public sources.
pub fn certainty(action: &str) -> Certainty {
    match ACTIONS.iter().position(|known| *known == action) {
        Some(0) => Certainty::Verified,
        Some(_) => Certainty::Sample,
        // A prefix that a collector matches does not prove an id.
        None => Certainty::Assumed,
    }
}

/// Prefixes and suffixes of action ids that collectors look for: ids like these are likely.
const ACTION_PATTERNS: &[&str] = &[
    "organization_users_*",
    "user_profile_*",
    "user_invit*",
    "user_deactiv*",
    "user_reactiv*",
    "user_remov*",
    "marketplace_app_install*",
    "marketplace_app_uninstall*",
    "api_token_creat*",
    "api_token_revok*",
    "group_member*",
    "confluence_*",
    "jira_*",
    "bitbucket_*",
    "*_policy_update",
];

/// The known fields, actions and activities.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    fields: BTreeSet<String>,
    actions: BTreeSet<String>,
    activities: BTreeSet<String>,
    /// Whether events were added: a field that none of them has is then more likely a mistake.
    seen: bool,
}

impl Default for Vocabulary {
    fn default() -> Self {
        let mut vocabulary = Self {
            fields: BTreeSet::new(),
            actions: ACTIONS.iter().map(|action| (*action).to_owned()).collect(),
            activities: DOCUMENTED.iter().flat_map(|(_, names)| *names).map(|name| (*name).to_owned()).collect(),
            seen: false,
        };
        for field in FIELDS {
            vocabulary.add_field(field);
        }
        for part in GEO {
            vocabulary.add_field(&format!("geo.{part}"));
        }
        for (short, _) in SHORT {
            vocabulary.fields.insert((*short).to_owned());
        }
        vocabulary
    }
}

impl Vocabulary {
    /// Adds the fields and the action of an event.
    pub fn add_event(&mut self, event: &Value) {
        self.seen = true;
        if let Some(action) = event.pointer("/attributes/action").and_then(Value::as_str) {
            self.actions.insert(action.to_owned());
        }
        self.add_value("", event, 0);
    }

    /// Adds the actions in an organization's catalog.
    pub fn add_catalog(&mut self, catalog: &Catalog) {
        for action in catalog.ids() {
            self.actions.insert(action.to_string());
            self.activities.extend(catalog.name(action).map(str::to_owned));
        }
    }

    /// Whether any events were added.
    pub fn has_events(&self) -> bool {
        self.seen
    }

    fn add_value(&mut self, path: &str, value: &Value, depth: usize) {
        if depth > 12 {
            return;
        }
        match value {
            Value::Object(map) => {
                // An object in place of a list counts as a list of one.
                let path = if ["attributes.context", "attributes.container"].contains(&path) {
                    format!("{path}[]")
                } else {
                    path.to_owned()
                };
                for (key, value) in map {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    self.add_value(&path, value, depth + 1);
                }
                self.add_field(&path);
            }
            Value::Array(items) => {
                for item in items {
                    self.add_value(&format!("{path}[]"), item, depth + 1);
                }
                self.add_field(&format!("{path}[]"));
            }
            _ => self.add_field(path),
        }
    }

    /// Adds a path and all its prefixes.
    fn add_field(&mut self, path: &str) {
        let mut path = path;
        while !path.is_empty() && self.fields.insert(path.to_owned()) {
            path = match path.strip_suffix("[]") {
                Some(list) => list,
                None => path.rsplit_once('.').map_or("", |(parent, _)| parent),
            };
        }
    }

    /// Normalizes a path in a rule: resolves short names.
    fn resolve(path: &str) -> String {
        let (first, rest) =
            path.split_once(['.', '[']).map_or((path, ""), |(first, _)| (first, path.get(first.len()..).unwrap_or("")));
        match SHORT.iter().find(|(short, _)| *short == first) {
            Some((_, target)) if !target.is_empty() => format!("{target}{rest}"),
            _ => path.to_owned(),
        }
    }

    /// What to suggest about an unknown field; `None` if it is known.
    pub fn doubt_field(&self, path: &str) -> Option<String> {
        let wanted = Self::resolve(path);
        if self.fields.contains(&wanted) {
            return None;
        }
        // The longest known prefix, and the first unknown step after it.
        let mut parent = wanted.as_str();
        while !parent.is_empty() && !self.fields.contains(parent) {
            parent = match parent.strip_suffix("[]") {
                Some(list) => list,
                None => parent.rsplit_once('.').map_or("", |(parent, _)| parent),
            };
        }
        let step = wanted.get(parent.len()..)?.trim_start_matches('.');
        let step = step.split(['.', '[']).next().filter(|step| !step.is_empty())?;
        let prefix = if parent.is_empty() { String::new() } else { format!("{parent}.") };
        let siblings = self.fields.iter().filter_map(|field| field.strip_prefix(&prefix));
        let siblings: Vec<&str> = siblings.filter(|field| !field.contains(['.', '['])).collect();
        let near = crate::config::diagnostic::nearest(step, siblings.iter().copied());
        // The `attributes` of targets differ between actions: only doubt what looks misspelt.
        let open = parent.ends_with("[].attributes") || parent.ends_with("app.attributes");
        match near {
            Some(near) => Some(format!("did you mean `{near}`?")),
            None if open => None,
            None => Some(match siblings.len() {
                0 => "its parent has no known fields".to_owned(),
                _ => format!("known fields: {}", siblings.join(", ")),
            }),
        }
    }

    /// What to suggest about an unknown activity name; `None` if it is known.
    pub fn doubt_activity(&self, name: &str) -> Option<String> {
        let lower = name.trim().to_lowercase();
        if self.activities.iter().any(|known| known.to_lowercase() == lower) {
            return None;
        }
        let near = crate::config::diagnostic::nearest(name, self.activities.iter().map(String::as_str));
        Some(match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => "unknown activity; run `watchbell actions list` to see those of your organization".to_owned(),
        })
    }

    /// What to suggest about an unknown action id or pattern; `None` if it is known.
    pub fn doubt_action(&self, action: &str) -> Option<String> {
        let glob = crate::rule::manifest::pattern::glob(action).ok()?.compile_matcher();
        let known = self.actions.contains(action)
            || self.actions.iter().any(|known| glob.is_match(known))
            || ACTION_PATTERNS.iter().any(|pattern| {
                let bare = pattern.trim_matches('*');
                crate::rule::manifest::pattern::glob(pattern).is_ok_and(|glob| glob.compile_matcher().is_match(action))
                    || action.trim_matches('*').contains(bare)
            });
        if known {
            return None;
        }
        let near = crate::config::diagnostic::nearest(action, self.actions.iter().map(String::as_str));
        Some(match near {
            Some(near) => format!("did you mean `{near}`?"),
            None if self.seen => {
                "no stored event and no public source has this action; run `watchbell events list` to see stored events"
                    .to_owned()
            }
            None => "no public source has this action; compare it with your own audit log".to_owned(),
        })
    }

    /// Whether a field of the event is always a string if it is present.
    pub(in crate::rule) fn is_text(path: &str) -> bool {
        let resolved = Self::resolve(path);
        ["action", "activity", "category", "ip", "time", "source", "id"].contains(&resolved.as_str())
            || [".email", ".name", ".action", ".time", ".processedAt", ".ip", ".countryName", ".city"]
                .iter()
                .any(|end| resolved.ends_with(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_fields_are_doubted_and_known_ones_are_not() {
        let mut vocabulary = Vocabulary::default();
        for known in [
            "actor.email",
            "attributes.context[].attributes.email",
            "geo.country",
            "ip",
            "attributes",
            "actor",
            "message.content",
        ] {
            assert_eq!(vocabulary.doubt_field(known), None, "{known}");
        }
        assert_eq!(vocabulary.doubt_field("actor.emial").as_deref(), Some("did you mean `email`?"));
        assert_eq!(vocabulary.doubt_field("atributes.action").as_deref(), Some("did you mean `attributes`?"));
        assert!(vocabulary.doubt_field("actor.shoe_size").unwrap().starts_with("known fields: app, auth, email"));
        // Targets have other attributes.
        assert_eq!(vocabulary.doubt_field("attributes.context[].attributes.repositorySlug"), None);
        assert!(vocabulary.doubt_field("attributes.context[].attributes.emial").is_some());
        vocabulary
            .add_event(&serde_json::json!({ "attributes": { "action": "own_thing", "actor": { "shoe_size": 42 } } }));
        assert_eq!(vocabulary.doubt_field("actor.shoe_size"), None);
        assert_eq!(vocabulary.doubt_action("own_*"), None);
    }

    #[test]
    fn misspelt_actions_are_doubted() {
        let vocabulary = Vocabulary::default();
        for known in [
            "user_login",
            "user_*",
            "*_policy_update",
            "marketplace_app_installed",
            "jira_project_created",
            "api_token_creat*",
        ] {
            assert_eq!(vocabulary.doubt_action(known), None, "{known}");
        }
        assert_eq!(vocabulary.doubt_action("user_logn").as_deref(), Some("did you mean `user_login`?"));
        assert!(vocabulary.doubt_action("zebra_painted").is_some());
    }
}
