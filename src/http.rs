//! HTTP for sources and destinations: builds clients, reads responses up to a limit, and describes failures. (The
//! client of the control socket is separate.)
//!
//! Redirects are never followed, and no message contains a URL, because URLs may contain secrets.

use std::{path::Path, time::Duration};

use reqwest::{Client, StatusCode, Url, header::HeaderMap};

use crate::model::{
    error_kind::ErrorKind,
    time::{self, Timestamp},
};

/// Maximum wait, even if a server asks for a longer one.
const LONGEST_WAIT: Duration = Duration::from_secs(15 * 60);

/// Builds a client for the server at `url`. TLS is required unless that is a loopback address. `ca_file` names
/// certificates to trust in addition to the system's.
pub fn client(url: &Url, connect: Duration, total: Duration, ca_file: Option<&Path>) -> Result<Client, String> {
    // Fails only if a provider is already installed, and then it is the same one.
    rustls::crypto::ring::default_provider().install_default().ok();
    let mut builder = Client::builder()
        .user_agent(concat!("watchbell/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(connect)
        .timeout(total)
        .pool_max_idle_per_host(1);
    if is_loopback(url) {
        builder = builder.no_proxy();
    } else {
        builder = builder.https_only(true);
    }
    if let Some(file) = ca_file {
        let bytes = std::fs::read(file).map_err(|error| format!("cannot read `{}`: {error}", file.display()))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&bytes)
            .map_err(|error| format!("cannot read certificates from `{}`: {error}", file.display()))?;
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|error| error.to_string())
}

/// Parses a URL that secrets or alerts are sent to: `https`, or `http` on a loopback address, without credentials.
pub fn parse_url(text: &str) -> Result<Url, String> {
    // Messages leave out the text itself, because it may be a secret.
    let url = Url::parse(text).map_err(|error| format!("not a valid URL: {error}"))?;
    if url.scheme() == "http" && !is_loopback(&url) {
        return Err("the URL must use `https` (`http` is allowed for loopback only)".to_owned());
    }
    if !matches!(url.scheme(), "https" | "http") || url.host().is_none() {
        return Err("not an `https` URL".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the URL must not contain a user name or password".to_owned());
    }
    Ok(url)
}

/// True if the URL's host is this machine.
pub fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    is_loopback_host(host)
}

/// True if a host name or address is this machine.
pub fn is_loopback_host(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A response body.
#[derive(Debug)]
pub enum Body {
    /// The complete body.
    Whole(Vec<u8>),
    /// The start of a body that exceeds the limit.
    Cut(Vec<u8>),
}

/// Reads a body up to `limit` bytes.
pub async fn read_body(mut response: reqwest::Response, limit: usize) -> Result<Body, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > limit {
            return Ok(Body::Cut(body));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Body::Whole(body))
}

/// The error kind of a status, independent of the service; `None` for success.
pub fn trouble(status: StatusCode) -> Option<ErrorKind> {
    match status.as_u16() {
        200..=299 => None,
        300..=399 => Some(ErrorKind::Redirected),
        401 => Some(ErrorKind::KeyRefused),
        403 => Some(ErrorKind::KeyLacksScope),
        429 => Some(ErrorKind::RateLimited),
        500..=599 => Some(ErrorKind::ServerError),
        _ => Some(ErrorKind::UnreadableAnswer),
    }
}

/// The error kind and description of a request without a complete response.
pub fn failure(error: &reqwest::Error) -> (ErrorKind, String) {
    let causes: Vec<String> = std::iter::successors(std::error::Error::source(error), |cause| cause.source())
        .map(ToString::to_string)
        .collect();
    let cause = causes.last().cloned().unwrap_or_default();
    let untrusted = causes.iter().any(|cause| {
        let cause = cause.to_lowercase();
        cause.contains("certificate") || cause.contains("unknownissuer")
    });
    if error.is_timeout() {
        (ErrorKind::Timeout, "no response in time".to_owned())
    } else if untrusted {
        (ErrorKind::Untrusted, format!("its certificate is not trusted ({cause})"))
    } else if error.is_connect() {
        (ErrorKind::Unreachable, format!("cannot connect ({cause})"))
    } else if error.is_body() || error.is_decode() {
        (ErrorKind::UnreadableAnswer, format!("the response was cut off ({cause})"))
    } else {
        (ErrorKind::Unreachable, format!("the request failed ({cause})"))
    }
}

/// How long the response asks to wait: `Retry-After` or `X-Retry-After` (seconds or an HTTP date), else
/// `X-RateLimit-Reset` (seconds or milliseconds since 1970, or ISO 8601 with or without seconds). All of these have
/// been observed or are documented.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let wait = ["retry-after", "x-retry-after"]
        .into_iter()
        .filter_map(text)
        .find_map(|value| seconds(value).or_else(|| until(http_date(value)?, now)))
        .or_else(|| until(reset(text("x-ratelimit-reset")?)?, now))?;
    Some(wait.min(LONGEST_WAIT))
}

fn seconds(value: &str) -> Option<Duration> {
    let seconds: f64 = value.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

fn until(time: Timestamp, now: Timestamp) -> Option<Duration> {
    Some(time::since(time, now))
}

fn http_date(value: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::parse(value).ok().map(|zoned| zoned.timestamp())
}

fn reset(value: &str) -> Option<Timestamp> {
    if let Ok(number) = value.parse::<i64>() {
        // As seconds, values below this reach to the year 5138; as milliseconds, values above it start in 1973.
        return if number.abs() < 100_000_000_000 {
            Timestamp::from_second(number).ok()
        } else {
            Timestamp::from_millisecond(number).ok()
        };
    }
    time::parse_timestamp(value).or_else(|| {
        // `2026-11-22T08:30Z` or `2026-11-22T08:30+0000`: without seconds.
        let minutes = value.get(..16)?;
        let offset = match value.get(16..)? {
            "" | "Z" | "z" => "Z".to_owned(),
            offset if offset.len() == 5 => format!("{}:{}", offset.get(..3)?, offset.get(3..)?),
            offset => offset.to_owned(),
        };
        time::parse_timestamp(&format!("{minutes}:00{offset}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::{HeaderName, HeaderValue};

    #[test]
    fn every_form_of_asking_to_wait() {
        let now: Timestamp = "2026-11-22T08:30:00Z".parse().unwrap();
        let cases = [
            ("retry-after", "17", 17),
            ("retry-after", "Sun, 22 Nov 2026 08:30:45 GMT", 45),
            ("retry-after", "Sun, 22 Nov 2026 08:29:00 GMT", 0),
            ("x-retry-after", "50", 50),
            ("x-ratelimit-reset", "2026-11-22T08:31Z", 60),
            ("x-ratelimit-reset", "2026-11-22T08:31+0000", 60),
            ("x-ratelimit-reset", "2026-11-22T08:31:30Z", 90),
            ("x-ratelimit-reset", "1795336230", 30),
            ("x-ratelimit-reset", "1795336230000", 30),
            ("retry-after", "99999999", 900),
        ];
        for (name, value, wait) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            assert_eq!(retry_after(&headers, now), Some(Duration::from_secs(wait)), "{name}: {value}");
        }
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", HeaderValue::from_static("soon"));
        assert_eq!(retry_after(&headers, now), None);
    }
}
