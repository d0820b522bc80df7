//! Writes a log with entries as irregular as real ones: times with and without milliseconds, `context` as a list, as an
//! object or absent, system actors, and entries that Atlassian processed late.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Scenario, Simulated};
use crate::model::time::{self, Timestamp};

/// An actor and their location.
#[derive(Debug, Clone, Copy)]
pub(super) struct Person<'a> {
    pub(super) id: &'a str,
    pub(super) name: &'a str,
    pub(super) email: &'a str,
    pub(super) ip: &'a str,
    pub(super) country: &'a str,
    pub(super) city: &'a str,
}

impl Person<'_> {
    /// The person as the target of an action.
    pub(super) fn target(&self) -> Value {
        json!({ "id": self.id, "type": "users", "attributes": { "name": self.name, "email": self.email, "accountType": "atlassian" } })
    }
}

/// The target of an action, with its type, id and name.
pub(super) fn thing(kind: &str, id: &str, name: &str) -> Value {
    json!({ "id": id, "type": kind, "attributes": { "name": name } })
}

/// A log that is being written.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) random: fastrand::Rng,
    entries: Vec<Simulated>,
    number: u32,
}

impl Log {
    /// Creates an empty log. The same seed produces the same entries.
    pub(super) fn new(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), entries: Vec::new(), number: 0 }
    }

    pub(super) fn finish(self) -> Scenario {
        Scenario::of(self.entries)
    }

    /// Adds an entry that is processed soon, or, rarely, minutes later.
    pub(super) fn push(&mut self, at: Timestamp, action: &str, who: Person<'_>, context: Value, message: &str) {
        let late = self.random.u8(0..40) == 0;
        let delay = if late { Duration::from_secs(180) } else { Duration::from_millis(self.random.u64(200..1_500)) };
        self.push_after(at, delay, action, who, context, message);
    }

    /// Adds an entry that is processed after `delay`. If `context` is `null`, the entry has none.
    pub(super) fn push_after(
        &mut self,
        at: Timestamp,
        delay: Duration,
        action: &str,
        who: Person<'_>,
        context: Value,
        message: &str,
    ) {
        let mut entry = self.plain(at, action, who, message);
        if let (Some(attributes), false) =
            (entry.get_mut("attributes").and_then(Value::as_object_mut), context.is_null())
        {
            attributes.insert("context".to_owned(), context);
        }
        self.entry(at, delay, entry);
    }

    /// Adds a change of a setting, with its values in the container.
    pub(super) fn setting(&mut self, at: Timestamp, delay: Duration, who: Person<'_>, name: &str, values: [&str; 2]) {
        let message = format!("{} changed an organization setting", who.name);
        let mut entry = self.plain(at, "org_settings_update", who, &message);
        if let Some(attributes) = entry.get_mut("attributes").and_then(Value::as_object_mut) {
            attributes.insert(
                "container".to_owned(),
                json!([{ "id": "org-1", "type": "orgs", "attributes": {
                "name": "Example Corp", "settingName": name, "settingValues": values,
            } }]),
            );
        }
        self.entry(at, delay, entry);
    }

    /// Adds an action of a product itself.
    pub(super) fn system(&mut self, at: Timestamp) {
        let id = self.id();
        self.entry(at, Duration::from_secs(1), json!({
            "id": id, "type": "events",
            "attributes": {
                "time": at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                "action": "confluence_audit_record_removed_content_restriction",
                "actor": { "id": "confluence", "name": "Confluence", "email": "Atlassian app", "picture": null, "links": {} },
                "container": [],
                "location": { "geo": "EU" },
            },
            "message": { "content": "Content restriction removed", "format": "text/plain" },
            "relations": null,
        }));
    }

    fn plain(&mut self, at: Timestamp, action: &str, who: Person<'_>, message: &str) -> Value {
        let id = self.id();
        let time = if self.random.u8(0..3) == 0 {
            at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
        } else {
            at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
        };
        json!({
            "id": id,
            "type": "events",
            "attributes": {
                "time": time,
                "action": action,
                "actor": { "id": who.id, "name": who.name, "email": who.email, "auth": { "authType": "session" } },
                "container": [{ "id": "site-1", "type": "sites", "attributes": { "siteName": "example-corp", "siteHostName": "https://example-corp.atlassian.net" } }],
                "location": { "ip": who.ip, "countryName": who.country, "city": who.city, "regionName": "" },
            },
            "message": { "content": message, "format": "simple" },
            "links": { "self": "https://api.atlassian.com/admin/v1/orgs/example/events/example" },
        })
    }

    fn id(&mut self) -> String {
        self.number += 1;
        format!("{:08x}-{:04x}-4000-8000-{:012x}", self.random.u32(..), self.random.u16(..), self.number)
    }

    fn entry(&mut self, at: Timestamp, delay: Duration, mut entry: Value) {
        let processed = time::after(at, delay);
        if let Some(attributes) = entry.get_mut("attributes").and_then(Value::as_object_mut) {
            attributes
                .insert("processedAt".to_owned(), processed.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string().into());
        }
        self.entries.push(Simulated { processed, json: entry.to_string() });
    }
}
