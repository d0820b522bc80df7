//! `watchbell events list|show|tail|import|export|fetch`.

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use watchbell::{
    api::{Client, ClientError, answer, request},
    model::{
        category::Category,
        event::Event,
        name::{EventId, SourceName},
        text::json_escaped,
        time::{Clock, TimeArgument},
    },
    source::file,
    store::{Appended, Quarantined},
};

use super::{CliError, Context, filter, output};

#[derive(Debug, Args)]
pub(super) struct Events {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List stored events, latest arrival first
    List(List),
    /// Show all of an event
    Show {
        /// ID of the event
        id: EventId,
    },
    /// Show the latest events; `-f` follows new ones
    Tail(Tail),
    /// Import events from files: JSON Lines, JSON arrays or API pages, plain or gzipped
    Import(Import),
    /// Write stored events as JSON Lines, byte for byte as received
    Export(Export),
    /// Fetch a part of the log again; stored events stay as they are
    Fetch(Fetch),
}

#[derive(Debug, Args)]
struct EventFilter {
    #[command(flatten)]
    range: filter::Range,
    /// Only events whose action matches this pattern; `*` matches any text
    #[arg(long, value_name = "PATTERN")]
    action: Option<String>,
    /// Only this category: `admin`, `security-policy`, `authentication`, `access`, `app`, `product`, `ai` or `unknown`
    #[arg(long, value_name = "NAME")]
    category: Option<Category>,
    /// Only events whose actor's name, email address or IP address contains this text
    #[arg(long, value_name = "TEXT")]
    actor: Option<String>,
}

impl EventFilter {
    fn query(&self) -> Result<request::Events, CliError> {
        let (since, until) = self.range.bounds(Clock::system().now())?;
        Ok(request::Events {
            since,
            until,
            action: self.action.clone(),
            source: self.range.source(),
            category: self.category,
            actor: self.actor.clone(),
            ..request::Events::default()
        })
    }
}

#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    filter: EventFilter,
    /// List quarantined entries instead: entries of the log that are not valid events, and why
    #[arg(long)]
    quarantined: bool,
    /// Maximum number of events
    #[arg(long, value_name = "NUMBER", default_value_t = 50)]
    limit: usize,
}

#[derive(Debug, Args)]
struct Tail {
    #[command(flatten)]
    filter: EventFilter,
    /// Keep printing new events, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Number of latest events to print
    #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = 10)]
    lines: usize,
}

#[derive(Debug, Args)]
struct Import {
    /// Files to import; `-` is standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Source to store the events under
    #[arg(long, value_name = "NAME")]
    source: SourceName,
    /// Store the events without running rules on them; `watchbell replay` can still do so
    #[arg(long)]
    no_evaluate: bool,
}

#[derive(Debug, Args)]
struct Export {
    #[command(flatten)]
    filter: EventFilter,
    /// File to write to; by default stdout
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Fetch {
    /// Start of the time range: a time, a date, or a duration before now such as `30d`
    #[arg(long, value_name = "TIME")]
    since: TimeArgument,
    /// Only this source
    #[arg(long, value_name = "NAME")]
    source: Option<SourceName>,
}

impl Events {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        match self.verb {
            Verb::List(list) => list.run(context),
            Verb::Show { id } => show(context, id),
            Verb::Tail(tail) => tail.run(context),
            Verb::Import(import) => import.run(context),
            Verb::Export(export) => export.run(context),
            Verb::Fetch(fetch) => fetch.run(context),
        }
    }
}

impl List {
    fn run(self, context: &mut Context) -> Result<(), CliError> {
        let query = request::Events { limit: Some(self.limit), newest_first: true, ..self.filter.query()? };
        let (_, client) = context.client()?;
        if self.quarantined {
            return quarantined(context, &client, self.limit);
        }
        let out = &context.output;
        if context.is_json() {
            return Ok(client.each(query, |event: Event| Ok(out.line(&json_escaped(&raw_line(&event)))?))?);
        }
        let mut rows = Vec::new();
        client.each(query, |event: Event| {
            let evidence = event.evidence();
            rows.push(vec![
                output::time(event.time),
                event.action.to_string(),
                evidence.who().unwrap_or("-").to_owned(),
                evidence.whence().unwrap_or_else(|| "-".to_owned()),
                event.id.to_string(),
            ]);
            Ok(())
        })?;
        if rows.is_empty() {
            out.note("no events");
            return Ok(());
        }
        Ok(out.table(&["time (utc)", "action", "actor", "from", "event"], rows)?)
    }
}

/// The event byte for byte as received, on one line: line breaks, which mean nothing in JSON, become spaces.
fn raw_line(event: &Event) -> String {
    event.raw.replace(['\n', '\r'], " ")
}

fn quarantined(context: &Context, client: &Client, limit: usize) -> Result<(), CliError> {
    let entries: Vec<Quarantined> = client.all(request::Quarantined { limit })?;
    if context.is_json() {
        for entry in &entries {
            context.output.json_line(entry)?;
        }
        return Ok(());
    }
    if entries.is_empty() {
        context.output.note("no quarantined entries");
        return Ok(());
    }
    let rows = entries
        .into_iter()
        .map(|entry| {
            let beginning: String = entry.raw.chars().take(60).collect();
            vec![output::time(entry.arrived), entry.source.to_string(), entry.reason, beginning]
        })
        .collect();
    Ok(context.output.table(&["arrived (utc)", "source", "reason", "entry"], rows)?)
}

fn show(context: &mut Context, id: EventId) -> Result<(), CliError> {
    let (_, client) = context.client()?;
    let Some(event) = client.one(request::Event { id: id.clone() })? else {
        return Err(CliError::Usage(format!("no event `{id}`; `watchbell events list` lists events")));
    };
    let out = &context.output;
    if context.is_json() {
        return Ok(out.line(&json_escaped(&event.raw))?);
    }
    out.line(&format!("event     {}", event.id))?;
    out.line(&format!("source    {}, number {}", event.source, event.sequence))?;
    out.line(&format!("time      {} UTC, arrived {} UTC", output::time(event.time), output::time(event.arrived)))?;
    out.line("")?;
    Ok(out.line(&json_escaped(&format!("{:#}", event.value())))?)
}

impl Tail {
    fn run(self, context: &mut Context) -> Result<(), CliError> {
        let query = self.filter.query()?;
        let (config, client) = context.client()?;
        let out = &context.output;
        let json = context.is_json();
        let print = |event: &Event| -> Result<(), ClientError> {
            if json {
                return Ok(out.line(&json_escaped(&raw_line(event)))?);
            }
            let evidence = event.evidence();
            let who = evidence.who().unwrap_or("-").to_owned();
            let whence = evidence.whence().map_or_else(String::new, |whence| format!(" from {whence}"));
            let line = format!("{}  {:<40}  {who}{whence}", output::time(event.time), event.action);
            Ok(out.line(&output::printable(&line))?)
        };
        let totals: Option<answer::EventTotals> = client.one(request::EventTotals {})?;
        let mut after = totals.map_or(0, |totals| totals.last);
        let last = request::Events { limit: Some(self.lines), newest_first: true, ..query.clone() };
        let mut events: Vec<Event> = client.all(last)?;
        events.reverse();
        for event in &events {
            print(event)?;
            after = after.max(event.sequence.0);
        }
        if !self.follow {
            return Ok(());
        }
        super::follow(context, &config, client, |client| {
            let query = request::Events { after: Some(after), limit: Some(1_000), wait: 25, ..query.clone() };
            // Read before the query, so that events that do not match the filter are skipped as well.
            let totals: Option<answer::EventTotals> = client.one(request::EventTotals {})?;
            let mut count = 0;
            let mut newest = after;
            client.each(query, |event: Event| {
                count += 1;
                newest = newest.max(event.sequence.0);
                print(&event)
            })?;
            after = if count < 1_000 { newest.max(totals.map_or(0, |totals| totals.last)) } else { newest };
            Ok(())
        })
    }
}

/// Maximum size of an import request, in entries and in bytes.
const BATCH_ENTRIES: usize = 500;
const BATCH_BYTES: usize = 8 * 1024 * 1024;

impl Import {
    fn run(self, context: &mut Context) -> Result<(), CliError> {
        let (_, client) = context.client_or_new_store()?;
        let mut total = Appended::default();
        let mut broken = 0;
        let mut add = |appended: Appended| {
            total.stored += appended.stored;
            total.duplicates += appended.duplicates;
            total.quarantined += appended.quarantined;
            total.dropped += appended.dropped;
        };
        for path in &self.files {
            let unreadable =
                |error: std::io::Error| CliError::Usage(format!("cannot read `{}`: {error}", path.display()));
            let size = std::fs::metadata(path).map_or(0, |file| file.len());
            let bar = bytes_bar(size);
            let mut pieces = file::open(path).map_err(unreadable)?;
            while let Some(piece) = pieces.next() {
                let piece = piece.map_err(unreadable)?;
                if let Some(reason) = &piece.broken {
                    broken += 1;
                    context.output.warning(&format!("skipping unreadable parts of `{}`: {reason}", path.display()));
                }
                let entries =
                    piece.events.iter().map(|event| &event.raw).chain(piece.rejected.iter().map(|entry| &entry.raw));
                let mut batch: Vec<String> = Vec::new();
                let mut bytes = 0;
                for entry in entries {
                    bytes += entry.len();
                    batch.push(entry.to_string());
                    if batch.len() >= BATCH_ENTRIES || bytes >= BATCH_BYTES {
                        self.send(&client, std::mem::take(&mut batch), &mut add)?;
                        bytes = 0;
                    }
                }
                self.send(&client, batch, &mut add)?;
                bar.set_position(pieces.bytes_read());
            }
            bar.finish_and_clear();
        }
        let entries = total.stored + total.duplicates + total.quarantined + total.dropped;
        if entries == 0 {
            let reason = if broken > 0 { "the input is not readable as events" } else { "the input has no events" };
            return Err(CliError::Usage(format!("nothing was imported: {reason}")));
        }
        // Skipped parts also set the exit code, so that scripts notice.
        let complete = || match broken {
            0 => Ok(()),
            _ => Err(CliError::Findings("unreadable parts of the input were skipped".to_owned())),
        };
        if context.is_json() {
            context.output.json(&total)?;
            return complete();
        }
        let evaluated = match (self.no_evaluate, client.is_agent()) {
            (true, _) => "no rules run on them",
            (false, true) => "rules run on them now; their alerts are late",
            (false, false) => "rules run on them when the agent starts; their alerts are late",
        };
        let dropped = if total.dropped > 0 { format!(", {} dropped", total.dropped) } else { String::new() };
        context.output.line(&format!(
            "{} stored under \"{}\", {} already stored, {} quarantined{dropped}; {evaluated}",
            output::count(total.stored as u64, "event"),
            self.source,
            total.duplicates,
            total.quarantined
        ))?;
        complete()
    }

    fn send(&self, client: &Client, entries: Vec<String>, add: &mut dyn FnMut(Appended)) -> Result<(), CliError> {
        if entries.is_empty() {
            return Ok(());
        }
        let request = request::Import { source: self.source.clone(), entries, evaluate: !self.no_evaluate };
        client.each(request, |appended| {
            add(appended);
            Ok(())
        })?;
        Ok(())
    }
}

fn bytes_bar(size: u64) -> ProgressBar {
    if size == 0 || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(size);
    if let Ok(style) = ProgressStyle::with_template("{bar:32} {bytes} of {total_bytes}, {eta} left") {
        bar.set_style(style);
    }
    bar
}

impl Export {
    fn run(self, context: &mut Context) -> Result<(), CliError> {
        let query = self.filter.query()?;
        let (_, client) = context.client()?;
        let mut target: Box<dyn Write> = match &self.output {
            None => Box::new(std::io::BufWriter::new(std::io::stdout())),
            // `-` is stdout, as it is stdin for an import.
            Some(path) if path.as_os_str() == "-" => Box::new(std::io::BufWriter::new(std::io::stdout())),
            Some(path) => Box::new(std::io::BufWriter::new(super::private_file(path)?)),
        };
        let mut count = 0;
        client.each(query, |event: Event| {
            count += 1;
            target.write_all(raw_line(&event).as_bytes())?;
            Ok(target.write_all(b"\n")?)
        })?;
        target.flush()?;
        if let Some(path) = self.output.as_ref().filter(|path| path.as_os_str() != "-") {
            context.output.note(&format!("{} written to {}", output::count(count, "event"), path.display()));
        }
        Ok(())
    }
}

impl Fetch {
    fn run(self, context: &mut Context) -> Result<(), CliError> {
        let (_, client) = context.client()?;
        let since = self.since.resolve(Clock::system().now());
        let answers: Vec<answer::FetchAnswer> = client.all(request::Fetch { source: self.source, since })?;
        for answer in &answers {
            if context.is_json() {
                context.output.json_line(answer)?;
                continue;
            }
            let when =
                if answer.now { "is being fetched again" } else { "will be fetched again when the agent starts" };
            context.output.line(&format!(
                "{}: the log since {} UTC {when}; `watchbell status` shows the progress",
                answer.source,
                output::time(answer.since)
            ))?;
        }
        Ok(())
    }
}
