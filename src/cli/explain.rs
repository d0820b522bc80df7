//! `watchbell explain`: shows why a rule alerts on an event, or why it does not.

use std::{path::Path, sync::Arc};

use clap::Args;
use watchbell::{
    api::{Client, request},
    config::Config,
    model::{
        event::Event,
        name::{EventId, RuleId, SourceName},
        time::{self, Clock},
    },
    replay::{self, explain::Explanation},
    rule::{CompiledRule, Loader, RuleKind, RuleSet},
    source::file,
};

use super::{CliError, Context, ensure_readable, on_rule_thread, output, problems};

#[derive(Debug, Args)]
pub(super) struct Explain {
    /// ID of the rule
    #[arg(long, value_name = "ID")]
    rule: RuleId,
    /// ID of a stored event, or a file of events whose last event is explained
    #[arg(long, value_name = "ID|FILE")]
    event: String,
}

impl Explain {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        let config = context.config()?;
        let loaded = Loader::new(context.rule_sources(&config)).without_builtin().load();
        context.output.diagnostics(&loaded.diagnostics);
        ensure_readable(&loaded.diagnostics)?;
        let Some(rule) = loaded.set.all().find(|rule| *rule.id() == self.rule).cloned() else {
            if loaded.set.context.broken.is_empty() {
                return Err(super::rules::no_such_rule(&loaded.set, &self.rule));
            }
            return Err(CliError::Rules(problems("some rules do not load", &loaded.diagnostics)));
        };
        if rule.kind != RuleKind::Detection {
            return Err(CliError::Usage(format!("`{}` is a check rule and does not run on events", self.rule)));
        }
        let (before, event) = self.events(context, &config, &loaded.set, &rule)?;
        let (rules, settings) = (&loaded.set, &config.detection);
        let explanation =
            on_rule_thread(|| replay::explain::explain(rules, &rule, settings, before.into_iter(), &event))?;
        if context.is_json() {
            return Ok(context.output.json(&explanation)?);
        }
        show(context, &rule, &event, &explanation)
    }

    /// The event, and the earlier events that may matter to the rule.
    fn events(
        &self,
        context: &Context,
        config: &Config,
        set: &RuleSet,
        rule: &Arc<CompiledRule>,
    ) -> Result<(Vec<Event>, Event), CliError> {
        let path = Path::new(&self.event);
        if path.is_file() {
            let contents = file::read(path)
                .map_err(|error| CliError::Usage(format!("cannot read `{}`: {error}", path.display())))?;
            let source = SourceName::parse("file").map_err(|error| CliError::Usage(error.to_string()))?;
            let mut events: Vec<Event> = replay::file_events(contents.events, &source, Clock::system().now()).collect();
            if events.len() > 1 {
                let count = events.len();
                context.output.note(&format!("the file has {count} events; explaining the last one, after the others"));
            }
            let reason = contents.rejected.first().map_or_else(String::new, |entry| format!(": {}", entry.reason));
            let event = events.pop();
            let event = event.ok_or_else(|| CliError::Usage(format!("no events in `{}`{reason}", path.display())))?;
            return Ok((events, event));
        }
        let id = EventId::parse(&self.event).map_err(|error| CliError::Usage(error.to_string()))?;
        let client = Client::open(config, &Clock::system())?;
        let event: Option<Event> = client.one(request::Event { id })?;
        let event = event.ok_or_else(|| {
            CliError::Usage(format!("no event and no file `{}`; `watchbell events list` lists events", self.event))
        })?;
        // A match counts in its window, and joins an alert that opened up to one dedup period earlier.
        let reach = rule.metadata.window.saturating_mul(2).saturating_add(rule.metadata.dedup_period.saturating_mul(2));
        let alone = set.alone(rule);
        // A rule with state may remember any earlier event.
        let remembers = alone.detections.iter().any(|rule| rule.remembers);
        let query = request::Events {
            since: (!remembers).then(|| time::before(event.time, reach)),
            until: Some(time::after(event.time, reach)),
            source: Some(event.source.clone()),
            ..request::Events::default()
        };
        let mut before = Vec::new();
        client.each(query, |earlier: Event| {
            if earlier.sequence < event.sequence && alone.wants(&earlier) {
                before.push(earlier);
            }
            Ok(())
        })?;
        Ok((before, event))
    }
}

fn show(context: &Context, rule: &CompiledRule, event: &Event, explanation: &Explanation) -> Result<(), CliError> {
    let out = &context.output;
    let line = |name: &str, text: &str| out.line(&format!("{name:<11}{}", output::printable(text)));
    line("rule", &format!("{} ({})", rule.id(), rule.file.display()))?;
    line("event", &format!("{} {} at {} UTC", event.id, event.action, output::time(event.time)))?;
    for (key, origin) in &rule.metadata.origins {
        line("override", &format!("{key}, from {origin}"))?;
    }
    for function in &explanation.functions {
        let answer = match (&function.result, &function.error) {
            (Some(result), _) => result.clone(),
            (_, Some(error)) => format!("fails: {error}"),
            (None, None) => String::new(),
        };
        out.line("")?;
        line(&format!("{}()", function.function), &answer)?;
        let width = function.notes.iter().map(|note| note.text.chars().count()).max().unwrap_or(0).min(70);
        for note in &function.notes {
            let absent = if note.absent { "  absent" } else { "" };
            let text = format!("{:>4}:{:<3} {:<width$}  {}{absent}", note.line, note.column, note.text, note.value);
            out.line(&format!("  {}", output::printable(&text)))?;
        }
        if let Some((note, text)) = &function.decided {
            out.line(&format!("  returned false at line {}: {}", note.line, output::printable(text)))?;
        }
    }
    out.line("")?;
    for exception in &explanation.exceptions {
        line("exception", &format!("{}: {}", exception.exception, exception.answer))?;
    }
    if let Some(matched) = &explanation.matched {
        line("key", matched.key.as_str())?;
        if matched.threshold > 1 {
            let text = format!("{} matches within {}", matched.threshold, matched.window);
            line("threshold", &text)?;
        }
    }
    if rule.metadata.stage == watchbell::rule::Stage::Shadow {
        line("stage", "shadow: alerts are recorded but not delivered")?;
    }
    line("verdict", &explanation.verdict)?;
    Ok(())
}
