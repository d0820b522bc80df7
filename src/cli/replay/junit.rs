//! A replay report as JUnit XML, for CI: a test case per rule, which fails if the rule fails, and one per `--fail-on`.

use std::time::Duration;

use super::{
    super::junit::{Case, Problem, Suite, document},
    page::{self, PageTemplate},
};

pub(super) fn junit(page: &PageTemplate<'_>) -> String {
    let failure = |message: String| Problem::Failure(message, String::new());
    let rules = page.report.rules.iter().map(|(id, rule)| Case {
        class: "replay".to_owned(),
        name: id.to_string(),
        took: Some(Duration::from_micros(rule.cost.as_ref().map_or(0, |cost| cost.microseconds))),
        problem: (rule.errors > 0 || rule.suspended).then(|| failure(page::problem(rule))),
        output: Some(format!("{} matches, {} alerts", rule.matches, rule.alerts)),
    });
    let limits = page.limits.iter().map(|limit| {
        let broken = page.broken.iter().find(|broken| broken.split(':').next() == Some(limit.as_str()));
        let problem = broken.map(|broken| failure(broken.clone()));
        Case { class: "fail-on".to_owned(), name: limit.clone(), problem, ..Case::default() }
    });
    document(&[Suite { name: "replay".to_owned(), file: None, cases: rules.chain(limits).collect() }])
}
