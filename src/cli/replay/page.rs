//! The contents of a replay report in any format: each number is computed once and rendered in several ways.

use std::{collections::BTreeMap, time::Duration};

use watchbell::{
    model::{
        alert::{Alert, bars},
        name::RuleId,
        time::{self, Timestamp},
    },
    replay::{ChangedAlert, Diff, Found, Report, RuleChange, RuleDiff, RuleReport},
};

use super::super::output;

/// A replay report, to be rendered.
pub(super) struct PageTemplate<'a> {
    pub(super) report: &'a Report,
    /// What the replay was compared with, and the differences.
    pub(super) diff: Option<(&'a str, &'a Diff)>,
    /// The conditions of `--fail-on` that are met, each with the number found.
    pub(super) broken: &'a [String],
    /// All conditions of `--fail-on`.
    pub(super) limits: &'a [String],
    /// Number of alerts to show, per kind of difference.
    pub(super) show: usize,
    pub(super) profile: bool,
    pub(super) took: Duration,
}

/// Number of bars of a timeline in text.
const COLUMNS: usize = 24;

impl PageTemplate<'_> {
    /// Rules that matched or failed, those with the most alerts first.
    pub(super) fn rules(&self) -> Vec<(&RuleId, &RuleReport)> {
        let seen = |(_, rule): &(&RuleId, &RuleReport)| rule.matches + rule.alerts + rule.errors > 0 || rule.suspended;
        let mut rules: Vec<_> = self.report.rules.iter().filter(seen).collect();
        rules.sort_by(|(one, first), (other, second)| {
            let key = |rule: &RuleReport| (rule.alerts, rule.matches, rule.errors);
            key(second).cmp(&key(first)).then(one.cmp(other))
        });
        rules
    }

    /// Rules that neither matched nor failed.
    pub(super) fn quiet(&self) -> Vec<&str> {
        let quiet = |rule: &RuleReport| rule.matches + rule.alerts + rule.errors == 0 && !rule.suspended;
        self.report.rules.iter().filter(|(_, rule)| quiet(rule)).map(|(id, _)| id.as_str()).collect()
    }

    /// `2512 events, 2026-03-01 09:00:00 to … UTC`, followed by remarks.
    pub(super) fn summary(&self) -> Vec<String> {
        let report = self.report;
        let range = match (report.earliest, report.latest) {
            (Some(earliest), Some(latest)) => format!(", {} to {} UTC", output::time(earliest), output::time(latest)),
            _ => String::new(),
        };
        let mut lines = vec![format!("{}{range}", output::count(report.events, "event"))];
        if let Some(warm_up) = &report.warm_up {
            lines.push(format!(
                "after a warm-up of {}, from {} UTC on",
                output::count(warm_up.events, "event"),
                output::time(warm_up.earliest)
            ));
        }
        if report.interrupted {
            lines.push("interrupted; the results are incomplete".to_owned());
        }
        if report.unreadable > 0 {
            lines.push(format!(
                "{} or blocks of events could not be read; run `watchbell store verify` for details",
                output::count(report.unreadable, "event")
            ));
        }
        if report.not_kept > 0 {
            lines.push(format!("{} only counted, too many to keep", output::count(report.not_kept, "alert")));
        }
        lines
    }

    /// Alerts per day.
    pub(super) fn per_day(&self, alerts: u64) -> String {
        let days = match (self.report.earliest, self.report.latest) {
            (Some(earliest), Some(latest)) => time::since(latest, earliest).as_secs_f64() / 86_400.0,
            _ => 0.0,
        };
        #[expect(clippy::cast_precision_loss, reason = "counts are far below what a float holds exactly")]
        let rate = alerts as f64 / days.max(1.0);
        if alerts == 0 {
            "0".to_owned()
        } else if rate < 0.01 {
            "<0.01".to_owned()
        } else if rate < 10.0 {
            format!("{rate:.2}")
        } else {
            format!("{rate:.0}")
        }
    }

    /// A rule's matches over time, as bars.
    pub(super) fn when(&self, rule: &RuleReport) -> String {
        let columns = self.columns(rule, COLUMNS);
        if columns.iter().all(|count| *count == 0) { String::new() } else { bars(columns.into_iter()) }
    }

    /// A rule's matches over time: the number in each of at most `most` equal parts, none shorter than an hour.
    pub(super) fn columns(&self, rule: &RuleReport, most: usize) -> Vec<u64> {
        let (Some(earliest), Some(latest)) = (self.report.earliest, self.report.latest) else {
            return Vec::new();
        };
        let hour = |time: Timestamp| time.as_second().div_euclid(3_600);
        let (first, last) = (hour(earliest), hour(latest));
        let span = last.saturating_sub(first).saturating_add(1).max(1);
        let count = usize::try_from(span).unwrap_or(most).min(most);
        let mut columns = vec![0_u64; count];
        for (hour, matches) in &rule.hours {
            let place = i128::from(hour.saturating_sub(first)) * count as i128 / i128::from(span);
            if let Some(column) = usize::try_from(place).ok().and_then(|place| columns.get_mut(place)) {
                *column += matches;
            }
        }
        columns
    }

    /// Time spent in a rule's functions.
    pub(super) fn spent(rule: &RuleReport) -> String {
        rule.cost.as_ref().map_or_else(String::new, |cost| duration(cost.microseconds))
    }

    /// The rules that differ.
    pub(super) fn rule_changes(diff: &Diff) -> impl Iterator<Item = (&RuleId, &RuleDiff)> {
        diff.rules.iter()
    }

    /// Exceptions, each with the number of matches that it suppresses.
    pub(super) fn excepted(&self) -> &BTreeMap<watchbell::model::name::ExceptionId, u64> {
        &self.report.excepted
    }
}

/// `850 µs`, `12 ms`, `3.4 s`.
pub(super) fn duration(microseconds: u64) -> String {
    match microseconds {
        0..1_000 => format!("{microseconds} µs"),
        1_000..1_000_000 => format!("{} ms", microseconds / 1_000),
        _ => format!("{}.{} s", microseconds / 1_000_000, microseconds / 100_000 % 10),
    }
}

/// The first error of a rule.
pub(super) fn problem(rule: &RuleReport) -> String {
    let error = rule.first_error.clone().unwrap_or_default();
    if rule.suspended { format!("suspended after this: {error}") } else { error }
}

/// `new`, `removed`, `edited`, or empty.
pub(super) fn change(change: RuleChange) -> &'static str {
    match change {
        RuleChange::Added => "new",
        RuleChange::Removed => "removed",
        RuleChange::Edited => "edited",
        RuleChange::Same => "",
    }
}

/// `3 → 5`, or `3` if it did not change.
pub(super) fn step(diff: &RuleDiff, of: fn(&Found) -> u64) -> String {
    let (before, after) = (of(&diff.before), of(&diff.after));
    if before == after { after.to_string() } else { format!("{before} → {after}") }
}

/// `+2 -1 ~3`.
pub(super) fn tally(diff: &RuleDiff) -> String {
    let part = |sign: char, count: u64| (count > 0).then(|| format!("{sign}{count}"));
    let parts = [part('+', diff.added), part('-', diff.gone), part('~', diff.changed)];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// An alert, on one line.
pub(super) fn line(alert: &Alert) -> String {
    let matches = if alert.count > 1 { format!(" ({} matches)", alert.count) } else { String::new() };
    let title = output::printable(&alert.title);
    format!("{}  {:<8}  {}  {title}{matches}", output::time(alert.opened_at), alert.severity.as_str(), alert.rule)
}

/// The differences of an alert, one per line.
pub(super) fn differences(changed: &ChangedAlert) -> Vec<String> {
    let all = changed.differences.iter();
    all.map(|one| format!("{}: {} → {}", one.what, output::printable(&one.before), output::printable(&one.after)))
        .collect()
}
