//! Rules that listen to themselves, directly or through others: an event would go round for ever, so none of them may run.

use std::sync::Arc;

use crate::model::name::RuleId;
use crate::rule::script::compiled::CompiledRule;

/// The rules of these that listen in a circle.
pub(super) fn in_a_circle(rules: &[Arc<CompiledRule>]) -> Vec<RuleId> {
    // Who is in a circle listens.
    let listening: Vec<&Arc<CompiledRule>> = rules.iter().filter(|rule| rule.metadata.on.is_some()).collect();
    let mut heard: Vec<Vec<usize>> = vec![Vec::new(); listening.len()];
    let mut hearing: Vec<Vec<usize>> = vec![Vec::new(); listening.len()];
    for (index, (rule, of_rule)) in listening.iter().zip(&mut heard).enumerate() {
        for (other, (found, of_other)) in listening.iter().zip(&mut hearing).enumerate() {
            if rule.listens_to(&found.metadata) {
                of_rule.push(other);
                of_other.push(index);
            }
        }
    }
    let listens_to_itself = |rule: usize| heard.get(rule).is_some_and(|heard| heard.contains(&rule));
    let mut found: Vec<usize> = (0..listening.len()).filter(|rule| listens_to_itself(*rule)).collect();
    for part in connected(&heard, &hearing) {
        if part.len() > 1 {
            found.extend(part);
        }
    }
    found.sort_unstable();
    found.dedup();
    found.into_iter().filter_map(|rule| listening.get(rule)).map(|rule| rule.id().clone()).collect()
}

/// The strongly connected parts of a graph, by Kosaraju's algorithm: in time that follows the number of its edges.
fn connected(edges: &[Vec<usize>], reversed: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut seen = vec![false; edges.len()];
    let mut order = Vec::new();
    for start in 0..edges.len() {
        walk(edges, start, &mut seen, &mut order);
    }
    let mut seen = vec![false; edges.len()];
    let parts = order.into_iter().rev().map(|start| {
        let mut part = Vec::new();
        walk(reversed, start, &mut seen, &mut part);
        part
    });
    parts.filter(|part| !part.is_empty()).collect()
}

/// Adds what is reached from a place and not seen yet, each after all that is reached from it.
fn walk(edges: &[Vec<usize>], start: usize, seen: &mut [bool], order: &mut Vec<usize>) {
    let mut enter = |place: usize| seen.get_mut(place).is_some_and(|seen| !std::mem::replace(seen, true));
    if !enter(start) {
        return;
    }
    // Each place with how many of its edges have been followed.
    let mut path = vec![(start, 0)];
    while let Some((place, followed)) = path.last_mut() {
        match edges.get(*place).and_then(|edges| edges.get(*followed)) {
            Some(next) => {
                *followed += 1;
                if enter(*next) {
                    path.push((*next, 0));
                }
            }
            None => {
                order.push(*place);
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
        /// Against the definition: two places are of one part if each is reached from the other.
        #[test]
        fn parts_are_what_reaches_itself(edges in prop::collection::vec(prop::collection::vec(0..8_usize, 0..4), 8)) {
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
            let mut part_of = [0; 8];
            for (number, part) in connected(&edges, &reversed).iter().enumerate() {
                part.iter().for_each(|place| part_of[*place] = number);
            }
            for from in 0..8 {
                for to in (0..8).filter(|to| *to != from) {
                    prop_assert_eq!(part_of[from] == part_of[to], reaches[from][to] && reaches[to][from]);
                }
            }
        }
    }
}
