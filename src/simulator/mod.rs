//! A simulated Atlassian organization on loopback, for `watchbell demo` and tests. It serves the events stream as
//! documented and as observed, with faults on request.
//!
//! It returns the entries of its [`Scenario`] that have been processed so far. It knows nothing about its client, and
//! listens only on 127.0.0.1.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    body::Body,
    extract::{Path, Query, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::model::time::{self, Clock, Timestamp};

mod company;
mod fault;
mod incident;
mod log;
mod scenario;
mod story;
mod vocabulary;

pub use company::{Company, Weeks};
pub use fault::{Fault, Faults};
pub use scenario::{Scenario, Simulated};
pub use story::{Story, StoryLength};
pub use vocabulary::{ACTIONS, ActionRow, answer as actions_answer};

/// How the last page of the stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ending {
    /// With a cursor to poll again later, as documented.
    #[default]
    Cursor,
    /// Without a cursor, as in a vendor's mock of the real API.
    Null,
}

/// Options of a simulated organization.
#[derive(Debug, Clone)]
pub struct SimulatorOptions {
    pub org_id: String,
    /// The API key that it accepts.
    pub key: String,
    /// The entries of its log.
    pub scenario: Arc<Scenario>,
    pub ending: Ending,
    /// Maximum number of entries per page, whatever the client requests.
    pub page_limit: usize,
    pub faults: Faults,
    /// Its list of actions: id, name, group. `None`: the key lacks the permission to read it.
    pub actions: Option<Arc<[ActionRow]>>,
    pub clock: Clock,
}

impl SimulatorOptions {
    /// An organization without faults.
    pub fn new(scenario: Scenario) -> Self {
        Self {
            org_id: "3b9f1c52-demo-4c1e-9d55-000000000001".to_owned(),
            key: "demo-key-0123456789".to_owned(),
            scenario: Arc::new(scenario),
            ending: Ending::Cursor,
            page_limit: 500,
            faults: Faults::none(),
            actions: None,
            clock: Clock::system(),
        }
    }

    /// Adds a list of actions that the key may read.
    #[must_use]
    pub fn with_actions(self, actions: &[ActionRow]) -> Self {
        Self { actions: Some(actions.into()), ..self }
    }
}

/// A running simulated organization. It stops when dropped.
#[derive(Debug)]
pub struct Simulator {
    address: SocketAddr,
    organization: Arc<Organization>,
    server: JoinHandle<()>,
}

#[derive(Debug)]
struct Organization {
    options: SimulatorOptions,
    faults: Mutex<Faults>,
    requests: Mutex<u64>,
}

impl Simulator {
    /// Starts serving on a free port of 127.0.0.1.
    pub async fn start(options: SimulatorOptions) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let organization =
            Arc::new(Organization { faults: Mutex::new(options.faults.clone()), options, requests: Mutex::new(0) });
        let router = Router::new()
            .route("/admin/v1/orgs/{org}/events-stream", get(events_stream))
            .route("/admin/v1/orgs/{org}/event-actions", get(event_actions))
            .fallback(unknown_route)
            .layer(middleware::from_fn_with_state(Arc::clone(&organization), date))
            .with_state(Arc::clone(&organization));
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the simulated organization stopped");
            }
        });
        Ok(Self { address, organization, server })
    }

    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set_faults(&self, faults: Faults) {
        *self.organization.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    /// Number of requests to the events stream so far.
    pub fn requests(&self) -> u64 {
        *self.organization.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[derive(Debug, Deserialize)]
struct Parameters {
    cursor: Option<String>,
    from: Option<String>,
    to: Option<String>,
    limit: Option<usize>,
    #[serde(rename = "sortOrder")]
    sort_order: Option<String>,
}

/// The content of a cursor. The sort order is part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    next: usize,
    descending: bool,
}

impl Cursor {
    /// Encodes the cursor as an opaque token with a checksum, so that a modified token is refused.
    fn encode(self) -> String {
        let plain = format!("{}.{}", self.next, u8::from(self.descending));
        let check = blake3::hash(plain.as_bytes()).to_hex();
        let text: String = plain.bytes().map(|byte| format!("{byte:02x}")).collect();
        format!("{}-{text}", check.chars().take(8).collect::<String>())
    }

    fn decode(text: &str) -> Option<Self> {
        let (_, digits) = text.split_once('-')?;
        let bytes: Option<Vec<u8>> = (0..digits.len() / 2)
            .map(|index| u8::from_str_radix(digits.get(index * 2..index * 2 + 2)?, 16).ok())
            .collect();
        let plain = String::from_utf8(bytes?).ok()?;
        let (next, descending) = plain.split_once('.')?;
        let cursor = Self { next: next.parse().ok()?, descending: descending == "1" };
        (cursor.encode() == text).then_some(cursor)
    }
}

/// Dates responses by the simulated clock.
async fn date(State(organization): State<Arc<Organization>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let now = organization.options.clock.now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    if let Ok(now) = HeaderValue::try_from(now) {
        response.headers_mut().insert(header::DATE, now);
    }
    response
}

async fn events_stream(
    State(organization): State<Arc<Organization>>,
    Path(org): Path<String>,
    Query(parameters): Query<Parameters>,
    headers: HeaderMap,
) -> Response {
    let options = &organization.options;
    let now = options.clock.now();
    *organization.requests.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    if let Some(refused) = refuse(options, &org, &headers) {
        return refused;
    }
    let fault = organization.faults.lock().unwrap_or_else(PoisonError::into_inner).pick();
    if let Some(response) = fault.and_then(|fault| fault.instead(now, parameters.cursor.is_some())) {
        return response;
    }
    let page = match page(options, &parameters, now) {
        Ok(page) => page,
        Err(response) => return *response,
    };
    match fault {
        Some(fault) => fault.spoil(page, options, parameters.cursor.as_deref()).await,
        None => page.into_response(),
    }
}

/// The organization's list of actions.
async fn event_actions(
    State(organization): State<Arc<Organization>>,
    Path(org): Path<String>,
    headers: HeaderMap,
) -> Response {
    let options = &organization.options;
    if let Some(refused) = refuse(options, &org, &headers) {
        return refused;
    }
    match &options.actions {
        Some(actions) => axum::Json(vocabulary::answer(actions)).into_response(),
        None => error(StatusCode::FORBIDDEN, "The key lacks a scope"),
    }
}

/// Returns the error response for a wrong key or a wrong organization.
fn refuse(options: &SimulatorOptions, org: &str, headers: &HeaderMap) -> Option<Response> {
    let expected = format!("Bearer {}", options.key);
    if headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()) != Some(&*expected) {
        return Some(error(StatusCode::UNAUTHORIZED, "Unauthenticated"));
    }
    (org != options.org_id).then(|| error(StatusCode::NOT_FOUND, "Organization not found"))
}

/// A page before it is serialized.
#[derive(Debug)]
struct SimulatedPage {
    entries: Vec<String>,
    next: Option<String>,
    /// Index of the first entry in the scenario.
    start: usize,
}

impl SimulatedPage {
    fn text(&self) -> String {
        let next = self.next.as_ref().map_or(serde_json::Value::Null, |next| next.as_str().into());
        let links = match &self.next {
            // As documented: a URL without the filters. A client that follows it loses them.
            Some(next) => {
                serde_json::json!({ "next": format!("https://api.atlassian.com/admin/v1/orgs/x/events-stream?cursor={next}") })
            }
            None => serde_json::json!({}),
        };
        let meta = serde_json::json!({ "next": next, "prev": null, "page_size": self.entries.len(), "total": self.entries.len() });
        format!("{{\"data\":[{}],\"meta\":{meta},\"links\":{links}}}", self.entries.join(","))
    }

    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, "application/json")], Body::from(self.text())).into_response()
    }
}

fn page(options: &SimulatorOptions, parameters: &Parameters, now: Timestamp) -> Result<SimulatedPage, Box<Response>> {
    let bad = |text: &str| Box::new(error(StatusCode::BAD_REQUEST, text));
    let millis = |text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => text
            .parse()
            .map(|number| Some(time::from_millis(number)))
            .map_err(|_| bad("InvalidParameter: milliseconds expected")),
    };
    let (from, to) = (millis(&parameters.from)?, millis(&parameters.to)?);
    let limit = parameters.limit.unwrap_or(200);
    if limit == 0 || limit > 500 {
        return Err(bad("InvalidParameter: limit must be between 1 and 500"));
    }
    let descending = match parameters.sort_order.as_deref() {
        None | Some("asc") => false,
        Some("desc") => true,
        Some(_) => return Err(bad("InvalidParameter: sortOrder must be asc or desc")),
    };
    let cursor = parameters
        .cursor
        .as_deref()
        .map(|text| Cursor::decode(text).ok_or_else(|| bad("InvalidPageCursor")))
        .transpose()?;
    let scenario = &options.scenario;
    let available = scenario.processed_by(to.unwrap_or(now).min(now));
    let first = from.map_or(0, |from| scenario.processed_before(from));
    let limit = limit.min(options.page_limit);
    let descending = cursor.map_or(descending, |cursor| cursor.descending);
    let (range, next) = if descending {
        let end = cursor.map_or(available, |cursor| cursor.next.min(available));
        let start = end.saturating_sub(limit).max(first).min(end);
        (start..end, (start > first).then_some(start))
    } else {
        let start = cursor.map_or(first, |cursor| cursor.next).min(available);
        let end = (start + limit).min(available);
        let more = end < available || options.ending == Ending::Cursor;
        (start..end, more.then_some(end))
    };
    let mut entries: Vec<String> = range.clone().map(|index| scenario.entry(index).json).collect();
    if descending {
        entries.reverse();
    }
    Ok(SimulatedPage { entries, next: next.map(|next| Cursor { next, descending }.encode()), start: range.start })
}

async fn unknown_route() -> Response {
    (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, "text/html")], "<html><body><h1>404</h1></body></html>")
        .into_response()
}

fn error(status: StatusCode, message: &str) -> Response {
    let body = serde_json::json!({ "code": status.as_u16(), "message": message });
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_opaque_and_checked() {
        let cursor = Cursor { next: 1_234, descending: true };
        assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
        assert_eq!(Cursor::decode("1234"), None);
        assert_eq!(Cursor::decode(&cursor.encode().replace('3', "4")), None);
    }
}
