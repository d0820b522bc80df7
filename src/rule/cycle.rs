//! Rules that subscribe to their own matches, directly or through other rules. An event would loop forever, so none of
//! them may run.

use std::sync::Arc;

use crate::model::name::RuleId;
use crate::rule::script::compiled::CompiledRule;

/// Returns the rules whose subscriptions form a cycle.
pub(super) fn in_a_circle(rules: &[Arc<CompiledRule>]) -> Vec<RuleId> {
    // Only subscribers can be part of a cycle.
    let subscribers: Vec<&Arc<CompiledRule>> = rules.iter().filter(|rule| rule.metadata.on.is_some()).collect();
    let mut edges: Vec<Vec<usize>> = vec![Vec::new(); subscribers.len()];
    let mut reversed: Vec<Vec<usize>> = vec![Vec::new(); subscribers.len()];
    for (index, (rule, of_rule)) in subscribers.iter().zip(&mut edges).enumerate() {
        for (other_index, (other, of_other)) in subscribers.iter().zip(&mut reversed).enumerate() {
            if rule.listens_to(&other.metadata) {
                of_rule.push(other_index);
                of_other.push(index);
            }
        }
    }
    let is_own_subscriber = |rule: usize| edges.get(rule).is_some_and(|targets| targets.contains(&rule));
    let mut in_cycle: Vec<usize> = (0..subscribers.len()).filter(|rule| is_own_subscriber(*rule)).collect();
    for component in connected(&edges, &reversed) {
        if component.len() > 1 {
            in_cycle.extend(component);
        }
    }
    in_cycle.sort_unstable();
    in_cycle.dedup();
    in_cycle.into_iter().filter_map(|rule| subscribers.get(rule)).map(|rule| rule.id().clone()).collect()
}

/// The strongly connected components of a graph, by Kosaraju's algorithm. Time is linear in the number of edges.
fn connected(edges: &[Vec<usize>], reversed: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut seen = vec![false; edges.len()];
    let mut order = Vec::new();
    for start in 0..edges.len() {
        walk(edges, start, &mut seen, &mut order);
    }
    let mut seen = vec![false; edges.len()];
    let components = order.into_iter().rev().map(|start| {
        let mut component = Vec::new();
        walk(reversed, start, &mut seen, &mut component);
        component
    });
    components.filter(|component| !component.is_empty()).collect()
}

/// Appends the unseen nodes that are reachable from `start`, in post-order.
fn walk(edges: &[Vec<usize>], start: usize, seen: &mut [bool], order: &mut Vec<usize>) {
    let mut enter = |node: usize| seen.get_mut(node).is_some_and(|seen| !std::mem::replace(seen, true));
    if !enter(start) {
        return;
    }
    // Each node, with the number of its edges followed so far.
    let mut path = vec![(start, 0)];
    while let Some((node, followed)) = path.last_mut() {
        match edges.get(*node).and_then(|edges| edges.get(*followed)) {
            Some(next) => {
                *followed += 1;
                if enter(*next) {
                    path.push((*next, 0));
                }
            }
            None => {
                order.push(*node);
                path.pop();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Checks the definition: two nodes share a component if each is reachable from the other.
        #[test]
        fn components_match_the_definition(edges in prop::collection::vec(prop::collection::vec(0..8_usize, 0..4), 8)) {
            let mut reversed = vec![Vec::new(); edges.len()];
            for (from, tos) in edges.iter().enumerate() {
                tos.iter().for_each(|to| reversed[*to].push(from));
            }
            let mut reaches = vec![vec![false; 8]; 8];
            for (from, tos) in edges.iter().enumerate() {
                tos.iter().for_each(|to| reaches[from][*to] = true);
            }
            for middle in 0..8 {
                for from in 0..8 {
                    for to in 0..8 {
                        reaches[from][to] |= reaches[from][middle] && reaches[middle][to];
                    }
                }
            }
            let mut component_of = [0; 8];
            for (number, component) in connected(&edges, &reversed).iter().enumerate() {
                component.iter().for_each(|node| component_of[*node] = number);
            }
            for from in 0..8 {
                for to in (0..8).filter(|to| *to != from) {
                    let mutual = reaches[from][to] && reaches[to][from];
                    prop_assert_eq!(component_of[from] == component_of[to], mutual);
                }
            }
        }
    }
}
