//! The HTTP servers: the control socket, and the port for metrics and health. Both limit connections, sizes and times.
//!
//! Only the agent's user can use the socket: its file has mode 0600 in a directory of mode 0700, and the peer must be
//! that user or root. Both servers refuse requests from browsers, which carry an `Origin`.

use std::{
    convert::Infallible,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::{DefaultBodyLimit, Request as HttpRequest, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, rt::TokioTimer, service::TowerToHyperService};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    Service, ServiceError, metrics,
    request::{self, for_each_request},
    respond::Respond,
    task::TaskService,
    wire::{self, API_HEADER, API_VERSION, Line, PROGRAM_HEADER, WireError},
};
use crate::model::text::shortened;

/// The most connections at a time; further ones wait.
const CONNECTIONS: usize = 64;
/// How long a request's head and its body may each take.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// A connection without activity for this long is closed.
const STALLED: Duration = Duration::from_secs(90);
/// After this long without a line, an empty line is sent.
const PATIENCE: Duration = Duration::from_secs(15);
/// The largest request body, in bytes: an import of 500 events.
const MAX_BODY: usize = 48 * 1024 * 1024;
/// Request bodies are rarely larger than this, in bytes.
const LARGE: u64 = 1024 * 1024;
/// The most lines of an answer to buffer for a slow reader.
const LINES: usize = 64;

/// A listening control socket.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Creates the socket. The caller has the store open, so a process that has ended left an existing file behind.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Answers requests until `stop`.
    pub async fn serve(self, service: Service, stop: CancellationToken) {
        macro_rules! routes {
            ($($name:literal $request:ident -> $item:ty,)*) => {
                Router::new()$(.route(&wire::path($name), post(answer::<request::$request>)))*
            };
        }
        let router = for_each_request!(routes)
            .fallback(unknown_request)
            .layer(middleware::from_fn(same_version))
            .layer(middleware::from_fn(no_browsers))
            .layer(axum::Extension(ServerLimits::default()))
            .with_state(TaskService::new(service));
        serve(Listener::Socket(self.listener), router, stop).await;
        // The next agent would remove the file, but other programs may check whether it exists.
        std::fs::remove_file(&self.path).ok();
    }
}

/// Serves metrics and health until `stop`.
pub async fn serve_metrics(listener: TcpListener, service: Service, stop: CancellationToken) {
    let local = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    let router = Router::new()
        .route("/metrics", get(metrics::metrics))
        .route("/healthz", get(metrics::healthz))
        .route("/readyz", get(metrics::readyz))
        .layer(DefaultBodyLimit::max(1024))
        .layer(middleware::from_fn(no_browsers))
        .layer(middleware::from_fn_with_state(local, expected_host))
        .with_state(TaskService::new(service));
    serve(Listener::Port(listener), router, stop).await;
}

enum Listener {
    Socket(UnixListener),
    Port(TcpListener),
}

/// A connection, over the socket or the port.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Listener {
    /// The next connection; none if it was refused.
    async fn accept(&self) -> io::Result<Option<Box<dyn Stream>>> {
        match self {
            Self::Port(listener) => Ok(Some(Box::new(listener.accept().await?.0))),
            Self::Socket(listener) => {
                let (stream, _) = listener.accept().await?;
                let peer = stream.peer_cred()?.uid();
                if peer != rustix::process::geteuid().as_raw() && peer != 0 {
                    tracing::warn!(uid = peer, "refused a connection from another user to the control socket");
                    return Ok(None);
                }
                Ok(Some(Box::new(stream)))
            }
        }
    }
}

/// Accepts connections up to the limit, and serves one request on each.
async fn serve(listener: Listener, router: Router, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections: JoinSet<()> = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                let permit = Arc::clone(&permits).acquire_owned().await;
                listener.accept().await.map(|stream| (stream, permit))
            } => accepted,
        };
        let (stream, permit) = match accepted {
            Ok((Some(stream), permit)) => (stream, permit),
            Ok((None, _)) => continue,
            Err(error) => {
                // Usually a temporary lack of file descriptors.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let activity = Activity::default();
        let router = router.clone().layer(axum::Extension(activity.clone()));
        connections.spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST_TIME)
                .keep_alive(false)
                .max_headers(64)
                .max_buf_size(64 * 1024)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
            tokio::select! {
                // An error concerns this client only.
                _ = connection => {}
                () = activity.stalled() => {}
            }
            drop(permit);
        });
    }
    connections.shutdown().await;
}

/// Limits in addition to the number of connections.
#[derive(Debug, Clone)]
struct ServerLimits {
    /// Answers in progress.
    answers: Arc<Semaphore>,
    /// Large request bodies that are being read.
    large: Arc<Semaphore>,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self { answers: Arc::new(Semaphore::new(CONNECTIONS)), large: Arc::new(Semaphore::new(4)) }
    }
}

/// When a connection was last active.
#[derive(Debug, Clone)]
struct Activity {
    began: Instant,
    millis: Arc<AtomicU64>,
}

impl Default for Activity {
    fn default() -> Self {
        Self { began: Instant::now(), millis: Arc::default() }
    }
}

impl Activity {
    fn moved(&self) {
        let millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }

    /// Returns once the connection has been inactive for too long.
    async fn stalled(&self) {
        loop {
            tokio::time::sleep(STALLED / 8).await;
            let last = Duration::from_millis(self.millis.load(Ordering::Relaxed));
            if self.began.elapsed().saturating_sub(last) > STALLED {
                return;
            }
        }
    }
}

/// Refuses browsers, the only clients that send the page that a request comes from.
async fn no_browsers(request: HttpRequest, next: Next) -> Response {
    let headers = request.headers();
    let browser = ["origin", "sec-fetch-site", "referer"].iter().any(|name| headers.contains_key(*name));
    if browser {
        return (StatusCode::FORBIDDEN, "requests from browsers are not allowed\n").into_response();
    }
    let mut response = next.run(request).await;
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}

/// On loopback, accepts only loopback names as `Host` (defeats DNS rebinding).
async fn expected_host(State(local): State<bool>, request: HttpRequest, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']);
    if local && !crate::http::is_loopback_host(name) {
        return (StatusCode::FORBIDDEN, "unexpected `Host` header: use `localhost` or an IP address\n").into_response();
    }
    next.run(request).await
}

async fn unknown_request(request: HttpRequest) -> Response {
    let known = request::NAMES.join(", ");
    let path = shortened(request.uri().path(), 100);
    (StatusCode::NOT_FOUND, format!("unknown request `{path}`: post to {} with one of {known}\n", wire::path("NAME")))
        .into_response()
}

/// Refuses clients of another version of the API, and adds the agent's version to each answer.
async fn same_version(request: HttpRequest, next: Next) -> Response {
    let requested = request.headers().get(API_HEADER).map(|version| version.to_str().unwrap_or_default().to_owned());
    let mut response = match requested {
        Some(version) if version != API_VERSION.to_string() => {
            let version = shortened(&version, 20);
            let message = format!("the agent has version {API_VERSION} of the control API, not {version}\n");
            (StatusCode::BAD_REQUEST, message).into_response()
        }
        _ => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.insert(API_HEADER, header::HeaderValue::from(API_VERSION));
    headers.insert(PROGRAM_HEADER, header::HeaderValue::from_static(env!("CARGO_PKG_VERSION")));
    response
}

async fn answer<R: Respond>(
    State(service): State<TaskService>,
    axum::Extension(activity): axum::Extension<Activity>,
    axum::Extension(limits): axum::Extension<ServerLimits>,
    headers: HeaderMap,
    request: HttpRequest,
) -> Response {
    let json = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes() == b"application/json");
    if !json {
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body of a request must be application/json\n")
            .into_response();
    }
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > MAX_BODY as u64) {
        return (StatusCode::PAYLOAD_TOO_LARGE, "the request body is too large\n").into_response();
    }
    activity.moved();
    // Limit large bodies: each is in memory more than once while it is parsed.
    let _large = match announced {
        Some(length) if length < LARGE => None,
        _ => limits.large.acquire().await.ok(),
    };
    let body = tokio::time::timeout(REQUEST_TIME, axum::body::to_bytes(request.into_body(), MAX_BODY)).await;
    let body = match body {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return (StatusCode::PAYLOAD_TOO_LARGE, "the request body is too large\n").into_response(),
        Err(_) => return (StatusCode::REQUEST_TIMEOUT, "the request body took too long\n").into_response(),
    };
    // Serde would also accept an array of the fields' values, in order.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return (StatusCode::BAD_REQUEST, format!("invalid request `{}`: expected a JSON object\n", R::NAME))
            .into_response();
    }
    let mut request: R = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => {
            return (StatusCode::BAD_REQUEST, format!("invalid request `{}`: {error}\n", R::NAME)).into_response();
        }
    };
    drop(body);
    // Waiting for news does not occupy a thread.
    let began = Instant::now();
    loop {
        let checked = service.run(move |service| (request.wait(&service.store.reader()), request)).await;
        let Some((wait, same)) = checked else {
            return (StatusCode::INTERNAL_SERVER_ERROR, "cannot read the store\n").into_response();
        };
        request = same;
        if wait.is_none_or(|wait| began.elapsed() >= wait) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    activity.moved();
    // A response keeps its permit until it ends, even if the client is gone.
    let Ok(permit) = Arc::clone(&limits.answers).acquire_owned().await else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping\n").into_response();
    };
    let (sender, receiver) = mpsc::channel(LINES);
    let runtime = tokio::runtime::Handle::current();
    // Runs on while this function returns the response, which streams its lines.
    let answering = move |service: &Service| {
        let _permit = permit;
        let mut count = 0_u64;
        let send = |line: String| {
            let line = Bytes::from(line);
            // Give up on a client that does not read.
            runtime
                .block_on(async { tokio::time::timeout(STALLED, sender.send(line)).await })
                .is_ok_and(|sent| sent.is_ok())
        };
        let result = request.respond(service, &mut |item| {
            count += 1;
            let item = serde_json::to_string(&item)
                .map_err(|error| ServiceError::Wrong(format!("cannot write an item as JSON: {error}")))?;
            if send(format!("{{\"item\":{item}}}\n")) { Ok(()) } else { Err(ServiceError::Gone) }
        });
        let last = match result {
            Ok(()) => Line::End(count),
            Err(ServiceError::Gone) => return,
            Err(error) => {
                Line::Error(WireError { wrong: matches!(error, ServiceError::Wrong(_)), message: error.to_string() })
            }
        };
        if let Ok(line) = serde_json::to_string(&last) {
            send(format!("{line}\n"));
        }
    };
    service.start(answering);
    let patience = tokio::time::interval_at(tokio::time::Instant::now() + PATIENCE, PATIENCE);
    let body = Body::new(Lines { receiver, activity, patience });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

/// The lines of an answer as they become available. While the next takes long, sends empty lines to keep the connection
/// alive.
struct Lines {
    receiver: mpsc::Receiver<Bytes>,
    activity: Activity,
    patience: tokio::time::Interval,
}

impl HttpBody for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        let mut line = self.receiver.poll_recv(context);
        if line.is_pending() && self.patience.poll_tick(context).is_ready() {
            line = Poll::Ready(Some(Bytes::from_static(b"\n")));
        }
        if line.is_ready() {
            self.activity.moved();
        }
        line.map(|line| line.map(|line| Ok(http_body::Frame::data(line))))
    }
}
