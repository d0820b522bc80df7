//! `watchbell alerts list|show|tail|ack|resolve|reopen|comment`.

use clap::{Args, Subcommand};
use watchbell::{
    api::{Client, ClientError, answer, request},
    deliver::{Message, render},
    model::{
        alert::{Alert, AlertAction, AlertStatus, Disposition, LoggedChange, Notice, Severity},
        time::Clock,
    },
};

use super::{CliError, Context, filter, output};

#[derive(Debug, Args)]
pub(super) struct Alerts {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List stored alerts, newest first
    List(List),
    /// Show all details and the history of an alert
    Show {
        /// ID of the alert, or its beginning
        id: String,
    },
    /// Show recent alert changes; `-f` follows new ones
    Tail {
        /// Keep printing new changes, until Ctrl-C
        #[arg(short, long)]
        follow: bool,
        /// Number of recent changes to print
        #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = 10)]
        lines: usize,
    },
    /// Acknowledge alerts
    Ack(Handling),
    /// Resolve alerts; the next match opens a new alert
    Resolve {
        #[command(flatten)]
        handling: Handling,
        /// Record a true positive: what the rule looks for did happen
        #[arg(long, conflicts_with = "false_positive")]
        true_positive: bool,
        /// Record a false positive: it did not happen, or it was allowed
        #[arg(long)]
        false_positive: bool,
    },
    /// Undo a resolution or an acknowledgement
    Reopen(Handling),
    /// Comment on alerts
    Comment(Handling),
}

#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    range: filter::Range,
    /// Only alerts of at least this severity: info, low, medium, high, critical
    #[arg(long, value_name = "SEVERITY")]
    severity: Option<Severity>,
    /// Only alerts with this status: open, acknowledged, resolved
    #[arg(long, value_name = "STATUS")]
    status: Option<AlertStatus>,
    /// Only alerts of rules whose ID matches this pattern; `*` matches any text
    #[arg(long, value_name = "PATTERN")]
    rule: Option<String>,
    /// Only alerts whose actor's name, email address or IP address contains this text
    #[arg(long, value_name = "TEXT")]
    actor: Option<String>,
    /// Maximum number of alerts
    #[arg(long, value_name = "NUMBER", default_value_t = 50)]
    limit: usize,
}

/// Arguments of the verbs that change alerts.
#[derive(Debug, Args)]
struct Handling {
    /// IDs of the alerts, or their beginnings
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    #[command(flatten)]
    who: filter::Who,
}

impl Alerts {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        match self.verb {
            Verb::List(list) => list.run(context),
            Verb::Show { id } => show(context, id),
            Verb::Tail { follow, lines } => tail(context, follow, lines),
            Verb::Ack(handling) => handling.run(context, AlertAction::Acknowledge),
            Verb::Resolve { handling, true_positive, false_positive } => {
                let disposition = match (true_positive, false_positive) {
                    (true, _) => Some(Disposition::TruePositive),
                    (_, true) => Some(Disposition::FalsePositive),
                    _ => None,
                };
                handling.run(context, AlertAction::Resolve(disposition))
            }
            Verb::Reopen(handling) => handling.run(context, AlertAction::Reopen),
            Verb::Comment(handling) => {
                if handling.who.comment.is_none() {
                    return Err(CliError::Usage("missing comment: use `--comment TEXT`".to_owned()));
                }
                handling.run(context, AlertAction::Comment)
            }
        }
    }
}

impl Handling {
    fn run(self, context: &mut Context, action: AlertAction) -> Result<(), CliError> {
        let author = self.who.author()?;
        let (_, client) = context.client()?;
        for id in &self.ids {
            let details = details(&client, id)?;
            let request = request::Handle {
                alert: details.alert.id,
                action,
                author: author.clone(),
                comment: self.who.comment.clone(),
            };
            client.each(request, |alert: Alert| {
                if context.is_json() {
                    return Ok(context.output.json_line(&alert)?);
                }
                let disposition = alert.disposition.map_or_else(String::new, |disposition| format!(", {disposition}"));
                let line = format!("{}  {}{disposition}  {}", alert.id.short(), alert.status, alert.title);
                Ok(context.output.line(&output::printable(&line))?)
            })?;
        }
        Ok(())
    }
}

fn details(client: &Client, id: &str) -> Result<answer::AlertDetails, CliError> {
    let details = client.one(request::Alert { id: id.to_owned() })?;
    details.ok_or_else(|| CliError::Usage(format!("no alert `{id}`")))
}

impl List {
    fn run(self, context: &mut Context) -> Result<(), CliError> {
        let (since, until) = self.range.bounds(Clock::system().now())?;
        let (_, client) = context.client()?;
        let query = request::Alerts {
            since,
            until,
            severity: self.severity,
            rule: self.rule,
            source: self.range.source(),
            actor: self.actor,
            status: self.status,
            limit: Some(self.limit),
        };
        let out = &context.output;
        if context.is_json() {
            return Ok(client.each(query, |alert: Alert| Ok(out.json_line(&alert)?))?);
        }
        let mut rows = Vec::new();
        client.each(query, |alert: Alert| {
            rows.push(vec![
                alert.id.short(),
                output::time(alert.opened_at),
                output::severity(alert.severity),
                status(&alert),
                alert.count.to_string(),
                alert.title,
                alert.rule.to_string(),
            ]);
            Ok(())
        })?;
        if rows.is_empty() {
            out.note("no alerts");
            return Ok(());
        }
        Ok(out.table(&["alert", "opened (utc)", "severity", "status", "events", "title", "rule"], rows)?)
    }
}

fn status(alert: &Alert) -> String {
    let mut text = alert.status.to_string();
    if let Some(disposition) = alert.disposition {
        text.push_str(&format!(" ({disposition})"));
    }
    if alert.late {
        text.push_str(", late");
    }
    if alert.silenced_by.is_some() {
        text.push_str(", silenced");
    }
    text
}

fn show(context: &mut Context, id: String) -> Result<(), CliError> {
    let (_, client) = context.client()?;
    let answer::AlertDetails { alert, changes, events } = details(&client, &id)?;
    if context.is_json() {
        let mut value = serde_json::to_value(&alert).map_err(std::io::Error::from)?;
        if let Some(object) = value.as_object_mut() {
            object.insert("changes".to_owned(), serde_json::to_value(&changes).map_err(std::io::Error::from)?);
        }
        return Ok(context.output.json(&value)?);
    }
    let message = Message::alert(Notice::Opened, alert.clone());
    let out = &context.output;
    out.line(render(&message, out.width()).trim_end())?;
    let mut fields: Vec<(&str, String)> = vec![
        ("id", alert.id.to_string()),
        ("status", format!("{}, revision {}", status(&alert), alert.revision)),
        ("dedup key", alert.dedup_key.to_string()),
        ("rule file", format!("{} of generation {}", alert.rule_hash, alert.generation)),
    ];
    if let Some(raised) = alert.raised_at {
        fields.push(("raised", format!("{} UTC", output::time(raised))));
    }
    if let Some(resolved) = alert.resolved_at {
        fields.push(("resolved", format!("{} UTC", output::time(resolved))));
    }
    if alert.late {
        fields.push(("late", "the event that opened it was already old when it arrived".to_owned()));
    }
    if let Some(silence) = alert.silenced_by {
        fields.push(("silenced", format!("by silence {silence}")));
    }
    if !alert.tags.is_empty() {
        fields.push(("tags", alert.tags.join(", ")));
    }
    if !alert.attack.is_empty() {
        fields.push(("ATT&CK", alert.attack.join(", ")));
    }
    if let Some(reference) = &alert.reference {
        fields.push(("reference", reference.clone()));
    }
    if let Some(message) = &alert.evidence.message {
        fields.push(("message", message.clone()));
    }
    for (name, value) in fields {
        out.line(&format!("  {name:<10}{}", output::printable(&value)))?;
    }
    out.line("")?;
    out.line("  history:")?;
    for change in &changes {
        out.line(&format!("    {}", output::printable(&change_line(change, None))))?;
    }
    // Alerts about the agent itself have no events.
    if events.is_empty() {
        return Ok(());
    }
    out.line("")?;
    out.line(&format!("  {}, in order of arrival:", output::count(alert.count, "event")))?;
    for event in events.iter().take(20) {
        out.line(&format!("    {event}"))?;
    }
    if alert.count > 20 && !events.is_empty() {
        out.line("    …")?;
    }
    Ok(())
}

/// A change, on one line.
fn change_line(change: &LoggedChange, alert: Option<&Alert>) -> String {
    let mut line = format!("{}  {:<12}", output::time(change.at), change.what);
    if let Some(alert) = alert {
        line.push_str(&format!("  {:<8}  {}  {}", change.severity, alert.id.short(), alert.title));
    }
    if let Some(author) = &change.author {
        line.push_str(&format!("  by {author}"));
    }
    if let Some(disposition) = change.disposition {
        line.push_str(&format!("  {disposition}"));
    }
    if let Some(comment) = &change.comment {
        line.push_str(&format!("  \"{comment}\""));
    }
    line
}

fn tail(context: &mut Context, follow: bool, lines: usize) -> Result<(), CliError> {
    let (config, client) = context.client()?;
    let out = &context.output;
    let json = context.is_json();
    let print = |line: &answer::ChangeLine| -> Result<(), ClientError> {
        if json {
            return Ok(out.json_line(line)?);
        }
        Ok(out.line(&output::printable(&change_line(&line.change, line.alert.as_ref())))?)
    };
    let mut after = 0;
    client.each(request::Changes { after: None, limit: lines.max(1), wait: 0 }, |line: answer::ChangeLine| {
        after = after.max(line.change.number);
        if lines > 0 { print(&line) } else { Ok(()) }
    })?;
    if !follow {
        return Ok(());
    }
    super::follow(context, &config, client, |client| {
        client.each(request::Changes { after: Some(after), limit: 1_000, wait: 25 }, |line: answer::ChangeLine| {
            after = after.max(line.change.number);
            print(&line)
        })
    })
}
