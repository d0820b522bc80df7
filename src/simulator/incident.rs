//! An attack on an organization, step by step: an administrator's password is guessed, and the intruder explores, gains
//! persistence, weakens defenses, exfiltrates data, and locks people out.
//!
//! Related steps (guesses and the sign-in, exports, deactivations) are close together in time, whether the attack takes
//! a minute or hours.

use std::time::Duration;

use serde_json::{Value, json};

use super::log::{Log, Person, thing};
use crate::model::time::Timestamp;

/// The people involved in the attack.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cast<'a> {
    /// The administrator whose password is guessed.
    pub(super) administrator: Person<'a>,
    /// Two users whose protection is removed; the first is another administrator.
    pub(super) victims: [Person<'a>; 2],
    /// The intruder's IP address, country and city.
    pub(super) from: (&'a str, &'a str, &'a str),
}

/// The account that the intruder creates and makes an administrator.
pub(super) const HELPER: (&str, &str, &str) = ("712020:ffff-helper", "IT Helper", "it.helper@example.net");
/// Processing delay. Constant, so that the order is kept.
const SOON: Duration = Duration::from_millis(300);

/// Adds the attack to the log. `at` maps a fraction of its duration, from 0 to 1, to a time.
pub(super) fn append(log: &mut Log, cast: &Cast<'_>, at: &dyn Fn(f64) -> Timestamp) {
    let (ip, country, city) = cast.from;
    let intruder = Person { ip, country, city, ..cast.administrator };
    let helper = Person { id: HELPER.0, name: HELPER.1, email: HELPER.2, ip, country, city };
    let mut step = |part: f64, action: &str, who: Person<'_>, context: Value, what: &str| {
        log.push_after(at(part), SOON, action, who, context, &format!("{} {what}", who.name));
    };
    // Initial access: the administrator works as usual, while the intruder guesses their password.
    step(0.03, "user_login", cast.administrator, Value::Null, "logged in");
    for attempt in 0..11 {
        step(0.08 + 0.004 * f64::from(attempt), "user_login_failed", intruder, Value::Null, "failed to log in");
    }
    step(0.14, "user_login", intruder, Value::Null, "logged in");
    // Discovery, and impersonation of another user.
    step(
        0.22,
        "organization_users_exported",
        intruder,
        json!([thing("orgs", "org-1", "Example Corp")]),
        "exported the users",
    );
    step(
        0.26,
        "user_logged_in_as_user",
        intruder,
        json!([cast.victims[0].target()]),
        &format!("logged in as {}", cast.victims[0].name),
    );
    // Persistence: a new administrator.
    step(0.31, "user_created", intruder, json!([helper.target()]), "created a user");
    step(0.34, "added_org_admin", intruder, json!([helper.target()]), "made IT Helper an organization admin");
    let group = json!({ "id": "g-admins", "type": "groups", "attributes": { "name": "site-admins", "groupName": "site-admins" } });
    step(0.37, "group_member_added", intruder, json!([group, helper.target()]), "added IT Helper to site-admins");
    // Defense evasion: disable logging, and the protection of others.
    step(
        0.41,
        "audit_log_webhook_deleted",
        intruder,
        json!([thing("webhooks", "wh-1", "SIEM")]),
        "deleted an audit log webhook",
    );
    step(
        0.45,
        "authentication_policy_updated",
        intruder,
        json!([thing("policies", "ap-1", "Default policy")]),
        "updated an authentication policy",
    );
    step(
        0.48,
        "ip_allowlist_updated",
        intruder,
        json!([thing("ip-allowlists", "ip-1", "Offices")]),
        "updated an IP allowlist",
    );
    for (part, victim) in [0.52, 0.54].into_iter().zip(cast.victims) {
        step(
            part,
            "twosv_disabled_for_user",
            intruder,
            json!([victim.target()]),
            "disabled two-step verification for a user",
        );
    }
    // More access.
    step(0.57, "domain_verified", intruder, json!([thing("domains", "d-1", "examp1e.net")]), "verified a domain");
    step(
        0.60,
        "saml_configuration_updated",
        intruder,
        json!([thing("identity-providers", "idp-1", "Single sign-on")]),
        "updated the SAML configuration",
    );
    // Keys that survive a password reset.
    step(0.66, "api_key_created", helper, json!([thing("api-keys", "key-1", "backup")]), "created an API key");
    for (part, name) in [0.68, 0.69, 0.70].into_iter().zip(["backup", "sync", "reporting"]) {
        step(
            part,
            "api_token_created",
            intruder,
            json!([thing("tokens", &format!("token-{name}"), name)]),
            "created an API token",
        );
    }
    // Exfiltration.
    step(
        0.74,
        "bb_deploy_key_added",
        intruder,
        json!([thing("repositories", "r-1", "payments")]),
        "added a deploy key",
    );
    step(
        0.76,
        "bb_transfer_out_requested",
        intruder,
        json!([thing("repositories", "r-1", "payments")]),
        "asked to transfer a repository",
    );
    for (part, space) in
        [0.79, 0.80, 0.81, 0.82, 0.83].into_iter().zip(["Finance", "Board", "People", "Security", "Plans"])
    {
        step(
            part,
            "confluence_space_exported",
            intruder,
            json!([thing("space", &format!("space-{space}"), space)]),
            "exported a space",
        );
    }
    step(
        0.86,
        "analytics_data_share_credentials",
        intruder,
        json!([thing("data-shares", "share-1", "Everything")]),
        "created data share credentials",
    );
    // Lock out those who could respond.
    for number in 0..10 {
        let name = format!("Colleague {number}");
        let colleague = thing("users", &format!("712020:colleague-{number}"), &name);
        step(
            0.90 + 0.005 * f64::from(number),
            "account_deactivated",
            helper,
            json!([colleague]),
            &format!("deactivated {name}"),
        );
    }
    step(0.97, "removed_org_admin", helper, json!([cast.victims[0].target()]), "removed an organization admin");
    log.setting(at(0.63), SOON, intruder, "Authentication policy: require two-step verification", ["true", "false"]);
}
