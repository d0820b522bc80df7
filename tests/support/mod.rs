//! Shared test helpers. A [`Lab`] is a temporary directory with a simulated organization, on which the binary or an
//! agent in this process runs.

pub(crate) mod collector;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use watchbell::{
    agent::{Agent, AgentOptions},
    config::Config,
    deliver::{Terminal, TerminalFormat},
    detect::Settings,
    model::{
        event::{Event, IncomingEvent},
        name::{Sequence, SourceName},
        time::{self, Clock, Timestamp},
    },
    replay::{Replay, Report},
    rule::{Loader, RuleSet},
    simulator::{self, Scenario, Simulated, Simulator},
    source::Timing,
    store::{AlertFilter, Reader, ScanFilter, Store},
};

/// The time of the tests' events.
pub(crate) fn base() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

/// The time of a fixed clock: all events are processed, and none is late.
pub(crate) fn now() -> Timestamp {
    time::after(base(), Duration::from_secs(12 * 3_600))
}

/// An organization without faults, with these entries, at [`now`].
pub(crate) fn organization(entries: &[Value]) -> simulator::SimulatorOptions {
    simulator::SimulatorOptions { clock: Clock::manual(now()), ..simulator::SimulatorOptions::new(scenario(entries)) }
}

/// An entry of the log as sent, this many seconds after [`base`].
pub(crate) fn entry(id: &str, action: &str, seconds: i64, actor: &str) -> Value {
    let time = time::from_millis(base().as_millisecond() + seconds * 1_000);
    json!({
        "id": id,
        "type": "events",
        "attributes": {
            "time": time.to_string(),
            "processedAt": time.to_string(),
            "action": action,
            "actor": { "id": actor, "name": actor, "email": format!("{actor}@example.com") },
            "context": [{ "id": "u1", "type": "users", "attributes": { "name": "Target", "email": "target@example.com" } }],
            "location": { "ip": "203.0.113.9", "countryName": "Germany", "city": "Berlin" },
        },
        "message": { "content": format!("{actor} did {action}"), "format": "simple" },
    })
}

/// An event that arrived when it happened.
pub(crate) fn event(number: u64, raw: &Value) -> Event {
    let incoming = IncomingEvent::parse(&raw.to_string()).unwrap();
    let arrived = incoming.time.unwrap_or_else(base);
    incoming.into_event(SourceName::parse("test").unwrap(), Sequence(number), arrived)
}

/// Events in the given order.
pub(crate) fn events(entries: &[Value]) -> Vec<Event> {
    (1..).zip(entries).map(|(number, entry)| event(number, entry)).collect()
}

/// A rule with these keys of `RULE` (besides id, title and severity) and these functions.
pub(crate) fn rule(id: &str, more: &str, functions: &str) -> String {
    format!("const RULE = #{{ id: \"{id}\", title: \"{id} fired\", severity: \"medium\", {more} }};\n{functions}\n")
}

/// Compiles rules, which must have no errors.
pub(crate) fn rule_set(rules: &[&str]) -> Arc<RuleSet> {
    let (set, problems) = load(rules);
    assert!(problems.is_empty(), "{problems:#?}");
    set
}

/// Compiles rules and returns their problems, one per line.
pub(crate) fn load(rules: &[&str]) -> (Arc<RuleSet>, Vec<String>) {
    let directory = tempfile::tempdir().unwrap();
    for (number, text) in rules.iter().enumerate() {
        fs::write(directory.path().join(format!("rule{number}.rhai")), text).unwrap();
    }
    let loaded = Loader::of(vec![directory.path().to_owned()]).without_builtin().load();
    let problems = loaded
        .diagnostics
        .iter()
        .map(|found| {
            let name = found.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let place = format!("{name}:{}:{}", found.line.unwrap_or(0), found.column.unwrap_or(0));
            format!("{} {place} {}", found.code, found.message)
                .replace(&directory.path().display().to_string(), "[DIR]")
        })
        .collect();
    (loaded.set, problems)
}

/// Runs rules over events.
pub(crate) fn run(rules: &Arc<RuleSet>, events: &[Event]) -> Report {
    let mut replay = Replay::new(Arc::clone(rules), Settings::default());
    for event in events {
        replay.event(event);
    }
    replay.finish()
}

/// Runs one rule over entries: one line per alert, and the errors.
pub(crate) fn found(rule: &str, entries: &[Value]) -> Vec<String> {
    let report = run(&rule_set(&[rule]), &events(entries));
    let mut lines: Vec<String> = report
        .alerts
        .iter()
        .map(|alert| format!("{} x{} {} [{}]", alert.severity, alert.count, alert.title, alert.dedup_key))
        .collect();
    for rule in report.rules.values() {
        lines.extend(rule.first_error.iter().map(|error| format!("error: {error}")));
    }
    lines
}

/// A directory, a simulated organization, and the processes that use them.
pub(crate) struct Lab {
    directory: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    pub(crate) simulator: Option<Simulator>,
}

/// A process that is killed at the end of the test.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Lab {
    pub(crate) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { directory: tempfile::tempdir().unwrap(), runtime, simulator: None }
    }

    /// Starts a simulated organization and writes a configuration for it.
    pub(crate) fn with_organization(options: simulator::SimulatorOptions, more: &str) -> Self {
        let mut lab = Self::new();
        lab.start_simulator(options.clone());
        lab.write("key", &options.key);
        lab.write_config(&options.org_id, more);
        lab
    }

    pub(crate) fn start_simulator(&mut self, options: simulator::SimulatorOptions) {
        self.simulator = Some(self.runtime.block_on(Simulator::start(options)).unwrap());
    }

    /// A configuration that polls fast. `more` is added to the source's table.
    pub(crate) fn write_config(&self, org_id: &str, more: &str) {
        let url = self.simulator.as_ref().unwrap().base_url();
        let text = format!(
            "[[source]]\nname = \"test\"\norg_id = \"{org_id}\"\nbase_url = \"{url}\"\napi_key = {{ file = \"key\" }}\n\
             backfill = \"180d\"\npoll_interval = \"100ms\"\nrate_limit = 6000\n{more}\n\
             [[destination]]\nname = \"file\"\nkind = \"file\"\npath = \"alerts.jsonl\"\n"
        );
        self.write("watchbell.toml", &text);
        fs::create_dir_all(self.path("rules")).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// The binary with these arguments, in this directory, with only the given environment.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_watchbell"));
        command.args(arguments).current_dir(self.directory.path()).env_clear().stdin(Stdio::null());
        command
    }

    pub(crate) fn watchbell(&self, arguments: &[&str]) -> Finished {
        Finished::of(self.command(arguments).output().unwrap(), self.directory.path())
    }

    /// Runs the binary with a limited address space, if the system enforces such a limit.
    pub(crate) fn watchbell_within(&self, kib: u64, arguments: &[&str]) -> Finished {
        let mut command = Command::new("/bin/sh");
        let script = format!("ulimit -v {kib} 2>/dev/null; exec \"$0\" \"$@\"");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_watchbell")]).args(arguments);
        command.current_dir(self.directory.path()).env_clear().stdin(Stdio::null());
        Finished::of(command.output().unwrap(), self.directory.path())
    }

    /// Starts the agent as a separate process.
    pub(crate) fn spawn_agent(&self) -> Running {
        let mut command = self.command(&["run"]);
        Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    pub(crate) fn config(&self) -> Config {
        let (config, problems) = Config::load(&self.path("watchbell.toml"));
        config.unwrap_or_else(|| panic!("{problems:#?}"))
    }

    /// Runs an agent in this process until `done` returns true for its store, and returns the result.
    #[track_caller]
    pub(crate) fn run_agent_until(&self, done: impl Fn(&Reader) -> bool) {
        self.run_agent_with(&Clock::manual(now()), done);
    }

    #[track_caller]
    pub(crate) fn run_agent_with(&self, clock: &Clock, done: impl Fn(&Reader) -> bool) {
        let timing = Timing {
            refused: Duration::from_millis(100),
            first_retry: Duration::from_millis(20),
            longest_retry: Duration::from_millis(100),
            rate_limited: Duration::from_millis(50),
            ..Timing::default()
        };
        let terminal = Terminal::new(Box::new(std::io::sink()), TerminalFormat::Human);
        let options = AgentOptions { clock: clock.clone(), timing, terminal, pulse: Some(Duration::from_millis(50)) };
        let reached = self.runtime.block_on(async {
            let agent = Agent::open(self.config(), options).unwrap();
            let reader = agent.reader();
            let stop = CancellationToken::new();
            let task = tokio::spawn(agent.run(stop.clone()));
            let reached = eventually(|| done(&reader)).await;
            stop.cancel();
            task.await.unwrap().unwrap();
            reached
        });
        assert!(reached, "the agent did not get there: {:#?}", self.state());
    }

    /// The state of the sources, for messages of failed tests.
    fn state(&self) -> String {
        let store = Store::open(&self.config().data_dir).unwrap();
        format!("{:#?}", store.reader().sources())
    }

    /// The store of an agent that has stopped.
    pub(crate) fn reader(&self) -> (Store, Reader) {
        // sled releases a store some milliseconds after it has been closed.
        let store = Store::open_patiently(&self.config().data_dir, Duration::from_secs(10)).unwrap();
        let reader = store.reader();
        (store, reader)
    }
}

/// Polls `done` for at most a minute: a bound for failing tests that passing ones do not reach.
pub(crate) async fn eventually(done: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(60) {
        if done() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    false
}

/// Ids of all stored events, in order of arrival.
pub(crate) fn stored_ids(reader: &Reader) -> Vec<String> {
    reader.scan(ScanFilter::default()).map(|event| event.unwrap().id.to_string()).collect()
}

/// True if everything stored has been evaluated, and there are this many events.
pub(crate) fn evaluated(reader: &Reader, events: u64) -> bool {
    let mark = reader.checkpoint().unwrap();
    mark.0 >= events && mark == reader.last_sequence().unwrap()
}

/// Detection alerts as `(id, title, count)`, sorted.
pub(crate) fn alerts(reader: &Reader) -> Vec<(String, String, u64)> {
    let mut alerts: Vec<_> = reader
        .alerts(AlertFilter::default())
        .map(Result::unwrap)
        .filter(|alert| alert.kind != watchbell::model::alert::AlertKind::Health)
        .map(|alert| (alert.id.to_string(), alert.title, alert.count))
        .collect();
    alerts.sort();
    alerts
}

/// A scenario of these entries, processed at their own `processedAt`.
pub(crate) fn scenario(entries: &[Value]) -> Scenario {
    let simulated = entries.iter().map(|entry| {
        let processed = entry["attributes"]["processedAt"].as_str().and_then(time::parse_timestamp);
        Simulated { processed: processed.unwrap_or_else(base), json: entry.to_string() }
    });
    Scenario::of(simulated.collect())
}

/// The output and exit code of a process.
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    fn of(output: Output, directory: &Path) -> Self {
        let text =
            |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(&directory.display().to_string(), "[DIR]");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// All of it, for a snapshot.
    pub(crate) fn show(&self) -> String {
        format!("exit: {}\n--- stdout\n{}--- stderr\n{}", self.code.unwrap_or(-1), self.stdout, self.stderr)
    }
}

/// The output of `replay` without the parts that change from run to run.
pub(crate) fn timeless(text: &str) -> String {
    let mut text = text.to_owned();
    for (pattern, replacement) in [
        (r" +\d+(\.\d)? (µs|ms|s)  +", "  [TIME]  "),
        (r"TIME +WHEN", "TIME  WHEN"),
        (r#"time="[\d.]+""#, "time=\"[TIME]\""),
        (r"replayed in .*\n", ""),
    ] {
        text = regex::Regex::new(pattern).unwrap().replace_all(&text, replacement).into_owned();
    }
    text
}

/// Opens a store behind the program's back. sled lets go of one only some milliseconds after it was closed.
pub(crate) fn open_sled(path: impl AsRef<std::path::Path>) -> sled::Db {
    let began = std::time::Instant::now();
    loop {
        match sled::open(&path) {
            Ok(db) => return db,
            Err(sled::Error::Io(error)) if began.elapsed() < Duration::from_secs(30) => {
                assert!(error.to_string().contains("lock"), "{error}");
                std::thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
    }
}
