//! Rules that cannot match because they name none of the organization's known actions.

use std::collections::BTreeSet;

use crate::model::{action, name::RuleId};
use crate::rule::set::RuleSet;

/// Maximum number of suggested actions per rule.
const SUGGESTED: usize = 3;

/// A rule that matches none of an organization's actions.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Unmatched {
    /// The rule's id.
    pub rule: RuleId,
    /// The organization's actions that are most similar to the ones the rule names.
    pub nearest: Vec<String>,
}

impl RuleSet {
    /// Returns the rules that name only unknown actions. `known` lists the known action ids, each with its name. The
    /// result is empty if `known` is.
    pub fn unmatched(&self, known: &[(String, Option<String>)]) -> Vec<Unmatched> {
        if known.is_empty() {
            return Vec::new();
        }
        let matched: BTreeSet<usize> = known.iter().flat_map(|(id, _)| self.wanting(id)).collect();
        let rules = self.detections.iter().enumerate();
        let unmatched = rules.filter(|(index, rule)| rule.metadata.on.is_none() && !matched.contains(index));
        let unmatched = unmatched.map(|(_, rule)| {
            let mut nearest: Vec<String> = Vec::new();
            let wanted = rule.metadata.actions.iter().chain(&rule.metadata.activities).flatten();
            // Take the best suggestion for each name before the second best for any.
            let suggested: Vec<Vec<&str>> = wanted
                .map(|wanted| {
                    let known = known.iter().map(|(id, name)| (id.as_str(), name.as_deref()));
                    action::nearest(wanted, known, SUGGESTED)
                })
                .collect();
            for place in 0..SUGGESTED {
                for id in suggested.iter().filter_map(|ids| ids.get(place)) {
                    if nearest.len() < SUGGESTED && !nearest.iter().any(|other| other == id) {
                        nearest.push((*id).to_owned());
                    }
                }
            }
            Unmatched { rule: rule.id().clone(), nearest }
        });
        unmatched.collect()
    }
}
