//! The messages that destinations deliver: one alert with the reason for the message, or several alerts in a digest.
//! The wording is here; each destination only formats it.

use serde::Serialize;

use crate::{
    model::{
        alert::{Alert, Notice, Severity},
        name::{AlertId, SilenceId},
        text::{clipped, printable},
        time::{self, Timestamp},
    },
    store::Delivery,
};

/// A message to a destination.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case", untagged)]
pub enum Message {
    /// One alert.
    Alert {
        /// The reason for the message.
        notice: Notice,
        /// The current state of the alert.
        alert: Box<Alert>,
        /// The revision that the message is about; `alert` may be newer.
        #[serde(skip)]
        revision: u32,
    },
    /// Several alerts in one message.
    Digest {
        /// The reason for the digest.
        notice: DigestNotice,
        /// The silence that ended, if one did.
        #[serde(skip_serializing_if = "Option::is_none")]
        silence: Option<SilenceId>,
        alerts: Vec<Alert>,
    },
}

/// Why several alerts come in one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DigestNotice {
    /// The events were already old when they arrived.
    LateDigest,
    /// There were more alerts than the destination's `rate` allows.
    RateDigest,
    /// The alerts opened during a silence that has ended.
    SilenceDigest,
}

impl Message {
    /// A message about one alert.
    pub fn alert(notice: Notice, alert: Alert) -> Self {
        let revision = alert.revision;
        Self::Alert { notice, alert: Box::new(alert), revision }
    }

    /// The message for a delivery. The alert may have changed since the delivery was created.
    pub(super) fn of(delivery: &Delivery, mut alert: Alert) -> Self {
        if delivery.remark.is_some() {
            alert.remark.clone_from(&delivery.remark);
        }
        Self::Alert { notice: delivery.notice, alert: Box::new(alert), revision: delivery.revision }
    }

    /// A message about several alerts.
    pub fn digest(notice: DigestNotice, silence: Option<SilenceId>, alerts: Vec<Alert>) -> Self {
        Self::Digest { notice, silence, alerts }
    }

    /// Idempotency key: the same for repeated sends, so that a receiver can detect duplicates. For a single alert it is
    /// made of the id, the revision and the notice.
    pub fn key(&self) -> String {
        match self {
            Self::Alert { alert, notice, revision } => format!("{}-{revision}-{notice}", alert.id),
            Self::Digest { alerts, .. } => {
                let mut hasher = blake3::Hasher::new();
                for alert in alerts {
                    hasher.update(&alert.id.bytes());
                    hasher.update(&alert.revision.to_be_bytes());
                }
                format!("digest-{}", hasher.finalize().to_hex().get(..32).unwrap_or_default())
            }
        }
    }

    /// The highest severity of the alerts.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Alert { alert, .. } => alert.severity,
            Self::Digest { alerts, .. } => alerts.iter().map(|alert| alert.severity).max().unwrap_or(Severity::Info),
        }
    }

    pub fn alerts(&self) -> &[Alert] {
        match self {
            Self::Alert { alert, .. } => std::slice::from_ref(alert),
            Self::Digest { alerts, .. } => alerts,
        }
    }

    /// The notice and the alert, unless this is a digest.
    pub fn single(&self) -> Option<(Notice, &Alert)> {
        match self {
            Self::Alert { notice, alert, .. } => Some((*notice, alert)),
            Self::Digest { .. } => None,
        }
    }
}

/// The message's subject line.
pub(super) fn headline(message: &Message) -> String {
    match message {
        Message::Alert { notice, alert, .. } => {
            let word = match notice {
                Notice::Opened => alert.severity.as_str().to_uppercase(),
                Notice::Escalated => format!("{} (raised)", alert.severity.as_str().to_uppercase()),
                other => other.as_str().to_uppercase(),
            };
            format!("{word}: {}", printable(&alert.title))
        }
        Message::Digest { notice, silence, alerts } => {
            let count = alerts.len();
            let plural = if count == 1 { "" } else { "s" };
            match (notice, silence) {
                (DigestNotice::LateDigest, _) => {
                    format!("{count} late alert{plural}: the events were already old when they arrived")
                }
                (DigestNotice::RateDigest, _) => {
                    format!("{count} alert{plural} in one message: this destination's rate limit was reached")
                }
                (DigestNotice::SilenceDigest, Some(silence)) => {
                    format!("{count} alert{plural} opened during silence {silence}, which has ended")
                }
                (DigestNotice::SilenceDigest, None) => format!("{count} alert{plural} opened during a silence"),
            }
        }
    }
}

/// The whole message as plain text.
#[cfg(feature = "email")]
pub(super) fn plain_text(message: &Message) -> String {
    let mut text = format!("{}\n\n", headline(message));
    match message {
        Message::Alert { notice, alert, .. } => {
            for (name, value) in fields(alert, *notice) {
                for (number, line) in value.lines().enumerate() {
                    let name = if number == 0 { name } else { "" };
                    text.push_str(&format!("{name:<10}{}\n", printable(line)));
                }
            }
        }
        Message::Digest { alerts, .. } => {
            for alert in alerts.iter().take(SHOWN) {
                text.push_str(&format!("{}\n", digest_line(alert)));
            }
            text.push_str(&more(alerts.len()));
        }
    }
    text
}

/// Maximum number of alerts that a digest lists.
pub(super) const SHOWN: usize = 20;

/// The line of one alert in a digest.
pub(super) fn digest_line(alert: &Alert) -> String {
    let plural = if alert.count == 1 { "" } else { "s" };
    format!(
        "{:<8}  {}  {}  ({} event{plural})",
        alert.severity.as_str(),
        alert.opened_at.strftime("%Y-%m-%d %H:%M"),
        printable(&alert.title),
        alert.count,
    )
}

/// The line that counts the alerts that a digest does not list; empty if there are none.
pub(super) fn more(count: usize) -> String {
    if count > SHOWN {
        format!("… and {} more (see `watchbell alerts list`)\n", count - SHOWN)
    } else {
        String::new()
    }
}

/// Names and values of the fields to show, in order. Absent fields are left out.
pub(super) fn fields(alert: &Alert, notice: Notice) -> Vec<(&'static str, String)> {
    all_fields(alert, notice).into_iter().map(shown).collect()
}

fn all_fields(alert: &Alert, notice: Notice) -> Vec<(&'static str, String)> {
    let mut fields = Vec::new();
    let show = |time: Timestamp| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
    let source = alert.source.as_ref().map_or_else(String::new, |source| format!("  source {source}"));
    let rule = ("rule", format!("{}  alert {}{source}", alert.rule, alert.id.short()));
    let by_a_person = alert
        .remark
        .as_ref()
        .filter(|_| matches!(notice, Notice::Acknowledged | Notice::Resolved | Notice::Reopened | Notice::Commented));
    if let Some(remark) = by_a_person {
        let disposition = match (notice, alert.disposition) {
            (Notice::Resolved, Some(disposition)) => format!(", {disposition}"),
            _ => String::new(),
        };
        fields.push(("by", format!("{}{disposition}", remark.author)));
        if let Some(comment) = &remark.comment {
            fields.push(("comment", first_line(comment)));
        }
        fields.push(("when", show(remark.at)));
        fields.push(rule);
        return fields;
    }
    if notice == Notice::Resolved {
        // Resolved without a user: only when, and how long the problem lasted.
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
    if let Some(histogram) = &alert.histogram {
        let lasted = time::show_duration(time::since(histogram.to, histogram.from));
        fields.push(("matches", format!("{} within {lasted}", histogram.bars())));
    }
    if !alert.context.is_empty() {
        let there = alert.context.iter().filter(|(_, value)| !value.is_null());
        let evidence: Vec<String> =
            there.map(|(name, value)| format!("{}: {}", printable(name), plain(value))).collect();
        // A few short values share a line. Longer ones get a line each, because values may contain commas.
        let length: usize = evidence.iter().map(String::len).sum();
        let separator =
            if length > SHORT_EVIDENCE || evidence.iter().any(|one| one.contains('\n')) { "\n" } else { ", " };
        if !evidence.is_empty() {
            fields.push(("evidence", evidence.join(separator)));
        }
    }
    if let Some(description) = &alert.description {
        fields.push(("what", first_line(description)));
    }
    if let Some(runbook) = &alert.runbook {
        let steps: Vec<&str> = runbook.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        fields.push(("do", steps.join("\n")));
    }
    for error in alert.errors.iter().take(ERRORS) {
        fields.push(("error", format!("`fn {}` of the rule failed: {}", error.function, error.error)));
    }
    fields.push(rule);
    fields
}

/// Maximum number of rule errors to show.
const ERRORS: usize = 3;

/// Maximum length of a field in UTF-16 units. The full value is in the stored alert.
fn max_length(name: &str) -> usize {
    match name {
        "who" | "by" => 200,
        "evidence" | "do" => 4_000,
        "what" | "comment" => 2_000,
        _ => 500,
    }
}

/// Makes a field safe to show: removes characters that a terminal or a chat would interpret, line by line, and limits
/// its length.
fn shown((name, value): (&'static str, String)) -> (&'static str, String) {
    let lines: Vec<String> = value.lines().map(printable).collect();
    // A name with a line break in it must not look like another field.
    let separator = if matches!(name, "evidence" | "do") { "\n" } else { " " };
    (name, clipped(&lines.join(separator), max_length(name)))
}

/// Evidence up to this length in bytes is shown on one line.
const SHORT_EVIDENCE: usize = 120;

fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => printable(text),
        // Short lists on one line, long ones with one item per line.
        serde_json::Value::Array(items) => {
            let items: Vec<String> = items.iter().map(plain).collect();
            if items.iter().map(String::len).sum::<usize>() <= SHORT_EVIDENCE / 2 {
                items.join(", ")
            } else {
                items.iter().map(|item| format!("\n- {item}")).collect()
            }
        }
        other => other.to_string(),
    }
}

fn first_line(text: &str) -> String {
    text.trim().lines().next().unwrap_or_default().to_owned()
}

/// A test alert, to check that a destination works.
pub fn test_alert(now: Timestamp) -> Result<Alert, crate::model::name::NameError> {
    let rule = crate::model::name::RuleId::parse("watchbell.test")?;
    let id = AlertId::derive(&rule, "", "test", &now.to_string());
    let title = "Test alert from Watchbell: nothing has happened".to_owned();
    Ok(Alert {
        raised_at: Some(now),
        dedup_key: crate::model::name::DedupKey::clipped("test"),
        description: Some("This message checks that alerts arrive here.".to_owned()),
        runbook: Some("No action is needed.".to_owned()),
        tags: vec!["test".to_owned()],
        ..Alert::new(id, crate::model::alert::AlertKind::Health, rule, title, Severity::Info, now)
    })
}
