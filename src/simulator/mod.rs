//! A small Atlassian organization on loopback, for `demo` and tests: the events stream as it is documented and as it was seen
//! to behave, with faults on request.
//!
//! It serves what its [`Scenario`] says has been processed by now. It knows nothing of the client it is read by, and listens
//! on 127.0.0.1 only.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    body::Body,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, header},
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

/// How the stream ends when there is nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ending {
    /// The last page carries a cursor, to be asked again: what the documentation says.
    #[default]
    Cursor,
    /// The last page carries none: what a vendor's mock says of the real API.
    Null,
}

/// What the organization is like.
#[derive(Debug, Clone)]
pub struct SimulatorOptions {
    /// Its id.
    pub org_id: String,
    /// The key it accepts.
    pub key: String,
    /// What happens in it.
    pub scenario: Arc<Scenario>,
    /// How its stream ends.
    pub ending: Ending,
    /// The most entries it returns, whatever was asked for.
    pub page_limit: usize,
    /// What goes wrong.
    pub faults: Faults,
    /// What it lists as its actions: id, name, group. Absent: its key may not read that.
    pub actions: Option<Arc<[ActionRow]>>,
    /// Its clock.
    pub clock: Clock,
}

impl SimulatorOptions {
    /// A flawless organization in which `scenario` happens.
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

    /// An organization whose key may read what it lists as its actions.
    #[must_use]
    pub fn with_actions(self, actions: &[ActionRow]) -> Self {
        Self { actions: Some(actions.into()), ..self }
    }
}

/// A running organization. It ends when dropped.
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
    /// Starts to serve on a free port of 127.0.0.1.
    pub async fn start(options: SimulatorOptions) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let organization =
            Arc::new(Organization { faults: Mutex::new(options.faults.clone()), options, requests: Mutex::new(0) });
        let router = Router::new()
            .route("/admin/v1/orgs/{org}/events-stream", get(events_stream))
            .route("/admin/v1/orgs/{org}/event-actions", get(event_actions))
            .fallback(unknown_route)
            .with_state(Arc::clone(&organization));
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the simulated organization ended");
            }
        });
        Ok(Self { address, organization, server })
    }

    /// Its base URL.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes what goes wrong.
    pub fn set_faults(&self, faults: Faults) {
        *self.organization.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    /// Requests so far.
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

/// What a cursor stands for. The sort order is part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    next: usize,
    descending: bool,
}

impl Cursor {
    /// Opaque, and refused when it was tampered with.
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

/// The organization's list of its actions.
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

/// What is answered to a wrong key, and to a right one for another organization.
fn refuse(options: &SimulatorOptions, org: &str, headers: &HeaderMap) -> Option<Response> {
    let expected = format!("Bearer {}", options.key);
    if headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()) != Some(&*expected) {
        return Some(error(StatusCode::UNAUTHORIZED, "Unauthenticated"));
    }
    (org != options.org_id).then(|| error(StatusCode::NOT_FOUND, "Organization not found"))
}

/// A page before it is sent.
#[derive(Debug)]
struct SimulatedPage {
    entries: Vec<String>,
    next: Option<String>,
    /// The place of the first entry in the scenario.
    start: usize,
}

impl SimulatedPage {
    fn text(&self) -> String {
        let next = self.next.as_ref().map_or(serde_json::Value::Null, |next| next.as_str().into());
        let links = match &self.next {
            // As documented: a URL, with the filters dropped. Whoever follows it loses them.
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
