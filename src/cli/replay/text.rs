//! A replay report for the terminal.

use watchbell::{
    deliver::{Message, render},
    model::alert::{Alert, Notice},
    replay::{Diff, RuleReport},
};

use super::{
    super::{
        CliError,
        output::{self, Output},
    },
    page::{self, PageTemplate},
};

/// Number of rules whose noisiest keys and actors are shown.
const NOISY: usize = 5;

pub(super) fn show(out: &Output, page: &PageTemplate<'_>) -> Result<(), CliError> {
    for line in page.summary() {
        out.line(&line)?;
    }
    out.line("")?;
    if let Some((against, diff)) = page.diff {
        differences(out, page, against, diff)?;
    } else {
        rules(out, page)?;
        noisy(out, page)?;
        alerts(out, page)?;
    }
    if page.profile {
        profile(out, page)?;
    }
    for broken in page.broken {
        out.line(&format!("`--fail-on` condition met: {broken}"))?;
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate for display")]
    let rate = page.report.events as f64 / page.took.as_secs_f64().max(0.001);
    out.note(&format!("replayed in {} ({rate:.0} events/s)", watchbell::model::time::show_duration(page.took)));
    Ok(())
}

fn rules(out: &Output, page: &PageTemplate<'_>) -> Result<(), CliError> {
    let rules = page.rules();
    let quiet = page.quiet();
    if !rules.is_empty() {
        let row = |rule: &RuleReport, id: &str| {
            let (matches, alerts, errors) =
                (rule.matches.to_string(), rule.alerts.to_string(), rule.errors.to_string());
            vec![
                id.to_owned(),
                matches,
                alerts,
                page.per_day(rule.alerts),
                errors,
                PageTemplate::spent(rule),
                page.when(rule),
            ]
        };
        let rows = rules.iter().map(|(id, rule)| row(rule, id.as_str())).collect();
        out.table(&["rule", "matches", "alerts", "per day", "errors", "time", "when"], rows)?;
        out.line("")?;
    }
    match quiet.len() {
        0 => {}
        1 => out.line(&format!("no matches: {}\n", quiet.join(", ")))?,
        count if rules.is_empty() => out.line(&format!("none of the {count} rules matched: {}\n", quiet.join(", ")))?,
        count => out.line(&format!("{count} rules without matches: {}\n", quiet.join(", ")))?,
    }
    failures(out, page)?;
    for (exception, matches) in page.excepted() {
        out.line(&format!("exception {exception} suppresses {matches} of these matches"))?;
    }
    if !page.excepted().is_empty() {
        out.line("")?;
    }
    Ok(())
}

fn failures(out: &Output, page: &PageTemplate<'_>) -> Result<(), CliError> {
    let rules = page.rules();
    let failing: Vec<_> = rules.iter().filter(|(_, rule)| rule.errors > 0 || rule.suspended).collect();
    for (id, rule) in &failing {
        out.line(&format!("{id}: {}", output::printable(&page::problem(rule))))?;
    }
    if !failing.is_empty() {
        out.line("")?;
    }
    Ok(())
}

/// The most frequent keys and actors of rules with several alerts.
fn noisy(out: &Output, page: &PageTemplate<'_>) -> Result<(), CliError> {
    let rules = page.rules();
    let noisy: Vec<_> = rules.iter().filter(|(_, rule)| rule.alerts > 1).take(NOISY).collect();
    if noisy.is_empty() {
        return Ok(());
    }
    out.line("noisiest dedup keys and actors")?;
    for (id, rule) in noisy {
        let top = |tally: &watchbell::replay::Tally| {
            let top = tally.top().into_iter().take(3);
            let named = top.map(|(text, count)| format!("{} ({count})", shortened(&output::printable(text), 60)));
            named.collect::<Vec<_>>().join(", ")
        };
        out.line(&format!("  {id}"))?;
        out.line(&format!("    keys    {}", top(&rule.keys)))?;
        out.line(&format!("    actors  {}", top(&rule.actors)))?;
    }
    out.line("")?;
    Ok(())
}

fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most).chain(['…']).collect()
}

fn alerts(out: &Output, page: &PageTemplate<'_>) -> Result<(), CliError> {
    let report = page.report;
    for alert in report.alerts.iter().take(page.show) {
        let message = Message::alert(Notice::Opened, alert.clone());
        out.line(render(&message, out.width()).trim_end())?;
        out.line("")?;
    }
    let total: u64 = report.rules.values().map(|rule| rule.alerts).sum();
    let rest = total.saturating_sub(page.show as u64);
    if rest > 0 {
        out.line(&format!("… and {} (`--show-alerts {total}` shows all)", output::count(rest, "more alert")))?;
    }
    Ok(())
}

fn differences(out: &Output, page: &PageTemplate<'_>, against: &str, diff: &Diff) -> Result<(), CliError> {
    if let Some((before, after)) = diff.other_events {
        out.line(&format!(
            "different events: {against} has {before}, this replay {after}; this may cause some of the differences\n"
        ))?;
    }
    if diff.not_compared > 0 {
        out.line(&format!("{} not compared, too many to keep\n", output::count(diff.not_compared, "alert")))?;
    }
    if diff.rules.is_empty() {
        let rules = output::count(diff.same, "rule");
        out.line(&format!("no differences from {against}: {rules} with the same results"))?;
        return Ok(());
    }
    let rows = PageTemplate::rule_changes(diff).map(|(id, rule)| {
        vec![
            id.to_string(),
            page::change(rule.rule).to_owned(),
            page::step(rule, |counts| counts.matches),
            page::step(rule, |counts| counts.alerts),
            page::step(rule, |counts| counts.errors),
            page::tally(rule),
        ]
    });
    out.table(&["rule", "", "matches", "alerts", "errors", "alerts added, gone, changed"], rows.collect())?;
    out.line(&format!("\n{} with the same results as {against}\n", output::count(diff.same, "rule")))?;
    failures(out, page)?;
    let list = |what: &str, alerts: &[Alert]| -> Result<(), CliError> {
        if alerts.is_empty() {
            return Ok(());
        }
        out.line(&format!("{what} ({})", alerts.len()))?;
        for alert in alerts.iter().take(page.show) {
            out.line(&format!("  {}", page::line(alert)))?;
        }
        more(out, alerts.len(), page.show)
    };
    list("added", &diff.added)?;
    list("gone", &diff.gone)?;
    if !diff.changed.is_empty() {
        out.line(&format!("changed ({})", diff.changed.len()))?;
        for changed in diff.changed.iter().take(page.show) {
            out.line(&format!("  {}", page::line(&changed.alert)))?;
            for difference in page::differences(changed) {
                out.line(&format!("    {difference}"))?;
            }
        }
        more(out, diff.changed.len(), page.show)?;
    }
    Ok(())
}

fn more(out: &Output, all: usize, shown: usize) -> Result<(), CliError> {
    if all > shown {
        out.line(&format!("  … and {} more (`--show-alerts {all}` shows all)", all - shown))?;
    }
    out.line("")?;
    Ok(())
}

/// The time of each rule and each function, the most expensive rule first.
fn profile(out: &Output, page: &PageTemplate<'_>) -> Result<(), CliError> {
    let mut rules: Vec<_> = page.report.rules.iter().filter_map(|(id, rule)| Some((id, rule.cost.as_ref()?))).collect();
    rules.sort_by(|(one, first), (other, second)| second.microseconds.cmp(&first.microseconds).then(one.cmp(other)));
    let all: u64 = rules.iter().map(|(_, cost)| cost.microseconds).sum();
    let mut rows = Vec::new();
    for (id, cost) in rules {
        let share = cost.microseconds * 100 / all.max(1);
        rows.push(vec![
            id.to_string(),
            page::duration(cost.microseconds),
            format!("{share}%"),
            String::new(),
            cost.avoided.to_string(),
        ]);
        for (function, cost) in &cost.functions {
            let name = format!("  {function}");
            rows.push(vec![
                name,
                page::duration(cost.microseconds),
                String::new(),
                cost.calls.to_string(),
                String::new(),
            ]);
        }
    }
    out.table(&["rule, function", "time", "share", "calls", "calls avoided"], rows)?;
    out.line("")?;
    Ok(())
}
