//! Rules that cannot match: none of the actions that an organization is known to have is one of theirs.

use std::collections::BTreeSet;

use crate::model::{action, name::RuleId};
use crate::rule::set::RuleSet;

/// Actions that are suggested in place of those that a rule names.
const SUGGESTED: usize = 3;

/// A rule that can match none of an organization's actions.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Unmatched {
    /// The rule.
    pub rule: RuleId,
    /// The organization's actions that come nearest to what it names.
    pub nearest: Vec<String>,
}

impl RuleSet {
    /// The rules that name actions none of which is known, given the ids that are, each with its name. Where nothing is known,
    /// nothing can be said.
    pub fn unmatched(&self, known: &[(String, Option<String>)]) -> Vec<Unmatched> {
        if known.is_empty() {
            return Vec::new();
        }
        let seeing: BTreeSet<usize> = known.iter().flat_map(|(id, _)| self.wanting(id)).collect();
        let rules = self.detections.iter().enumerate();
        let unmatched = rules.filter(|(index, rule)| rule.metadata.on.is_none() && !seeing.contains(index));
        let found = unmatched.map(|(_, rule)| {
            let mut nearest: Vec<String> = Vec::new();
            let wanted = rule.metadata.actions.iter().chain(&rule.metadata.activities).flatten();
            // The best of each before the second best of any.
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
        found.collect()
    }
}
