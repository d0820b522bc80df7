//! What `check` reports about rules: load errors and lint warnings, for people and for programs.

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

/// Number of newest stored events that show which fields an organization's events have.
const EVENTS: usize = 2_000;

/// The known fields and actions of events: the documented ones, and those of the newest stored events.
pub(super) fn vocabulary(config: &Config) -> Vocabulary {
    let mut vocabulary = Vocabulary::default();
    if !config.data_dir.join("store").exists() {
        return vocabulary;
    }
    let query = request::Events { limit: Some(EVENTS), newest_first: true, ..request::Events::default() };
    // Without the store, rules are still checked, only against fewer known fields and actions.
    let read = Client::open(config, &Clock::system()).and_then(|client| {
        vocabulary.add_catalog(&super::catalog_of(&client.all(request::Actions {})?));
        client.each(query, |event: Event| {
            vocabulary.add_event(&event.value());
            Ok(())
        })
    });
    if let Err(error) = read {
        tracing::warn!(%error, "cannot read stored events; rules are checked against documented fields only");
    }
    vocabulary
}

/// Loads and lints rules and exceptions.
pub(super) fn examine(mut loader: Loader, vocabulary: &Vocabulary) -> Loaded {
    let mut loaded = loader.load();
    let mut warnings: Vec<Diagnostic> = loaded.set.all().flat_map(|rule| rule::lint(rule, vocabulary)).collect();
    for exception in &loaded.set.context.exceptions {
        // One of its rules is enough: what the rules have in common is the event.
        if let Some(rule) = loaded.set.all().find(|rule| exception.is_about(&rule.metadata)) {
            warnings.extend(rule::lint_exception(exception, rule, vocabulary));
        }
    }
    warnings.sort_by(|one, other| (&one.file, one.line, one.column).cmp(&(&other.file, other.line, other.column)));
    loaded.diagnostics.append(&mut warnings);
    loaded
}

/// Prints the diagnostics in the requested format.
pub(super) fn report(context: &Context, loaded: &Loaded) -> Result<(), CliError> {
    let out = &context.output;
    match context.format {
        Format::Sarif => out.json(&sarif(&loaded.diagnostics))?,
        Format::Github => out.raw(&output::annotations(&loaded.diagnostics))?,
        Format::Json => out.json(&json!({
            "rules": loaded.set.detections.len(),
            "broken": loaded.set.context.broken,
            "diagnostics": loaded.diagnostics,
        }))?,
        _ => {
            out.diagnostics(&loaded.diagnostics);
            let word = if any_error(&loaded.diagnostics) { "FAILED" } else { "ok" };
            let count = |level| loaded.diagnostics.iter().filter(|problem| problem.level == level).count() as u64;
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

/// Diagnostics as SARIF 2.1.0 (docs.oasis-open.org/sarif), which code hosts show next to the lines.
fn sarif(diagnostics: &[Diagnostic]) -> Value {
    let mut codes: Vec<&str> = diagnostics.iter().map(|problem| problem.code).collect();
    codes.sort_unstable();
    codes.dedup();
    let rules: Vec<Value> = codes.iter().map(|code| json!({ "id": code })).collect();
    let results: Vec<Value> = diagnostics
        .iter()
        .map(|problem| {
            let help = problem.help.as_ref().map_or_else(String::new, |help| format!(" ({help})"));
            let file = problem.file.to_string_lossy().replace('\\', "/");
            let mut location = json!({ "artifactLocation": { "uri": file } });
            if let (Some(line), Some(column), Some(location)) = (problem.line, problem.column, location.as_object_mut())
            {
                location.insert("region".to_owned(), json!({ "startLine": line, "startColumn": column }));
            }
            json!({
                "ruleId": problem.code,
                "level": if problem.level == Level::Error { "error" } else { "warning" },
                "message": { "text": format!("{}{help}", problem.message) },
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
