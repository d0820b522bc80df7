//! Which destinations an alert goes to.

use crate::deliver::Settings;
use crate::model::alert::{Alert, AlertKind, Notice};

/// The check that tells of failing destinations. Its alerts say in their context which one is meant.
const DELIVERY_FAILING: &str = "builtin.delivery_failing";

/// Knows all destinations and what each wants.
#[derive(Debug, Clone)]
pub struct Router {
    destinations: Vec<Settings>,
}

impl Router {
    /// A router to these destinations.
    pub fn new(destinations: Vec<Settings>) -> Self {
        Self { destinations }
    }

    /// The destinations that are told of this about an alert: those that its rule names, else all that want its severity, its
    /// rule and its tags. A rule that names only destinations which do not exist is routed like any other, so that nothing is
    /// lost to a misspelling. Nobody is told of what a rule on trial finds. That a destination fails is told to the others, if there are any.
    pub fn route(&self, alert: &Alert, notice: Notice) -> impl Iterator<Item = &Settings> {
        let mut wanted = if alert.shadow { Vec::new() } else { self.wanted(alert) };
        if alert.kind == AlertKind::Health && alert.rule.as_str() == DELIVERY_FAILING {
            let meant = alert.context.get("destination").and_then(|name| name.as_str());
            let others: Vec<&Settings> =
                wanted.iter().copied().filter(|settings| Some(settings.name.as_str()) != meant).collect();
            if !others.is_empty() {
                wanted = others;
            }
        }
        wanted.into_iter().filter(move |settings| settings.kind.tells(notice))
    }

    fn wanted(&self, alert: &Alert) -> Vec<&Settings> {
        if let Some(named) = &alert.destinations {
            let found: Vec<&Settings> = self
                .destinations
                .iter()
                .filter(|destination| named.iter().any(|name| name == destination.name.as_str()))
                .collect();
            if !found.is_empty() || named.is_empty() {
                return found;
            }
        }
        self.destinations
            .iter()
            .filter(|destination| {
                alert.severity >= destination.min_severity
                    && destination.rules.as_ref().is_none_or(|rules| rules.is_match(alert.rule.as_str()))
                    && destination.tags.as_ref().is_none_or(|tags| alert.tags.iter().any(|tag| tags.is_match(tag)))
            })
            .collect()
    }
}
