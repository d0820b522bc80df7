//! Selects the destinations of an alert.

use crate::deliver::Settings;
use crate::model::alert::{Alert, AlertKind, Notice};

/// The check rule that reports failing destinations. Its alerts name the destination in their context.
const DELIVERY_FAILING: &str = "builtin.delivery_failing";

/// Routes alerts to destinations by their settings.
#[derive(Debug, Clone)]
pub struct Router {
    destinations: Vec<Settings>,
}

impl Router {
    pub fn new(destinations: Vec<Settings>) -> Self {
        Self { destinations }
    }

    /// Returns the destinations that receive this notice about an alert: those that its rule names, or else all whose
    /// settings match its severity, rule and tags.
    ///
    /// A rule that names only unknown destinations is routed like any other, so that a typo loses nothing. Alerts of
    /// rules in shadow mode go nowhere. A failing destination is reported to the other destinations, if there are any.
    pub fn route(&self, alert: &Alert, notice: Notice) -> impl Iterator<Item = &Settings> {
        let mut wanted = if alert.shadow { Vec::new() } else { self.wanted(alert) };
        if alert.kind == AlertKind::Health && alert.rule.as_str() == DELIVERY_FAILING {
            let failing = alert.context.get("destination").and_then(|name| name.as_str());
            let others: Vec<&Settings> =
                wanted.iter().copied().filter(|settings| Some(settings.name.as_str()) != failing).collect();
            if !others.is_empty() {
                wanted = others;
            }
        }
        wanted.into_iter().filter(move |settings| settings.kind.tells(notice))
    }

    fn wanted(&self, alert: &Alert) -> Vec<&Settings> {
        if let Some(named) = &alert.destinations {
            let known: Vec<&Settings> = self
                .destinations
                .iter()
                .filter(|destination| named.iter().any(|name| name == destination.name.as_str()))
                .collect();
            if !known.is_empty() || named.is_empty() {
                return known;
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
