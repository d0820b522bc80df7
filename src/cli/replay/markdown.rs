//! A replay report in Markdown, for a pull request.

use std::fmt::Write;

use watchbell::{
    model::alert::Alert,
    replay::{Diff, RuleReport},
};

use super::{
    super::output,
    page::{self, PageTemplate},
};

pub(super) fn markdown(page: &PageTemplate<'_>) -> String {
    let mut text = String::from("### watchbell replay\n\n");
    for line in page.summary() {
        text.push_str(&format!("{}  \n", escape(&line)));
    }
    text.push('\n');
    for broken in page.broken {
        text.push_str(&format!("**`--fail-on` condition met: {}**\n\n", code(broken)));
    }
    match page.diff {
        Some((against, diff)) => differences(&mut text, page, against, diff),
        None => results(&mut text, page),
    }
    text
}

fn results(text: &mut String, page: &PageTemplate<'_>) {
    let rules = page.rules();
    if rules.is_empty() {
        text.push_str("No rule matched.\n");
        return;
    }
    text.push_str("| rule | matches | alerts | per day | errors | when |\n|---|---:|---:|---:|---:|---|\n");
    for (id, rule) in &rules {
        let RuleReport { matches, alerts, errors, .. } = rule;
        let (per_day, when) = (page.per_day(*alerts), page.when(rule));
        text.push_str(&format!("| {} | {matches} | {alerts} | {per_day} | {errors} | {when} |\n", code(id.as_str())));
    }
    let quiet = page.quiet();
    if !quiet.is_empty() {
        text.push_str(&format!("\nNo matches: {}.\n", quiet.iter().map(|id| code(id)).collect::<Vec<_>>().join(", ")));
    }
    for (id, rule) in rules.iter().filter(|(_, rule)| rule.errors > 0 || rule.suspended) {
        text.push_str(&format!("\n**{}**: {}\n", escape(id.as_str()), code(&page::problem(rule))));
    }
    list(text, "Alerts", &page.report.alerts, page.show);
}

fn differences(text: &mut String, page: &PageTemplate<'_>, against: &str, diff: &Diff) {
    if let Some((before, after)) = diff.other_events {
        text.push_str(&format!("**Different events**: {before} before, {after} now.\n\n"));
    }
    if diff.not_compared > 0 {
        text.push_str(&format!("{} not compared.\n\n", output::count(diff.not_compared, "alert")));
    }
    if diff.rules.is_empty() {
        text.push_str(&format!(
            "No differences from {}: {} with the same results.\n",
            code(against),
            output::count(diff.same, "rule")
        ));
        return;
    }
    let same = output::count(diff.same, "rule");
    text.push_str(&format!("Compared with {}: {same} with the same results.\n\n", code(against)));
    text.push_str(
        "| rule | | matches | alerts | errors | added | gone | changed |\n|---|---|---:|---:|---:|---:|---:|---:|\n",
    );
    for (id, rule) in PageTemplate::rule_changes(diff) {
        let (matches, alerts) = (page::step(rule, |counts| counts.matches), page::step(rule, |counts| counts.alerts));
        let errors = page::step(rule, |counts| counts.errors);
        let (id, change) = (code(id.as_str()), page::change(rule.rule));
        let (added, gone, changed) = (rule.added, rule.gone, rule.changed);
        text.push_str(&format!(
            "| {id} | {change} | {matches} | {alerts} | {errors} | {added} | {gone} | {changed} |\n"
        ));
    }
    list(text, "Added", &diff.added, page.show);
    list(text, "Gone", &diff.gone, page.show);
    if !diff.changed.is_empty() {
        text.push_str(&format!("\n<details><summary>Changed ({})</summary>\n\n", diff.changed.len()));
        for changed in diff.changed.iter().take(page.show) {
            item(text, &changed.alert);
            for difference in page::differences(changed) {
                text.push_str(&format!("  - {}\n", escape(&difference)));
            }
        }
        rest(text, diff.changed.len(), page.show);
        text.push_str("\n</details>\n");
    }
}

fn list(text: &mut String, what: &str, alerts: &[Alert], show: usize) {
    if alerts.is_empty() {
        return;
    }
    text.push_str(&format!("\n<details><summary>{what} ({})</summary>\n\n", alerts.len()));
    for alert in alerts.iter().take(show) {
        item(text, alert);
    }
    rest(text, alerts.len(), show);
    text.push_str("\n</details>\n");
}

fn item(text: &mut String, alert: &Alert) {
    let (time, severity) = (output::time(alert.opened_at), alert.severity.as_str());
    let matches = if alert.count > 1 { format!(" ({} matches)", alert.count) } else { String::new() };
    // Writing to a string cannot fail.
    writeln!(text, "- {time} **{severity}** {} {}{matches}", code(alert.rule.as_str()), escape(&alert.title)).ok();
}

fn rest(text: &mut String, all: usize, shown: usize) {
    if all > shown {
        text.push_str(&format!("- … and {} more\n", all - shown));
    }
}

/// Escapes text from events, so that it does not become markup, a mention or a link.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for character in output::printable(text).chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '&' => escaped.push_str("&amp;"),
            // A backslash does not prevent a mention; a zero-width space does.
            '@' => escaped.push_str("@\u{200b}"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '!' | '~' | '>' | '$' => {
                escaped.push('\\');
                escaped.push(character);
            }
            _ => escaped.push(character),
        }
    }
    escaped.replace("://", ":\u{200b}//")
}

/// A name as code. A `|` is escaped, since it would end a table cell.
fn code(text: &str) -> String {
    format!("`{}`", output::printable(text).replace('`', "'").replace('|', "\\|"))
}
