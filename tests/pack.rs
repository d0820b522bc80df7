use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use watchbell::{
    model::{
        action::{Catalog, ListedAction},
        alert::Severity,
        certainty::Certainty,
        event::{Event, IncomingEvent},
        name::SourceName,
        time::{self, Timestamp},
    },
    replay::{self, Report},
    rule::{CompiledRule, Loader, RuleSet, certainty, test_file},
    simulator::{ACTIONS, Company, Scenario, Weeks},
};

use crate::support::{Lab, run};

/// The tactics and techniques that rules may name, each technique with its tactics: ATT&CK v19.2 (2026). That version
/// split Defense Evasion (T1562 and its sub-techniques).
const ATTACK: &[(&str, &[&str])] = &[
    ("T1078.004", &["TA0001", "TA0003", "TA0004"]),
    ("T1080", &["TA0008"]),
    ("T1087.004", &["TA0007"]),
    ("T1090.003", &["TA0011"]),
    ("T1098", &["TA0003", "TA0004"]),
    ("T1098.001", &["TA0003", "TA0004"]),
    ("T1098.003", &["TA0003", "TA0004"]),
    ("T1098.004", &["TA0003", "TA0004"]),
    ("T1110", &["TA0006"]),
    ("T1110.001", &["TA0006"]),
    ("T1110.003", &["TA0006"]),
    ("T1136.003", &["TA0003"]),
    ("T1213", &["TA0009"]),
    ("T1213.001", &["TA0009"]),
    ("T1484.002", &["TA0004"]),
    ("T1485", &["TA0040"]),
    ("T1531", &["TA0040"]),
    ("T1537", &["TA0010"]),
    ("T1550.001", &["TA0008"]),
    ("T1556.006", &["TA0003", "TA0006"]),
    ("T1556.009", &["TA0003", "TA0006"]),
    ("T1567", &["TA0010"]),
    ("T1567.004", &["TA0010"]),
    ("T1589.002", &["TA0043"]),
    ("T1654", &["TA0007"]),
    ("T1671", &["TA0003"]),
    ("T1685", &["TA0112"]),
    ("T1685.002", &["TA0112"]),
    ("T1686.001", &["TA0112"]),
];

fn catalog() -> Catalog {
    let listed = ACTIONS.iter().map(|(id, name, group)| ListedAction {
        id: (*id).into(),
        name: Some((*name).to_owned()),
        group: Some((*group).to_owned()),
    });
    listed.collect()
}

/// The rules of this repository, as run by an organization with the simulated actions.
pub(crate) fn pack() -> Arc<RuleSet> {
    let mut loader = Loader::of(vec![PathBuf::from("rules")]).without_builtin();
    loader.set_catalog(catalog());
    let loaded = loader.load();
    assert!(loaded.diagnostics.is_empty(), "{:#?}", loaded.diagnostics);
    loaded.set
}

fn events(scenario: &Scenario, arrived: Timestamp) -> Vec<Event> {
    let entries = (0..scenario.len()).map(|index| IncomingEvent::parse(&scenario.entry(index).json).unwrap()).collect();
    replay::file_events(entries, &SourceName::parse("company").unwrap(), arrived).collect()
}

fn cases(rule: &CompiledRule) -> Vec<test_file::Case> {
    let tests = test_file::test_file(&rule.file);
    let text = fs::read_to_string(&tests).unwrap_or_else(|_| panic!("{} has no tests", rule.id()));
    let (cases, problems) = test_file::read(&tests, &text, &|_| Err("none of them needs a file".to_owned()));
    assert!(problems.is_empty(), "{problems:#?}");
    cases
}

#[test]
fn every_rule_explains_itself() {
    let rules = pack();
    assert!(rules.detections.len() >= 45, "{}", rules.detections.len());
    let folders: BTreeSet<String> = rules
        .detections
        .iter()
        .map(|rule| rule.file.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    let wanted = ["access", "admin", "apps", "bitbucket", "data", "identity", "monitoring", "policy", "tokens"];
    assert_eq!(folders, wanted.map(str::to_owned).into());
    for rule in &rules.detections {
        let (metadata, id) = (&rule.metadata, rule.id());
        let long = |text: &Option<String>| text.as_ref().is_some_and(|text| text.len() > 40);
        assert!(long(&metadata.description), "{id} says what it means");
        assert!(long(&metadata.severity_reason), "{id} says why it is so severe");
        let runbook = metadata.runbook.clone().unwrap_or_default();
        assert!(
            ["1. ", "\n2. ", "\n3. "].iter().all(|step| runbook.contains(step)),
            "{id} says what to do, step by step"
        );
        assert!(!metadata.false_positives.is_empty(), "{id} says what else may look like it");
        assert!(!metadata.exception_slots.is_empty(), "{id} can be tuned");
        assert!(metadata.evidence.is_some() || metadata.on.is_some(), "{id} says how sure its actions are");
        assert!(["title", "dedup", "context"].iter().all(|function| rule.has(function)), "{id} has its own words");
        let cases = cases(rule);
        assert!(cases.iter().any(|case| case.expected.alerts()), "{id}: a case that alerts");
        assert!(
            cases.iter().any(|case| !case.expected.alerts()) || cases.iter().any(|case| case.events.len() > 1),
            "{id}: a near miss"
        );
        assert!(cases.len() >= 2, "{id}: two cases");
        let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names.len(), cases.len(), "{id}: each case has its own name");
    }
}

#[test]
fn every_rule_names_a_technique_and_its_tactic() {
    let known: HashMap<&str, &[&str]> = ATTACK.iter().copied().collect();
    for rule in &pack().detections {
        let (tactics, techniques): (Vec<&str>, Vec<&str>) =
            rule.metadata.attack.iter().map(String::as_str).partition(|id| id.starts_with("TA"));
        assert!(!tactics.is_empty() && !techniques.is_empty(), "{}", rule.id());
        for technique in &techniques {
            let of = known.get(technique).unwrap_or_else(|| panic!("{}: {technique} is not in the table", rule.id()));
            assert!(of.iter().any(|tactic| tactics.contains(tactic)), "{}: {technique} is under {of:?}", rule.id());
        }
        for tactic in tactics {
            let has = techniques.iter().any(|technique| known[technique].contains(&tactic));
            assert!(has, "{}: none of its techniques is under {tactic}", rule.id());
        }
    }
}

/// A rule claims no more confidence than its least certain id allows.
#[test]
fn no_rule_is_surer_than_its_ids() {
    for rule in &pack().detections {
        let metadata = &rule.metadata;
        let ids = metadata.actions.iter().flatten().map(|action| certainty(action));
        let names = metadata.activities.iter().flatten().map(|_| Certainty::Documented);
        let Some(least) = ids.chain(names).max() else { continue };
        assert!(metadata.evidence >= Some(least), "{} says {:?}, its ids {least:?}", rule.id(), metadata.evidence);
    }
}

/// Rules that read beyond the documented shape of events say so in their text.
#[test]
fn prose_is_read_only_where_the_rule_says_so() {
    for rule in pack().all() {
        let text = rule.text().unwrap();
        let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        if code.contains("message.content") && rule.id().as_str() != "atlassian.monitoring.guard_detect_alert" {
            assert!(text.contains("`message.content`"), "{} says that it reads prose", rule.id());
        }
    }
}

const MONDAY: &str = "2026-06-01T00:00:00Z";

/// An ordinary week of a company of 500, after two others.
fn ordinary() -> (Report, Timestamp) {
    let start: Timestamp = MONDAY.parse().unwrap();
    let weeks = Weeks { start, count: 3, views: true, incident: false };
    let events = events(&Company::new(7, 500).tell(weeks), start);
    let last_week = time::after(start, std::time::Duration::from_secs(14 * 86_400));
    (run(&pack(), &events), last_week)
}

#[test]
fn an_ordinary_week_is_quiet() {
    let (report, last_week) = ordinary();
    assert!(report.rules.values().all(|rule| rule.errors == 0), "{:#?}", report.rules);
    assert!(report.alerts.iter().all(|alert| alert.errors.is_empty()));
    let mut days: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for alert in report.alerts.iter().filter(|alert| alert.opened_at >= last_week) {
        assert!(alert.severity < Severity::Critical, "{}", alert.title);
        days.entry(alert.opened_at.strftime("%A").to_string()).or_default().push(alert.title.clone());
    }
    assert!(days.values().all(|alerts| alerts.len() < 5), "{days:#?}");
    // The company is quiet although things happen.
    assert!(report.events > 50_000, "{}", report.events);
    assert!(!days.is_empty());
}

/// Each step of the incident, with the rules that detect it.
const STEPS: &[&str] = &[
    "atlassian.identity.failed_sign_ins",
    "atlassian.identity.sign_in_after_failures",
    "atlassian.identity.two_countries",
    "atlassian.identity.new_country",
    "atlassian.admin.directory_exported",
    "atlassian.admin.impersonated_user",
    "atlassian.admin.organization_admin_added",
    "atlassian.access.new_account_made_admin",
    "atlassian.access.added_to_admin_group",
    "atlassian.monitoring.audit_log_changed",
    "atlassian.policy.authentication_policy_changed",
    "atlassian.policy.ip_allowlist_changed",
    "atlassian.identity.two_step_verification_disabled",
    "atlassian.admin.domain_added",
    "atlassian.identity.identity_provider_changed",
    "atlassian.policy.security_setting_changed",
    "atlassian.tokens.api_key_created",
    "atlassian.tokens.created_by_admin",
    "atlassian.tokens.several_created",
    "atlassian.bitbucket.deploy_key_added",
    "atlassian.bitbucket.repository_transferred",
    "atlassian.data.exported_in_bulk",
    "atlassian.data.share_credentials_created",
    "atlassian.access.accounts_removed_in_bulk",
    "atlassian.admin.organization_admin_removed",
    // And the rules that combine them.
    "atlassian.admin.change_outside_working_hours",
    "atlassian.identity.account_takeover",
    "atlassian.monitoring.protection_removed_after_promotion",
    "actor.risk",
];

#[test]
fn every_step_of_the_incident_is_found() {
    let start: Timestamp = MONDAY.parse().unwrap();
    let weeks = Weeks { start, count: 1, views: false, incident: true };
    let report = run(&pack(), &events(&Company::new(7, 60).tell(weeks), start));
    // Thursday from 20:50.
    let night = time::after(start, std::time::Duration::from_secs(3 * 86_400 + 20 * 3_600));
    let found: BTreeSet<&str> = report
        .alerts
        .iter()
        .filter(|alert| {
            alert.opened_at >= night && alert.opened_at < time::after(night, std::time::Duration::from_secs(6 * 3_600))
        })
        .map(|alert| alert.rule.as_str())
        .collect();
    let missed: Vec<&&str> = STEPS.iter().filter(|rule| !found.contains(**rule)).collect();
    assert!(missed.is_empty(), "{missed:?}");
    // Only the incident: all other alerts are its consequences.
    let others: Vec<&&str> = found.iter().filter(|rule| !STEPS.contains(rule)).collect();
    assert!(others.is_empty(), "{others:?}");
    let critical = report.alerts.iter().filter(|alert| alert.severity == Severity::Critical).count();
    assert_eq!(critical, 2, "the takeover, and what it did");
}

#[test]
fn the_pack_passes_its_own_tests_and_checks() {
    let lab = Lab::new();
    let root = Path::new("rules").canonicalize().unwrap();
    let root = root.to_str().unwrap();
    let tested = lab.watchbell(&["test", root]);
    assert_eq!(tested.code, Some(0), "{}", tested.show());
    let checked = lab.watchbell(&["check", "--deny-warnings", root]);
    assert_eq!(checked.code, Some(0), "{}", checked.show());
}

#[test]
fn its_documentation_is_current() {
    let lab = Lab::new();
    let path = |name: &str| Path::new(name).canonicalize().unwrap().display().to_string();
    let docs = lab.watchbell(&["rules", "docs", "--rules", &path("rules"), "--output", &path("docs/rules"), "--check"]);
    assert_eq!(docs.code, Some(0), "run `watchbell rules docs --rules rules`: {}", docs.show());
}

/// A page that differs from the generated one, one that is missing, and one that is left over.
#[test]
fn stale_documentation_is_told() {
    let lab = Lab::new();
    let rules = Path::new("rules/policy").canonicalize().unwrap().display().to_string();
    let docs = |arguments: &[&str]| {
        lab.watchbell(&[&["rules", "docs", "--rules", &rules, "--output", "pages"], arguments].concat())
    };
    assert_eq!(docs(&["--check"]).code, Some(1));
    assert_eq!(docs(&[]).code, Some(0));
    assert_eq!(docs(&["--check"]).code, Some(0));
    lab.write("pages/gone.md", "# Gone");
    lab.write("pages/README.md", "# Mine");
    let found = docs(&["--check"]);
    assert_eq!(found.code, Some(1));
    assert_eq!(found.stdout, "pages/README.md\n");
    insta::assert_snapshot!(found.stderr, @"
    warning: `pages/gone.md` has no rule; delete it
    error: 2 pages out of date; `watchbell rules docs` updates them
    ");
}

/// The shipped events are those that the simulator generates.
#[test]
fn the_example_is_what_the_simulator_tells() {
    let text = fs::read_to_string("examples/events/week.jsonl").unwrap();
    let start: Timestamp = "2026-11-09T00:00:00Z".parse().unwrap();
    let scenario = Company::new(7, 60).tell(Weeks { start, count: 1, views: false, incident: true });
    assert_eq!(text.lines().count(), scenario.len());
    for (index, line) in text.lines().enumerate() {
        assert_eq!(line, scenario.entry(index).json, "run `cargo run --example company > examples/events/week.jsonl`");
    }
    let listed = Catalog::parse(&fs::read_to_string("examples/events/actions.json").unwrap()).unwrap();
    assert_eq!(listed, catalog());
}
