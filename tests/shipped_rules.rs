use std::{collections::BTreeMap, time::Duration};

use watchbell::{
    model::{event::IncomingEvent, name::SourceName, time},
    replay::{self, Report},
    rule::{BUILTIN, SHIPPED},
    simulator::{Story, StoryLength},
};

use crate::{
    pack::pack,
    support::{base, load, run},
};

fn texts() -> Vec<&'static str> {
    SHIPPED.iter().filter(|file| file.path.ends_with(".rhai")).map(|file| file.text).collect()
}

#[test]
fn they_compile_without_a_warning_and_explain_themselves() {
    let (set, problems) = load(&texts());
    assert!(problems.is_empty(), "{problems:#?}");
    assert!(set.detections.len() >= 6);
    for rule in &set.detections {
        let metadata = &rule.metadata;
        let id = rule.id();
        assert!(metadata.description.is_some() && metadata.runbook.is_some(), "{id} explains itself");
        assert!(!metadata.attack.is_empty() && !metadata.tags.is_empty(), "{id} is classified");
        assert!(rule.has("title"), "{id} has a title that varies");
    }
    assert!(load(&BUILTIN.iter().map(|file| file.text).collect::<Vec<_>>()).1.is_empty());
}

fn story(live: u64) -> Report {
    let length =
        StoryLength { history: Duration::from_secs(80_000), history_events: 2_400, live: Duration::from_secs(live) };
    let scenario = Story::tell(7, base(), length);
    let events = (0..scenario.len()).map(|index| IncomingEvent::parse(&scenario.entry(index).json).unwrap()).collect();
    let events: Vec<_> = replay::file_events(events, &SourceName::parse("story").unwrap(), base()).collect();
    run(&pack(), &events)
}

/// Each step of the demo's attack has an alert, and its ordinary day has almost none.
#[test]
fn the_demo_is_found_step_by_step() {
    let report = story(60);
    let counts: BTreeMap<String, u64> = report
        .rules
        .iter()
        .filter(|(_, rule)| rule.alerts > 0)
        .map(|(id, rule)| (id.to_string(), rule.alerts))
        .collect();
    insta::assert_debug_snapshot!(counts, @r#"
    {
        "actor.risk": 2,
        "atlassian.access.accounts_removed_in_bulk": 1,
        "atlassian.access.added_to_admin_group": 1,
        "atlassian.access.new_account_made_admin": 1,
        "atlassian.admin.change_outside_working_hours": 1,
        "atlassian.admin.directory_exported": 1,
        "atlassian.admin.domain_added": 1,
        "atlassian.admin.impersonated_user": 1,
        "atlassian.admin.organization_admin_added": 1,
        "atlassian.admin.organization_admin_removed": 1,
        "atlassian.apps.installed": 1,
        "atlassian.bitbucket.deploy_key_added": 1,
        "atlassian.bitbucket.repository_transferred": 1,
        "atlassian.data.exported_in_bulk": 1,
        "atlassian.data.share_credentials_created": 1,
        "atlassian.identity.account_takeover": 1,
        "atlassian.identity.failed_sign_ins": 1,
        "atlassian.identity.identity_provider_changed": 1,
        "atlassian.identity.new_country": 1,
        "atlassian.identity.sign_in_after_failures": 1,
        "atlassian.identity.two_countries": 1,
        "atlassian.identity.two_step_verification_disabled": 2,
        "atlassian.monitoring.audit_log_changed": 1,
        "atlassian.monitoring.protection_removed_after_promotion": 1,
        "atlassian.policy.authentication_policy_changed": 1,
        "atlassian.policy.ip_allowlist_changed": 1,
        "atlassian.policy.security_setting_changed": 1,
        "atlassian.tokens.api_key_created": 1,
        "atlassian.tokens.created_by_admin": 1,
        "atlassian.tokens.several_created": 1,
    }
    "#);
    assert!(report.rules.values().all(|rule| rule.errors == 0));
    assert!(report.alerts.iter().all(|alert| alert.errors.is_empty()));
    let before = report.alerts.iter().filter(|alert| alert.opened_at < base()).count();
    assert_eq!(before, 1, "the ordinary day");
}

#[test]
fn the_same_seed_tells_the_same_story() {
    let titles = |report: Report| report.alerts.iter().map(|alert| (alert.id, alert.title.clone())).collect::<Vec<_>>();
    assert_eq!(titles(story(60)), titles(story(60)));
    assert!(story(10).alerts.iter().all(|alert| alert.opened_at <= time::after(base(), Duration::from_secs(10))));
}
