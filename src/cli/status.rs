//! `watchbell status`: how things stand, from the store.

use clap::Args;
use serde_json::json;
use watchbell::{
    alert::{Severity, Status as AlertStatus},
    detect::rule_records,
    store::AlertFilter,
    time::Clock,
};

use super::{CliError, Context, output};

#[derive(Debug, Args)]
pub(super) struct Status {}

impl Status {
    #[expect(clippy::unused_self, reason = "every verb is called alike")]
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        let now = Clock::system().now();
        let (config, store, reader) = context.store()?;
        let (events, bytes) = reader.event_totals()?;
        let size = store.size_on_disk()?;
        let (mark, last) = (reader.mark()?, reader.last_sequence()?);
        let sources = reader.sources()?;
        let outbox = reader.outbox()?;
        let records = rule_records(reader.state()?);
        let mut open = [0_u64; 5];
        let filter = AlertFilter { status: Some(AlertStatus::Open), ..AlertFilter::default() };
        for alert in reader.alerts(filter) {
            let severity = alert?.severity;
            for (count, of) in open.iter_mut().zip(Severity::ALL) {
                *count += u64::from(of == severity);
            }
        }
        if context.is_json() {
            let open: serde_json::Map<_, _> =
                Severity::ALL.iter().zip(open).map(|(severity, count)| (severity.to_string(), count.into())).collect();
            let rules: Vec<_> = records
                .iter()
                .map(|(id, record)| json!({ "rule": id, "matches": record.matches, "errors": record.errors, "suspended": record.suspended.is_some(), "last_error": record.last_error }))
                .collect();
            let outbox: Vec<_> = outbox
                .iter()
                .map(|(name, owed)| json!({ "destination": name, "owed": owed.count, "oldest": owed.oldest, "error": owed.error }))
                .collect();
            return Ok(context.output.json(&json!({
                "running": false,
                "last_alive": reader.alive()?,
                "sources": sources,
                "events": { "stored": events, "bytes": bytes, "last": last, "evaluated": mark, "backlog": last.0 - mark.0.min(last.0) },
                "store_bytes": size,
                "open_alerts": open,
                "rules": rules,
                "outbox": outbox,
            }))?);
        }
        let out = &context.output;
        out.line(&format!("agent      not running, last alive {}", output::ago(reader.alive()?, now)))?;
        out.line(&format!(
            "events     {events} stored, {} evaluated, {} to do; {} on disk for {} of events",
            mark,
            last.0.saturating_sub(mark.0),
            output::size(size),
            output::size(bytes)
        ))?;
        let alerts: Vec<String> = Severity::ALL
            .iter()
            .zip(open)
            .rev()
            .filter(|(_, count)| *count > 0)
            .map(|(severity, count)| format!("{count} {severity}"))
            .collect();
        out.line(&format!(
            "alerts     {}",
            if alerts.is_empty() { "none open".to_owned() } else { format!("open: {}", alerts.join(", ")) }
        ))?;
        let errors: Vec<String> = records
            .iter()
            .filter(|(_, record)| record.errors > 0)
            .map(|(id, record)| {
                format!(
                    "{id}: {}{}",
                    output::count(record.errors, "error"),
                    if record.suspended.is_some() { ", suspended" } else { "" }
                )
            })
            .collect();
        out.line(&format!(
            "rules      {}",
            if errors.is_empty() { "no errors".to_owned() } else { errors.join("; ") }
        ))?;
        if outbox.is_empty() {
            out.line("outbox     nothing is owed")?;
        }
        for (name, owed) in &outbox {
            let error = owed.error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
            let oldest = output::ago(Some(owed.oldest), now);
            out.line(&format!("outbox     {name} is owed {}, the oldest from {oldest}{error}", owed.count))?;
        }
        out.line("")?;
        let rows = sources
            .iter()
            .map(|(name, record)| {
                let configured = config.sources.iter().any(|source| source.name == *name);
                let state = match &record.error {
                    _ if !configured => "not configured any more".to_owned(),
                    Some(error) if error.kind.needs_a_person() => {
                        format!("refused ({})", error.kind.name())
                    }
                    Some(error) => format!("failing ({})", error.kind.name()),
                    None if record.caught_up => "up to date".to_owned(),
                    None => "reading".to_owned(),
                };
                vec![
                    name.to_string(),
                    state,
                    output::ago(record.newest_event, now),
                    output::ago(record.last_poll, now),
                    record.stored.to_string(),
                    record.quarantined.to_string(),
                ]
            })
            .collect();
        out.table(&["source", "state", "newest event", "last poll", "stored", "quarantined"], rows)?;
        for (name, record) in &sources {
            if let Some(error) = &record.error {
                out.line("")?;
                out.line(&format!("{name}: {}", error.message))?;
                out.line(&format!("  {}", error.kind.remedy()))?;
            }
        }
        Ok(())
    }
}
