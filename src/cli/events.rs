//! `watchbell events list|show`.

use clap::{Args, Subcommand};
use watchbell::{
    event::Event,
    name::EventId,
    store::{Reader, ScanFilter},
    time::Clock,
};

use super::{CliError, Context, filter, output};

#[derive(Debug, Args)]
pub(super) struct Events {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Lists stored events, the newest first
    List(List),
    /// Shows an event as it came
    Show {
        /// Its id
        id: EventId,
    },
}

#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    range: filter::Range,
    /// Only with an action that fits; `*` for any text
    #[arg(long, value_name = "PATTERN")]
    action: Option<String>,
    /// Only where the actor's name, address or IP contains this
    #[arg(long, value_name = "TEXT")]
    actor: Option<String>,
    /// Entries of the log that were no events, and why
    #[arg(long)]
    quarantined: bool,
    /// At most so many
    #[arg(long, value_name = "NUMBER", default_value_t = 50)]
    limit: usize,
}

impl Events {
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
        if self.quarantined {
            return quarantined(context, &reader, self.limit);
        }
        let wanted =
            ScanFilter { since, until, action: filter::glob(self.action.as_deref())?, source: self.range.source() };
        let by_actor = |event: &Event| {
            self.actor.as_deref().is_none_or(|actor| {
                let evidence = event.evidence();
                filter::mentions(actor, [evidence.actor.as_deref(), evidence.email.as_deref(), evidence.ip.as_deref()])
            })
        };
        let events =
            reader.scan_newest_first(wanted).filter(|event| event.as_ref().map_or(true, by_actor)).take(self.limit);
        if context.is_json() {
            for event in events {
                // Byte for byte as it came; line breaks inside an entry would break the lines.
                let event = event?;
                context.output.line(&event.raw.replace(['\n', '\r'], " "))?;
            }
            return Ok(());
        }
        let mut rows = Vec::new();
        for event in events {
            let event = event?;
            let evidence = event.evidence();
            rows.push(vec![
                output::time(event.time),
                event.action.to_string(),
                evidence.who().unwrap_or("-").to_owned(),
                evidence.whence().unwrap_or_else(|| "-".to_owned()),
                event.id.to_string(),
            ]);
        }
        if rows.is_empty() {
            context.output.note("no events");
            return Ok(());
        }
        Ok(context.output.table(&["time (utc)", "action", "actor", "from", "event"], rows)?)
    }
}

fn quarantined(context: &Context, reader: &Reader, limit: usize) -> Result<(), CliError> {
    let entries = reader.quarantined().take(limit);
    if context.is_json() {
        for entry in entries {
            context.output.json_line(&entry?)?;
        }
        return Ok(());
    }
    let mut rows = Vec::new();
    for entry in entries {
        let entry = entry?;
        let beginning: String = entry.raw.chars().take(60).collect();
        rows.push(vec![output::time(entry.arrived), entry.source.to_string(), entry.reason, beginning]);
    }
    if rows.is_empty() {
        context.output.note("nothing was quarantined");
        return Ok(());
    }
    Ok(context.output.table(&["arrived (utc)", "source", "reason", "entry"], rows)?)
}

fn show(context: &mut Context, id: &EventId) -> Result<(), CliError> {
    let (_, _store, reader) = context.store()?;
    for source in reader.sources()?.keys() {
        let Some(event) = reader.event(source, id)? else {
            continue;
        };
        if context.is_json() {
            return Ok(context.output.line(&event.raw)?);
        }
        let out = &context.output;
        out.line(&format!("event     {}", event.id))?;
        out.line(&format!("source    {}, number {}", event.source, event.sequence))?;
        out.line(&format!("time      {} UTC, arrived {} UTC", output::time(event.time), output::time(event.arrived)))?;
        out.line("")?;
        return Ok(out.json(&event.value())?);
    }
    Err(CliError::Usage(format!("there is no event `{id}`: `watchbell events list` lists them")))
}
