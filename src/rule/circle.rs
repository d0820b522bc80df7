//! Rules that listen to themselves, directly or through others: an event would go round for ever, so none of them may run.

use std::sync::Arc;

use super::CompiledRule;
use crate::name::RuleId;

/// The rules of these that listen in a circle.
pub(super) fn in_a_circle(rules: &[Arc<CompiledRule>]) -> Vec<RuleId> {
    let heard = |rule: &CompiledRule| rules.iter().filter(|other| rule.listens_to(&other.metadata)).collect::<Vec<_>>();
    let goes_round = |rule: &&Arc<CompiledRule>| {
        let mut reached = heard(rule);
        let mut next = 0;
        while let Some(other) = reached.get(next).copied() {
            for further in heard(other) {
                if !reached.iter().any(|known| known.id() == further.id()) {
                    reached.push(further);
                }
            }
            next += 1;
        }
        reached.iter().any(|other| other.id() == rule.id())
    };
    let listening = rules.iter().filter(|rule| rule.metadata.on.is_some());
    listening.filter(goes_round).map(|rule| rule.id().clone()).collect()
}
