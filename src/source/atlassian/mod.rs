//! Fetches the audit log of an Atlassian Cloud organization: `GET /admin/v1/orgs/{org}/events-stream`.
//!
//! Events are read in ascending order of processing time, so that those Atlassian processes late are not missed. Every
//! request is built from our own parameters and the bare token `meta.next`. URLs in responses and redirects are never
//! followed, so the key is only sent to the configured host.
//!
//! Facts about the API (July to November 2026): `limit` is at most 500; `from` is in milliseconds since 1970; the sort
//! order is part of the cursor. <https://developer.atlassian.com/cloud/admin/organization/rest/api-group-events/>

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

/// Maximum number of entries that Atlassian returns per page.
pub const PAGE_LIMIT: usize = 500;
/// Maximum size of a response. A page of 500 events is usually smaller than one megabyte.
const MAX_BODY_BYTES: usize = 32 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const TOTAL_TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout of the list of actions. Short, because the first poll waits for it.
const LIST_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum number of pages of the list of actions. There are far fewer.
const MAX_LIST_PAGES: usize = 100;

/// Settings of an Atlassian organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// ID of the organization, shown next to the API key at admin.atlassian.com. Required.
    pub org_id: String,
    /// Scheme and host of the API. Default: `https://api.atlassian.com`.
    pub base_url: Url,
    /// API key of the organization, as a secret: `{ env = "NAME" }` or `{ file = "PATH" }`. Required.
    pub api_key: SecretOrigin,
    /// Date on which the API key expires, such as `2027-03-01`. Health alerts warn before that date. Default: no
    /// warning.
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
                table.problem("org_id", "`org_id` is not a valid organization ID", Some(help));
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
        return Err("expected scheme and host only, such as `https://api.atlassian.com`".to_owned());
    }
    Ok(url)
}

struct Response {
    body: Vec<u8>,
    /// The server's clock, from the `Date` header.
    server_time: Option<Timestamp>,
}

/// Client of one Atlassian organization.
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
                // An invalid byte must not stop the log: it becomes U+FFFD, in that event only.
                tracing::warn!(host = self.host(), "a response is not valid UTF-8: replacing invalid bytes");
                String::from_utf8_lossy(error.as_bytes()).into_owned()
            }
        };
        let mut page = page::parse(&text).map_err(|reason| self.unreadable("events page", &reason))?;
        page.server_time = answer.server_time;
        Ok(page)
    }

    /// Fetches the organization's list of actions: `GET /orgs/{org}/event-actions`. Its limit and paging are not
    /// documented, so a cursor is followed if there is one.
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

    /// Sends a GET request for a resource of the organization. Any status but 200 is an error.
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
        let message = format!("{} did not return a valid {what}: {reason}", self.host());
        FetchError::new(ErrorKind::UnreadableAnswer, message)
    }

    async fn body(&self, response: reqwest::Response, status: StatusCode) -> Result<Vec<u8>, FetchError> {
        // Only the start of an error body is useful.
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
