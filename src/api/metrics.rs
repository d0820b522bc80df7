//! The endpoints for monitoring. `/metrics` returns Prometheus metrics, generated from the current status.
//!
//! `/healthz` and `/readyz` return 200 or 503. `/healthz`: does the agent work at all, or would a restart help?
//! `/readyz`: does it do its whole job?

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use std::sync::atomic::AtomicU64;

use super::{Health, Status, task::TaskService};
use crate::model::{
    alert::Severity,
    time::{self, Timestamp},
};

type Labels = Vec<(&'static str, String)>;

pub(super) async fn metrics(State(service): State<TaskService>) -> Response {
    match service.run(|service| service.status().map(|status| text(&status))).await {
        Some(Ok(Ok(text))) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Some(Ok(Err(error))) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        Some(Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
        None => (StatusCode::INTERNAL_SERVER_ERROR, "cannot generate the metrics\n").into_response(),
    }
}

pub(super) async fn healthz(State(service): State<TaskService>) -> Response {
    answer(health(&service).await.dead)
}

pub(super) async fn readyz(State(service): State<TaskService>) -> Response {
    let health = health(&service).await;
    answer(health.dead.into_iter().chain(health.unready).collect())
}

async fn health(service: &TaskService) -> Health {
    let health = service.run(|service| service.live.as_ref().map(|live| live.health()).unwrap_or_default()).await;
    health.unwrap_or_else(|| Health { dead: vec!["no thread available to answer".to_owned()], ..Health::default() })
}

fn answer(problems: Vec<String>) -> Response {
    if problems.is_empty() {
        return (StatusCode::OK, "ok\n").into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", problems.join("\n"))).into_response()
}

/// Metrics under construction.
struct Sheet(Registry);

impl Sheet {
    fn gauge(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.0.register(name, help.trim_end_matches('.'), family);
    }

    fn counter(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
        let family = Family::<Labels, Counter<f64, AtomicU64>>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).inc_by(value);
        }
        // The library appends a period.
        self.0.register(name, help.trim_end_matches('.'), family);
    }
}

/// The metrics of a status, in the OpenMetrics text format.
pub fn text(status: &Status) -> Result<String, std::fmt::Error> {
    let mut sheet = Sheet(Registry::with_prefix("watchbell"));
    let none = Labels::new;
    let number = |value: u64| value as f64;
    let now = status.now;
    let age = |time: Option<Timestamp>| time.map(|time| time::since(now, time).as_secs_f64());
    sheet.gauge("info", "The running version.", [(vec![("version", status.version.clone())], 1.0)]);
    let source = |name: &crate::model::name::SourceName| vec![("source", name.to_string())];
    sheet.counter(
        "events_fetched",
        "Events that the source returned, including duplicates.",
        status.sources.iter().map(|state| (source(&state.name), number(state.record.stored + state.record.duplicates))),
    );
    sheet.counter(
        "events_stored",
        "Events stored, by source.",
        status.sources.iter().map(|state| (source(&state.name), number(state.record.stored))),
    );
    sheet.counter(
        "events_quarantined",
        "Log entries that are not valid events.",
        status.sources.iter().map(|state| (source(&state.name), number(state.record.quarantined))),
    );
    sheet.gauge("events_kept", "Events in the store.", [(none(), number(status.events.stored))]);
    sheet.gauge(
        "evaluation_backlog",
        "Events stored but not yet evaluated.",
        [(none(), number(status.events.backlog))],
    );
    sheet.gauge(
        "source_lag_seconds",
        "Seconds that the newest events took to arrive.",
        status.sources.iter().filter_map(|state| Some((source(&state.name), number(state.record.lag?)))),
    );
    sheet.gauge(
        "source_newest_event_age_seconds",
        "Age of the newest event in seconds.",
        status.sources.iter().filter_map(|state| Some((source(&state.name), age(state.record.newest_event)?))),
    );
    sheet.gauge(
        "source_last_poll_age_seconds",
        "Seconds since the last successful poll.",
        status.sources.iter().filter_map(|state| Some((source(&state.name), age(state.record.last_poll)?))),
    );
    sheet.gauge(
        "source_caught_up",
        "1 if the end of the log has been reached.",
        status.sources.iter().map(|state| (source(&state.name), f64::from(u8::from(state.record.caught_up)))),
    );
    sheet.gauge(
        "source_drop_off",
        "1 if a log drop-off alert is open.",
        status
            .sources
            .iter()
            .filter_map(|state| Some((source(&state.name), f64::from(u8::from(state.drop_off.as_ref()?.alarm))))),
    );
    sheet.counter(
        "rule_matches",
        "Events that matched a rule.",
        status.rules.iter().map(|rule| (vec![("rule", rule.rule.to_string())], number(rule.matches))),
    );
    sheet.counter(
        "rule_errors",
        "Failed calls of a rule.",
        status.rules.iter().map(|rule| (vec![("rule", rule.rule.to_string())], number(rule.errors))),
    );
    sheet.gauge(
        "rules_suspended",
        "Suspended rules.",
        [(none(), number(status.rules.iter().filter(|rule| rule.suspended).count() as u64))],
    );
    for (name, help, counts) in [
        ("alerts_open", "Open alerts.", status.open_alerts),
        ("alerts_acknowledged", "Acknowledged alerts.", status.acknowledged_alerts),
    ] {
        let counts =
            counts.by_severity().map(|(severity, count)| (vec![("severity", severity.to_string())], number(count)));
        sheet.gauge(name, help, counts);
    }
    let destination = |name: &crate::model::name::DestinationName| vec![("destination", name.to_string())];
    let each = || status.destinations.iter();
    sheet.gauge(
        "outbox_pending",
        "Pending deliveries.",
        each().map(|state| (destination(&state.name), number(state.pending))),
    );
    sheet.gauge(
        "outbox_oldest_age_seconds",
        "Age of the oldest pending delivery in seconds.",
        each().filter_map(|state| Some((destination(&state.name), age(state.oldest)?))),
    );
    sheet.gauge(
        "outbox_dead_letters",
        "Deliveries that were given up (dead letters).",
        each().map(|state| (destination(&state.name), number(state.given_up))),
    );
    sheet.counter(
        "deliveries",
        "Messages delivered.",
        each().map(|state| (destination(&state.name), number(state.delivered))),
    );
    sheet.gauge("silences_active", "Active silences.", [(none(), number(status.silences))]);
    sheet.gauge("store_bytes", "Size of the store on disk in bytes.", [(none(), number(status.store_bytes))]);
    if let Some(agent) = &status.agent {
        sheet.gauge(
            "uptime_seconds",
            "Seconds since the agent started.",
            [(none(), time::since(now, agent.started).as_secs_f64())],
        );
        sheet.gauge("rules_loaded", "Loaded rules that run on events.", [(none(), number(agent.rules))]);
        sheet.gauge("rules_generation", "Number of rule loads.", [(none(), number(agent.generation))]);
        sheet.gauge("rule_files_broken", "Broken rule files.", [(none(), number(agent.broken.len() as u64))]);
        sheet.counter("events_evaluated", "Events evaluated since the start.", [(none(), number(agent.evaluated))]);
        let opened = Severity::ALL.iter().zip(agent.alerts_opened);
        sheet.counter(
            "alerts_opened",
            "Alerts opened since the start.",
            opened.map(|(severity, count)| (vec![("severity", severity.to_string())], number(count))),
        );
        sheet.counter("alerts_silenced", "Alerts silenced since the start.", [(none(), number(agent.silenced))]);
        let mut polls = Vec::new();
        for (name, running) in &agent.sources {
            let failed: u64 = running.failed.values().sum();
            let labels = |outcome: &str| vec![("source", name.to_string()), ("outcome", outcome.to_owned())];
            polls.push((labels("ok"), number(running.polls.saturating_sub(failed))));
            polls.extend(running.failed.iter().map(|(kind, count)| (labels(kind), number(*count))));
        }
        sheet.counter("polls", "Polls since the start, by outcome.", polls);
        sheet.counter(
            "delivery_failures",
            "Failed delivery attempts since the start.",
            agent.destinations.iter().map(|(name, running)| (destination(name), number(running.failed))),
        );
        let costs = || agent.costs.iter().map(|(rule, cost)| (vec![("rule", rule.to_string())], cost));
        sheet.counter(
            "rule_calls",
            "Calls of a rule's functions since it was loaded.",
            costs().map(|(labels, cost)| (labels, number(cost.0))),
        );
        sheet.counter(
            "rule_seconds",
            "Seconds spent in calls of a rule's functions since it was loaded.",
            costs().map(|(labels, cost)| (labels, cost.1)),
        );
        sheet.gauge(
            "last_heartbeat_age_seconds",
            "Seconds since the last heartbeat was sent.",
            age(agent.last_heartbeat).map(|age| (none(), age)),
        );
    }
    let mut text = String::new();
    encode(&mut text, &sheet.0)?;
    Ok(text)
}
