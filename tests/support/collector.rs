//! The receiving side of a destination: a server on loopback that records requests and sends the given responses.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::Response,
};
use serde_json::Value;

/// A received request.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Received {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// Status, body, headers.
type Answer = (u16, String, Vec<(&'static str, String)>);

/// Returns the response to a request.
type Answering = Box<dyn FnMut(&Received) -> (u16, String) + Send>;

/// A server on loopback.
#[derive(Clone)]
pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<Inner>>,
}

struct Inner {
    received: Vec<Received>,
    /// The next responses; then `always`.
    next: VecDeque<Answer>,
    always: Answering,
}

impl Collector {
    pub(crate) fn start(runtime: &tokio::runtime::Runtime) -> Self {
        let inner = Inner { received: Vec::new(), next: VecDeque::new(), always: Box::new(|_| (200, "ok".to_owned())) };
        let state = Arc::new(Mutex::new(inner));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&state));
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { address, state }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sets the response to the next request.
    pub(crate) fn next(&self, status: u16, body: &str, headers: &[(&'static str, &str)]) {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        self.state.lock().unwrap().next.push_back((status, body.to_owned(), headers));
    }

    /// Sets the response to all further requests.
    pub(crate) fn always(&self, answer: impl FnMut(&Received) -> (u16, String) + Send + 'static) {
        self.state.lock().unwrap().always = Box::new(answer);
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.state.lock().unwrap().received.clone()
    }

    /// Returns the requests since the last call.
    pub(crate) fn take(&self) -> Vec<Received> {
        std::mem::take(&mut self.state.lock().unwrap().received)
    }
}

async fn answer(
    State(state): State<Arc<Mutex<Inner>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let received = Received {
        method: method.to_string(),
        path: uri.path_and_query().map_or_else(String::new, ToString::to_string),
        headers,
        body: body.to_vec(),
    };
    let mut state = state.lock().unwrap();
    let (status, text, headers) = match state.next.pop_front() {
        Some(next) => next,
        None => {
            let (status, text) = (state.always)(&received);
            (status, text, Vec::new())
        }
    };
    state.received.push(received);
    let mut response = Response::builder().status(StatusCode::from_u16(status).unwrap());
    for (name, value) in headers {
        response = response.header(name, value);
    }
    response.body(Body::from(text)).unwrap()
}
