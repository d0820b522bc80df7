//! The demo's log: an ordinary day of a small company as history, then the next minutes live, with an attack that is
//! slow enough to follow, and silence at the end.
//!
//! Names are invented; IP addresses are from documentation ranges.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    Scenario,
    incident::{self, Cast},
    log::{Log, Person},
};
use crate::model::time::{self, Timestamp};

/// Length of the history and the live part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoryLength {
    /// Ordinary time before the start.
    pub history: Duration,
    /// Number of ordinary events in the history.
    pub history_events: usize,
    /// The live part: the attack takes the first two thirds, the rest is silence.
    pub live: Duration,
}

#[derive(Debug)]
pub struct Story {
    log: Log,
}

const fn person(
    id: &'static str,
    name: &'static str,
    email: &'static str,
    ip: &'static str,
    country: &'static str,
    city: &'static str,
) -> Person<'static> {
    Person { id, name, email, ip, country, city }
}

const DANA: Person<'static> =
    person("712020:0f3a-dana", "Dana Wilson", "dana.wilson@example.com", "203.0.113.21", "Germany", "Berlin");
const CEO: Person<'static> =
    person("712020:77c1-ines", "Inês Carvalho", "ines.carvalho@example.com", "203.0.113.5", "Portugal", "Lisbon");
const STAFF: [Person<'static>; 8] = [
    DANA,
    CEO,
    person("5b10a2844c20165700ede21g", "Tomasz Nowak", "tomasz.nowak@example.com", "203.0.113.40", "Poland", "Kraków"),
    person("712020:a2d9-mei", "Mei Tanaka", "mei.tanaka@example.com", "203.0.113.61", "Japan", "Osaka"),
    person("712020:b7e0-sam", "Sam Okafor", "sam.okafor@example.com", "203.0.113.77", "Ireland", "Dublin"),
    person("712020:c1f4-lea", "Léa Martin", "lea.martin@example.com", "203.0.113.83", "France", "Lyon"),
    person("712020:d8a8-raj", "Raj Patel", "raj.patel@example.com", "203.0.113.95", "India", "Pune"),
    person("712020:e5b6-ana", "Ana Souza", "ana.souza@example.com", "203.0.113.102", "Brazil", "Recife"),
];
/// The attack takes over Dana's account.
const CAST: Cast<'static> =
    Cast { administrator: DANA, victims: [CEO, STAFF[2]], from: ("198.51.100.23", "Exampleland", "Port Example") };

impl Story {
    /// Creates the log, whose live part begins at `start`. The same seed produces the same log.
    pub fn tell(seed: u64, start: Timestamp, length: StoryLength) -> Scenario {
        let mut story = Self { log: Log::new(seed) };
        story.history(start, length);
        story.live(start, length.live);
        story.log.finish()
    }

    fn history(&mut self, start: Timestamp, length: StoryLength) {
        let begin = time::before(start, length.history);
        for index in 0..length.history_events {
            #[expect(clippy::cast_precision_loss, reason = "a fraction of the day, to spread events over it")]
            let fraction = (index as f64 + self.log.random.f64()) / length.history_events as f64;
            let at = time::after(begin, length.history.mul_f64(fraction.min(0.999)));
            self.ordinary(at);
        }
        // Two rarer events that also happen on ordinary days.
        let at = |part: f64| time::after(begin, length.history.mul_f64(part));
        self.log.push_after(at(0.35), Duration::from_secs(1), "marketplace_app_installed", STAFF[4], json!([
            { "id": "com.example.diagrams", "type": "apps", "attributes": { "name": "Diagrams for Teams", "vendor": "Example Labs" } },
        ]), "Sam Okafor installed Diagrams for Teams");
        let delay = Duration::from_secs(2);
        let message = "Léa Martin failed to log in";
        self.log.push_after(at(0.7), delay, "user_login_failed", STAFF[5], Value::Null, message);
    }

    fn ordinary(&mut self, at: Timestamp) {
        let who = self.random_person(0);
        let other = self.random_person(0);
        let user = json!([other.target()]);
        match self.log.random.u8(0..100) {
            0..=34 => self.log.push(at, "user_login", who, Value::Null, &format!("{} logged in", who.name)),
            35..=49 => self.log.push(at, "user_logout", who, json!([]), &format!("{} logged out", who.name)),
            50..=64 => self.log.push(at, "user_profile_viewed", who, user, &format!("{} viewed a profile", who.name)),
            65..=79 => self.log.push(at, "organization_users_viewed", who, json!({ "type": "orgs", "attributes": { "name": "Example Corp" } }), &format!("{} viewed the users", who.name)),
            80..=91 => self.log.push(at, "confluence_added_space_permission", who, json!([
                { "id": "111", "type": "sites", "attributes": { "siteName": "example-corp", "permissionName": "Add Pages" } },
                { "id": "222", "type": "space", "attributes": { "name": "Handbook", "key": "HB" } },
            ]), &format!("{} added Confluence space permission Add Pages", who.name)),
            92..=95 => self.log.push(at, "user_invitation_sent", who, user, &format!("{} invited a user", who.name)),
            96..=97 => self.log.push(at, "group_created", who, json!([{ "id": "g1", "type": "groups", "attributes": { "name": "project-x" } }]), &format!("{} created a group", who.name)),
            _ => self.log.system(at),
        }
    }

    /// The attack takes the first two thirds, the rest is silence.
    fn live(&mut self, start: Timestamp, live: Duration) {
        const SILENCE: f64 = 0.66;
        let at = |part: f64| time::after(start, live.mul_f64(part));
        let steps = (live.as_secs_f64() * 1.5).clamp(20.0, 600.0);
        let mut part = 0.0;
        while part < SILENCE {
            self.ordinary_live(at(part));
            part += SILENCE / steps * (0.5 + self.log.random.f64());
        }
        incident::append(&mut self.log, &CAST, &|part| at(part * SILENCE));
    }

    /// Ordinary events without sign-ins, which would distract from the attack.
    fn ordinary_live(&mut self, at: Timestamp) {
        let who = self.random_person(1);
        let (action, what) = match self.log.random.u8(0..4) {
            0 => ("user_profile_viewed", "viewed a profile"),
            1 => ("organization_users_viewed", "viewed the users"),
            2 => ("user_logout", "logged out"),
            _ => ("confluence_added_space_permission", "added Confluence space permission Add Pages"),
        };
        let message = format!("{} {what}", who.name);
        self.log.push_after(at, Duration::from_millis(200), action, who, json!([]), &message);
    }

    /// A random member of staff, excluding the first `from`.
    fn random_person(&mut self, from: usize) -> Person<'static> {
        STAFF.get(self.log.random.usize(from..STAFF.len())).copied().unwrap_or(CEO)
    }
}
