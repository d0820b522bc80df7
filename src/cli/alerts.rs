//! `watchbell alerts list|show`.

use clap::{Args, Subcommand};
use watchbell::{
    alert::{Alert, Notice, Severity},
    deliver::{Message, render},
    store::AlertFilter,
    time::Clock,
};

use super::{CliError, Context, filter, output};

#[derive(Debug, Args)]
pub(super) struct Alerts {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Lists alerts, the newest first
    List(List),
    /// Shows an alert whole
    Show {
        /// Its id, or the beginning of it
        id: String,
    },
}

#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    range: filter::Range,
    /// At least so severe: info, low, medium, high, critical
    #[arg(long, value_name = "SEVERITY")]
    severity: Option<Severity>,
    /// Only of rules whose id fits; `*` for any text
    #[arg(long, value_name = "PATTERN")]
    rule: Option<String>,
    /// Only where the actor's name, address or IP contains this
    #[arg(long, value_name = "TEXT")]
    actor: Option<String>,
    /// At most so many
    #[arg(long, value_name = "NUMBER", default_value_t = 50)]
    limit: usize,
}

impl Alerts {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        match self.verb {
            Verb::List(list) => list.run(context),
            Verb::Show { id } => show(context, &id),
        }
    }
}

impl List {
    fn run(self, context: &mut Context) -> Result<(), CliError> {
        let (since, until) = self.range.bounds(Clock::system().now())?;
        let (_, _store, reader) = context.store()?;
        let wanted = AlertFilter {
            since,
            until,
            min_severity: self.severity,
            rule: filter::glob(self.rule.as_deref())?,
            source: self.range.source(),
            status: None,
        };
        let by_actor = |alert: &Alert| {
            let evidence = &alert.evidence;
            self.actor.as_deref().is_none_or(|actor| {
                filter::mentions(actor, [evidence.actor.as_deref(), evidence.email.as_deref(), evidence.ip.as_deref()])
            })
        };
        let alerts = reader.alerts(wanted).filter(|alert| alert.as_ref().map_or(true, by_actor)).take(self.limit);
        if context.is_json() {
            for alert in alerts {
                context.output.json_line(&alert?)?;
            }
            return Ok(());
        }
        let mut rows = Vec::new();
        for alert in alerts {
            let alert = alert?;
            rows.push(vec![
                alert.id.short(),
                output::time(alert.opened_at),
                output::severity(alert.severity),
                format!("{}{}", alert.status, if alert.late { ", late" } else { "" }),
                alert.count.to_string(),
                alert.title.clone(),
                alert.rule.to_string(),
            ]);
        }
        if rows.is_empty() {
            context.output.note("no alerts");
            return Ok(());
        }
        Ok(context.output.table(&["alert", "opened (utc)", "severity", "status", "events", "title", "rule"], rows)?)
    }
}

fn show(context: &mut Context, id: &str) -> Result<(), CliError> {
    let (_, _store, reader) = context.store()?;
    let alert = match reader.alerts_beginning(&id.to_lowercase())?.as_slice() {
        [alert] => alert.clone(),
        [] => {
            return Err(CliError::Usage(format!("there is no alert `{id}`: `watchbell alerts list` lists them")));
        }
        _ => {
            return Err(CliError::Usage(format!("several alerts begin with `{id}`: write more of it")));
        }
    };
    if context.is_json() {
        return Ok(context.output.json(&alert)?);
    }
    let message = Message::Alert { notice: Notice::Opened, alert: Box::new(alert.clone()) };
    let out = &context.output;
    out.line(render(&message).trim_end())?;
    let mut more: Vec<(&str, String)> = vec![
        ("id", alert.id.to_string()),
        ("status", format!("{}, revision {}", alert.status, alert.revision)),
        ("dedup key", alert.dedup_key.to_string()),
        ("rule file", format!("{} of generation {}", alert.rule_hash, alert.generation)),
    ];
    if let Some(raised) = alert.raised_at {
        more.push(("raised", format!("{} UTC", output::time(raised))));
    }
    if let Some(resolved) = alert.resolved_at {
        more.push(("resolved", format!("{} UTC", output::time(resolved))));
    }
    if alert.late {
        more.push(("late", "its opening event was already old when it arrived".to_owned()));
    }
    if !alert.tags.is_empty() {
        more.push(("tags", alert.tags.join(", ")));
    }
    if !alert.attack.is_empty() {
        more.push(("ATT&CK", alert.attack.join(", ")));
    }
    if let Some(reference) = &alert.reference {
        more.push(("reference", reference.clone()));
    }
    if let Some(message) = &alert.evidence.message {
        more.push(("message", message.clone()));
    }
    for (name, value) in more {
        out.line(&format!("  {name:<10}{}", output::printable(&value)))?;
    }
    out.line("")?;
    out.line(&format!("  {}, by arrival:", output::count(alert.count, "event")))?;
    let shown: Vec<_> = reader.events_of_alert(alert.id).take(20).collect::<Result<_, _>>()?;
    for event in &shown {
        out.line(&format!("    {event}"))?;
    }
    if alert.count > shown.len() as u64 && !shown.is_empty() {
        out.line("    …")?;
    }
    Ok(())
}
