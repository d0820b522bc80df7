//! `watchbell exceptions list|stats|hits|add`: conditions that suppress matches.

use std::{collections::HashMap, sync::Arc, time::Duration};

use clap::{Args, Subcommand};
use serde_json::json;
use watchbell::{
    api::{Client, answer, request},
    config::Config,
    detect::ExceptionRecord,
    model::{
        action::Catalog,
        event::Event,
        name::{ExceptionId, RuleId},
        time::{self, Clock, TimeArgument, Timestamp},
    },
    replay::exception_impact::{Hidden, would_hide},
    rule::{self, CompiledRule, EXCEPTIONS, Exception, ExceptionCondition, Loader, RuleHost, RuleInput, RuleSet},
    store::Excepted,
};

use super::{CliError, Context, ensure_readable, filter, output, problems, replace_file};

#[derive(Debug, Args)]
pub(super) struct Exceptions {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List exceptions with their conditions, reasons and expiry dates
    List,
    /// Show how many matches each exception has suppressed
    Stats,
    /// List the matches that an exception has suppressed, newest first
    Hits {
        /// ID of the exception
        id: ExceptionId,
        /// Maximum number of matches
        #[arg(long, value_name = "NUMBER", default_value_t = 50)]
        limit: usize,
    },
    /// Propose the narrowest exception for an alert, and show which past matches it would suppress
    Add(Add),
}

#[derive(Debug, Args)]
struct Add {
    /// ID of the alert, or its beginning
    #[arg(long, value_name = "ID")]
    from_alert: String,
    /// ID of the new exception; by default derived from the rule's ID
    #[arg(long, value_name = "NAME")]
    id: Option<ExceptionId>,
    /// Slot of the rule to use; by default the one with the most fields
    #[arg(long, value_name = "NAME")]
    slot: Option<String>,
    /// How long the exception applies
    #[arg(long = "for", value_name = "DURATION", default_value = "90d", value_parser = time::parse_duration)]
    duration: Duration,
    /// How far back to look for matches that it would suppress
    #[arg(long, value_name = "TIME", default_value = "180d")]
    since: TimeArgument,
    /// Write the exception instead of only showing it
    #[arg(long)]
    write: bool,
    #[command(flatten)]
    who: filter::Who,
}

impl Exceptions {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        let config = context.config()?;
        let loaded = Loader::new(context.rule_sources(&config)).without_builtin().load();
        context.output.diagnostics(&loaded.diagnostics);
        ensure_readable(&loaded.diagnostics)?;
        match self.verb {
            Verb::List => list(context, &loaded.set)?,
            Verb::Stats => stats(context, &config, &loaded.set)?,
            Verb::Hits { id, limit } => hits(context, id, limit)?,
            Verb::Add(add) => add.run(context, &config, &loaded.set)?,
        }
        if loaded.set.context.broken.is_empty() {
            return Ok(());
        }
        Err(CliError::Rules(problems("some rules or exceptions do not load", &loaded.diagnostics)))
    }
}

fn condition(exception: &Exception) -> String {
    match &exception.condition {
        ExceptionCondition::Expression { text, .. } => text.clone(),
        ExceptionCondition::Values { slot, values } => {
            let values: Vec<String> = values.iter().map(|value| value.join(" / ")).collect();
            format!("{slot}: {}", values.join(", "))
        }
    }
}

fn is_expired(exception: &Exception) -> bool {
    !exception.applies_at(Clock::system().now())
}

fn until(exception: &Exception) -> String {
    match exception.expires {
        None => "never".to_owned(),
        Some(_) if is_expired(exception) => "expired".to_owned(),
        Some(expires) => expires.strftime("%Y-%m-%d").to_string(),
    }
}

fn list(context: &Context, set: &RuleSet) -> Result<(), CliError> {
    if context.is_json() {
        for exception in &set.context.exceptions {
            context.output.json_line(&json!({
                "id": exception.id,
                "rules": exception.rules.iter().map(|selector| selector.as_str()).collect::<Vec<_>>(),
                "condition": condition(exception),
                "reason": exception.reason,
                "author": exception.author,
                "created": exception.created,
                "expires": exception.expires,
                "expired": is_expired(exception),
                "place": exception.place.short(),
            }))?;
        }
        return Ok(());
    }
    if set.context.exceptions.is_empty() {
        context.output.note("no exceptions; `watchbell exceptions add --from-alert ID` proposes one");
        return Ok(());
    }
    let rows = set
        .context
        .exceptions
        .iter()
        .map(|exception| {
            let rules: Vec<&str> = exception.rules.iter().map(|selector| selector.as_str()).collect();
            vec![
                exception.id.to_string(),
                rules.join(" "),
                condition(exception),
                until(exception),
                exception.author.clone(),
                exception.reason.clone(),
            ]
        })
        .collect();
    Ok(context.output.table(&["exception", "rules", "condition", "until", "author", "reason"], rows)?)
}

fn stats(context: &Context, config: &Config, set: &RuleSet) -> Result<(), CliError> {
    let records: HashMap<ExceptionId, ExceptionRecord> = if config.data_dir.join("store").exists() {
        let entries: Vec<answer::ExceptionEntry> =
            Client::open(config, &Clock::system())?.all(request::Exceptions {})?;
        entries.into_iter().map(|entry| (entry.exception, entry.record)).collect()
    } else {
        HashMap::new()
    };
    let known: Vec<(&ExceptionId, Option<&Arc<Exception>>)> = set
        .context
        .exceptions
        .iter()
        .map(|exception| (&exception.id, Some(exception)))
        .chain(
            records
                .keys()
                .filter(|id| !set.context.exceptions.iter().any(|known| known.id == **id))
                .map(|id| (id, None)),
        )
        .collect();
    let state = |exception: Option<&Arc<Exception>>, hits: u64| match exception {
        None => "removed",
        Some(exception) if is_expired(exception) => "expired",
        Some(_) if hits == 0 => "never hit",
        Some(_) => "active",
    };
    if context.is_json() {
        for (id, exception) in known {
            let record = records.get(id).cloned().unwrap_or_default();
            context.output.json_line(&json!({
                "id": id,
                "state": state(exception, record.hits),
                "hits": record.hits,
                "last_hit": record.last_hit_at(),
                "last_event": record.last_event,
                "errors": record.errors,
                "last_error": record.last_error,
            }))?;
        }
        return Ok(());
    }
    if known.is_empty() {
        context.output.note("no exceptions");
        return Ok(());
    }
    let rows = known
        .into_iter()
        .map(|(id, exception)| {
            let record = records.get(id).cloned().unwrap_or_default();
            vec![
                id.to_string(),
                state(exception, record.hits).to_owned(),
                record.hits.to_string(),
                record.last_hit_at().map_or_else(|| "-".to_owned(), output::time),
                record.last_event.map_or_else(|| "-".to_owned(), |event| event.to_string()),
                record.errors.to_string(),
            ]
        })
        .collect();
    Ok(context.output.table(&["exception", "state", "hits", "last hit (utc)", "last event", "errors"], rows)?)
}

fn hits(context: &Context, exception: ExceptionId, limit: usize) -> Result<(), CliError> {
    let (_, client) = context.client()?;
    let found: Vec<Excepted> = client.all(request::Excepted { exception, limit })?;
    if context.is_json() {
        for hit in &found {
            context.output.json_line(hit)?;
        }
        return Ok(());
    }
    if found.is_empty() {
        context.output.note("no suppressed matches");
        return Ok(());
    }
    let row = |hit: &Excepted| vec![output::time(hit.time), hit.rule.to_string(), hit.event.to_string()];
    Ok(context.output.table(&["time (utc)", "rule", "event"], found.iter().map(row).collect())?)
}

impl Add {
    fn run(self, context: &Context, config: &Config, set: &Arc<RuleSet>) -> Result<(), CliError> {
        let now = Clock::system().now();
        let client = Client::open(config, &Clock::system())?;
        let details: Option<answer::AlertDetails> = client.one(request::Alert { id: self.from_alert.clone() })?;
        let alert = details.map(|details| details.alert);
        let alert = alert.ok_or_else(|| CliError::Usage(format!("no alert `{}`", self.from_alert)))?;
        let rule = set.detections.iter().find(|rule| *rule.id() == alert.rule);
        let rule = rule.ok_or_else(|| {
            CliError::Usage(format!(
                "`{}` is not a detection rule that is loaded, so it cannot have exceptions",
                alert.rule
            ))
        })?;
        let first = alert.first_events.first().cloned();
        let first = first.ok_or_else(|| CliError::Usage("the alert has no event".to_owned()))?;
        let event: Option<Event> = client.one(request::Event { id: first.clone() })?;
        let event = event.ok_or_else(|| CliError::Usage(format!("event `{first}` is no longer stored")))?;

        let root = config.rules.roots.iter().find(|root| root.is_dir());
        let file = root.ok_or_else(|| CliError::Usage("no rules directory to write to".to_owned()))?.join(EXCEPTIONS);
        let before = std::fs::read_to_string(&file).unwrap_or_default();
        let id = match &self.id {
            Some(id) => id.clone(),
            None => free_name(rule.id(), set)?,
        };
        let text = self.proposal(&id, rule, &event, config, &set.context.catalog, now)?;
        let whole = if before.trim().is_empty() { text.clone() } else { format!("{}\n\n{text}", before.trim_end()) };
        let parsed = rule::parse_exceptions(&file, &whole).map_err(|diagnostics| {
            context.output.diagnostics(&diagnostics);
            CliError::Usage("the file of exceptions would be invalid".to_owned())
        })?;
        let exception = parsed.iter().find(|exception| exception.id == id);
        let exception = exception.ok_or_else(|| {
            CliError::Usage("the new exception is missing from its file; please report this".to_owned())
        })?;

        let query = request::Events { since: Some(self.since.resolve(now)), ..request::Events::default() };
        let mut history = Vec::new();
        let wanted = set.alone(rule);
        client.each(query, |event: Event| {
            if wanted.wants(&event) {
                history.push(event);
            }
            Ok(())
        })?;
        let limits = &config.detection.limits;
        let hidden =
            super::on_rule_thread(|| would_hide(rule, exception, limits, &set.context.catalog, history.iter()))?;
        self.show(context, &text, &hidden, &file, &event)?;
        if self.write {
            replace_file(&file, &whole)?;
            context.output.note(&format!("written to {}", file.display()));
        }
        Ok(())
    }

    /// The TOML text of the proposed exception.
    fn proposal(
        &self,
        id: &ExceptionId,
        rule: &Arc<CompiledRule>,
        event: &Event,
        config: &Config,
        catalog: &Catalog,
        now: Timestamp,
    ) -> Result<String, CliError> {
        let condition = match self.by_slot(rule, event, config, catalog)? {
            Some(condition) => condition,
            None => format!("condition = {}", rule::quoted(&expression(event))),
        };
        // An author is required only if the exception is written.
        let author = if self.write { self.who.author()? } else { self.who.author().unwrap_or_default() };
        let reason = self.who.comment.clone().unwrap_or_else(|| format!("alert {}: ", self.from_alert));
        if self.write && self.who.comment.is_none() {
            return Err(CliError::Usage("missing reason: use `--comment TEXT`".to_owned()));
        }
        let day = |time: Timestamp| time.strftime("%Y-%m-%d").to_string();
        Ok(format!(
            "[[exception]]\nid = {}\nrules = [{}]\n{condition}\nreason = {}\nauthor = {}\ncreated = {}\nexpires = {}\n",
            rule::quoted(id.as_str()),
            rule::quoted(rule.id().as_str()),
            rule::quoted(&reason),
            rule::quoted(&author),
            day(now),
            day(time::after(now, self.duration)),
        ))
    }

    /// The condition by slot values, if the event has all fields of a slot. The slot with the most fields is narrowest.
    fn by_slot(
        &self,
        rule: &Arc<CompiledRule>,
        event: &Event,
        config: &Config,
        catalog: &Catalog,
    ) -> Result<Option<String>, CliError> {
        let slots = &rule.metadata.exception_slots;
        if let Some(slot) = &self.slot
            && !slots.contains_key(slot)
        {
            let known: Vec<&str> = slots.keys().map(String::as_str).collect();
            return Err(CliError::Usage(format!("`{}` has no slot `{slot}`; its slots are {known:?}", rule.id())));
        }
        let host = RuleHost::new(&config.detection.limits);
        let input = RuleInput::new(event, catalog);
        let mut candidates: Vec<(&String, Vec<String>)> = slots
            .keys()
            .filter(|slot| self.slot.as_ref().is_none_or(|wanted| wanted == *slot))
            .filter_map(|slot| {
                Some((slot, host.slot(rule, slot, &input).into_iter().collect::<Option<Vec<String>>>()?))
            })
            .collect();
        candidates.sort_by_key(|(_, values)| values.len());
        let Some((slot, values)) = candidates.pop() else {
            return match &self.slot {
                Some(slot) => Err(CliError::Usage(format!("the event lacks a field of slot `{slot}`"))),
                None => Ok(None),
            };
        };
        let values: Vec<String> = values.iter().map(|value| rule::quoted(value)).collect();
        let value = if values.len() == 1 { values.concat() } else { format!("[{}]", values.join(", ")) };
        Ok(Some(format!("slot = {}\nvalues = [{value}]", rule::quoted(slot))))
    }

    fn show(
        &self,
        context: &Context,
        text: &str,
        hidden: &Hidden,
        file: &std::path::Path,
        event: &Event,
    ) -> Result<(), CliError> {
        if context.is_json() {
            return Ok(context.output.json(&json!({
                "exception": text, "file": file, "matches": hidden.matches, "hides": hidden.hidden, "errors": hidden.errors,
                "first": hidden.examples.iter().map(|event| &event.id).collect::<Vec<_>>(), "written": self.write,
            }))?);
        }
        let out = &context.output;
        out.line(text)?;
        out.line(&format!(
            "since {} UTC it would have suppressed {} of {} of this rule{}",
            output::time(self.since.resolve(Clock::system().now())),
            hidden.hidden,
            output::count(hidden.matches, "match").replace("matchs", "matches"),
            if hidden.hidden > 0 { ":" } else { "" }
        ))?;
        for other in &hidden.examples {
            let evidence = other.evidence();
            let who = evidence.who().unwrap_or("-").to_owned();
            let label = if other.id == event.id { "  (of this alert)" } else { "" };
            let line = format!("  {} {} {who} {}{label}", output::time(other.time), other.action, other.id);
            out.line(&output::printable(&line))?;
        }
        let rest = hidden.hidden.saturating_sub(hidden.examples.len() as u64);
        if rest > 0 {
            out.line(&format!("  … and {rest} more"))?;
        }
        if let Some(error) = &hidden.errors {
            out.line(&format!("the condition fails on some events, which are not suppressed: {error}"))?;
        }
        if !self.write {
            out.line(&format!("\n`--write --comment 'why'` adds it to {}", file.display()))?;
        }
        Ok(())
    }
}

/// A condition for exactly this kind of event: the action, the actor and the target.
fn expression(event: &Event) -> String {
    let value = event.value();
    let text =
        |pointer: &str| value.pointer(pointer).and_then(serde_json::Value::as_str).filter(|text| !text.is_empty());
    let mut parts = vec![format!("event.action == {}", rule::quoted(&event.action))];
    for (pointer, path) in [
        ("/attributes/actor/email", "event.actor.email"),
        ("/attributes/actor/id", "event.actor.id"),
        ("/attributes/context/0/attributes/email", "event.targets()[0].attributes.email"),
        ("/attributes/context/0/id", "event.targets()[0].id"),
    ] {
        // Email or id is enough to identify someone.
        let known = parts.iter().any(|part| part.contains(path.rsplit_once('.').map_or(path, |(before, _)| before)));
        if let (Some(text), false) = (text(pointer), known && pointer.ends_with("/id")) {
            parts.push(format!("{path} == {}", rule::quoted(text)));
        }
    }
    parts.join(" && ")
}

fn free_name(rule: &RuleId, set: &RuleSet) -> Result<ExceptionId, CliError> {
    let last = rule.as_str().rsplit('.').next().unwrap_or("exception");
    (1..)
        .map(|number| if number == 1 { last.to_owned() } else { format!("{last}-{number}") })
        .filter_map(|name| ExceptionId::parse(&name).ok())
        .find(|name| !set.context.exceptions.iter().any(|other| other.id == *name))
        .ok_or_else(|| CliError::Usage("no free ID for the exception; use `--id NAME`".to_owned()))
}
