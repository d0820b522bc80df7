//! A replay report as JUnit XML, for CI: a test case per rule, which fails if the rule fails, and one per `--fail-on`.

use super::{
    super::output::xml,
    page::{self, PageTemplate},
};

pub(super) fn junit(page: &PageTemplate<'_>) -> String {
    let failed = page.report.rules.values().filter(|rule| rule.errors > 0 || rule.suspended).count();
    let (tests, failures) = (page.report.rules.len() + page.limits.len(), failed + page.broken.len());
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"watchbell\">\n  \
         <testsuite name=\"replay\" tests=\"{tests}\" failures=\"{failures}\">\n"
    );
    for (id, rule) in &page.report.rules {
        let id = xml(id.as_str());
        #[expect(clippy::cast_precision_loss, reason = "seconds for people to read")]
        let seconds = rule.cost.as_ref().map_or(0.0, |cost| cost.microseconds as f64 / 1e6);
        text.push_str(&format!("    <testcase classname=\"replay\" name=\"{id}\" time=\"{seconds:.6}\">"));
        if rule.errors > 0 || rule.suspended {
            text.push_str(&format!("<failure message=\"{}\"/>", xml(&page::problem(rule))));
        }
        let (matches, alerts) = (rule.matches, rule.alerts);
        text.push_str(&format!("<system-out>{matches} matches, {alerts} alerts</system-out></testcase>\n"));
    }
    for limit in page.limits {
        let broken = page.broken.iter().find(|broken| broken.split(':').next() == Some(limit.as_str()));
        let failure = broken.map_or_else(String::new, |broken| format!("<failure message=\"{}\"/>", xml(broken)));
        text.push_str(&format!("    <testcase classname=\"fail-on\" name=\"{}\">{failure}</testcase>\n", xml(limit)));
    }
    text.push_str("  </testsuite>\n</testsuites>\n");
    text
}
