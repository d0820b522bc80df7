//! A replay report as a self-contained HTML page without scripts: a timeline of each rule, and the alerts.

use watchbell::{
    model::alert::Alert,
    replay::{Diff, RuleReport},
};

use super::{
    super::output::{self, xml},
    page::{self, PageTemplate},
};

/// Maximum number of bars of a timeline.
const BARS: usize = 120;
/// Maximum number of alerts per list, so that a browser can still open the page.
const MAX_ALERTS: usize = 2_000;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c2430; --dim: #66707f; --line: #d8dde5; --back: #ffffff; --bar: #2f6fde; --bad: #b3261e; --ok: #1b7f4b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e7ee; --dim: #98a2b3; --line: #333b48; --back: #12161d; --bar: #6ea0ff; --bad: #ff8a80; --ok: #6fd39b; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p { margin: .2rem 0; } .dim { color: var(--dim); } .bad { color: var(--bad); } .ok { color: var(--ok); }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; } th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: middle; }
th { font-weight: 600; color: var(--dim); font-size: .85rem; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
code { font: 13px ui-monospace, monospace; } svg { display: block; width: 100%; height: 2.2rem; } svg rect { fill: var(--bar); } svg rect.space { fill: transparent; }
details { border-bottom: 1px solid var(--line); padding: .3rem 0; } summary { cursor: pointer; } dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .5rem 0 .5rem 1.2rem; } dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
.severity { display: inline-block; min-width: 4.5rem; font-weight: 600; } .critical, .high { color: var(--bad); }
";

pub(super) fn html(page: &PageTemplate<'_>) -> String {
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>watchbell replay</title>\n<style>{STYLE}</style></head>\n\
         <body>\n<h1>watchbell replay</h1>\n"
    );
    for line in page.summary() {
        text.push_str(&format!("<p class=\"dim\">{}</p>\n", xml(&line)));
    }
    for broken in page.broken {
        text.push_str(&format!("<p class=\"bad\">--fail-on condition met: {}</p>\n", xml(broken)));
    }
    if let Some((against, diff)) = page.diff {
        differences(&mut text, against, diff);
    }
    rules(&mut text, page);
    let alerts = page.report.alerts.iter().collect::<Vec<_>>();
    list(&mut text, "Alerts", &alerts);
    text.push_str("</body></html>\n");
    text
}

fn rules(text: &mut String, page: &PageTemplate<'_>) {
    let rules = page.rules();
    text.push_str("<h2>Rules</h2>\n");
    if !rules.is_empty() {
        text.push_str(
            "<table><tr><th>rule</th><th class=\"number\">matches</th><th class=\"number\">alerts</th><th class=\"number\">per day</th>\
             <th class=\"number\">errors</th><th class=\"number\">time</th><th style=\"width:45%\">when it matched</th></tr>\n",
        );
        for (id, rule) in &rules {
            row(text, page, id.as_str(), rule);
        }
        text.push_str("</table>\n");
    }
    let quiet = page.quiet();
    if !quiet.is_empty() {
        text.push_str(&format!("<p class=\"dim\">No matches: {}</p>\n", xml(&quiet.join(", "))));
    }
    for (id, rule) in rules.iter().filter(|(_, rule)| rule.errors > 0 || rule.suspended) {
        text.push_str(&format!("<p class=\"bad\">{}: {}</p>\n", xml(id.as_str()), xml(&page::problem(rule))));
    }
}

fn row(text: &mut String, page: &PageTemplate<'_>, id: &str, rule: &RuleReport) {
    let top = |tally: &watchbell::replay::Tally| {
        let top = tally.top().into_iter().map(|(text, count)| format!("{text} ({count})"));
        top.collect::<Vec<_>>().join(", ")
    };
    let common = format!("keys: {}\nactors: {}", top(&rule.keys), top(&rule.actors));
    text.push_str(&format!(
        "<tr><td title=\"{}\"><code>{}</code></td><td class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td>\
         <td class=\"number\">{}</td><td class=\"number\">{}</td><td>{}</td></tr>\n",
        xml(&common),
        xml(id),
        rule.matches,
        rule.alerts,
        page.per_day(rule.alerts),
        rule.errors,
        PageTemplate::spent(rule),
        timeline(page, rule)
    ));
}

/// Bars over time. The tooltip of each shows its number and time.
fn timeline(page: &PageTemplate<'_>, rule: &RuleReport) -> String {
    let columns = page.columns(rule, BARS);
    let most = columns.iter().copied().max().unwrap_or(0).max(1);
    let (Some(earliest), Some(latest)) = (page.report.earliest, page.report.latest) else {
        return String::new();
    };
    let hours = latest.as_second().div_euclid(3_600) - earliest.as_second().div_euclid(3_600) + 1;
    let begins = |place: usize| {
        let hour = earliest.as_second().div_euclid(3_600) + hours * place as i64 / columns.len().max(1) as i64;
        output::time(watchbell::model::time::from_millis(hour * 3_600_000))
    };
    let mut svg = format!("<svg viewBox=\"0 0 {} 30\" preserveAspectRatio=\"none\" role=\"img\">", columns.len() * 10);
    for (place, count) in columns.iter().enumerate().filter(|(_, count)| **count > 0) {
        let height = (count * 28).div_ceil(most).max(2);
        let tip = format!("{count} from {} UTC on", begins(place));
        svg.push_str(&format!(
            "<rect x=\"{}\" y=\"{}\" width=\"9\" height=\"{height}\"><title>{tip}</title></rect>",
            place * 10,
            30 - height
        ));
    }
    svg.push_str("</svg>");
    svg
}

fn differences(text: &mut String, against: &str, diff: &Diff) {
    text.push_str(&format!("<h2>Compared with {}</h2>\n", xml(against)));
    if let Some((before, after)) = diff.other_events {
        text.push_str(&format!("<p class=\"bad\">Different events: {before} before, {after} now.</p>\n"));
    }
    if diff.not_compared > 0 {
        text.push_str(&format!("<p class=\"bad\">{} not compared</p>\n", output::count(diff.not_compared, "alert")));
    }
    text.push_str(&format!("<p class=\"dim\">{} with the same results</p>\n", output::count(diff.same, "rule")));
    if !diff.rules.is_empty() {
        text.push_str("<table><tr><th>rule</th><th></th><th>matches</th><th>alerts</th><th>errors</th><th>added, gone, changed</th></tr>\n");
        for (id, rule) in PageTemplate::rule_changes(diff) {
            text.push_str(&format!(
                "<tr><td><code>{}</code></td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                xml(id.as_str()),
                page::change(rule.rule),
                page::step(rule, |counts| counts.matches),
                page::step(rule, |counts| counts.alerts),
                page::step(rule, |counts| counts.errors),
                page::tally(rule)
            ));
        }
        text.push_str("</table>\n");
    }
    list(text, "Added", &diff.added.iter().collect::<Vec<_>>());
    list(text, "Gone", &diff.gone.iter().collect::<Vec<_>>());
    if !diff.changed.is_empty() {
        text.push_str(&format!("<h2>Changed ({})</h2>\n", diff.changed.len()));
        for changed in diff.changed.iter().take(MAX_ALERTS) {
            let what = page::differences(changed).join("\n");
            text.push_str(&alert(&changed.alert, Some(&what)));
        }
    }
}

fn list(text: &mut String, what: &str, alerts: &[&Alert]) {
    if alerts.is_empty() {
        return;
    }
    text.push_str(&format!("<h2>{what} ({})</h2>\n", alerts.len()));
    for one in alerts.iter().take(MAX_ALERTS) {
        text.push_str(&alert(one, None));
    }
    if alerts.len() > MAX_ALERTS {
        text.push_str(&format!("<p class=\"dim\">… and {} more</p>\n", alerts.len() - MAX_ALERTS));
    }
}

fn alert(alert: &Alert, differences: Option<&str>) -> String {
    let severity = alert.severity.as_str();
    let mut text = format!(
        "<details><summary><span class=\"severity {severity}\">{severity}</span> {} <span class=\"dim\">{} · {}</span></summary><dl>",
        xml(&alert.title),
        output::time(alert.opened_at),
        xml(alert.rule.as_str())
    );
    let mut field = |name: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!("<dt>{}</dt><dd>{}</dd>", xml(name), xml(value)));
        }
    };
    field("differences", differences.unwrap_or_default());
    field("matches", &alert.count.to_string());
    field("last", &output::time(alert.last_seen));
    field("key", alert.dedup_key.as_str());
    field("actor", alert.evidence.who().unwrap_or_default());
    for (name, value) in &alert.context {
        let plain = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        field(name, &plain);
    }
    field("description", alert.description.as_deref().unwrap_or_default());
    field("runbook", alert.runbook.as_deref().unwrap_or_default());
    field("attack", &alert.attack.join(", "));
    let events: Vec<&str> = alert.first_events.iter().map(watchbell::model::name::EventId::as_str).collect();
    field("events", &events.join("\n"));
    text.push_str("</dl></details>\n");
    text
}
