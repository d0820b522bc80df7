//! Posts JSON to a service and interprets its response. Shared by all HTTP destinations.

use std::{path::Path, time::Duration};

use reqwest::{Client, Method, RequestBuilder, StatusCode, Url};

use super::{OpenError, SendOutcome};
use crate::{
    config::secret::{Secret, SecretOrigin},
    http,
    model::time::Timestamp,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const TOTAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum number of response bytes to read.
const ANSWER_BYTES: usize = 64 * 1024;

/// A client for one service.
#[derive(Debug)]
pub(super) struct Service {
    client: Client,
    host: String,
}

/// The response of a service.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Vec<u8>,
    pub(super) retry_after: Option<Duration>,
}

impl Service {
    /// Creates a client for the service at `url`.
    pub(super) fn new(url: &Url, ca_file: Option<&Path>) -> Result<Self, String> {
        let client = http::client(url, CONNECT_TIMEOUT, TOTAL_TIMEOUT, ca_file)?;
        Ok(Self { client, host: url.host_str().unwrap_or("the server").to_owned() })
    }

    /// Starts a request to `url`. Send it with [`Service::ask`].
    pub(super) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.client.request(method, url)
    }

    /// Sends a request. The error is the outcome to return if there is no response.
    pub(super) async fn ask(&self, request: RequestBuilder) -> Result<Answer, SendOutcome> {
        let failed = |error: reqwest::Error| SendOutcome::retry(format!("{}: {}", self.host, http::failure(&error).1));
        let response = request.send().await.map_err(failed)?;
        let status = response.status();
        // `Retry-After` dates are relative to the server's clock. Without a `Date` header they give the longest wait.
        let now = response
            .headers()
            .get(reqwest::header::DATE)
            .and_then(|date| jiff::fmt::rfc2822::parse(date.to_str().ok()?).ok())
            .map_or(Timestamp::MIN, |date| date.timestamp());
        let retry_after = http::retry_after(response.headers(), now);
        let body = match http::read_body(response, ANSWER_BYTES).await {
            Ok(http::Body::Whole(body) | http::Body::Cut(body)) => body,
            Err(error) => return Err(failed(error)),
        };
        Ok(Answer { status, body, retry_after })
    }

    /// Converts a response to the outcome of the delivery. `secrets` never appear in it.
    pub(super) fn verdict<S: AsRef<str>>(&self, answer: &Answer, secrets: &[S]) -> SendOutcome {
        let status = answer.status;
        let words = words(&answer.body, secrets);
        if status.is_success() {
            return SendOutcome::delivered(format!("{status}{words}"));
        }
        let reason = format!("{} answered {status}{words}", self.host);
        match status.as_u16() {
            // The request itself is invalid or too large: a retry would fail again.
            400 | 406 | 411 | 413 | 414 | 415 | 422 => SendOutcome::Refused(reason),
            // Everything else can be fixed: keys, URLs, permissions, the service itself.
            _ => SendOutcome::Retry { reason, after: answer.retry_after },
        }
    }
}

/// A service with a secret URL: anyone who knows it can post.
#[derive(Debug)]
pub(super) struct SecretUrl {
    origin: SecretOrigin,
    service: Service,
}

impl SecretUrl {
    /// Reads the URL and checks that it is valid.
    pub(super) fn open(origin: &SecretOrigin) -> Result<Self, OpenError> {
        let service = Service::new(&Self::url(origin)?, None).map_err(OpenError::Unusable)?;
        Ok(Self { origin: origin.clone(), service })
    }

    fn url(origin: &SecretOrigin) -> Result<Url, OpenError> {
        let secret = Secret::load(origin)?;
        http::parse_url(secret.expose()).map_err(|error| OpenError::Unusable(format!("{origin}: {error}")))
    }

    /// Posts JSON. The URL is read each time, because the secret may have been replaced.
    pub(super) async fn post(&self, body: &serde_json::Value) -> SendOutcome {
        let url = match Self::url(&self.origin) {
            Ok(url) => url,
            Err(error) => return SendOutcome::retry(error.to_string()),
        };
        let secrets = secret_parts(&url);
        match self.service.ask(self.service.request(Method::POST, url).json(body)).await {
            Ok(answer) => self.service.verdict(&answer, &secrets),
            Err(verdict) => verdict,
        }
    }
}

/// Returns the secret parts of a URL: the long path segments and query values, encoded and decoded.
pub(super) fn secret_parts(url: &Url) -> Vec<String> {
    let path = url.path_segments().into_iter().flatten();
    let query = url.query().unwrap_or_default().split('&').filter_map(|pair| Some(pair.split_once('=')?.1));
    let encoded = path.chain(query).map(str::to_owned);
    let decoded = url.query_pairs().map(|(_, value)| value.into_owned());
    encoded.chain(decoded).filter(|part| part.len() >= 8).collect()
}

/// Returns the start of a response body after a colon, or an empty string if there is none.
fn words<S: AsRef<str>>(body: &[u8], secrets: &[S]) -> String {
    let mut text = String::from_utf8_lossy(body).into_owned();
    for secret in secrets.iter().map(AsRef::as_ref).filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "…");
    }
    // Must come after the replacement: half a secret would not be recognized.
    let text: String = crate::model::text::printable(text.trim()).chars().take(300).collect();
    if text.is_empty() { String::new() } else { format!(": {text}") }
}
