//! Ordinary weeks of a company of any size: people sign in, read, invite and travel, administrators administer,
//! developers create tokens and repositories, and apps are installed and removed. None of it is an attack, but most
//! things that look like one happen occasionally.
//!
//! Names are combined from lists; IP addresses are from documentation ranges.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    Scenario,
    incident::{self, Cast},
    log::{Log, Person, thing},
};
use crate::model::time::{self, Timestamp};

/// The weeks to simulate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weeks {
    /// Start of the first week: a Monday, at midnight UTC.
    pub start: Timestamp,
    /// Number of weeks.
    pub count: u32,
    /// Record views of pages and work items, which needs Guard Premium or Enterprise.
    pub views: bool,
    /// Include the takeover of an administrator's account on the evening of the last Thursday.
    pub incident: bool,
}

#[derive(Debug)]
pub struct Company {
    log: Log,
    people: Vec<Employee>,
}

#[derive(Debug, Clone, Default)]
struct Employee {
    id: String,
    name: String,
    email: String,
    ip: String,
    country: &'static str,
    city: &'static str,
    /// Offset from UTC in hours; positive to the east.
    hours_east: i64,
}

impl Employee {
    fn person(&self) -> Person<'_> {
        Person {
            id: &self.id,
            name: &self.name,
            email: &self.email,
            ip: &self.ip,
            country: self.country,
            city: self.city,
        }
    }
}

const PLACES: [(&str, &str, i64); 5] = [
    ("Germany", "Berlin", 1),
    ("Poland", "Kraków", 1),
    ("Ireland", "Dublin", 0),
    ("France", "Lyon", 1),
    ("Portugal", "Lisbon", 0),
];
const ABROAD: [(&str, &str); 3] = [("Spain", "Valencia"), ("Japan", "Osaka"), ("Brazil", "Recife")];
const FIRST: [&str; 20] = [
    "Ada", "Bruno", "Clara", "Dario", "Elif", "Femi", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Luca", "Mina", "Noor",
    "Oskar", "Petra", "Quim", "Rosa", "Soren", "Tova",
];
const LAST: [&str; 25] = [
    "Albers", "Bauer", "Costa", "Dubois", "Ekberg", "Fischer", "Garcia", "Horvat", "Ivanov", "Jansen", "Kowal",
    "Lopes", "Moreau", "Novak", "Olsen", "Pires", "Quist", "Rossi", "Silva", "Tamm", "Urban", "Vidal", "Weiss",
    "Yilmaz", "Zeman",
];
/// Domains of regular business partners.
const PARTNERS: [&str; 4] = ["partner-one.example", "partner-two.example", "agency.example", "auditors.example"];
const REPOSITORIES: [&str; 6] = ["payments", "website", "mobile", "infrastructure", "data", "tools"];
/// Employees per administrator and per developer: of 500, 4 are administrators and 100 are developers.
const PER_ADMINISTRATOR: usize = 125;
const PER_DEVELOPER: usize = 5;

impl Company {
    /// Creates a company with `people` employees, at least 10. The same seed produces the same log.
    pub fn new(seed: u64, people: usize) -> Self {
        let mut log = Log::new(seed);
        let mut employees = Vec::new();
        for number in 0..people.max(10) {
            let first = FIRST.get(number % FIRST.len()).copied().unwrap_or("Ada");
            let last = LAST.get((number / FIRST.len() + number * 7) % LAST.len()).copied().unwrap_or("Bauer");
            let (country, city, hours_east) =
                PLACES.get(log.random.usize(0..PLACES.len())).copied().unwrap_or(PLACES[0]);
            employees.push(Employee {
                id: format!("712020:{number:04}-{:08x}", log.random.u32(..)),
                name: format!("{first} {last}"),
                email: format!("{}.{}{number}@example.com", first.to_lowercase(), last.to_lowercase()),
                ip: format!("203.0.113.{}", number % 250 + 1),
                country,
                city,
                hours_east,
            });
        }
        Self { log, people: employees }
    }

    /// Returns the company's log over `weeks`.
    pub fn tell(mut self, weeks: Weeks) -> Scenario {
        for day in 0..weeks.count * 7 {
            let midnight = time::after(weeks.start, Duration::from_secs(u64::from(day) * 86_400));
            // A few people work on weekends.
            let share = if day % 7 < 5 { 1.0 } else { 0.06 };
            self.all_employees(midnight, share, weeks.views);
            self.administration(midnight, share);
            self.development(midnight, share);
            self.exceptions(midnight, share);
        }
        if weeks.incident {
            let last_thursday = (u64::from(weeks.count) * 7).saturating_sub(4) * 86_400;
            // At 20:50, for three hours.
            let begin = time::after(weeks.start, Duration::from_secs(last_thursday + 20 * 3_600 + 3_000));
            let (administrator, other, victim) = (self.employee(0), self.employee(1), self.employee(8));
            let cast = Cast {
                administrator: administrator.person(),
                victims: [other.person(), victim.person()],
                from: ("198.51.100.23", "Exampleland", "Port Example"),
            };
            let span = Duration::from_secs(3 * 3_600);
            incident::append(&mut self.log, &cast, &|part| time::after(begin, span.mul_f64(part)));
        }
        self.log.finish()
    }

    fn employee(&self, index: usize) -> Employee {
        let index = index % self.people.len().max(1);
        self.people.get(index).cloned().unwrap_or_default()
    }

    fn administrators(&self) -> usize {
        (self.people.len() / PER_ADMINISTRATOR).max(2)
    }

    fn random_employee(&mut self) -> Employee {
        let index = self.log.random.usize(0..self.people.len());
        self.employee(index)
    }

    fn administrator(&mut self) -> Employee {
        let index = self.log.random.usize(0..self.administrators());
        self.employee(index)
    }

    fn developer(&mut self) -> Employee {
        let developers = (self.people.len() / PER_DEVELOPER).max(2);
        let index = self.administrators() + self.log.random.usize(0..developers);
        self.employee(index)
    }

    /// A random time in an employee's working hours.
    fn at_work(&mut self, midnight: Timestamp, who: &Employee) -> Timestamp {
        let hour = 8.5 + self.log.random.f64() * 9.0;
        #[expect(clippy::cast_precision_loss, reason = "hours of a day")]
        let utc = (hour - who.hours_east as f64).max(0.0);
        time::after(midnight, Duration::from_secs_f64(utc * 3_600.0))
    }

    /// How often something happens on this day, if it happens `rate` times per working day in a company of 500.
    fn times(&mut self, rate: f64, share: f64) -> usize {
        #[expect(clippy::cast_precision_loss, reason = "people")]
        let expected = rate * share * self.people.len() as f64 / 500.0;
        let whole = expected.floor();
        let more = self.log.random.f64() < expected - whole;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few thousand at most")]
        let whole = whole as usize;
        whole + usize::from(more)
    }

    fn push(&mut self, at: Timestamp, action: &str, who: &Employee, context: Value, what: &str) {
        let message = format!("{} {what}", who.name);
        self.log.push(at, action, who.person(), context, &message);
    }

    /// Actions of all employees.
    fn all_employees(&mut self, midnight: Timestamp, share: f64, views: bool) {
        for index in 0..self.people.len() {
            if self.log.random.f64() > share {
                continue;
            }
            let who = self.employee(index);
            // Most sessions last for days, so not everyone signs in daily.
            if self.log.random.f64() < 0.5 {
                let at = self.at_work(midnight, &who);
                // A mistyped password, once or twice.
                if self.log.random.f64() < 0.08 {
                    for attempt in 0..self.log.random.u64(1..3) {
                        let before = time::before(at, Duration::from_secs(20 * (attempt + 1)));
                        self.push(before, "user_login_failed", &who, Value::Null, "failed to log in");
                    }
                }
                self.push(at, "user_login", &who, Value::Null, "logged in");
            }
            if self.log.random.f64() < 0.2 {
                let at = self.at_work(midnight, &who);
                self.push(at, "user_logout", &who, json!([]), "logged out");
            }
            if !views {
                continue;
            }
            for _ in 0..self.log.random.usize(2..14) {
                let at = self.at_work(midnight, &who);
                let number = self.log.random.u32(0..4_000);
                if self.log.random.bool() {
                    let page = json!([thing("page", &format!("page-{number}"), &format!("Page {number}"))]);
                    self.push(at, "confluence_page_viewed", &who, page, "viewed a page");
                } else {
                    let issue = json!([thing("issue", &format!("issue-{number}"), &format!("EX-{number}"))]);
                    self.push(at, "jira_issue_viewed", &who, issue, "viewed a work item");
                }
            }
        }
        for _ in 0..self.times(60.0, share) {
            let who = self.random_employee();
            let at = self.at_work(midnight, &who);
            let about = ["holidays", "the roadmap", "how to reset a password", "the canteen"];
            let about = about.get(self.log.random.usize(0..about.len())).copied().unwrap_or("holidays");
            let action = if self.log.random.bool() { "confluence_search_performed" } else { "rovo_search_performed" };
            self.push(at, action, &who, Value::Null, &format!("searched for {about}"));
        }
        for _ in 0..self.times(30.0, share) {
            let who = self.random_employee();
            let at = self.at_work(midnight, &who);
            let context = json!([
                { "id": "site-1", "type": "sites", "attributes": { "siteName": "example-corp", "permissionName": "Add Pages" } },
                { "id": "space-1", "type": "space", "attributes": { "name": "Handbook", "key": "HB" } },
            ]);
            self.push(
                at,
                "confluence_added_space_permission",
                &who,
                context,
                "added Confluence space permission Add Pages",
            );
        }
        for _ in 0..self.times(20.0, 1.0) {
            let at = time::after(midnight, Duration::from_secs(self.log.random.u64(0..86_400)));
            self.log.system(at);
        }
        for _ in 0..self.times(6.0, share) {
            let who = self.random_employee();
            let at = self.at_work(midnight, &who);
            let project = self.log.random.u32(0..40);
            let project = json!([thing("project", &format!("project-{project}"), &format!("Project {project}"))]);
            self.push(at, "jira_issues_exported", &who, project, "exported work items");
        }
        for _ in 0..self.times(3.0, share) {
            let who = self.random_employee();
            let at = self.at_work(midnight, &who);
            self.push(at, "account_recovery_requested", &who, Value::Null, "requested a password recovery link");
            let soon = time::after(at, Duration::from_secs(240));
            self.push(soon, "account_recovery_used", &who, Value::Null, "reset the password with a recovery link");
        }
        for _ in 0..self.times(8.0, share) {
            let who = self.random_employee();
            let at = self.at_work(midnight, &who);
            self.push(at, "rovo_agent_chat_started", &who, Value::Null, "started a chat with an agent");
        }
    }

    /// Actions of administrators, and account synchronization.
    fn administration(&mut self, midnight: Timestamp, share: f64) {
        for (action, rate, what) in [
            ("organization_users_viewed", 15.0, "viewed the users"),
            ("user_profile_viewed", 20.0, "viewed a profile"),
            ("group_member_added", 8.0, "added a user to a group"),
            ("group_member_removed", 4.0, "removed a user from a group"),
            ("group_created", 0.8, "created a group"),
            ("group_deleted", 0.3, "deleted a group"),
            ("user_granted_role", 1.5, "granted a role"),
            ("user_created", 1.0, "created a user"),
            ("account_deactivated", 0.7, "deactivated an account"),
        ] {
            for _ in 0..self.times(rate, share) {
                let who = self.administrator();
                let at = self.at_work(midnight, &who);
                let target = self.random_employee().person().target();
                let number = self.log.random.u32(0..60);
                let group = json!({ "id": format!("g-{number}"), "type": "groups", "attributes": { "name": format!("project-{number}"), "groupName": format!("project-{number}") } });
                let context = match action {
                    "organization_users_viewed" => json!({ "type": "orgs", "attributes": { "name": "Example Corp" } }),
                    "group_created" | "group_deleted" => json!([group]),
                    "group_member_added" | "group_member_removed" => json!([group, target]),
                    // Administrators do not grant roles to themselves, and new users are not existing employees.
                    "user_granted_role" => {
                        let person = self.developer();
                        json!([person.person().target(), thing("roles", "r-1", "product access")])
                    }
                    "user_created" => {
                        json!([thing("users", &format!("new-{:08x}", self.log.random.u32(..)), "A new colleague")])
                    }
                    _ => json!([target]),
                };
                self.push(at, action, &who, context, what);
            }
        }
        for _ in 0..self.times(4.0, share) {
            let who = self.random_employee();
            let at = self.at_work(midnight, &who);
            let number = self.log.random.u32(0..1_000);
            let domain = if self.log.random.u8(0..3) > 0 {
                "example.com"
            } else {
                PARTNERS.get(self.log.random.usize(0..PARTNERS.len())).copied().unwrap_or("agency.example")
            };
            let invited = json!([{ "type": "users", "attributes": { "email": format!("new{number}@{domain}") } }]);
            self.push(at, "user_invitation_sent", &who, invited, "invited a user");
        }
    }

    /// Actions of developers.
    fn development(&mut self, midnight: Timestamp, share: f64) {
        for (action, rate, what) in [
            ("api_token_created", 2.0, "created an API token"),
            ("api_token_revoked", 1.0, "revoked an API token"),
            ("bb_repository_created", 1.0, "created a repository"),
            ("bb_repository_updated", 5.0, "updated a repository"),
            ("bb_member_added", 2.0, "added a repository member"),
            ("bb_branch_restriction_updated", 0.25, "updated a branch restriction"),
            ("bb_deploy_key_added", 0.2, "added a deploy key"),
            ("bb_webhook_created", 0.2, "created a webhook"),
            ("bb_repository_deleted", 0.15, "deleted a repository"),
            ("rovo_agent_updated", 0.6, "updated an agent"),
        ] {
            for _ in 0..self.times(rate, share) {
                let who = self.developer();
                let at = self.at_work(midnight, &who);
                let repository = self.log.random.usize(0..REPOSITORIES.len());
                let name = REPOSITORIES.get(repository).copied().unwrap_or("tools");
                let context = match action {
                    "api_token_created" | "api_token_revoked" => {
                        json!([thing("tokens", &format!("token-{:08x}", self.log.random.u32(..)), "script")])
                    }
                    // Most changes are to one's own.
                    "rovo_agent_updated" => {
                        let mine = self.log.random.u8(0..10) > 0;
                        let id = if mine { who.id.clone() } else { "shared".to_owned() };
                        json!([thing("agents", &format!("agent-{id}"), "Helper")])
                    }
                    _ => json!([thing("repositories", &format!("r-{repository}"), name)]),
                };
                self.push(at, action, &who, context, what);
            }
        }
    }

    /// Events that happen a few times a month and look suspicious.
    fn exceptions(&mut self, midnight: Timestamp, share: f64) {
        // Travel.
        for _ in 0..self.times(0.4, share) {
            let who = self.random_employee();
            let (country, city) = ABROAD.get(self.log.random.usize(0..ABROAD.len())).copied().unwrap_or(ABROAD[0]);
            let ip = format!("198.51.100.{}", self.log.random.u8(100..250));
            let away = Person { country, city, ip: &ip, ..who.person() };
            // Early, before working hours.
            let at = time::after(midnight, Duration::from_secs(self.log.random.u64(18_000..21_600)));
            self.log.push(at, "user_login", away, Value::Null, &format!("{} logged in", who.name));
        }
        for (action, rate, what) in [
            ("twosv_disabled_for_user", 0.1, "disabled two-step verification for a user"),
            ("marketplace_app_installed", 0.2, "installed an app"),
            ("marketplace_app_uninstalled", 0.1, "uninstalled an app"),
            ("audit_log_exported", 0.2, "exported the audit log"),
            ("user_logged_in_as_user", 0.05, "logged in as another user"),
            ("data_classification_policy_update", 0.05, "updated a policy"),
        ] {
            for _ in 0..self.times(rate, share) {
                let who = self.administrator();
                let at = self.at_work(midnight, &who);
                let other = self.developer();
                let number = self.log.random.u32(0..200);
                let context = match action {
                    "twosv_disabled_for_user" | "user_logged_in_as_user" => json!([other.person().target()]),
                    "audit_log_exported" => Value::Null,
                    "data_classification_policy_update" => json!([thing("policies", "dc-1", "Confidential")]),
                    _ => {
                        json!([{ "id": format!("com.example.app{number}"), "type": "apps", "attributes": { "name": format!("App {number}"), "vendor": "Example Labs" } }])
                    }
                };
                self.push(at, action, &who, context, what);
            }
        }
        for _ in 0..self.times(0.15, share) {
            let who = self.administrator();
            let at = self.at_work(midnight, &who);
            self.log.setting(at, Duration::from_secs(1), who.person(), "Announcement banner", ["off", "on"]);
        }
        // An email address that changes with the name.
        for _ in 0..self.times(0.2, share) {
            let who = self.random_employee();
            let at = self.at_work(midnight, &who);
            self.push(at, "account_email_changed", &who, Value::Null, "changed the email address");
        }
        // An invitation from a domain not seen before.
        for _ in 0..self.times(0.2, share) {
            let who = self.random_employee();
            let at = self.at_work(midnight, &who);
            let email = format!("contact@customer{}.example", self.log.random.u32(0..10_000));
            let invited = json!([{ "type": "users", "attributes": { "email": email } }]);
            self.push(at, "user_invitation_sent", &who, invited, "invited a user");
        }
    }
}
