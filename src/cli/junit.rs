//! JUnit XML, as CI systems show it.

use std::time::Duration;

use super::output::xml;

/// A group of cases.
#[derive(Debug, Default)]
pub(super) struct Suite {
    pub(super) name: String,
    /// The file that it is about.
    pub(super) file: Option<String>,
    pub(super) cases: Vec<Case>,
}

/// One case with its result.
#[derive(Debug, Default)]
pub(super) struct Case {
    /// What it belongs to: most CI systems group by this.
    pub(super) class: String,
    pub(super) name: String,
    pub(super) took: Option<Duration>,
    pub(super) problem: Option<Problem>,
    /// What it printed.
    pub(super) output: Option<String>,
}

#[derive(Debug)]
pub(super) enum Problem {
    /// The result is not the expected one: a line, and the details.
    Failure(String, String),
    /// There is no result.
    Error(String),
}

/// The document.
pub(super) fn document(suites: &[Suite]) -> String {
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"watchbell\">\n");
    for Suite { name, file, cases } in suites {
        let count = |wanted: fn(&Problem) -> bool| {
            cases.iter().filter(|case| case.problem.as_ref().is_some_and(wanted)).count()
        };
        let failures = count(|problem| matches!(problem, Problem::Failure(..)));
        let errors = count(|problem| matches!(problem, Problem::Error(_)));
        let file = file.as_ref().map_or_else(String::new, |file| format!(" file=\"{}\"", xml(file)));
        text.push_str(&format!(
            "  <testsuite name=\"{}\"{file} tests=\"{}\" failures=\"{failures}\" errors=\"{errors}\">\n",
            xml(name),
            cases.len()
        ));
        cases.iter().for_each(|case| text.push_str(&element(case)));
        text.push_str("  </testsuite>\n");
    }
    text.push_str("</testsuites>\n");
    text
}

fn element(Case { class, name, took, problem, output }: &Case) -> String {
    let time = took.map_or_else(String::new, |took| format!(" time=\"{:.6}\"", took.as_secs_f64()));
    let problem = match problem {
        None => String::new(),
        Some(Problem::Failure(message, details)) => {
            format!("<failure message=\"{}\">{}</failure>", xml(message), xml(details))
        }
        Some(Problem::Error(message)) => format!("<error message=\"{}\"/>", xml(message)),
    };
    let output = output.as_ref().map_or_else(String::new, |output| format!("<system-out>{}</system-out>", xml(output)));
    format!("    <testcase classname=\"{}\" name=\"{}\"{time}>{problem}{output}</testcase>\n", xml(class), xml(name))
}
