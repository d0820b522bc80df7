//! Converts alerts to OCSF events: class Detection Finding (2004) of the category Findings (2), schema 1.4.0, the first
//! version with `is_alert`. <https://schema.ocsf.io/1.4.0/classes/detection_finding>

use serde_json::{Value, json};

use super::Message;
use crate::model::{
    alert::{Alert, AlertStatus, Disposition, Notice, Severity},
    time::Timestamp,
};

const VERSION: &str = "1.4.0";
const CLASS: u32 = 2004;

/// Returns one finding per alert of the message.
pub(super) fn findings(message: &Message) -> Vec<Value> {
    match message {
        Message::Alert { notice, alert, .. } => vec![finding(*notice, alert)],
        Message::Digest { alerts, .. } => alerts.iter().map(|alert| finding(Notice::Opened, alert)).collect(),
    }
}

fn finding(notice: Notice, alert: &Alert) -> Value {
    let (activity, activity_name) = match notice {
        Notice::Opened => (1, "Create"),
        Notice::Escalated | Notice::Acknowledged | Notice::Reopened | Notice::Commented | Notice::Grew => (2, "Update"),
        Notice::Resolved => (3, "Close"),
    };
    let (severity, severity_name) = match alert.severity {
        Severity::Info => (1, "Informational"),
        Severity::Low => (2, "Low"),
        Severity::Medium => (3, "Medium"),
        Severity::High => (4, "High"),
        Severity::Critical => (5, "Critical"),
    };
    let (status, status_name) = match (alert.status, alert.disposition) {
        (AlertStatus::Open, _) => (1, "New"),
        (AlertStatus::Acknowledged, _) => (2, "In Progress"),
        (AlertStatus::Resolved, Some(Disposition::FalsePositive)) => (3, "Suppressed"),
        (AlertStatus::Resolved, _) => (4, "Resolved"),
    };
    let created = millis(alert.raised_at.unwrap_or(alert.opened_at));
    let attacks: Vec<Value> = alert.attack.iter().map(|id| attack(id)).collect();
    let mut info = json!({
        "uid": alert.id,
        "title": alert.title,
        "created_time": created,
        "first_seen_time": millis(alert.opened_at),
        "last_seen_time": millis(alert.last_seen),
        "related_events_count": alert.count,
        "analytic": { "type_id": 1, "type": "Rule", "uid": alert.rule, "name": alert.rule },
        "types": alert.tags,
    });
    put(&mut info, "desc", alert.description.clone());
    put(&mut info, "src_url", alert.reference.clone());
    let mut event = json!({
        "class_uid": CLASS,
        "class_name": "Detection Finding",
        "category_uid": 2,
        "category_name": "Findings",
        "activity_id": activity,
        "activity_name": activity_name,
        "type_uid": CLASS * 100 + activity,
        "type_name": format!("Detection Finding: {activity_name}"),
        "time": created,
        "start_time": millis(alert.opened_at),
        "end_time": millis(alert.last_seen),
        "count": alert.count,
        "severity_id": severity,
        "severity": severity_name,
        "status_id": status,
        "status": status_name,
        "is_alert": notice != Notice::Resolved,
        "message": alert.title,
        "metadata": {
            "version": VERSION,
            "uid": format!("{}-{}", alert.id, alert.revision),
            "product": { "name": "Watchbell", "vendor_name": "Watchbell", "version": env!("CARGO_PKG_VERSION") },
            "log_name": alert.source,
        },
        "finding_info": info,
        "unmapped": { "rule_hash": alert.rule_hash, "dedup_key": alert.dedup_key, "context": alert.context },
    });
    if !attacks.is_empty()
        && let Some(info) = event.get_mut("finding_info").and_then(Value::as_object_mut)
    {
        info.insert("attacks".to_owned(), attacks.into());
    }
    if let Some(runbook) = &alert.runbook {
        put(&mut event, "remediation", Some(json!({ "desc": runbook })));
    }
    let evidence = &alert.evidence;
    let mut actor = json!({});
    let mut user = json!({});
    put(&mut user, "name", evidence.actor.clone());
    put(&mut user, "email_addr", evidence.email.clone().filter(|email| email.contains('@')));
    if user.as_object().is_some_and(|user| !user.is_empty()) {
        put(&mut actor, "user", Some(user));
    }
    let mut artifact = json!({});
    if actor.as_object().is_some_and(|actor| !actor.is_empty()) {
        put(&mut artifact, "actor", Some(actor));
    }
    if let Some(ip) = &evidence.ip {
        put(&mut artifact, "src_endpoint", Some(json!({ "ip": ip })));
    }
    if artifact.as_object().is_some_and(|artifact| !artifact.is_empty()) {
        put(&mut event, "evidences", Some(json!([artifact])));
    }
    if let Some(comment) = alert.remark.as_ref().and_then(|remark| remark.comment.clone()) {
        put(&mut event, "comment", Some(comment));
    }
    event
}

/// Converts a tactic (`TA0004`) or a technique with an optional sub-technique (`T1098.003`).
fn attack(id: &str) -> Value {
    if id.starts_with("TA") {
        return json!({ "tactic": { "uid": id } });
    }
    match id.split_once('.') {
        Some((technique, _)) => json!({ "technique": { "uid": technique }, "sub_technique": { "uid": id } }),
        None => json!({ "technique": { "uid": id } }),
    }
}

fn put(object: &mut Value, key: &str, value: Option<impl Into<Value>>) {
    if let (Some(object), Some(value)) = (object.as_object_mut(), value) {
        object.insert(key.to_owned(), value.into());
    }
}

fn millis(time: Timestamp) -> i64 {
    time.as_millisecond()
}
