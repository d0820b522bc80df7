//! The agent behind `watchbell run`: wires and owns its tasks.
//!
//! It runs one poller per source, one thread for all rules, one worker per destination, a task that reloads rules, and
//! housekeeping. They communicate only through the store and "look again" signals.

use std::{
    net::SocketAddr,
    panic::AssertUnwindSafe,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Mutex, mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::model::signal::Signal;
use crate::{
    api::{self, Service, ServiceSettings, server::Socket},
    config::{Config, diagnostic::Diagnostic},
    deliver::{DestinationStatus, OpenError, Terminal, Worker},
    dispatch::{Recorder, Router},
    model::{
        name::{DestinationName, SourceName},
        time::{self, Clock, Timestamp},
    },
    replay::ReplayProgress,
    rule::{Loader, RuleSet, RuleSources, stack},
    source::{self, Listing, Pace, Poller, Source, SourceSetupError, SourceStatus, Timing},
    store::{self, Reader, SourceRecord, Store, StoreError, TaskStore},
};

mod crash;
mod evaluate;
mod handle;
mod health;
mod reload;
mod request;
mod retro_hunt;
mod rule_guard;
mod warm_up;
mod watchdog;

use crash::CrashLog;

pub use request::EvaluationProgress;

/// Interval of housekeeping: retention and merging of blocks.
const HOUSEKEEPING: Duration = Duration::from_secs(10 * 60);

/// Error that keeps the agent from starting, or ends it.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The store cannot be opened or used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A source could not be set up.
    #[error("source `{name}`: {error}")]
    Source {
        /// The source's name.
        name: SourceName,
        /// The cause.
        error: SourceSetupError,
    },
    /// A destination could not be set up.
    #[error("destination `{name}`: {error}")]
    Destination {
        /// The destination's name.
        name: DestinationName,
        /// The cause.
        error: OpenError,
    },
    /// The metrics port could not be opened.
    #[error("cannot listen on `{address}` (`listen` in `[metrics]`): {error}")]
    Port {
        /// The configured address.
        address: SocketAddr,
        /// The error of the operating system.
        error: std::io::Error,
    },
    /// The configuration has no source.
    #[error("the configuration has no `[[source]]`: there is nothing to poll")]
    NoSource,
    /// A call to the operating system failed.
    #[error("{what}: {error}")]
    System {
        /// The operation that failed, as part of a message.
        what: &'static str,
        /// The error of the operating system.
        error: std::io::Error,
    },
    /// A task ended although it should run until the agent stops.
    #[error("a task of the agent ended unexpectedly ({0}): please report this")]
    TaskEnded(String),
}

/// Settings that tests and `watchbell demo` change; `watchbell run` uses the defaults.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// The source of the current time.
    pub clock: Clock,
    /// The waiting times of pollers.
    pub timing: Timing,
    /// The terminal that alerts are written to.
    pub terminal: Terminal,
    /// Interval of check rules. `None`: an eighth of the shortest `drop_off`, between 1 and 30 seconds.
    pub pulse: Option<Duration>,
}

/// An agent that is ready to run: its store is open, its secrets are read, and its rules are loaded.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    options: AgentOptions,
    store: Store,
    pollers: Vec<Poller>,
    workers: Vec<Worker>,
    loader: Loader,
    rules: watch::Sender<Arc<RuleSet>>,
    stored: Signal,
    pending: Signal,
    lists: ActionLists,
    crashes: Arc<CrashLog>,
    progress: watch::Sender<EvaluationProgress>,
    pid_file: PidFile,
    metrics: Option<std::net::TcpListener>,
    /// Problems found in the rule files at startup.
    pub diagnostics: Vec<Diagnostic>,
}

/// Counts the action lists that pollers have fetched, and those that the rules have loaded.
#[derive(Debug)]
struct ActionLists {
    listed: watch::Receiver<u64>,
    taken: watch::Sender<u64>,
}

/// What the health checks watch.
#[derive(Debug)]
struct Watched {
    sources: Vec<(source::Settings, watch::Receiver<SourceStatus>)>,
    destinations: Vec<(DestinationName, watch::Receiver<DestinationStatus>)>,
    started: Timestamp,
    pulse: Option<Duration>,
    /// When the previous agent was last alive.
    last_alive: Option<Timestamp>,
}

impl Agent {
    /// Reads the secrets, opens the store, and loads the rules. Fails on problems that the user has to fix.
    pub fn open(config: Config, options: AgentOptions) -> Result<Self, AgentError> {
        if config.sources.is_empty() {
            return Err(AgentError::NoSource);
        }
        // Secrets first: without them, nothing must be written.
        let mut paces: Vec<(usize, Arc<Mutex<Pace>>)> = Vec::new();
        let mut sources: Vec<Source> = Vec::new();
        for settings in &config.sources {
            let source =
                Source::new(settings).map_err(|error| AgentError::Source { name: settings.name.clone(), error })?;
            // The rate limit applies to the API key: sources with the same key share it.
            let shared = sources.iter().position(|other| other.same_credential(&source));
            let pace = shared
                .and_then(|index| paces.get(index))
                .map_or_else(|| Arc::new(Mutex::new(Pace::new(settings.rate_limit))), |(_, pace)| Arc::clone(pace));
            paces.push((sources.len(), pace));
            sources.push(source);
        }
        let mut destinations = Vec::new();
        for settings in &config.destinations {
            let opened = settings.open(&options.terminal, &options.clock);
            destinations.push(opened.map_err(|error| AgentError::Destination { name: settings.name.clone(), error })?);
        }
        let store = Store::open(&config.data_dir)?;
        let metrics = config.metrics.map(listen).transpose()?;
        let pid_file = PidFile::write(&config)?;
        let stored = Signal::default();
        let pending = Signal::default();
        let (listed, taken) = (watch::Sender::new(0), watch::Sender::new(0));
        let listing = Listing { listed: listed.clone(), taken: taken.subscribe() };
        let mut pollers = Vec::new();
        for ((settings, source), (_, pace)) in config.sources.iter().zip(sources).zip(paces) {
            let poller =
                Poller::new(settings.clone(), source, store.clone(), options.clock.clone(), pace, stored.clone())?;
            pollers.push(poller.with_timing(options.timing.clone()).with_listing(listing.clone()));
        }
        let workers = config
            .destinations
            .iter()
            .zip(destinations)
            .map(|(settings, destination)| {
                Worker::new(settings.clone(), destination, store.clone(), options.clock.clone(), pending.subscribe())
            })
            .collect::<Result<_, _>>()?;
        give_up_unconfigured(&store, &config, options.clock.now())?;

        let catalog = Arc::new(store.reader().catalog()?);
        let crashes = Arc::new(CrashLog::open(&config.data_dir, &store, options.clock.now())?);
        let mut loader = Loader::new(RuleSources { catalog, ..config.rules.clone() }).watched(crashes.watch_loading());
        let loaded = loader.load();
        crashes.loaded()?;
        let rules = crashes.without_suspended(&loaded.set);
        let rules = match &config.guard {
            None => rules,
            Some(guard) => {
                let reader = store.reader();
                let ran = reader.logged_rules().last().transpose()?.map(|last| last.rules).unwrap_or_default();
                let progress = ReplayProgress::default();
                let trial = rule_guard::Trial {
                    guard,
                    settings: &config.detection,
                    reader: &reader,
                    crashes: &crashes,
                    now: options.clock.now(),
                    progress: &progress,
                };
                trial.of(rules, &ran)
            }
        };
        Ok(Self {
            rules: watch::Sender::new(rules),
            diagnostics: loaded.diagnostics,
            config,
            options,
            store,
            pollers,
            workers,
            loader,
            stored,
            pending,
            lists: ActionLists { listed: listed.subscribe(), taken },
            crashes,
            progress: watch::Sender::default(),
            pid_file,
            metrics,
        })
    }

    /// Returns a reader of the store.
    pub fn reader(&self) -> Reader {
        self.store.reader()
    }

    /// Returns the progress of evaluation, updated after each commit.
    pub fn progress(&self) -> watch::Receiver<EvaluationProgress> {
        self.progress.subscribe()
    }

    /// Returns the status of each source, updated while the agent runs.
    pub fn sources(&self) -> Vec<(SourceName, watch::Receiver<SourceStatus>)> {
        self.config
            .sources
            .iter()
            .zip(&self.pollers)
            .map(|(settings, poller)| (settings.name.clone(), poller.status()))
            .collect()
    }

    /// Returns the running rules, updated on each reload.
    pub fn rules(&self) -> watch::Receiver<Arc<RuleSet>> {
        self.rules.subscribe()
    }

    /// Runs until `stop`. Failures of sources, rules and destinations do not end it; only a failure of the agent itself
    /// does.
    pub async fn run(self, stop: CancellationToken) -> Result<(), AgentError> {
        // A failure must cancel only this agent's tasks, not everything that uses the caller's token.
        let stop = stop.child_token();
        let watched = Watched {
            sources: self.config.sources.iter().cloned().zip(self.pollers.iter().map(Poller::status)).collect(),
            destinations: self
                .config
                .destinations
                .iter()
                .map(|settings| settings.name.clone())
                .zip(self.workers.iter().map(Worker::status))
                .collect(),
            started: self.options.clock.now(),
            pulse: self.options.pulse,
            last_alive: self.store.reader().alive()?,
        };
        let recorder = Recorder::new(self.store.clone(), Router::new(self.config.destinations.clone()));
        let (requests, handle_requests) = mpsc::channel(16);
        let hunted = requests.clone();
        let beat = Arc::new(request::Beat::new());
        let live = Arc::new(handle::LiveAgent {
            clock: self.options.clock.clone(),
            started: watched.started,
            sources: self
                .config
                .sources
                .iter()
                .zip(&self.pollers)
                .map(|(settings, poller)| handle::LiveSource {
                    settings: settings.clone(),
                    status: poller.status(),
                    refetches: poller.refetches(),
                    refreshes: poller.refreshes(),
                })
                .collect(),
            destinations: watched.destinations.clone(),
            rules: self.rules.subscribe(),
            progress: self.progress.subscribe(),
            stored: self.stored.clone(),
            pending: self.pending.clone(),
            requests,
            beat: Arc::clone(&beat),
            last_heartbeat: std::sync::Mutex::new(None),
            last_look: std::sync::Mutex::new(None),
        });
        let service = Service::new(
            self.store.clone(),
            recorder.clone(),
            ServiceSettings { sources: self.config.sources.clone(), destinations: self.config.destinations.clone() },
            self.options.clock.clone(),
            Some(Arc::clone(&live) as Arc<dyn api::Live>),
        );
        let socket = Socket::bind(&api::socket(&self.config.data_dir)).map_err(|error| AgentError::System {
            what: "cannot create the socket `agent.sock` in the data directory (is its path over 90 characters long?)",
            error,
        })?;
        let metrics = self.metrics.map(tokio::net::TcpListener::from_std).transpose();
        let metrics = metrics.map_err(|error| AgentError::System { what: "cannot use the metrics port", error })?;
        // Workers stop last, so that deliveries that the other tasks leave pending are still attempted.
        let stop_workers = CancellationToken::new();
        let mut tasks: JoinSet<&'static str> = JoinSet::new();
        let mut workers: JoinSet<()> = JoinSet::new();
        for worker in self.workers {
            workers.spawn(worker.run(stop_workers.clone()));
        }
        for poller in self.pollers {
            let stop = stop.clone();
            tasks.spawn(async move {
                poller.run(stop).await;
                "a poller"
            });
        }
        let reloading = reload::Reloading {
            loader: self.loader,
            config_file: self.config.file.clone(),
            mode: self.config.watch,
            rules: self.rules.clone(),
            guard: self.config.guard.clone(),
            settings: self.config.detection.clone(),
            store: TaskStore::new(self.store.clone()),
            lists: self.lists,
            crashes: Arc::clone(&self.crashes),
            clock: self.options.clock.clone(),
        };
        let reload_stop = stop.clone();
        tasks.spawn(async move {
            reloading.run(reload_stop).await;
            "the reloader"
        });
        {
            let (service, stop) = (service.clone(), stop.clone());
            tasks.spawn(async move {
                socket.serve(service, stop).await;
                "the control socket"
            });
        }
        if let Some(listener) = metrics {
            let stop = stop.clone();
            tasks.spawn(async move {
                api::server::serve_metrics(listener, service, stop).await;
                "metrics"
            });
        }
        if let Some(settings) = self.config.heartbeat.clone() {
            tasks.spawn(watchdog::heartbeat(settings, Arc::clone(&live), stop.clone()));
        }
        tasks.spawn(watchdog::watchdog(live, stop.clone()));
        tasks.spawn(housekeeping(
            TaskStore::new(self.store.clone()),
            self.config.retention,
            self.options.clock.clone(),
            stop.clone(),
        ));

        let evaluator = evaluate::Evaluator {
            store: self.store.clone(),
            settings: self.config.detection.clone(),
            recorder,
            requests: handle_requests,
            beat,
            clock: self.options.clock.clone(),
            rules: self.rules.subscribe(),
            stored: self.stored.subscribe(),
            pending: self.pending.clone(),
            progress: self.progress.clone(),
            watched,
            retro_hunt: self.config.retro_hunt,
            hunted,
            crashes: self.crashes,
        };
        let evaluate_stop = stop.clone();
        let runtime = tokio::runtime::Handle::current();
        let (ended, evaluator_ended) = tokio::sync::oneshot::channel();
        stack::thread("rules")
            .spawn(move || {
                // sled panics on some kinds of damage. The store is then opened again, as after any store error.
                let evaluate = AssertUnwindSafe(|| evaluator.run(&runtime, &evaluate_stop));
                let result = std::panic::catch_unwind(evaluate);
                // The receiver is gone if the agent has already ended.
                ended.send(result.unwrap_or_else(|_| Err(StoreError::Panicked))).ok();
            })
            .map_err(|error| AgentError::System { what: "cannot start the rules thread", error })?;
        let mut evaluator_ended = evaluator_ended;
        let result = tokio::select! {
            // On `stop`, the other tasks end as well: that is not a failure.
            biased;
            () = stop.cancelled() => Ok(()),
            ended = tasks.join_next() => Err(AgentError::TaskEnded(describe(ended))),
            ended = &mut evaluator_ended => match ended {
                Ok(Err(error)) => Err(AgentError::Store(error)),
                Ok(Ok(())) | Err(_) => Err(AgentError::TaskEnded("the rules thread".to_owned())),
            },
        };
        stop.cancel();
        if result.is_ok() {
            // Rules have a time limit, so this ends soon.
            tokio::time::timeout(Duration::from_secs(2), &mut evaluator_ended).await.ok();
        }
        while tasks.join_next().await.is_some() {}
        stop_workers.cancel();
        while workers.join_next().await.is_some() {}
        let now = self.options.clock.now();
        let store = TaskStore::new(self.store);
        if let Err(error) = store.run(move |store| store.set_alive(now).and_then(|()| store.flush())).await {
            tracing::error!(%error, "cannot flush the store");
        }
        drop(self.pid_file);
        result
    }
}

fn listen(address: SocketAddr) -> Result<std::net::TcpListener, AgentError> {
    let listener = std::net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|error| AgentError::Port { address, error })
}

fn describe(ended: Option<Result<&'static str, tokio::task::JoinError>>) -> String {
    match ended {
        Some(Ok(name)) => name.to_owned(),
        Some(Err(error)) => error.to_string(),
        None => "all of them".to_owned(),
    }
}

/// Makes dead letters of what is pending for destinations that were removed or renamed: no worker would deliver it, and a
/// check reports dead letters.
fn give_up_unconfigured(store: &Store, config: &Config, now: Timestamp) -> Result<(), StoreError> {
    const AT_ONCE: usize = 1_000;
    let reader = store.reader();
    for (name, pending) in reader.outbox()? {
        if pending.count == 0 || config.destinations.iter().any(|settings| settings.name == name) {
            continue;
        }
        tracing::warn!(
            destination = %name, deliveries = pending.count,
            "giving up the deliveries to a destination that is no longer configured: list them with `watchbell destinations dead`"
        );
        loop {
            let mut deliveries = reader.pending(&name, AT_ONCE)?;
            if deliveries.is_empty() {
                break;
            }
            for delivery in &mut deliveries {
                delivery.error = Some("the destination is no longer configured".to_owned());
            }
            store.give_up(&deliveries, now)?;
        }
    }
    Ok(())
}

/// The time for retention: that of the last poll by the server's clock, and not later than `now`. A clock that is ahead
/// must not empty the store, and while no source can be read, nothing new arrives that would need the space.
fn confirmed(now: Timestamp, reader: &Reader) -> Result<Timestamp, StoreError> {
    let by_server = |record: SourceRecord| Some(record.by_server(record.last_poll?));
    let last = reader.sources()?.into_values().filter_map(by_server).max();
    Ok(last.map_or(now, |last| last.min(now)))
}

/// Removes events and alerts older than `retention`, and merges small blocks.
async fn housekeeping(store: TaskStore, retention: Duration, clock: Clock, stop: CancellationToken) -> &'static str {
    // First run soon after startup, so that an agent that is restarted often also gets to it.
    let mut wait = Duration::from_secs(60);
    loop {
        tokio::select! {
            () = stop.cancelled() => return "housekeeping",
            () = tokio::time::sleep(wait) => {}
        }
        wait = HOUSEKEEPING;
        let now = clock.now();
        let done = store.run(move |store| {
            let begun = Instant::now();
            let before = time::before(confirmed(now, &store.reader())?, retention);
            let removed = store.remove_before(before)?;
            let merged = store.merge_blocks()?;
            Ok((removed, merged, begun.elapsed()))
        });
        match done.await {
            Ok((removed, merged, took)) => {
                tracing::debug!(events = removed.events, alerts = removed.alerts, merged, ?took, "housekeeping");
            }
            Err(error) => tracing::error!(%error, "housekeeping failed and will be retried"),
        }
    }
}

/// The file with the id of the process that uses the data directory, so that a second process can name it.
#[derive(Debug)]
struct PidFile(PathBuf);

impl PidFile {
    fn write(config: &Config) -> Result<Self, AgentError> {
        use std::{io::Write, os::unix::fs::OpenOptionsExt};
        let path = store::pid_file(&config.data_dir);
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options
            .open(&path)
            .and_then(|mut file| writeln!(file, "{}", std::process::id()))
            .map_err(|error| AgentError::System { what: "cannot write the pid file", error })?;
        Ok(Self(path))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // A leftover file is harmless: its process no longer holds the lock.
        std::fs::remove_file(&self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::name::SourceName;

    /// A clock that is a year ahead, or polls that failed since, do not move retention.
    #[test]
    fn retention_goes_by_the_servers_clock() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let day = |day: i64| time::from_millis(day * 86_400_000);
        assert_eq!(confirmed(day(400), &store.reader()).unwrap(), day(400));
        let source = SourceName::parse("log").unwrap();
        let record = SourceRecord { last_poll: Some(day(35)), ..SourceRecord::default() };
        store.save_source(&source, &record).unwrap();
        assert_eq!(confirmed(day(400), &store.reader()).unwrap(), day(35));
        // The poll succeeded while the clock was five days ahead.
        store.save_source(&source, &SourceRecord { clock_skew: Some(5 * 86_400), ..record }).unwrap();
        assert_eq!(confirmed(day(400), &store.reader()).unwrap(), day(30));
        assert_eq!(confirmed(day(20), &store.reader()).unwrap(), day(20));
    }
}
