//! Creates Jira Cloud issues through REST API v3 with an API token.
//! <https://developer.atlassian.com/cloud/jira/platform/rest/v3/>
//!
//! An alert is one issue with the label `watchbell-ALERT`, which finds the issue again and prevents duplicates. Later
//! changes become comments, and the resolution a transition. Search results lag a few seconds behind, so the issue key
//! is also stored as the alert's reference.

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

/// Settings of a Jira project (`kind = "jira"`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// URL of the site: `https://SITE.atlassian.net`. Required.
    pub base_url: Url,
    /// Email address of the account that the API token belongs to. Required.
    pub email: String,
    /// API token of the account, as a secret: `{ env = "NAME" }` or `{ file = "PATH" }`. Required.
    pub api_token: SecretOrigin,
    /// Key of the project, such as `SEC`. Required.
    pub project: String,
    /// Name of the issue type. Default: `Task`.
    pub issue_type: String,
    /// Name of the transition that closes an issue when its alert is resolved. Default: only a comment is added.
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
            table.problem("project", format!("`{project}` is not a project key, such as `SEC`"), None);
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
        Box::pin(async move { self.deliver(message, reference).await.unwrap_or_else(|verdict| verdict) })
    }
}

impl Jira {
    async fn deliver(&self, message: &Message, reference: Option<&str>) -> Result<SendOutcome, SendOutcome> {
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
            // The issue of this digest was created by an earlier attempt.
            None if known.is_some() => return Ok(delivered(known, "already exists")),
            None => Notice::Opened,
        };
        match known {
            Some(key) => {
                // The issue itself describes the opening: no comment if that is sent again after a crash.
                if news != Notice::Opened && !call.comment(&key, message).await? {
                    return Ok(SendOutcome::delivered(format!("issue {key} no longer exists: nothing to update")));
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
            None => Ok(SendOutcome::delivered("the alert has no issue to update")),
        }
    }
}

fn delivered(key: Option<String>, what: &str) -> SendOutcome {
    let answer = format!("issue {} {what}", key.as_deref().unwrap_or_default());
    SendOutcome::Delivered(Receipt { answer, reference: key })
}

/// The requests for one message.
struct Call<'a> {
    jira: &'a Jira,
    token: Secret,
}

impl Call<'_> {
    fn request(&self, method: Method, path: &[&str]) -> Result<RequestBuilder, SendOutcome> {
        let settings = &self.jira.settings;
        let mut url = settings.base_url.clone();
        url.path_segments_mut()
            .map_err(|()| SendOutcome::retry("cannot use `base_url`"))?
            .clear()
            .extend(["rest", "api", "3"])
            .extend(path);
        let request = self.jira.service.request(method, url);
        Ok(request.basic_auth(&settings.email, Some(self.token.expose())).header("accept", "application/json"))
    }

    /// Sends a request. Anything but success is returned as the outcome of the delivery.
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
        key.ok_or_else(|| SendOutcome::retry("Jira's response has no issue key"))
    }

    /// Comments on an issue. Returns false if the issue has been deleted.
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
        // Without that transition the issue is already closed, or has a different workflow. The comment is enough.
        let Some(id) = transitions.iter().find(named).and_then(|transition| transition.get("id").cloned()) else {
            tracing::warn!(issue = key, transition = name, "the issue does not offer this transition: not closing it");
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
    // Jira accepts 32,767 characters, counted in its own, longer representation.
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
