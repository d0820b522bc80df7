//! What an exception would have suppressed if it had existed before.

use crate::{
    model::{action::Catalog, event::Event},
    rule::{CompiledRule, Exception, Limits, RuleHost, RuleInput},
};

/// The number of events that are kept as examples.
const EXAMPLES: usize = 20;

/// What an exception would have suppressed.
#[derive(Debug, Default)]
pub struct Hidden {
    /// The number of events that the rule matched.
    pub matches: u64,
    /// The number of these matches that the exception suppresses.
    pub hidden: u64,
    /// The first events whose match is suppressed.
    pub examples: Vec<Event>,
    /// The first error of the exception's condition.
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
    let mut impact = Hidden::default();
    for event in events {
        let input = RuleInput::new(event, catalog);
        if host.matches(rule, &input) != Ok(true) {
            continue;
        }
        impact.matches += 1;
        match host.excepts(rule, exception, &input) {
            Ok(true) => {
                impact.hidden += 1;
                if impact.examples.len() < EXAMPLES {
                    impact.examples.push(event.clone());
                }
            }
            Ok(false) => {}
            Err(failure) => {
                impact.errors.get_or_insert(failure.message);
            }
        }
    }
    impact
}
