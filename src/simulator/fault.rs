//! Faults to inject, in one list, so that a test can run through all of them.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{SimulatedPage, SimulatorOptions, error};
use crate::model::time::{self, Timestamp};

/// A fault to inject into a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// 429 with `Retry-After` in seconds.
    RetryAfterSeconds,
    /// 429 with `Retry-After` as an HTTP date.
    RetryAfterDate,
    /// 429 with `X-Retry-After`.
    XRetryAfter,
    /// 429 with `X-RateLimit-Reset` as ISO 8601.
    ResetIso,
    /// 429 with `X-RateLimit-Reset` as ISO 8601 without seconds.
    ResetMinutes,
    /// 429 with `X-RateLimit-Reset` in seconds since 1970.
    ResetEpoch,
    /// 500.
    ServerError,
    /// 503 with HTML from a gateway.
    Unavailable,
    /// The page is slow.
    Slow,
    /// The page is truncated.
    CutOff,
    /// The page is not valid JSON.
    BrokenJson,
    /// The page contains an invalid UTF-8 byte, outside of its entries.
    InvalidUtf8,
    /// The last entries of the previous page are repeated.
    Duplicates,
    /// Entries that are not events are mixed with the others.
    Malformed,
    /// An entry is nested a thousand levels deep.
    DeeplyNested,
    /// The cursor is refused.
    CursorRefused,
    /// The cursor does not change.
    CursorStuck,
    /// 401.
    Unauthorized,
    /// 403 that names the required scopes.
    Forbidden,
    /// 404 in HTML.
    NotFound,
    /// A redirect to another host.
    Redirect,
    /// A page of 100 MB.
    Oversized,
}

impl Fault {
    pub const ALL: [Self; 22] = [
        Self::RetryAfterSeconds,
        Self::RetryAfterDate,
        Self::XRetryAfter,
        Self::ResetIso,
        Self::ResetMinutes,
        Self::ResetEpoch,
        Self::ServerError,
        Self::Unavailable,
        Self::Slow,
        Self::CutOff,
        Self::BrokenJson,
        Self::InvalidUtf8,
        Self::Duplicates,
        Self::Malformed,
        Self::DeeplyNested,
        Self::CursorRefused,
        Self::CursorStuck,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::Redirect,
        Self::Oversized,
    ];

    /// Faults that a client recovers from quickly and without help.
    pub const PASSING: [Self; 12] = [
        Self::RetryAfterSeconds,
        Self::XRetryAfter,
        Self::ResetEpoch,
        Self::ServerError,
        Self::Unavailable,
        Self::Slow,
        Self::CutOff,
        Self::BrokenJson,
        Self::Duplicates,
        Self::Malformed,
        Self::DeeplyNested,
        Self::CursorRefused,
    ];

    /// The response to send instead of the page, for faults that replace it.
    pub(super) fn instead(self, now: Timestamp, with_cursor: bool) -> Option<Response> {
        let limited = |name: &'static str, value: String| {
            let mut response = error(StatusCode::TOO_MANY_REQUESTS, "Rate limit exceeded");
            if let Ok(value) = value.parse() {
                response.headers_mut().insert(HeaderName::from_static(name), value);
            }
            response
        };
        let soon = time::after(now, Duration::from_secs(1));
        match self {
            Self::RetryAfterSeconds => Some(limited("retry-after", "1".to_owned())),
            Self::RetryAfterDate => {
                Some(limited("retry-after", soon.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()))
            }
            Self::XRetryAfter => Some(limited("x-retry-after", "1".to_owned())),
            Self::ResetIso => Some(limited("x-ratelimit-reset", soon.to_string())),
            Self::ResetMinutes => Some(limited("x-ratelimit-reset", now.strftime("%Y-%m-%dT%H:%MZ").to_string())),
            Self::ResetEpoch => Some(limited("x-ratelimit-reset", soon.as_second().to_string())),
            Self::ServerError => Some(error(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")),
            Self::Unavailable => Some((StatusCode::SERVICE_UNAVAILABLE, "<html>try later</html>").into_response()),
            Self::BrokenJson => Some("{\"data\": [".into_response()),
            Self::CursorRefused if with_cursor => Some(error(StatusCode::BAD_REQUEST, "InvalidPageCursor")),
            Self::Unauthorized => Some(error(StatusCode::UNAUTHORIZED, "Unauthenticated")),
            Self::Forbidden => {
                let body = serde_json::json!({ "code": 403, "message": "Forbidden", "acceptableScopes": ["read:events:admin"] });
                Some((StatusCode::FORBIDDEN, body.to_string()).into_response())
            }
            Self::NotFound => Some((StatusCode::NOT_FOUND, "<html><h1>Not Found</h1></html>").into_response()),
            Self::Redirect => {
                Some((StatusCode::FOUND, [(header::LOCATION, "https://elsewhere.invalid/steal")]).into_response())
            }
            Self::Oversized => Some(Response::new(Body::new(Parts::endless(100)))),
            _ => None,
        }
    }

    /// Injects this fault into a page.
    pub(super) async fn spoil(
        self,
        mut page: SimulatedPage,
        options: &SimulatorOptions,
        cursor: Option<&str>,
    ) -> Response {
        match self {
            Self::Slow => tokio::time::sleep(Duration::from_millis(200)).await,
            Self::CutOff => {
                let text = page.text();
                let half = text.as_bytes().get(..text.len() / 2).unwrap_or_default().to_vec();
                return Response::new(Body::new(Parts::cut_off(half)));
            }
            Self::InvalidUtf8 => {
                let mut bytes = page.text().into_bytes();
                let end = bytes.len() - 1;
                bytes.splice(end..end, b",\"note\":\"\xff\"".iter().copied());
                return Response::new(Body::from(bytes));
            }
            Self::Duplicates => {
                for index in (page.start.saturating_sub(3)..page.start).rev() {
                    page.entries.insert(0, options.scenario.entry(index).json);
                }
            }
            Self::Malformed => {
                let middle = page.entries.len() / 2;
                for (offset, entry) in ["17", "[\"no object\"]", "null"].into_iter().enumerate() {
                    page.entries.insert((middle + offset).min(page.entries.len()), entry.to_owned());
                }
            }
            Self::DeeplyNested => {
                page.entries.push(format!("[{}{}]", "[".repeat(1_000), "]".repeat(1_000)));
            }
            Self::CursorStuck => {
                if let Some(cursor) = cursor {
                    page.next = Some(cursor.to_owned());
                }
            }
            _ => {}
        }
        page.into_response()
    }
}

/// Which faults to inject, and how often. The same seed injects the same faults into the same requests.
#[derive(Debug, Clone)]
pub struct Faults {
    kinds: Vec<Fault>,
    /// Number of faulty requests per thousand.
    per_thousand: u16,
    random: fastrand::Rng,
}

impl Faults {
    /// No faults.
    pub fn none() -> Self {
        Self { kinds: Vec::new(), per_thousand: 0, random: fastrand::Rng::with_seed(0) }
    }

    /// One fault for every request.
    pub fn always(fault: Fault) -> Self {
        Self { kinds: vec![fault], per_thousand: 1_000, random: fastrand::Rng::with_seed(0) }
    }

    /// One of `kinds`, chosen at random, for `per_thousand` of a thousand requests.
    pub fn some(kinds: &[Fault], per_thousand: u16, seed: u64) -> Self {
        Self { kinds: kinds.to_vec(), per_thousand, random: fastrand::Rng::with_seed(seed) }
    }

    pub(super) fn pick(&mut self) -> Option<Fault> {
        if self.random.u16(0..1_000) >= self.per_thousand {
            return None;
        }
        let index = self.random.usize(0..self.kinds.len().max(1));
        self.kinds.get(index).copied()
    }
}

/// A body in parts, which may be huge or end too early.
struct Parts {
    parts: Vec<Bytes>,
    breaks: bool,
}

impl Parts {
    fn endless(megabytes: usize) -> Self {
        let part = Bytes::from(vec![b' '; 1024 * 1024]);
        Self { parts: vec![part; megabytes], breaks: false }
    }

    fn cut_off(bytes: Vec<u8>) -> Self {
        Self { parts: vec![bytes.into()], breaks: true }
    }
}

impl http_body::Body for Parts {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        let next = match self.parts.pop() {
            Some(part) => Some(Ok(http_body::Frame::data(part))),
            None if self.breaks => {
                self.breaks = false;
                Some(Err(std::io::Error::other("cut off on purpose")))
            }
            None => None,
        };
        Poll::Ready(next)
    }
}
