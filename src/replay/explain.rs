//! Explains why a rule did or did not alert on an event: every decision on the way, in order.
//!
//! The rule also runs over the preceding events, as far as its windows reach back, so that counts and alerts are as
//! they were at that time. Its functions then run once more with tracing.

use std::sync::Arc;

use serde::Serialize;

use crate::{
    detect::{Detector, Settings},
    model::{
        alert::AlertChange,
        event::Event,
        name::{AlertId, DedupKey, ExceptionId},
        time,
    },
    rule::{CompiledRule, Note, OPTIONAL_FUNCTIONS, RuleInput, RuleSet, Trace, Tracer, line_of},
};

/// What a rule did with an event.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// Whether the rule evaluates such events at all.
    pub wanted: bool,
    /// Whether the rule is enabled.
    pub enabled: bool,
    /// The calls of its functions, beginning with `rule`.
    pub functions: Vec<FunctionExplained>,
    /// The results of the exceptions for the rule.
    pub exceptions: Vec<ExceptionExplained>,
    /// How the match was counted and the result; absent if `rule` did not match.
    pub matched: Option<MatchExplained>,
    /// The result in one sentence.
    pub verdict: String,
}

/// A call of a function.
#[derive(Debug, Serialize)]
pub struct FunctionExplained {
    /// The name of the function.
    pub function: String,
    /// What it returned; absent if it failed.
    pub result: Option<String>,
    /// The error message, if it failed.
    pub error: Option<String>,
    /// The values of its expressions.
    pub notes: Vec<Note>,
    /// If `rule` returned false: the expression that decided it, and its line in the file.
    pub decided: Option<(Note, String)>,
}

/// The result of an exception.
#[derive(Debug, Serialize)]
pub struct ExceptionExplained {
    /// The id of the exception.
    pub exception: ExceptionId,
    /// Whether it suppresses the match, and if not, the reason.
    pub answer: String,
    /// True if it suppresses the match.
    pub hides: bool,
}

/// How a match was counted.
#[derive(Debug, Serialize)]
pub struct MatchExplained {
    /// The dedup key of the match.
    pub key: DedupKey,
    /// The rule's threshold.
    pub threshold: u32,
    /// The number of matches counted under the key, including this one, while the threshold is not reached.
    pub counted: usize,
    /// The window in which matches are counted.
    pub window: String,
    /// How long matches join an alert.
    pub dedup_period: String,
    /// The alert that the match opened or joined.
    pub alert: Option<AlertId>,
    /// True if the match opened the alert.
    pub opened: bool,
}

/// Explains what `rule`, which belongs to `rules`, does with `event`. `before` has the events that arrived before it,
/// in order, as far as the rule's windows reach back.
pub fn explain(
    rules: &Arc<RuleSet>,
    rule: &Arc<CompiledRule>,
    settings: &Settings,
    before: impl Iterator<Item = Event>,
    event: &Event,
) -> Explanation {
    let enabled = rule.metadata.enabled;
    let alone = rules.alone(rule);
    let input = RuleInput::new(event, &rules.context.catalog);
    let mut detector = Detector::new(Arc::clone(&alone), settings.clone());
    for earlier in before {
        detector.evaluate(&earlier);
    }
    let tracer = Tracer::new(&settings.limits);
    tracer.set_memory(detector.memory());
    let outcome = detector.evaluate(event);
    // A rule that subscribes to others is explained with the first match that it gets.
    let trigger = outcome.matches.iter().find_map(|found| {
        let other = alone.detections.iter().find(|other| *other.id() == found.rule)?;
        rule.listens_to(&other.metadata)
            .then(|| RuleInput::of_match(event, detector.info(other, &input), &rules.context.catalog))
    });
    let is_untriggered = rule.metadata.on.is_some() && trigger.is_none();
    let input = trigger.unwrap_or(input);
    let explained = |trace: Trace| {
        let said_no = trace.function == "rule" && trace.result.as_deref() == Ok("false");
        let decided = trace.decided.filter(|_| said_no);
        let decided = decided.map(|note| {
            let line = line_of(rule, note.line).unwrap_or_default();
            (note, line)
        });
        let (result, error) = match trace.result {
            Ok(result) => (Some(result), None),
            Err(failure) => (None, Some(failure.message)),
        };
        FunctionExplained { function: trace.function, result, error, notes: trace.notes, decided }
    };
    let wanted = alone.wants(event) && !is_untriggered;
    let mut functions: Vec<FunctionExplained> = tracer.run(rule, "rule", &input).into_iter().map(&explained).collect();
    let said_yes = functions.first().is_some_and(|function| function.result.as_deref() == Some("true"));
    if said_yes {
        let others = OPTIONAL_FUNCTIONS.iter().filter_map(|function| tracer.run(rule, function, &input));
        functions.extend(others.map(&explained));
    }

    let found = outcome.matches.iter().find(|found| found.rule == *rule.id());
    let exceptions = if said_yes { exceptions(&detector, &alone, rule, event, &input) } else { Vec::new() };
    let matched = found.map(|found| {
        let key = detector.key(rule, &input);
        MatchExplained {
            counted: detector.counted(rule, &event.source, &key),
            key,
            threshold: rule.metadata.threshold,
            window: time::show_duration(rule.metadata.window),
            dedup_period: time::show_duration(rule.metadata.dedup_period),
            alert: found.alert,
            opened: outcome
                .alerts
                .iter()
                .any(|change| matches!(change, AlertChange::Opened(alert) if alert.rule == *rule.id())),
        }
    });
    let ignored = rules.context.ignored.get(&event.source).is_some_and(|patterns| patterns.is_match(&event.action));
    let usual = verdict(
        rule,
        enabled,
        wanted,
        event,
        &functions,
        found.and_then(|found| found.exception.as_ref()),
        matched.as_ref(),
    );
    let verdict = match ignored {
        true => {
            format!("no alert: `ignore` of source \"{}\" excludes the action {} from rules", event.source, event.action)
        }
        false => usual,
    };
    Explanation { wanted, enabled, functions, exceptions, matched, verdict }
}

fn exceptions(
    detector: &Detector,
    alone: &RuleSet,
    rule: &CompiledRule,
    event: &Event,
    input: &RuleInput<'_>,
) -> Vec<ExceptionExplained> {
    let Some(index) = alone.detections.iter().position(|other| other.id() == rule.id()) else {
        return Vec::new();
    };
    alone
        .exceptions_of(index)
        .iter()
        .map(|exception| {
            let (hides, answer) = if exception.applies_at(event.time) {
                match detector.excepts(rule, exception, input) {
                    Ok(true) => (true, "suppresses the match".to_owned()),
                    Ok(false) => (false, "its condition is false".to_owned()),
                    Err(failure) => (false, format!("its condition failed: {failure}")),
                }
            } else {
                (false, "it expired before the event".to_owned())
            };
            ExceptionExplained { exception: exception.id.clone(), answer, hides }
        })
        .collect()
}

fn verdict(
    rule: &CompiledRule,
    enabled: bool,
    wanted: bool,
    event: &Event,
    functions: &[FunctionExplained],
    exception: Option<&ExceptionId>,
    matched: Option<&MatchExplained>,
) -> String {
    if !enabled {
        return "no alert: the rule is disabled".to_owned();
    }
    if !wanted {
        if let Some(on) = &rule.metadata.on {
            let on: Vec<&str> = on.iter().map(|selector| selector.as_str()).collect();
            return format!("no alert: the rule subscribes to {}, and none of these matched", on.join(", "));
        }
        if rule.metadata.flagged && event.flags.is_empty() {
            return "no alert: the rule evaluates only events with flags, and this event has none".to_owned();
        }
        let named = rule.metadata.actions.iter().chain(&rule.metadata.activities).flatten();
        let actions = named.map(String::as_str).collect::<Vec<_>>().join(", ");
        return format!("no alert: the rule evaluates {actions}, and this is {}", event.action);
    }
    let first = functions.first();
    if let Some(error) = first.and_then(|function| function.error.as_ref()) {
        return format!("no alert: `rule` failed: {error}");
    }
    if let Some(exception) = exception {
        return format!("no alert: `rule` matched, and exception `{exception}` suppresses it");
    }
    let Some(matched) = matched else {
        return match first.and_then(|function| function.decided.as_ref()) {
            Some((note, _)) => format!("no alert: `rule` returned false at line {}", note.line),
            None => "no alert: `rule` did not return true".to_owned(),
        };
    };
    match (&matched.alert, matched.opened) {
        (Some(alert), true) => format!("alert {} opens", alert.short()),
        (Some(alert), false) => format!(
            "no new alert: the match joins alert {}, like all matches with the same key for {}",
            alert.short(),
            matched.dedup_period
        ),
        (None, _) => format!(
            "no alert yet: {} of {} matches with this key within {}",
            matched.counted, matched.threshold, matched.window
        ),
    }
}
