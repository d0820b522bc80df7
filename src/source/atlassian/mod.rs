//! The audit log of an Atlassian Cloud organization: `GET /admin/v1/orgs/{org}/events-stream`.
//!
//! Ascending by processing time, so that events which Atlassian processes late are not missed. Every request is built from our
//! own parameters and the bare token `meta.next`; URLs in answers are never followed, redirects neither, so the key goes to
//! the configured host only.
//!
//! Facts about the API (July to November 2026): `limit` is at most 500; `from` is in milliseconds since 1970; the sort order
//! is part of the cursor. <https://developer.atlassian.com/cloud/admin/organization/rest/api-group-events/>

use std::{path::Path, time::Duration};

use reqwest::{Client, StatusCode, Url, header};

use super::{FetchError, FetchedPage, Position, SourceSetupError};
use crate::{
    config::{
        secret::{Secret, SecretError, SecretOrigin},
        settings::TableReader,
    },
    http,
    model::{action::ListedAction, error_kind::ErrorKind, time::Timestamp},
};

mod error;
mod page;

/// The most entries that Atlassian returns on a page.
pub const PAGE_LIMIT: usize = 500;
/// A page of 500 events is usually below one megabyte.
const MAX_BODY_BYTES: usize = 32 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const TOTAL_TIMEOUT: Duration = Duration::from_secs(60);
/// The first poll waits for the list of actions: it must not wait long.
const LIST_TIMEOUT: Duration = Duration::from_secs(20);
/// Far more than there are actions.
const MAX_LIST_PAGES: usize = 100;

/// Which organization, where, with which key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The organization's id, as admin.atlassian.com shows it beside the API key.
    pub org_id: String,
    /// Scheme and host.
    pub base_url: Url,
    /// Where the key is.
    pub api_key: SecretOrigin,
    /// When the key expires, for the warning before it does.
    pub api_key_expires: Option<jiff::civil::Date>,
}

impl Settings {
    pub(super) fn read(table: &mut TableReader<'_>, base: &Path) -> Option<Self> {
        let org_id = table.required_text("org_id", "\"…\"").map(str::to_owned);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let org_id = org_id.filter(|org_id| {
            let valid = !org_id.is_empty() && org_id.len() <= 100 && org_id.bytes().all(plain);
            if !valid {
                let help = "copy the organization ID from admin.atlassian.com: letters, digits and `-`".to_owned();
                table.problem("org_id", "`org_id` is not an organization id", Some(help));
            }
            valid
        });
        let base_url = if table.has("base_url") {
            table.parsed("base_url", parse_base_url)
        } else {
            table.text("base_url");
            parse_base_url("https://api.atlassian.com").ok()
        };
        let api_key = table.secret("api_key", base);
        let api_key_expires = table.date("api_key_expires");
        Some(Self { org_id: org_id?, base_url: base_url?, api_key: api_key?, api_key_expires })
    }
}

fn parse_base_url(text: &str) -> Result<Url, String> {
    let url = http::parse_url(text)?;
    if url.path() != "/" || url.query().is_some() {
        return Err("it must be scheme and host only, such as `https://api.atlassian.com`".to_owned());
    }
    Ok(url)
}

/// What came back.
struct Response {
    body: Vec<u8>,
    /// The server's clock, if it told.
    server_time: Option<Timestamp>,
}

/// An organization whose log can be read.
#[derive(Debug)]
pub struct AtlassianSource {
    settings: Settings,
    key: Secret,
    client: Client,
}

impl AtlassianSource {
    pub(super) fn new(settings: Settings) -> Result<Self, SourceSetupError> {
        let key = Secret::load(&settings.api_key)?;
        let client =
            http::client(&settings.base_url, CONNECT_TIMEOUT, TOTAL_TIMEOUT, None).map_err(SourceSetupError::Client)?;
        Ok(Self { settings, key, client })
    }

    pub(super) fn reload_secret(&mut self) -> Result<(), SecretError> {
        self.key = Secret::load(&self.settings.api_key)?;
        Ok(())
    }

    pub(super) fn same_credential(&self, other: &Self) -> bool {
        self.key.expose() == other.key.expose()
    }

    pub(super) async fn fetch(
        &self,
        position: &Position,
        limit: usize,
        now: Timestamp,
    ) -> Result<FetchedPage, FetchError> {
        let limit = limit.min(PAGE_LIMIT).to_string();
        let (name, value) = match position {
            Position::Cursor(cursor) => ("cursor", cursor.clone()),
            Position::From(time) => ("from", time.as_millisecond().to_string()),
        };
        let query = [("sortOrder", "asc"), ("limit", &limit), (name, &value)];
        let answer = self.ask("events-stream", &query, TOTAL_TIMEOUT, now).await?;
        let text = match String::from_utf8(answer.body) {
            Ok(text) => text,
            Err(error) => {
                // One bad byte must not stop the log: it becomes U+FFFD, in that event alone.
                tracing::warn!(host = self.host(), "an answer is not valid UTF-8: wrong bytes are replaced");
                String::from_utf8_lossy(error.as_bytes()).into_owned()
            }
        };
        let mut page = page::parse(&text).map_err(|reason| self.unreadable("events page", &reason))?;
        page.server_time = answer.server_time;
        Ok(page)
    }

    /// The organization's list of its actions: `GET /orgs/{org}/event-actions`. Neither its limit nor whether it has pages is
    /// documented: a cursor is followed if there is one.
    pub(super) async fn actions(&self, now: Timestamp) -> Result<Vec<ListedAction>, FetchError> {
        let mut listed = Vec::new();
        let mut cursor: Option<String> = None;
        for _ in 0..MAX_LIST_PAGES {
            let query: Vec<(&str, &str)> = cursor.iter().map(|cursor| ("cursor", cursor.as_str())).collect();
            let answer = self.ask("event-actions", &query, LIST_TIMEOUT, now).await?;
            let (mut page, next) = page::parse_actions(&String::from_utf8_lossy(&answer.body))
                .map_err(|reason| self.unreadable("list of actions", &reason))?;
            listed.append(&mut page);
            if next.is_none() || next == cursor {
                break;
            }
            cursor = next;
        }
        Ok(listed)
    }

    /// Asks for something of the organization. Anything but an answer of 200 is an error that says what came.
    async fn ask(
        &self,
        what: &str,
        query: &[(&str, &str)],
        timeout: Duration,
        now: Timestamp,
    ) -> Result<Response, FetchError> {
        let mut url = self.settings.base_url.clone();
        url.set_path(&format!("/admin/v1/orgs/{}/{what}", self.settings.org_id));
        let request = self
            .client
            .get(url)
            .query(query)
            .timeout(timeout)
            .bearer_auth(self.key.expose())
            .header(header::ACCEPT, "application/json");
        let response = request.send().await.map_err(|error| self.transport_error(&error))?;
        let status = response.status();
        let server_time = server_time(response.headers());
        let retry_after = http::retry_after(response.headers(), now);
        if status.is_redirection() {
            let message = format!("{} answered {status}, a redirect", self.host());
            return Err(FetchError::new(ErrorKind::Redirected, message));
        }
        let body = self.body(response, status).await?;
        if status != StatusCode::OK {
            let detail = error::detail(&body, self.key.expose());
            let kind = error::kind(status, query.iter().any(|(name, _)| *name == "cursor"));
            let message = format!("{} answered {status}{detail}", self.host());
            return Err(FetchError { kind, message, retry_after });
        }
        Ok(Response { body, server_time })
    }

    fn unreadable(&self, what: &str, reason: &str) -> FetchError {
        let message = format!("{} answered with no {what}: {reason}", self.host());
        FetchError::new(ErrorKind::UnreadableAnswer, message)
    }

    async fn body(&self, response: reqwest::Response, status: StatusCode) -> Result<Vec<u8>, FetchError> {
        // Only the beginning of an error's text is of use.
        let limit = if status == StatusCode::OK { MAX_BODY_BYTES } else { 64 * 1024 };
        match http::read_body(response, limit).await {
            Ok(http::Body::Whole(body)) => Ok(body),
            Ok(http::Body::Cut(body)) if status != StatusCode::OK => Ok(body),
            Ok(http::Body::Cut(_)) => {
                let message = format!("{} answered with more than {} MiB", self.host(), MAX_BODY_BYTES >> 20);
                Err(FetchError::new(ErrorKind::OversizedAnswer, message))
            }
            Err(error) => Err(self.transport_error(&error)),
        }
    }

    fn transport_error(&self, error: &reqwest::Error) -> FetchError {
        let (kind, cause) = http::failure(error);
        FetchError::new(kind, format!("{}: {cause}", self.host()))
    }

    fn host(&self) -> &str {
        self.settings.base_url.host_str().unwrap_or("the server")
    }
}

fn server_time(headers: &header::HeaderMap) -> Option<Timestamp> {
    let date = headers.get(header::DATE)?.to_str().ok()?;
    jiff::fmt::rfc2822::parse(date).ok().map(|zoned| zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_travels_encrypted_or_not_at_all() {
        for right in ["https://api.atlassian.com", "http://127.0.0.1:8080", "http://[::1]:1", "http://localhost:1"] {
            assert!(parse_base_url(right).is_ok(), "{right}");
        }
        for wrong in
            ["http://api.atlassian.com", "ftp://x", "https://a/b", "https://u:p@a", "x", "http://127.0.0.1.evil.com"]
        {
            assert!(parse_base_url(wrong).is_err(), "{wrong}");
        }
    }
}
