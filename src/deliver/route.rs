//! Which destinations an alert goes to.

use super::Settings;
use crate::{alert::Alert, name::DestinationName};

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

    /// The destinations an alert is owed to: those that its rule names, else all that want its severity and its rule. A rule
    /// that names only destinations which do not exist is routed like any other, so that nothing is lost to a misspelling.
    pub fn route(&self, alert: &Alert) -> Vec<DestinationName> {
        if let Some(named) = &alert.destinations {
            let found: Vec<DestinationName> = self
                .destinations
                .iter()
                .filter(|destination| named.iter().any(|name| name == destination.name.as_str()))
                .map(|destination| destination.name.clone())
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
            })
            .map(|destination| destination.name.clone())
            .collect()
    }
}
