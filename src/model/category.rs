//! Categories of actions: which part of an organization an event concerns, to filter lists and counts by.
//!
//! Atlassian groups its actions, and each organization's list of actions includes the groups. Where that list is not
//! available, and for actions that are not in it, a table of ids decides. Every row of the tables says how certain it
//! is.

use std::{fmt, str::FromStr, sync::LazyLock};

use crate::model::pattern;
use globset::GlobSet;
use serde::{Deserialize, Serialize};

use crate::model::certainty::Certainty::{self, Assumed, Documented, Sample, Verified};

/// Which part of an organization an event concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Category {
    /// The organization itself: its settings, administrators, keys, domains, directory.
    Admin,
    /// The organization's security policies.
    SecurityPolicy,
    /// Signing in, passwords, second factors, tokens.
    Authentication,
    /// Who has access: accounts, invitations, groups, roles, permissions.
    Access,
    /// Apps and their actions.
    App,
    /// Actions inside Jira, Confluence, Bitbucket and the other products.
    Product,
    /// Rovo, and what it generates.
    Ai,
    /// The action is not known.
    Unknown,
}

impl Category {
    /// All categories, in the order in which they are listed.
    pub const ALL: [Self; 8] = [
        Self::Admin,
        Self::SecurityPolicy,
        Self::Authentication,
        Self::Access,
        Self::App,
        Self::Product,
        Self::Ai,
        Self::Unknown,
    ];

    /// The name in JSON and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::SecurityPolicy => "security-policy",
            Self::Authentication => "authentication",
            Self::Access => "access",
            Self::App => "app",
            Self::Product => "product",
            Self::Ai => "ai",
            Self::Unknown => "unknown",
        }
    }

    /// The category of an action, by its id and by the name and group in the organization's list.
    pub fn of(action: &str, name: Option<&str>, group: Option<&str>) -> Self {
        let by_name = || name.and_then(|name| first(ACTIVITIES, |text| text.eq_ignore_ascii_case(name.trim())));
        let by_group = || {
            let group = group?.to_lowercase();
            first(GROUPS, |part| has_word(&group, part))
        };
        let by_id = || IDS.matches(action).first().and_then(|index| ACTIONS.get(*index)).map(|row| row.1);
        by_name().or_else(by_group).or_else(by_id).unwrap_or(Self::Unknown)
    }
}

impl fmt::Display for Category {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

impl FromStr for Category {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|category| category.as_str() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join("`, `");
            format!("`{text}` is not a category: use one of `{names}`")
        })
    }
}

/// What a row matches, its category, and how certain that is.
pub type Row = (&'static str, Category, Certainty);

fn first(rows: &[Row], fits: impl Fn(&str) -> bool) -> Option<Category> {
    rows.iter().find(|row| fits(row.0)).map(|row| row.1)
}

/// Returns true if a text contains these whole words, also in the plural. Words that end in `*` match as a prefix.
fn has_word(text: &str, wanted: &str) -> bool {
    let begin = wanted.trim_end_matches('*');
    text.match_indices(begin).any(|(at, found)| {
        let before = text.get(..at).and_then(|before| before.chars().next_back());
        let mut after = text.get(at + found.len()..).unwrap_or_default().trim_start_matches('s').chars();
        !before.is_some_and(char::is_alphanumeric)
            && (begin.len() < wanted.len() || !after.next().is_some_and(char::is_alphanumeric))
    })
}

/// Names of activities whose category differs from that of their group. They are listed under "Atlassian accounts" in
/// the audit log activities database (support.atlassian.com).
const ACTIVITIES: &[Row] = &[
    ("Deactivated account", Category::Access, Documented),
    ("Reactivated account", Category::Access, Documented),
    ("Scheduled deletion of account", Category::Access, Documented),
    ("Canceled deletion of account", Category::Access, Documented),
    ("Deleted account permanently", Category::Access, Documented),
];

/// Words in the names of groups, in lower case; `polic*` matches as a prefix. The first match decides. The documented
/// ones are those of the audit log activities database, which Atlassian calls incomplete.
const GROUPS: &[Row] = &[
    ("ai generated", Category::Ai, Documented),
    ("rovo", Category::Ai, Assumed),
    ("intelligence", Category::Ai, Assumed),
    ("bitbucket", Category::Product, Documented),
    ("analytics", Category::Product, Documented),
    ("anti abuse", Category::Product, Documented),
    ("jira", Category::Product, Assumed),
    ("confluence", Category::Product, Assumed),
    ("loom", Category::Product, Assumed),
    ("app actions", Category::App, Documented),
    ("app", Category::App, Assumed),
    ("polic*", Category::SecurityPolicy, Assumed),
    ("allowlist", Category::SecurityPolicy, Assumed),
    ("classification", Category::SecurityPolicy, Assumed),
    ("guard detect", Category::SecurityPolicy, Assumed),
    ("atlassian accounts", Category::Authentication, Documented),
    ("authentication", Category::Authentication, Assumed),
    ("login", Category::Authentication, Assumed),
    ("token", Category::Authentication, Assumed),
    ("group", Category::Access, Assumed),
    ("access", Category::Access, Assumed),
    ("role", Category::Access, Assumed),
    ("permission", Category::Access, Assumed),
    ("invit*", Category::Access, Assumed),
    ("user", Category::Access, Assumed),
    ("organization", Category::Admin, Assumed),
    ("admin", Category::Admin, Assumed),
    ("domain", Category::Admin, Assumed),
    ("api key", Category::Admin, Assumed),
    ("identity provider", Category::Admin, Assumed),
    ("audit log", Category::Admin, Assumed),
];

/// Ids and patterns of ids; the first match decides. `Sample`: the id occurs in a vendor's sample, model or collector.
const ACTIONS: &[Row] = &[
    ("user_logged_in_as_user", Category::Admin, Verified),
    ("user_login*", Category::Authentication, Sample),
    ("user_logout", Category::Authentication, Sample),
    ("twosv_*", Category::Authentication, Sample),
    ("api_token_*", Category::Authentication, Sample),
    ("*password*", Category::Authentication, Assumed),
    ("added_org_admin", Category::Admin, Sample),
    ("removed_org_admin", Category::Admin, Assumed),
    ("org_settings_*", Category::Admin, Sample),
    ("organization_users_*", Category::Admin, Sample),
    ("user_profile_*", Category::Admin, Sample),
    ("*api_key*", Category::Admin, Assumed),
    ("*domain*", Category::Admin, Assumed),
    ("*audit_log*", Category::Admin, Assumed),
    ("rovo_*", Category::Ai, Sample),
    ("marketplace_app_*", Category::App, Sample),
    ("app_*", Category::App, Assumed),
    // An id with a product's prefix belongs to that product, whatever the rest says.
    ("confluence_*", Category::Product, Sample),
    ("jira_*", Category::Product, Sample),
    ("bitbucket_*", Category::Product, Sample),
    ("*_policy_update", Category::SecurityPolicy, Sample),
    ("*policy*", Category::SecurityPolicy, Assumed),
    ("*allowlist*", Category::SecurityPolicy, Assumed),
    ("guard_detect_*", Category::SecurityPolicy, Assumed),
    ("user_granted_role", Category::Access, Sample),
    ("user_revoked_role", Category::Access, Sample),
    ("group_*", Category::Access, Sample),
    ("user_created", Category::Access, Sample),
    ("user_added", Category::Access, Sample),
    ("user_invit*", Category::Access, Sample),
    ("user_deactiv*", Category::Access, Sample),
    ("user_reactiv*", Category::Access, Sample),
    ("user_remov*", Category::Access, Sample),
    ("user_*", Category::Access, Assumed),
];

static IDS: LazyLock<GlobSet> = LazyLock::new(|| {
    // Plain letters and `*` always form a valid pattern; a test checks that.
    let globs = ACTIONS.iter().filter_map(|(text, ..)| pattern::glob(text).ok());
    pattern::set(globs).unwrap_or_default()
});

/// The tables for the documentation: the title, the heading of the first column, and the rows.
pub fn tables() -> [(&'static str, &'static str, &'static [Row]); 3] {
    [
        ("By the name of the activity", "name", ACTIVITIES),
        ("By the group", "words in the group's name", GROUPS),
        ("By the id", "id", ACTIONS),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_groups_take_precedence_over_ids() {
        assert_eq!(IDS.len(), ACTIONS.len(), "every pattern is valid");
        let of = |action, name, group| Category::of(action, name, group).as_str();
        assert_eq!(of("user_login", None, None), "authentication");
        assert_eq!(of("user_logged_in_as_user", None, None), "admin");
        assert_eq!(of("x_1", Some("Deactivated account"), Some("Atlassian accounts")), "access");
        assert_eq!(of("x_2", Some("Changed email address"), Some("Atlassian accounts")), "authentication");
        assert_eq!(of("jira_app_thing", None, None), "product");
        assert_eq!(of("jira_app_thing", None, Some("App actions")), "app");
        assert_eq!(of("never_heard_of", None, Some("Something else")), "unknown");
        assert_eq!(of("x_3", None, Some("Security policies")), "security-policy");
        assert_eq!(of("x_4", None, Some("Apps")), "app");
        for other in ["Approvals", "Mapping", "Controllers"] {
            assert_eq!(of("x_5", None, Some(other)), "unknown", "{other}");
        }
        for category in Category::ALL {
            assert_eq!(category.as_str().parse(), Ok(category));
        }
    }
}
