//! What `check` says of rules: everything that loading them tells, and what is doubtful about those that load; for people and for
//! programs.

use serde_json::{Value, json};
use watchbell::{
    api::{Client, request},
    config::{
        Config,
        diagnostic::{Diagnostic, Level, any_error},
    },
    model::{event::Event, time::Clock},
    rule::{self, Loaded, Loader, Vocabulary},
};

use super::{CliError, Context, Format, output};

/// The newest stored events tell what an organization's events look like.
const EVENTS: usize = 2_000;

/// What is known of events: in general, and by the newest stored ones.
pub(super) fn vocabulary(config: &Config) -> Vocabulary {
    let mut vocabulary = Vocabulary::default();
    if !config.data_dir.join("store").exists() {
        return vocabulary;
    }
    let query = request::Events { limit: Some(EVENTS), newest_first: true, ..request::Events::default() };
    // Without the store there is less to compare with, and nothing that would keep rules from being checked.
    let read = Client::open(config, &Clock::system()).and_then(|client| {
        vocabulary.add_catalog(&super::catalog_of(&client.all(request::Actions {})?));
        client.each(query, |event: Event| {
            vocabulary.add_event(&event.value());
            Ok(())
        })
    });
    if let Err(error) = read {
        tracing::warn!(%error, "stored events cannot be read: fields and actions are compared with what is documented");
    }
    vocabulary
}

/// Loads rules and looks them over.
pub(super) fn examine(mut loader: Loader, vocabulary: &Vocabulary) -> Loaded {
    let mut loaded = loader.load();
    let mut doubts: Vec<Diagnostic> = loaded.set.all().flat_map(|rule| rule::lint(rule, vocabulary)).collect();
    for exception in &loaded.set.exceptions {
        // One of its rules stands for all: what they have in common is the event.
        if let Some(rule) = loaded.set.all().find(|rule| exception.is_about(&rule.metadata)) {
            doubts.extend(rule::lint_exception(exception, rule, vocabulary));
        }
    }
    doubts.sort_by(|one, other| (&one.file, one.line, one.column).cmp(&(&other.file, other.line, other.column)));
    loaded.diagnostics.append(&mut doubts);
    loaded
}

/// Tells what was found, in the form that was asked for.
pub(super) fn report(context: &Context, loaded: &Loaded) -> Result<(), CliError> {
    let out = &context.output;
    match context.format {
        Format::Sarif => out.json(&sarif(&loaded.diagnostics))?,
        Format::Github => out.raw(&output::annotations(&loaded.diagnostics))?,
        Format::Json => out.json(&json!({
            "rules": loaded.set.detections.len(),
            "broken": loaded.set.broken,
            "diagnostics": loaded.diagnostics,
        }))?,
        _ => {
            out.diagnostics(&loaded.diagnostics);
            let word = if any_error(&loaded.diagnostics) { "FAILED" } else { "ok" };
            let count = |level| loaded.diagnostics.iter().filter(|found| found.level == level).count() as u64;
            out.line(&format!(
                "{word:<8} {}: {}, {}",
                output::count(loaded.set.detections.len() as u64, "rule"),
                output::count(count(Level::Error), "error"),
                output::count(count(Level::Warning), "warning")
            ))?;
        }
    }
    Ok(())
}

/// Problems as SARIF 2.1.0 (docs.oasis-open.org/sarif), which code hosts show beside the lines.
fn sarif(diagnostics: &[Diagnostic]) -> Value {
    let mut codes: Vec<&str> = diagnostics.iter().map(|found| found.code).collect();
    codes.sort_unstable();
    codes.dedup();
    let rules: Vec<Value> = codes.iter().map(|code| json!({ "id": code })).collect();
    let results: Vec<Value> = diagnostics
        .iter()
        .map(|found| {
            let help = found.help.as_ref().map_or_else(String::new, |help| format!(" ({help})"));
            let file = found.file.to_string_lossy().replace('\\', "/");
            let mut location = json!({ "artifactLocation": { "uri": file } });
            if let (Some(line), Some(column), Some(location)) = (found.line, found.column, location.as_object_mut()) {
                location.insert("region".to_owned(), json!({ "startLine": line, "startColumn": column }));
            }
            json!({
                "ruleId": found.code,
                "level": if found.level == Level::Error { "error" } else { "warning" },
                "message": { "text": format!("{}{help}", found.message) },
                "locations": [{ "physicalLocation": location }],
            })
        })
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": { "name": "watchbell", "version": env!("CARGO_PKG_VERSION"), "rules": rules } },
            "results": results,
        }],
    })
}
