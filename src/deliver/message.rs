//! What people are told: an alert with the reason why they are told, or a digest of late alerts. Written once; each destination
//! only puts it into its own form.

use serde::Serialize;

use crate::{
    alert::{Alert, Notice},
    time::{self, Timestamp},
};

/// A message to a destination.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case", untagged)]
pub enum Message {
    /// One alert.
    Alert {
        /// Why it is told now.
        notice: Notice,
        /// As it stands now.
        alert: Box<Alert>,
    },
    /// Alerts about events that were old when they arrived.
    LateDigest {
        /// Always `late_digest`.
        notice: &'static str,
        /// The alerts.
        alerts: Vec<Alert>,
    },
}

impl Message {
    /// A digest of late alerts.
    pub fn digest(alerts: Vec<Alert>) -> Self {
        Self::LateDigest { notice: "late_digest", alerts }
    }
}

/// Names and values that say who, from where and when, in the order they are shown. Absent ones are left out.
pub(super) fn fields(alert: &Alert, notice: Notice) -> Vec<(&'static str, String)> {
    let mut fields = Vec::new();
    let show = |time: Timestamp| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
    let source = alert.source.as_ref().map_or_else(String::new, |source| format!("  source {source}"));
    let rule = ("rule", format!("{}  alert {}{source}", alert.rule, alert.id.short()));
    if notice == Notice::Resolved {
        // What it was about has passed: only when, and for how long it lasted.
        let resolved = alert.resolved_at.unwrap_or(alert.last_seen);
        let lasted = time::show_duration(time::since(resolved, alert.opened_at));
        return vec![("when", format!("{}, after {lasted}", show(resolved))), rule];
    }
    match (alert.evidence.who(), alert.evidence.whence()) {
        (Some(who), Some(whence)) => fields.push(("who", format!("{who} from {whence}"))),
        (Some(who), None) => fields.push(("who", who.to_owned())),
        (None, Some(whence)) => fields.push(("who", format!("unknown, from {whence}"))),
        (None, None) => {}
    }
    let (opened, seen) = (show(alert.opened_at), show(alert.last_seen));
    let mut when = opened.clone();
    if alert.last_seen > alert.opened_at && seen != opened {
        when.push_str(&format!(" to {seen}"));
    }
    if alert.count > 1 {
        when.push_str(&format!(", {} events", alert.count));
    }
    fields.push(("when", when));
    if !alert.context.is_empty() {
        let evidence: Vec<String> = alert
            .context
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| format!("{name}: {}", plain(value)))
            .collect();
        if !evidence.is_empty() {
            fields.push(("evidence", evidence.join(", ")));
        }
    }
    if let Some(description) = &alert.description {
        fields.push(("what", first_line(description)));
    }
    if let Some(runbook) = &alert.runbook {
        fields.push(("do", first_line(runbook)));
    }
    for error in &alert.errors {
        fields.push(("error", format!("`fn {}` of the rule failed: {}", error.function, error.error)));
    }
    fields.push(rule);
    fields
}

fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

fn first_line(text: &str) -> String {
    text.trim().lines().next().unwrap_or_default().to_owned()
}
