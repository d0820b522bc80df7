//! `watchbell destinations list|test|dead|retry|drop`.

use clap::{Args, Subcommand};
use serde_json::json;
use watchbell::{
    api::{DestinationState, Status, request},
    deliver::{Message, SendOutcome, test_alert},
    model::{alert::Notice, name::DestinationName, time::Clock},
    store::Delivery,
};

use super::{CliError, Context, output, run, runtime};

#[derive(Debug, Args)]
pub(super) struct Destinations {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List destinations with their pending deliveries
    List,
    /// Send a test alert, marked as such, and show the service's answer
    Test {
        /// Name of the destination
        name: DestinationName,
    },
    /// List deliveries that were given up
    Dead {
        /// Only this destination
        name: Option<DestinationName>,
    },
    /// Retry deliveries that were given up
    Retry {
        /// Only this destination
        name: Option<DestinationName>,
    },
    /// Discard deliveries that were given up
    Drop {
        /// Only this destination
        name: Option<DestinationName>,
    },
}

impl Destinations {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        match self.verb {
            Verb::List => list(context),
            Verb::Test { name } => test(context, &name),
            Verb::Dead { name } => dead(context, name),
            Verb::Retry { name } => settle(context, name, false),
            Verb::Drop { name } => settle(context, name, true),
        }
    }
}

fn list(context: &mut Context) -> Result<(), CliError> {
    let (_, client) = context.client()?;
    let Some(status) = client.one(request::Status {})? else {
        return Ok(());
    };
    if context.is_json() {
        for destination in &status.destinations {
            context.output.json_line(destination)?;
        }
        return Ok(());
    }
    let rows = status.destinations.iter().map(|state| row(state, &status)).collect();
    Ok(context
        .output
        .table(&["destination", "kind", "pending", "oldest", "given up", "delivered", "last", "error"], rows)?)
}

fn row(state: &DestinationState, status: &Status) -> Vec<String> {
    vec![
        state.name.to_string(),
        state.kind.clone().unwrap_or_else(|| "not configured".to_owned()),
        state.pending.to_string(),
        state.oldest.map_or_else(|| "-".to_owned(), |oldest| output::ago(Some(oldest), status.now)),
        state.given_up.to_string(),
        state.delivered.to_string(),
        output::ago(state.last_delivered, status.now),
        state.error.clone().unwrap_or_default(),
    ]
}

fn test(context: &mut Context, name: &DestinationName) -> Result<(), CliError> {
    let config = context.config()?;
    let Some(settings) = config.destinations.iter().find(|settings| settings.name == *name) else {
        let known: Vec<String> = config.destinations.iter().map(|settings| format!("\"{}\"", settings.name)).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(CliError::Usage(format!("no destination \"{name}\"; configured: {known}")));
    };
    let clock = Clock::system();
    let mut destination = settings
        .open(&run::terminal(context.format), &clock)
        .map_err(|error| CliError::Usage(format!("destination \"{name}\": {error}")))?;
    let mut alert = test_alert(clock.now()).map_err(|error| CliError::Usage(error.to_string()))?;
    let runtime = runtime()?;
    let first = runtime.block_on(destination.send(&Message::alert(Notice::Opened, alert.clone()), None));
    let mut outcomes = vec![("opened", first)];
    // An incident that was opened is closed again.
    if let (true, Some((_, SendOutcome::Delivered(receipt)))) = (settings.kind.keeps_incidents(), outcomes.first()) {
        let reference = receipt.reference.clone();
        alert.status = watchbell::model::alert::AlertStatus::Resolved;
        alert.resolved_at = Some(clock.now());
        alert.revision += 1;
        let message = Message::alert(Notice::Resolved, alert);
        outcomes.push(("resolved", runtime.block_on(destination.send(&message, reference.as_deref()))));
    }
    let mut failed = None;
    for (what, outcome) in &outcomes {
        let (word, answer) = match outcome {
            SendOutcome::Delivered(receipt) => ("ok", receipt.answer.clone()),
            SendOutcome::Retry { reason, .. } => ("FAILED", reason.clone()),
            SendOutcome::Refused(reason) => ("REFUSED", reason.clone()),
        };
        if word != "ok" {
            failed = Some(answer.clone());
        }
        if context.is_json() {
            context
                .output
                .json_line(&json!({ "destination": name, "sent": what, "result": word, "answer": answer }))?;
        } else {
            context.output.line(&format!("{word:<8} {name} ({}), {what}: {answer}", settings.kind.name()))?;
        }
    }
    match failed {
        None => Ok(()),
        Some(_) => Err(CliError::Usage(format!("the test alert was not delivered to \"{name}\""))),
    }
}

fn dead(context: &mut Context, name: Option<DestinationName>) -> Result<(), CliError> {
    let (_, client) = context.client()?;
    let letters: Vec<Delivery> = client.all(request::DeadLetters { destination: name })?;
    if context.is_json() {
        for letter in &letters {
            context.output.json_line(letter)?;
        }
        return Ok(());
    }
    if letters.is_empty() {
        context.output.note("no deliveries were given up");
        return Ok(());
    }
    let rows = letters
        .iter()
        .map(|letter| {
            vec![
                letter.destination.to_string(),
                letter.alert.short(),
                letter.notice.to_string(),
                letter.given_up.map_or_else(String::new, output::time),
                letter.attempts.to_string(),
                letter.error.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let header = ["destination", "alert", "notice", "given up (utc)", "attempts", "error"];
    Ok(context.output.table(&header, rows)?)
}

fn settle(context: &mut Context, name: Option<DestinationName>, discard: bool) -> Result<(), CliError> {
    let (_, client) = context.client()?;
    let counted = client.one(request::Settle { destination: name, discard })?;
    let count = counted.map_or(0, |counted| counted.count);
    if context.is_json() {
        return Ok(context.output.json(&json!({ "count": count }))?);
    }
    let deliveries = if count == 1 { "delivery".to_owned() } else { "deliveries".to_owned() };
    let what = match (discard, client.is_agent()) {
        (true, _) => "discarded",
        (false, true) => "retried now",
        (false, false) => "retried when the agent starts",
    };
    Ok(context.output.line(&format!("{count} {deliveries} {what}"))?)
}
