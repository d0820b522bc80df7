//! Creates PagerDuty incidents through the Events API v2.
//!
//! An alert is one incident, with the alert's id as `dedup_key`; it is triggered, acknowledged and resolved with the
//! alert. PagerDuty's documented limits: 1,024 characters of summary, 512 KB in total.
//! <https://developer.pagerduty.com/docs/events-api-v2-overview>

use std::path::Path;

use reqwest::{Method, Url};
use serde_json::{Map, Value, json};

use super::{
    Destination, Message, OpenError, SendOutcome, Sending,
    http::Service,
    message::{SHOWN, digest_line, headline},
};
use crate::{
    config::{
        secret::{Secret, SecretOrigin},
        settings::TableReader,
    },
    http,
    model::{
        alert::{Alert, Notice, Severity},
        bound,
        text::{clipped, printable, printable_json},
        time::Clock,
    },
};

/// Settings of a PagerDuty service (`kind = "pagerduty"`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Integration key of the service, as a secret: `{ env = "NAME" }` or `{ file = "PATH" }`. Required.
    pub routing_key: SecretOrigin,
    /// URL of the Events API; the EU service region has a different one. Default:
    /// `https://events.pagerduty.com/v2/enqueue`.
    pub url: Url,
}

impl Settings {
    pub(super) fn read(table: &mut TableReader<'_>, base: &Path) -> Option<Self> {
        let routing_key = table.secret("routing_key", base);
        let url = if table.has("url") {
            table.parsed("url", http::parse_url)
        } else {
            table.text("url");
            http::parse_url("https://events.pagerduty.com/v2/enqueue").ok()
        };
        Some(Self { routing_key: routing_key?, url: url? })
    }

    pub(super) fn open(&self, _clock: &Clock) -> Result<PagerDuty, OpenError> {
        Secret::load(&self.routing_key)?;
        Ok(PagerDuty { settings: self.clone(), service: Service::new(&self.url, None).map_err(OpenError::Unusable)? })
    }
}

#[derive(Debug)]
pub(super) struct PagerDuty {
    settings: Settings,
    service: Service,
}

impl Destination for PagerDuty {
    fn send<'a>(&'a mut self, message: &'a Message, _reference: Option<&'a str>) -> Sending<'a> {
        Box::pin(async move {
            let key = match Secret::load(&self.settings.routing_key) {
                Ok(key) => key,
                Err(error) => return SendOutcome::retry(error.to_string()),
            };
            let mut event = event(message);
            event.insert("routing_key".to_owned(), key.expose().into());
            let request = self.service.request(Method::POST, self.settings.url.clone()).json(&event);
            match self.service.ask(request).await {
                Ok(answer) => self.service.verdict(&answer, &[key.expose()]),
                Err(verdict) => verdict,
            }
        })
    }
}

/// Maps to PagerDuty's four severities.
fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Critical => "critical",
        Severity::High => "error",
        Severity::Medium => "warning",
        Severity::Low | Severity::Info => "info",
    }
}

fn event(message: &Message) -> Map<String, Value> {
    let mut event = Map::new();
    event.insert("client".to_owned(), "Watchbell".into());
    match message {
        Message::Alert { notice, alert, .. } => {
            let action = match notice {
                Notice::Opened | Notice::Escalated | Notice::Reopened | Notice::Grew => "trigger",
                Notice::Acknowledged | Notice::Commented => "acknowledge",
                Notice::Resolved => "resolve",
            };
            event.insert("event_action".to_owned(), action.into());
            event.insert("dedup_key".to_owned(), alert.id.to_string().into());
            if action == "trigger" {
                event.insert("payload".to_owned(), printable_json(payload(alert)));
                if let Some(reference) = alert.reference.as_deref().filter(|link| link.starts_with("https://")) {
                    let links = json!([{ "href": reference, "text": "Reference" }]);
                    event.insert("links".to_owned(), printable_json(links));
                }
            }
        }
        Message::Digest { alerts, .. } => {
            let lines: Vec<String> = alerts.iter().take(SHOWN).map(|alert| clipped(&digest_line(alert), 300)).collect();
            event.insert("event_action".to_owned(), "trigger".into());
            event.insert("dedup_key".to_owned(), message.key().into());
            event.insert(
                "payload".to_owned(),
                json!({
                    "summary": clipped(&headline(message), 1_024),
                    "source": "watchbell",
                    "severity": severity(message.severity()),
                    "custom_details": { "alerts": lines, "count": alerts.len() },
                }),
            );
        }
    }
    event
}

/// Maximum size of the payload in bytes. PagerDuty accepts 512 KB per event.
const MAX_PAYLOAD_BYTES: usize = 256_000;

fn payload(alert: &Alert) -> Value {
    let name = |text: Option<&str>| text.map(|text| clipped(&printable(text), 255));
    let long = |text: Option<&String>| text.map(|text| clipped(text, 8_000));
    let mut payload = json!({
        "summary": clipped(&printable(&alert.title), 1_024),
        "source": alert.source.as_ref().map_or("watchbell", |source| source.as_str()),
        "severity": severity(alert.severity),
        "timestamp": alert.opened_at.to_string(),
        "component": name(alert.evidence.who()),
        "group": alert.source,
        "class": alert.rule,
        "custom_details": {
            "alert": alert.id,
            "severity": alert.severity,
            "actor": name(alert.evidence.actor.as_deref()),
            "email": name(alert.evidence.email.as_deref()),
            "from": name(alert.evidence.whence().as_deref()),
            "message": alert.evidence.message.as_ref().map(|text| clipped(&printable(text), 1_000)),
            "events": alert.count,
            "last_seen": alert.last_seen,
            "context": bound::context(alert.context.clone()),
            "description": long(alert.description.as_ref()),
            "runbook": long(alert.runbook.as_ref()),
            "tags": alert.tags,
            "attack": alert.attack,
        },
    });
    for part in ["context", "runbook", "description"] {
        if payload.to_string().len() > MAX_PAYLOAD_BYTES
            && let Some(details) = payload.get_mut("custom_details").and_then(Value::as_object_mut)
        {
            details.insert(part.to_owned(), "omitted: too large".into());
        }
    }
    payload
}
