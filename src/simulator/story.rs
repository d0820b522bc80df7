//! The demo's story: an ordinary day of a small company as history, then the next minutes live, with an attack in them that a
//! person can follow, and at its end silence.
//!
//! Entries are as ragged as real ones: times with and without milliseconds, `context` as a list, as an object and absent,
//! system actors, entries that Atlassian processed late. Names are invented, addresses are of documentation ranges.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Scenario, Simulated};
use crate::time::{self, Timestamp};

/// How long history and attack are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoryLength {
    /// The ordinary time before the beginning.
    pub history: Duration,
    /// Ordinary events in it.
    pub history_events: usize,
    /// The live part: the attack takes its first two thirds, the rest is silence.
    pub live: Duration,
}

/// A story.
#[derive(Debug)]
pub struct Story {
    random: fastrand::Rng,
    entries: Vec<Simulated>,
    number: u32,
}

#[derive(Debug, Clone, Copy)]
struct Person {
    id: &'static str,
    name: &'static str,
    email: &'static str,
    ip: &'static str,
    country: &'static str,
    city: &'static str,
}

const fn person(
    id: &'static str,
    name: &'static str,
    email: &'static str,
    ip: &'static str,
    country: &'static str,
    city: &'static str,
) -> Person {
    Person { id, name, email, ip, country, city }
}

const DANA: Person =
    person("712020:0f3a-dana", "Dana Wilson", "dana.wilson@example.com", "203.0.113.21", "Germany", "Berlin");
const CEO: Person =
    person("712020:77c1-ines", "Inês Carvalho", "ines.carvalho@example.com", "203.0.113.5", "Portugal", "Lisbon");
const STAFF: [Person; 8] = [
    DANA,
    CEO,
    person("5b10a2844c20165700ede21g", "Tomasz Nowak", "tomasz.nowak@example.com", "203.0.113.40", "Poland", "Kraków"),
    person("712020:a2d9-mei", "Mei Tanaka", "mei.tanaka@example.com", "203.0.113.61", "Japan", "Osaka"),
    person("712020:b7e0-sam", "Sam Okafor", "sam.okafor@example.com", "203.0.113.77", "Ireland", "Dublin"),
    person("712020:c1f4-lea", "Léa Martin", "lea.martin@example.com", "203.0.113.83", "France", "Lyon"),
    person("712020:d8a8-raj", "Raj Patel", "raj.patel@example.com", "203.0.113.95", "India", "Pune"),
    person("712020:e5b6-ana", "Ana Souza", "ana.souza@example.com", "203.0.113.102", "Brazil", "Recife"),
];
/// Dana's account in other hands.
const INTRUDER: Person = Person { ip: "198.51.100.23", country: "Exampleland", city: "Port Example", ..DANA };
/// The account that the intruder makes an administrator.
const HELPER: Person =
    person("712020:ffff-helper", "IT Helper", "it.helper@example.net", "198.51.100.23", "Exampleland", "Port Example");

impl Story {
    /// The log of a story that is at its beginning at `start`. The same seed tells the same story.
    pub fn tell(seed: u64, start: Timestamp, length: StoryLength) -> Scenario {
        let mut story = Self { random: fastrand::Rng::with_seed(seed), entries: Vec::new(), number: 0 };
        story.history(start, length);
        story.live(start, length.live);
        Scenario::of(story.entries)
    }

    fn history(&mut self, start: Timestamp, length: StoryLength) {
        let begin = time::before(start, length.history);
        for index in 0..length.history_events {
            #[expect(clippy::cast_precision_loss, reason = "a fraction of the day, to spread events over it")]
            let fraction = (index as f64 + self.random.f64()) / length.history_events as f64;
            let at = time::after(begin, length.history.mul_f64(fraction.min(0.999)));
            self.ordinary(at);
        }
        // Two things that ordinary days have, too.
        let at = |part: f64| time::after(begin, length.history.mul_f64(part));
        self.push(at(0.35), Duration::from_secs(1), "marketplace_app_installed", STAFF[4], json!([
            { "id": "com.example.diagrams", "type": "apps", "attributes": { "name": "Diagrams for Teams", "vendor": "Example Labs" } },
        ]), "Sam Okafor installed Diagrams for Teams");
        self.push(
            at(0.7),
            Duration::from_secs(2),
            "user_login_failed",
            STAFF[5],
            Value::Null,
            "Léa Martin failed to log in",
        );
    }

    fn ordinary(&mut self, at: Timestamp) {
        let who = self.somebody(0);
        let other = self.somebody(0);
        // Some entries are processed minutes after the others.
        let delay = if self.random.u8(0..40) == 0 {
            Duration::from_secs(180)
        } else {
            Duration::from_millis(self.random.u64(200..1_500))
        };
        let user = json!([{ "id": other.id, "type": "users", "attributes": { "name": other.name, "email": other.email, "accountType": "atlassian" } }]);
        match self.random.u8(0..100) {
            0..=34 => self.push(at, delay, "user_login", who, Value::Null, &format!("{} logged in", who.name)),
            35..=49 => self.push(at, delay, "user_logout", who, json!([]), &format!("{} logged out", who.name)),
            50..=64 => self.push(at, delay, "user_profile_viewed", who, user, &format!("{} viewed a profile", who.name)),
            65..=79 => self.push(at, delay, "organization_users_viewed", who, json!({ "type": "orgs", "attributes": { "name": "Example Corp" } }), &format!("{} viewed the users", who.name)),
            80..=91 => self.push(at, delay, "confluence_added_space_permission", who, json!([
                { "id": "111", "type": "sites", "attributes": { "siteName": "example-corp", "permissionName": "Add Pages" } },
                { "id": "222", "type": "space", "attributes": { "name": "Handbook", "key": "HB" } },
            ]), &format!("{} added Confluence space permission Add Pages", who.name)),
            92..=95 => self.push(at, delay, "user_invitation_sent", who, user, &format!("{} invited a user", who.name)),
            96..=97 => self.push(at, delay, "group_created", who, json!([{ "id": "g1", "type": "groups", "attributes": { "name": "project-x" } }]), &format!("{} created a group", who.name)),
            _ => self.system(at, delay),
        }
    }

    /// The attack. Times are parts of the live time.
    fn live(&mut self, start: Timestamp, live: Duration) {
        const SILENCE: f64 = 0.66;
        let at = |part: f64| time::after(start, live.mul_f64(part));
        let soon = Duration::from_millis(300);
        let steps = (live.as_secs_f64() * 1.5).clamp(20.0, 600.0);
        let mut part = 0.0;
        while part < SILENCE {
            self.ordinary_live(at(part));
            part += SILENCE / steps * (0.5 + self.random.f64());
        }
        // Dana works from Berlin as every day …
        self.push(at(0.02), soon, "user_login", DANA, Value::Null, "Dana Wilson logged in");
        // … while somebody guesses her password, and has it.
        for attempt in 0..7 {
            self.push(
                at(0.05 + 0.008 * f64::from(attempt)),
                soon,
                "user_login_failed",
                INTRUDER,
                Value::Null,
                "Dana Wilson failed to log in",
            );
        }
        self.push(at(0.14), soon, "user_login", INTRUDER, Value::Null, "Dana Wilson logged in");
        // As Dana, who is an administrator, they become somebody else,
        self.push(at(0.23), soon, "user_logged_in_as_user", INTRUDER, json!([
            { "id": CEO.id, "type": "users", "attributes": { "name": CEO.name, "email": CEO.email, "accountType": "atlassian" } },
        ]), "Dana Wilson logged in as Inês Carvalho");
        // make an administrator to stay,
        self.push(at(0.32), soon, "added_org_admin", INTRUDER, json!([
            { "id": HELPER.id, "type": "users", "attributes": { "name": HELPER.name, "email": HELPER.email, "accountType": "atlassian" } },
        ]), "Dana Wilson made IT Helper an organization admin");
        // take away what protects others,
        for (index, victim) in [CEO, STAFF[2]].into_iter().enumerate() {
            #[expect(clippy::cast_precision_loss, reason = "two steps")]
            let part = 0.4 + 0.02 * index as f64;
            self.push(at(part), soon, "twosv_disabled_for_user", INTRUDER, json!([
                { "id": victim.id, "type": "users", "attributes": { "name": victim.name, "email": victim.email, "accountType": "atlassian" } },
            ]), "Dana Wilson disabled two-step verification for a user");
        }
        self.setting(at(0.49), soon);
        // and make keys that outlive a password reset.
        for (attempt, name) in (0_u8..).zip(["backup", "sync", "reporting"]) {
            self.push(
                at(0.55 + 0.02 * f64::from(attempt)),
                soon,
                "api_token_created",
                HELPER,
                json!([
                    { "id": format!("token-{attempt}"), "type": "tokens", "attributes": { "name": name } },
                ]),
                "IT Helper created an API token",
            );
        }
    }

    /// Ordinary events that make no sign-ins: those would tell a second story.
    fn ordinary_live(&mut self, at: Timestamp) {
        let who = self.somebody(1);
        let (action, what) = match self.random.u8(0..4) {
            0 => ("user_profile_viewed", "viewed a profile"),
            1 => ("organization_users_viewed", "viewed the users"),
            2 => ("user_logout", "logged out"),
            _ => ("confluence_added_space_permission", "added Confluence space permission Add Pages"),
        };
        self.push(at, Duration::from_millis(200), action, who, json!([]), &format!("{} {what}", who.name));
    }

    fn system(&mut self, at: Timestamp, delay: Duration) {
        let id = self.id();
        self.entry(at, delay, json!({
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

    fn setting(&mut self, at: Timestamp, delay: Duration) {
        let id = self.id();
        let mut entry =
            self.plain(id, at, "org_settings_update", INTRUDER, "Dana Wilson changed an organization setting");
        if let Some(attributes) = entry.get_mut("attributes").and_then(Value::as_object_mut) {
            attributes.insert("container".to_owned(), json!([{ "id": "org-1", "type": "orgs", "attributes": {
                "name": "Example Corp", "settingName": "Authentication policy: require two-step verification", "settingValues": ["true", "false"],
            } }]));
        }
        self.entry(at, delay, entry);
    }

    fn push(&mut self, at: Timestamp, delay: Duration, action: &str, who: Person, context: Value, message: &str) {
        let id = self.id();
        let mut entry = self.plain(id, at, action, who, message);
        if let (Some(attributes), false) =
            (entry.get_mut("attributes").and_then(Value::as_object_mut), context.is_null())
        {
            attributes.insert("context".to_owned(), context);
        }
        self.entry(at, delay, entry);
    }

    fn plain(&mut self, id: String, at: Timestamp, action: &str, who: Person, message: &str) -> Value {
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

    /// One of the staff, leaving out the first so many.
    fn somebody(&mut self, from: usize) -> Person {
        STAFF.get(self.random.usize(from..STAFF.len())).copied().unwrap_or(CEO)
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
