//! Jira Cloud: an alert is one issue, found again by its label `watchbell-ALERT`, so that nothing doubles; what happens to the
//! alert later becomes comments, and its resolution a transition. REST API v3 with an API token.
//! <https://developer.atlassian.com/cloud/jira/platform/rest/v3/>
//!
//! Searching lags a few seconds behind creating, so the key of an issue is also remembered as the alert's reference.

use std::path::Path;

use reqwest::{Method, RequestBuilder, Url};
use serde_json::{Value, json};

use super::{
    Destination, Message, OpenError, Receipt, SendOutcome, Sending,
    http::{Answer, Service},
    message::{SHOWN, digest_line, fields, headline, more},
};
use crate::{
    config::{
        secret::{Secret, SecretOrigin},
        settings::TableReader,
    },
    http,
    model::{alert::Notice, text::clipped, time::Clock},
};

/// Which project of which site, as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `https://SITE.atlassian.net`.
    pub base_url: Url,
    /// The email address of the account that the token belongs to.
    pub email: String,
    /// The account's API token.
    pub api_token: SecretOrigin,
    /// The key of the project.
    pub project: String,
    /// The name of the issue type.
    pub issue_type: String,
    /// The name of the transition that closes an issue; absent: a comment says that the alert is over.
    pub resolve_transition: Option<String>,
}

impl Settings {
    pub(super) fn read(table: &mut TableReader<'_>, base: &Path) -> Option<Self> {
        table.required_text("base_url", "\"https://example.atlassian.net\"");
        let base_url = table.has("base_url").then(|| table.parsed("base_url", http::parse_url)).flatten();
        let email = table.required_text("email", "\"watchbell@example.com\"").map(str::to_owned);
        let api_token = table.secret("api_token", base);
        let project = table.required_text("project", "\"SEC\"").map(str::to_owned);
        if let Some(project) = &project
            && !project.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            table.problem("project", format!("`{project}` is not the key of a project, such as `SEC`"), None);
        }
        let issue_type = table.text("issue_type").unwrap_or("Task").to_owned();
        let resolve_transition = table.text("resolve_transition").map(str::to_owned);
        Some(Self {
            base_url: base_url?,
            email: email?,
            api_token: api_token?,
            project: project?,
            issue_type,
            resolve_transition,
        })
    }

    pub(super) fn open(&self, _clock: &Clock) -> Result<Jira, OpenError> {
        Secret::load(&self.api_token)?;
        Ok(Jira { settings: self.clone(), service: Service::new(&self.base_url, None).map_err(OpenError::Unusable)? })
    }
}

#[derive(Debug)]
pub(super) struct Jira {
    settings: Settings,
    service: Service,
}

impl Destination for Jira {
    fn send<'a>(&'a mut self, message: &'a Message, reference: Option<&'a str>) -> Sending<'a> {
        Box::pin(async move { self.tell(message, reference).await.unwrap_or_else(|verdict| verdict) })
    }
}

impl Jira {
    async fn tell(&self, message: &Message, reference: Option<&str>) -> Result<SendOutcome, SendOutcome> {
        let token = Secret::load(&self.settings.api_token).map_err(|error| SendOutcome::retry(error.to_string()))?;
        let call = Call { jira: self, token };
        let label = match message.single() {
            Some((_, alert)) => format!("watchbell-{}", alert.id),
            None => format!("watchbell-{}", message.key()),
        };
        let known = match reference {
            Some(key) => Some(key.to_owned()),
            None => call.find(&label).await?,
        };
        let news = match message.single() {
            Some((notice, _)) => notice,
            // A digest that was created before is the same digest.
            None if known.is_some() => return Ok(delivered(known, "was there already")),
            None => Notice::Opened,
        };
        match known {
            Some(key) => {
                // The first word is in the issue itself: told again after a crash, it needs no comment.
                if news != Notice::Opened && !call.comment(&key, message).await? {
                    return Ok(SendOutcome::delivered(format!("issue {key} is gone: there is nothing to update")));
                }
                if let (Notice::Resolved, Some(transition)) = (news, &self.settings.resolve_transition) {
                    call.transition(&key, transition).await?;
                }
                Ok(delivered(Some(key), "updated"))
            }
            None if matches!(news, Notice::Opened | Notice::Escalated | Notice::Reopened) => {
                let key = call.create(message, &label).await?;
                Ok(delivered(Some(key), "created"))
            }
            None => Ok(SendOutcome::delivered("there is no issue of this alert to update")),
        }
    }
}

fn delivered(key: Option<String>, what: &str) -> SendOutcome {
    let answer = format!("issue {} {what}", key.as_deref().unwrap_or_default());
    SendOutcome::Delivered(Receipt { answer, reference: key })
}

/// The requests that one message needs.
struct Call<'a> {
    jira: &'a Jira,
    token: Secret,
}

impl Call<'_> {
    fn request(&self, method: Method, path: &[&str]) -> Result<RequestBuilder, SendOutcome> {
        let settings = &self.jira.settings;
        let mut url = settings.base_url.clone();
        url.path_segments_mut()
            .map_err(|()| SendOutcome::retry("`base_url` cannot be used"))?
            .clear()
            .extend(["rest", "api", "3"])
            .extend(path);
        let request = self.jira.service.request(method, url);
        Ok(request.basic_auth(&settings.email, Some(self.token.expose())).header("accept", "application/json"))
    }

    /// Sends a request; anything but success is the verdict on the message.
    async fn ask(&self, request: RequestBuilder) -> Result<Value, SendOutcome> {
        let answer: Answer = self.jira.service.ask(request).await?;
        match self.jira.service.verdict(&answer, &[self.token.expose()]) {
            SendOutcome::Delivered(_) => Ok(serde_json::from_slice(&answer.body).unwrap_or_default()),
            other => Err(other),
        }
    }

    async fn find(&self, label: &str) -> Result<Option<String>, SendOutcome> {
        let jql = format!("project = \"{}\" AND labels = \"{label}\"", self.jira.settings.project);
        let body = json!({ "jql": jql, "maxResults": 1, "fields": ["summary"] });
        let found = self.ask(self.request(Method::POST, &["search", "jql"])?.json(&body)).await?;
        Ok(found.pointer("/issues/0/key").and_then(Value::as_str).map(str::to_owned))
    }

    async fn create(&self, message: &Message, label: &str) -> Result<String, SendOutcome> {
        let settings = &self.jira.settings;
        let body = json!({ "fields": {
            "project": { "key": settings.project },
            "issuetype": { "name": settings.issue_type },
            // Jira allows 255 characters, and no line breaks.
            "summary": clipped(&headline(message), 250),
            "description": document(message),
            "labels": ["watchbell", label],
        } });
        let created = self.ask(self.request(Method::POST, &["issue"])?.json(&body)).await?;
        let key = created.get("key").and_then(Value::as_str).map(str::to_owned);
        key.ok_or_else(|| SendOutcome::retry("Jira created an issue and did not say which"))
    }

    /// Comments on an issue; false if somebody has deleted it.
    async fn comment(&self, key: &str, message: &Message) -> Result<bool, SendOutcome> {
        let body = json!({ "body": document(message) });
        let request = self.request(Method::POST, &["issue", key, "comment"])?.json(&body);
        let answer: Answer = self.jira.service.ask(request).await?;
        if answer.status.as_u16() == 404 {
            return Ok(false);
        }
        match self.jira.service.verdict(&answer, &[self.token.expose()]) {
            SendOutcome::Delivered(_) => Ok(true),
            other => Err(other),
        }
    }

    async fn transition(&self, key: &str, name: &str) -> Result<(), SendOutcome> {
        let known = self.ask(self.request(Method::GET, &["issue", key, "transitions"])?).await?;
        let transitions = known.get("transitions").and_then(Value::as_array).cloned().unwrap_or_default();
        let named = |transition: &&Value| {
            transition.get("name").and_then(Value::as_str).is_some_and(|found| found.eq_ignore_ascii_case(name))
        };
        // None of that name: whoever works on the issue has closed it, or the workflow is another. The comment says enough.
        let Some(id) = transitions.iter().find(named).and_then(|transition| transition.get("id").cloned()) else {
            tracing::warn!(issue = key, transition = name, "the issue has no such transition now: it stays as it is");
            return Ok(());
        };
        let body = json!({ "transition": { "id": id } });
        self.ask(self.request(Method::POST, &["issue", key, "transitions"])?.json(&body)).await.map(drop)
    }
}

/// The message in the Atlassian Document Format.
fn document(message: &Message) -> Value {
    let text = |text: &str| json!({ "type": "text", "text": text });
    let strong = |text: &str| json!({ "type": "text", "text": text, "marks": [{ "type": "strong" }] });
    let paragraph = |content: Vec<Value>| json!({ "type": "paragraph", "content": content });
    let mut content = vec![paragraph(vec![strong(&clipped(&headline(message), 500))])];
    // Jira takes 32,767 characters and counts them in a form of its own, which is longer.
    let mut left: usize = 15_000;
    let mut share = |value: &str, most: usize| {
        let value = clipped(value, most.min(left.max(1)));
        left = left.saturating_sub(value.encode_utf16().count());
        value
    };
    match message {
        Message::Alert { notice, alert, .. } => {
            for (name, value) in fields(alert, *notice).into_iter().filter(|(_, value)| !value.is_empty()) {
                content.push(paragraph(vec![
                    strong(&format!("{name}: ")),
                    text(&share(&value.replace('\n', " "), 4_000)),
                ]));
            }
        }
        Message::Digest { alerts, .. } => {
            for alert in alerts.iter().take(SHOWN) {
                content.push(paragraph(vec![text(&share(&digest_line(alert), 300))]));
            }
            let more = more(alerts.len());
            content.extend((!more.is_empty()).then(|| paragraph(vec![text(more.trim())])));
        }
    }
    json!({ "type": "doc", "version": 1, "content": content })
}
