//! What an exception would have hidden, had it been there before.

use crate::{
    model::{action::Catalog, event::Event},
    rule::{CompiledRule, Exception, Limits, RuleHost, RuleInput},
};

/// Events that are kept as examples.
const EXAMPLES: usize = 20;

/// What an exception would have hidden.
#[derive(Debug, Default)]
pub struct Hidden {
    /// Events that the rule said true for.
    pub matches: u64,
    /// Those of them that the exception hides.
    pub hidden: u64,
    /// The first of these.
    pub examples: Vec<Event>,
    /// The first error of its condition.
    pub errors: Option<String>,
}

/// Runs a rule and an exception over events.
pub fn would_hide<'a>(
    rule: &CompiledRule,
    exception: &Exception,
    limits: &Limits,
    catalog: &Catalog,
    events: impl Iterator<Item = &'a Event>,
) -> Hidden {
    let host = RuleHost::new(limits);
    let mut found = Hidden::default();
    for event in events {
        let input = RuleInput::new(event, catalog);
        if host.matches(rule, &input) != Ok(true) {
            continue;
        }
        found.matches += 1;
        match host.excepts(rule, exception, &input) {
            Ok(true) => {
                found.hidden += 1;
                if found.examples.len() < EXAMPLES {
                    found.examples.push(event.clone());
                }
            }
            Ok(false) => {}
            Err(failure) => {
                found.errors.get_or_insert(failure.message);
            }
        }
    }
    found
}
