//! The log of a simulated organization: entries with the time at which Atlassian processed them.

use crate::model::time::{self, Timestamp};

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Simulated {
    /// Time from which the entry can be read.
    pub processed: Timestamp,
    /// The entry, as sent to clients.
    pub json: String,
}

/// The complete log, past and future, in order of processing.
#[derive(Debug, Clone)]
pub enum Scenario {
    Entries(Vec<Simulated>),
    /// Many plain entries, generated as they are read, for load tests.
    Flood {
        count: usize,
        /// Processing time of the first; the others follow at intervals of 100 ms.
        start: Timestamp,
    },
}

impl Scenario {
    /// Creates a log of entries, sorted by processing time.
    pub fn of(mut entries: Vec<Simulated>) -> Self {
        entries.sort_by_key(|entry| entry.processed);
        Self::Entries(entries)
    }

    /// Number of entries, including future ones.
    pub fn len(&self) -> usize {
        match self {
            Self::Entries(entries) => entries.len(),
            Self::Flood { count, .. } => *count,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of entries that have been processed by `now`.
    pub fn processed_by(&self, now: Timestamp) -> usize {
        self.count(|processed| processed <= now)
    }

    /// Number of entries that were processed before `time`.
    pub fn processed_before(&self, time: Timestamp) -> usize {
        self.count(|processed| processed < time)
    }

    fn count(&self, wanted: impl Fn(Timestamp) -> bool) -> usize {
        match self {
            Self::Entries(entries) => entries.partition_point(|entry| wanted(entry.processed)),
            Self::Flood { count, start } => {
                let (mut low, mut high) = (0, *count);
                while low < high {
                    let middle = usize::midpoint(low, high);
                    if wanted(flood_time(*start, middle)) { low = middle + 1 } else { high = middle }
                }
                low
            }
        }
    }

    /// Returns the entry at an index, or an empty object if there is none.
    pub fn entry(&self, index: usize) -> Simulated {
        match self {
            Self::Entries(entries) => {
                let empty = || Simulated { processed: Timestamp::UNIX_EPOCH, json: "{}".to_owned() };
                entries.get(index).cloned().unwrap_or_else(empty)
            }
            Self::Flood { start, .. } => flood_entry(flood_time(*start, index), index),
        }
    }
}

fn flood_time(start: Timestamp, index: usize) -> Timestamp {
    time::from_millis(start.as_millisecond() + i64::try_from(index).unwrap_or(i64::MAX / 1_000) * 100)
}

/// One of sixty actions, three of which are most of the volume; about 1.3 KB per entry, as measured on real pages.
fn flood_entry(processed: Timestamp, index: usize) -> Simulated {
    let mut random = fastrand::Rng::with_seed(index as u64 ^ 0x5eed);
    let action = match random.u8(0..100) {
        0..=29 => "user_login".to_owned(),
        30..=47 => "jira_issue_viewed".to_owned(),
        48..=59 => "confluence_page_viewed".to_owned(),
        60 => "user_login_failed".to_owned(),
        61 => "user_logged_in_as_user".to_owned(),
        _ => format!("jira_action_{}", random.u8(0..55)),
    };
    let person = random.u16(0..2_000);
    let filler: String = std::iter::repeat_with(|| random.alphanumeric()).take(520).collect();
    let json = serde_json::json!({
        "id": format!("{:08x}-flood-4000-8000-{index:012}", random.u32(..)),
        "type": "events",
        "attributes": {
            "time": processed.to_string(),
            "processedAt": processed.to_string(),
            "action": action,
            "actor": {
                "id": format!("712020:{person:08}"), "name": format!("Person {person}"),
                "email": format!("person{person}@example.com"),
                "links": { "self": format!("https://api.atlassian.com/users/{person}") },
            },
            "context": [
                { "id": format!("712020:{:08}", person + 1), "type": "users",
                  "attributes": { "name": format!("Person {}", person + 1), "email": format!("person{}@example.com", person + 1), "accountType": "atlassian" } },
            ],
            "container": [{ "id": "site-1", "type": "sites", "attributes": { "siteName": "example", "siteHostName": "https://example.atlassian.net", "note": filler } }],
            "location": { "ip": format!("203.0.113.{}", person % 250), "geo": "DE", "countryName": "Germany", "regionName": "Berlin", "city": "Berlin" },
        },
        "message": { "content": format!("Person {person} did {action}"), "format": "simple" },
        "links": { "self": "https://api.atlassian.com/admin/v1/orgs/x/events/y" },
        "relations": null,
    });
    Simulated { processed, json: json.to_string() }
}
