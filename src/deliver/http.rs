//! Posting JSON to a service, and what its answer means: the part that all destinations behind HTTP share.

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
/// Enough of an answer to see what it says.
const ANSWER_BYTES: usize = 64 * 1024;

/// A service at a URL.
#[derive(Debug)]
pub(super) struct Service {
    client: Client,
    host: String,
}

/// What a service answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Vec<u8>,
    pub(super) retry_after: Option<Duration>,
}

impl Service {
    /// A client for the service at `url`.
    pub(super) fn new(url: &Url, ca_file: Option<&Path>) -> Result<Self, String> {
        let client = http::client(url, CONNECT_TIMEOUT, TOTAL_TIMEOUT, ca_file)?;
        Ok(Self { client, host: url.host_str().unwrap_or("the server").to_owned() })
    }

    /// A request to `url`, to be finished and given to [`Service::ask`].
    pub(super) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.client.request(method, url)
    }

    /// Sends a request. An error is what to say when there is no answer.
    pub(super) async fn ask(&self, request: RequestBuilder) -> Result<Answer, SendOutcome> {
        let failed = |error: reqwest::Error| SendOutcome::retry(format!("{}: {}", self.host, http::failure(&error).1));
        let response = request.send().await.map_err(failed)?;
        let status = response.status();
        // Retries are an hour at most apart, so a clock that is a little off does no harm.
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

    /// What an answer means for the message that was sent. `secrets` never appear in it.
    pub(super) fn verdict<S: AsRef<str>>(&self, answer: &Answer, secrets: &[S]) -> SendOutcome {
        let status = answer.status;
        let words = words(&answer.body, secrets);
        if status.is_success() {
            return SendOutcome::delivered(format!("{status}{words}"));
        }
        let reason = format!("{} answered {status}{words}", self.host);
        match status.as_u16() {
            // The request itself is wrong, or too large: it will be so tomorrow.
            400 | 406 | 411 | 413 | 414 | 415 | 422 => SendOutcome::Refused(reason),
            // Everything else may be put right: keys, URLs, permissions, the service itself.
            _ => SendOutcome::Retry { reason, after: answer.retry_after },
        }
    }
}

/// A service whose URL is its secret: whoever knows it may post there.
#[derive(Debug)]
pub(super) struct SecretUrl {
    origin: SecretOrigin,
    service: Service,
}

impl SecretUrl {
    /// Reads the URL, to see that it is one.
    pub(super) fn open(origin: &SecretOrigin) -> Result<Self, OpenError> {
        let service = Service::new(&Self::url(origin)?, None).map_err(OpenError::Unusable)?;
        Ok(Self { origin: origin.clone(), service })
    }

    fn url(origin: &SecretOrigin) -> Result<Url, OpenError> {
        let secret = Secret::load(origin)?;
        http::parse_url(secret.expose()).map_err(|error| OpenError::Unusable(format!("{origin}: {error}")))
    }

    /// Posts JSON there. The URL is read anew: it may have been replaced where it is kept.
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

/// What makes a URL a secret: the long parts of its path and of its query, as they stand there and as they are meant.
pub(super) fn secret_parts(url: &Url) -> Vec<String> {
    let path = url.path_segments().into_iter().flatten();
    let query = url.query().unwrap_or_default().split('&').filter_map(|pair| Some(pair.split_once('=')?.1));
    let written = path.chain(query).map(str::to_owned);
    let meant = url.query_pairs().map(|(_, value)| value.into_owned());
    written.chain(meant).filter(|part| part.len() >= 8).collect()
}

/// The beginning of an answer, as words behind a colon; nothing if it says nothing.
fn words<S: AsRef<str>>(body: &[u8], secrets: &[S]) -> String {
    let mut text = String::from_utf8_lossy(body).into_owned();
    for secret in secrets.iter().map(AsRef::as_ref).filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "…");
    }
    // Cut only now: half a secret would not be recognised.
    let text: String = crate::model::text::printable(text.trim()).chars().take(300).collect();
    if text.is_empty() { String::new() } else { format!(": {text}") }
}
