//! The conditions of `--fail-on`, such as `added>20`.

use std::str::FromStr;

use watchbell::replay::{Diff, Report};

/// What a condition counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantity {
    Matches,
    Alerts,
    Errors,
    Added,
    Gone,
    Changed,
}

const QUANTITIES: [(&str, Quantity); 6] = [
    ("matches", Quantity::Matches),
    ("alerts", Quantity::Alerts),
    ("errors", Quantity::Errors),
    ("added", Quantity::Added),
    ("gone", Quantity::Gone),
    ("changed", Quantity::Changed),
];

/// Compares the number found with the limit.
type Comparison = fn(u64, u64) -> bool;

/// Longer signs come first, since `>=` begins with `>`.
const COMPARISONS: [(&str, Comparison); 4] = [
    (">=", |actual, limit| actual >= limit),
    ("<=", |actual, limit| actual <= limit),
    (">", |actual, limit| actual > limit),
    ("<", |actual, limit| actual < limit),
];

/// A condition under which a replay fails.
#[derive(Debug, Clone)]
pub(super) struct Limit {
    text: String,
    quantity: Quantity,
    is_met: Comparison,
    number: u64,
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain: String = text.chars().filter(|character| !character.is_whitespace()).collect();
        let read = COMPARISONS.iter().find_map(|(sign, is_met)| {
            let (name, number) = plain.split_once(sign)?;
            let (_, quantity) = QUANTITIES.iter().find(|(known, _)| *known == name)?;
            Some(Self { text: plain.clone(), quantity: *quantity, is_met: *is_met, number: number.parse().ok()? })
        });
        read.ok_or_else(|| {
            let names: Vec<&str> = QUANTITIES.iter().map(|(name, _)| *name).collect();
            format!(
                "expected a quantity, `>`, `>=`, `<` or `<=`, and a number, such as `added>20`; the quantities are {}",
                names.join(", ")
            )
        })
    }
}

impl Limit {
    /// True if the condition needs a comparison with other rules.
    pub(super) fn compares(&self) -> bool {
        matches!(self.quantity, Quantity::Added | Quantity::Gone | Quantity::Changed)
    }

    /// The condition as written, without spaces.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The condition and the number found, if the condition is met.
    pub(super) fn broken_by(&self, report: &Report, diff: Option<&Diff>) -> Option<String> {
        let sum = |of: fn(&watchbell::replay::RuleReport) -> u64| report.rules.values().map(of).sum();
        let rules = |of: fn(&watchbell::replay::RuleDiff) -> u64| {
            diff.map_or(0, |diff| diff.rules.values().map(of).sum::<u64>())
        };
        let actual = match self.quantity {
            Quantity::Matches => sum(|rule| rule.matches),
            Quantity::Alerts => sum(|rule| rule.alerts),
            Quantity::Errors => sum(|rule| rule.errors),
            Quantity::Added => rules(|rule| rule.added),
            Quantity::Gone => rules(|rule| rule.gone),
            Quantity::Changed => rules(|rule| rule.changed),
        };
        (self.is_met)(actual, self.number).then(|| format!("{}: {actual}", self.text))
    }
}
