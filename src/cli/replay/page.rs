//! What a replay has to tell, whatever the format: numbers that are worked out once and written in several ways.

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

/// What is told of a replay.
pub(super) struct PageTemplate<'a> {
    pub(super) report: &'a Report,
    /// What it was compared with, and what differs.
    pub(super) diff: Option<(&'a str, &'a Diff)>,
    /// Limits of `--fail-on` that are broken.
    pub(super) broken: &'a [String],
    /// Limits of `--fail-on`, all.
    pub(super) limits: &'a [String],
    /// Alerts that are shown in full, or of each kind of difference.
    pub(super) show: usize,
    pub(super) profile: bool,
    pub(super) took: Duration,
}

/// Bars of a timeline in text.
const COLUMNS: usize = 24;

impl PageTemplate<'_> {
    /// Rules that found something or failed, those with the most alerts first.
    pub(super) fn rules(&self) -> Vec<(&RuleId, &RuleReport)> {
        let found = |(_, rule): &(&RuleId, &RuleReport)| rule.matches + rule.alerts + rule.errors > 0 || rule.suspended;
        let mut rules: Vec<_> = self.report.rules.iter().filter(found).collect();
        rules.sort_by(|(one, first), (other, second)| {
            let key = |rule: &RuleReport| (rule.alerts, rule.matches, rule.errors);
            key(second).cmp(&key(first)).then(one.cmp(other))
        });
        rules
    }

    /// Rules that found nothing.
    pub(super) fn quiet(&self) -> Vec<&str> {
        let nothing = |rule: &RuleReport| rule.matches + rule.alerts + rule.errors == 0 && !rule.suspended;
        self.report.rules.iter().filter(|(_, rule)| nothing(rule)).map(|(id, _)| id.as_str()).collect()
    }

    /// `2,512 events, 2026-03-01 09:00:00 to … UTC`, and what else is to be known of them.
    pub(super) fn summary(&self) -> Vec<String> {
        let report = self.report;
        let range = match (report.earliest, report.latest) {
            (Some(earliest), Some(latest)) => format!(", {} to {} UTC", output::time(earliest), output::time(latest)),
            _ => String::new(),
        };
        let mut lines = vec![format!("{}{range}", output::count(report.events, "event"))];
        if let Some(warm_up) = &report.warm_up {
            lines.push(format!(
                "after learning from {}, from {} UTC on",
                output::count(warm_up.events, "event"),
                output::time(warm_up.earliest)
            ));
        }
        if report.interrupted {
            lines.push("interrupted: this is what was found until then".to_owned());
        }
        if report.unreadable > 0 {
            lines.push(format!(
                "{} or blocks of them could not be read: `watchbell store verify` looks closer",
                output::count(report.unreadable, "event")
            ));
        }
        if report.not_kept > 0 {
            lines.push(format!("{} only counted: there are too many to keep", output::count(report.not_kept, "alert")));
        }
        lines
    }

    /// Alerts a day.
    pub(super) fn a_day(&self, alerts: u64) -> String {
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

    /// When a rule matched, as bars.
    pub(super) fn when(&self, rule: &RuleReport) -> String {
        let columns = self.columns(rule, COLUMNS);
        if columns.iter().all(|count| *count == 0) { String::new() } else { bars(columns.into_iter()) }
    }

    /// When a rule matched: in each of equal parts of the time, at most so many, none shorter than an hour.
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

    /// How long a rule's functions ran.
    pub(super) fn spent(rule: &RuleReport) -> String {
        rule.cost.as_ref().map_or_else(String::new, |cost| duration(cost.microseconds))
    }

    /// The rules of which something differs, with a line about each.
    pub(super) fn rule_changes(diff: &Diff) -> impl Iterator<Item = (&RuleId, &RuleDiff)> {
        diff.rules.iter()
    }

    /// Exceptions and what they hide.
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

/// What went wrong in a rule.
pub(super) fn problem(rule: &RuleReport) -> String {
    let error = rule.first_error.clone().unwrap_or_default();
    if rule.suspended { format!("suspended after this: {error}") } else { error }
}

/// `new`, `gone`, `edited`, or nothing.
pub(super) fn change(change: RuleChange) -> &'static str {
    match change {
        RuleChange::Added => "new",
        RuleChange::Removed => "removed",
        RuleChange::Edited => "edited",
        RuleChange::Same => "",
    }
}

/// `3 → 5`, or `3` where nothing changed.
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

/// An alert on a line.
pub(super) fn line(alert: &Alert) -> String {
    let matches = if alert.count > 1 { format!(" ({} matches)", alert.count) } else { String::new() };
    let title = output::printable(&alert.title);
    format!("{}  {:<8}  {}  {title}{matches}", output::time(alert.opened_at), alert.severity.as_str(), alert.rule)
}

/// What differs of an alert, a line each.
pub(super) fn differences(changed: &ChangedAlert) -> Vec<String> {
    let all = changed.differences.iter();
    all.map(|one| format!("{}: {} → {}", one.what, output::printable(&one.before), output::printable(&one.after)))
        .collect()
}
