use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    process::Stdio,
    time::Duration,
};

use serde_json::{Value, json};
use watchbell::{
    model::time::{self, Clock},
    simulator::{Fault, Faults, SimulatorOptions},
};

use crate::support::{Finished, Lab, Running, base, collector::Collector, entry, eventually, rule, scenario, timeless};

/// A rule that matches everything, with one alert per event.
fn each(id: &str) -> String {
    rule(
        id,
        "dedup_period: \"7d\"",
        "fn rule(event) { true }\nfn title(event) { `${event.actor.name} did ${event.action}` }\nfn dedup(event) { event.id }",
    )
}

/// Entries that happened just now: the agents here are processes that use the system clock.
pub(crate) fn recent(count: usize) -> Vec<Value> {
    let start = time::before(Clock::system().now(), Duration::from_secs(3_600));
    let offset = start.as_second() - base().as_second();
    (0..count)
        .map(|index| {
            let actor = if index % 2 == 0 { "ann" } else { "bob" };
            entry(
                &format!("e{index:03}"),
                &format!("action_{}", index % 5),
                offset + i64::try_from(index).unwrap(),
                actor,
            )
        })
        .collect()
}

pub(crate) fn lab(entries: &[Value]) -> Lab {
    let lab = Lab::with_organization(SimulatorOptions::new(scenario(entries)), "drop_off = \"30d\"");
    lab.write("rules/each.rhai", each("team.each"));
    lab
}

/// Starts an agent and waits until its socket responds and it has read everything.
pub(crate) fn start(lab: &Lab, events: u64) -> Running {
    let mut command = lab.command(&["run", "--format", "json"]);
    command.stdout(Stdio::null()).stderr(fs::File::create(lab.path("run.log")).unwrap());
    let agent = Running(command.spawn().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ready = || {
        UnixStream::connect(lab.path("data/agent.sock")).is_ok()
            && status(lab)["events"]["evaluated"].as_u64() == Some(events)
            && status(lab)["destinations"].as_array().unwrap().iter().all(|state| state["pending"] == 0)
    };
    let read = runtime.block_on(eventually(ready));
    assert!(read, "{}", fs::read_to_string(lab.path("run.log")).unwrap());
    agent
}

fn status(lab: &Lab) -> Value {
    let finished = lab.watchbell(&["status", "--format", "json"]);
    serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{}", finished.show()))
}

/// JSON lines.
fn lines(finished: &Finished) -> Vec<Value> {
    assert_eq!(finished.code, Some(0), "{}", finished.show());
    finished.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The parts that do not depend on the time of the query.
fn lasting(status: &Value) -> Value {
    json!({
        "events": status["events"], "open": status["open_alerts"], "acknowledged": status["acknowledged_alerts"],
        "rules": status["rules"], "silences": status["silences"],
        "stored": status["sources"][0]["record"]["stored"],
        "destinations": status["destinations"].as_array().unwrap().iter()
            .map(|state| json!([state["name"], state["pending"], state["given_up"], state["delivered"]])).collect::<Vec<_>>(),
    })
}

/// Every query command prints the same with a running agent and without one.
#[test]
fn every_looking_verb_answers_alike_with_and_without_an_agent() {
    let lab = lab(&recent(60));
    lab.write(
        "rules/remembers.rhai",
        rule("team.remembers", "", "fn rule(event) { count(event.actor.email, \"7d\"); false }"),
    );
    lab.write(
        "rules/exceptions.toml",
        "[[exception]]\nid = \"third\"\nrules = [\"team.each\"]\ncondition = 'event.id == \"e003\"'\nreason = \"r\"\nauthor = \"a\"\nexpires = \"never\"\n",
    );
    let agent = start(&lab, 60);
    let alert = lines(&lab.watchbell(&["alerts", "list", "--format", "json", "--limit", "1"]))[0]["id"].clone();
    let alert = alert.as_str().unwrap().to_owned();
    assert_eq!(lab.watchbell(&["alerts", "ack", &alert, "--author", "ann", "-m", "mine"]).code, Some(0));
    assert_eq!(
        lab.watchbell(&["silence", "add", "--rule", "nothing.*", "--for", "2h", "--author", "ann"]).code,
        Some(0)
    );
    let verbs: Vec<Vec<&str>> = vec![
        vec!["events", "list"],
        vec!["events", "list", "--actor", "ann", "--action", "action_1", "--format", "json"],
        vec!["events", "show", "e007"],
        vec!["events", "tail", "-n", "5"],
        vec!["events", "export", "--since", "1d"],
        vec!["alerts", "list", "--limit", "7"],
        vec!["alerts", "list", "--status", "acknowledged", "--format", "json"],
        vec!["alerts", "show", &alert],
        vec!["alerts", "tail", "--format", "json", "-n", "100"],
        vec!["silence", "list"],
        vec!["destinations", "dead"],
        vec!["rules", "list"],
        vec!["rules", "show", "team.each"],
        vec!["rules", "show", "team.each", "--effective"],
        vec!["explain", "--rule", "team.each", "--event", "e007"],
        vec!["exceptions", "list"],
        vec!["exceptions", "stats"],
        vec!["exceptions", "hits", "third"],
        vec!["exceptions", "add", "--from-alert", &alert, "--format", "json"],
        vec!["state", "list"],
        vec!["state", "show", "--rule", "team.remembers"],
        vec!["replay", "--show", "3"],
        vec!["store", "verify"],
        vec!["events", "show", "nothing"],
        vec!["alerts", "show", "nothing"],
    ];
    let ask = || -> Vec<String> { verbs.iter().map(|verb| timeless(&lab.watchbell(verb).show())).collect() };
    let (beside, before) = (ask(), status(&lab));
    assert_eq!(before["agent"]["pid"], agent.0.id());
    assert!(lab.watchbell(&["state", "list"]).stdout.contains("team.remembers"));
    drop(agent);
    let (without, after) = (ask(), status(&lab));
    assert_eq!(after["agent"], Value::Null);
    for (verb, (beside, without)) in verbs.iter().zip(beside.iter().zip(&without)) {
        assert_eq!(beside, without, "{verb:?}");
        let fails = verb.contains(&"nothing");
        assert_eq!(beside.starts_with("exit: 0"), !fails, "{verb:?}: {beside}");
    }
    assert_eq!(lasting(&before), lasting(&after));
    // With a running agent, `state clear` clears the agent's state, not only the store.
    let again = start(&lab, 60);
    assert!(lab.watchbell(&["state", "clear", "--rule", "team.remembers"]).stdout.contains("cleared 2 keys"));
    drop(again);
    assert!(lab.watchbell(&["state", "clear", "--rule", "team.remembers"]).stdout.contains("cleared 0 keys"));
    // A socket that a killed agent left behind is in nobody's way.
    assert!(lab.path("data/agent.sock").exists());
    let again = start(&lab, 60);
    assert_eq!(lasting(&status(&lab)), lasting(&after));
    drop(again);
}

#[test]
fn an_alert_is_acknowledged_resolved_and_reopened_beside_an_agent_and_without() {
    for beside in [true, false] {
        let lab = lab(&recent(3));
        let agent = start(&lab, 3);
        let agent = beside.then_some(agent);
        let ids: Vec<String> = lines(&lab.watchbell(&["alerts", "list", "--format", "json"]))
            .iter()
            .map(|alert| alert["id"].as_str().unwrap()[..8].to_owned())
            .collect();
        let (one, other) = (ids[0].as_str(), ids[1].as_str());
        let code = |arguments: &[&str]| lab.watchbell(&[&["alerts"], arguments, &["--author", "ann"]].concat()).code;
        assert_eq!(code(&["ack", one, other, "-m", "we are at it"]), Some(0));
        assert_eq!(code(&["ack", one]), Some(3), "twice");
        assert_eq!(code(&["resolve", one, "--true-positive", "-m", "stopped"]), Some(0));
        assert_eq!(code(&["resolve", one]), Some(3), "twice");
        assert_eq!(code(&["ack", one]), Some(3), "resolved");
        assert_eq!(code(&["comment", one, "-m", "more to say"]), Some(0));
        assert_eq!(code(&["comment", one]), Some(3), "nothing said");
        assert_eq!(code(&["resolve", other, "--false-positive"]), Some(0));
        assert_eq!(code(&["reopen", other]), Some(0));
        assert_eq!(code(&["reopen", other]), Some(3), "it is open");
        assert_eq!(lab.watchbell(&["alerts", "ack", other, "--author", " "]).code, Some(3), "nobody");
        let shown = lab.watchbell(&["alerts", "show", one, "--format", "json"]);
        let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
        assert_eq!((&shown["status"], &shown["disposition"]), (&json!("resolved"), &json!("true_positive")));
        let log: Vec<(&str, &str, &str)> = shown["changes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|change| {
                let text = |name: &str| change[name].as_str().unwrap_or_default();
                (text("what"), text("author"), text("comment"))
            })
            .collect();
        assert_eq!(
            log,
            [
                ("opened", "", ""),
                ("acknowledged", "ann", "we are at it"),
                ("resolved", "ann", "stopped"),
                ("commented", "ann", "more to say"),
            ]
        );
        let after = status(&lab);
        assert_eq!(after["open_alerts"]["medium"], 2, "{beside}");
        drop(agent);
    }
}

/// After an alert is resolved, the next match with its key opens a new one; a replay does the same at the same place.
#[test]
fn a_resolved_alert_takes_no_more_matches_and_replay_agrees() {
    let entries = recent(6);
    let lab = Lab::with_organization(SimulatorOptions::new(scenario(&entries[..3])), "drop_off = \"30d\"");
    let text = rule("team.one", "dedup_period: \"7d\"", "fn rule(event) { true }\nfn dedup(event) { \"all\" }");
    lab.write("rules/one.rhai", text);
    let agent = start(&lab, 3);
    let ids = |lab: &Lab| -> BTreeSet<(String, u64)> {
        lines(&lab.watchbell(&["alerts", "list", "--format", "json"]))
            .iter()
            .map(|alert| (alert["id"].as_str().unwrap().to_owned(), alert["count"].as_u64().unwrap()))
            .collect()
    };
    let first = ids(&lab);
    assert_eq!(first.len(), 1);
    let id = first.iter().next().unwrap().0.clone();
    assert_eq!(lab.watchbell(&["alerts", "resolve", &id, "--author", "ann"]).code, Some(0));
    // The next events are imported instead.
    let more: String = entries[3..5].iter().map(|entry| format!("{entry}\n")).collect();
    lab.write("more.jsonl", more);
    assert_eq!(lab.watchbell(&["events", "import", "more.jsonl", "--source", "test"]).code, Some(0));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert!(runtime.block_on(eventually(|| status(&lab)["events"]["evaluated"] == 5)));
    let second = ids(&lab);
    assert_eq!(second.len(), 2, "{second:?}");
    assert!(second.iter().any(|(other, count)| *other == id && *count == 3));
    // A replay gives the same alerts.
    drop(agent);
    let replayed = lab.watchbell(&["replay", "--format", "json"]);
    let replayed: Value = serde_json::from_str(&replayed.stdout).unwrap();
    let replayed: BTreeSet<(String, u64)> = replayed["alerts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|alert| (alert["id"].as_str().unwrap().to_owned(), alert["count"].as_u64().unwrap()))
        .collect();
    assert_eq!(replayed, second);
}

#[test]
fn a_silence_keeps_alerts_back_and_lists_them_when_it_ends() {
    let lab = Lab::with_organization(SimulatorOptions::new(scenario(&[])), "drop_off = \"30d\"");
    lab.write("rules/each.rhai", each("team.each"));
    let agent = start(&lab, 0);
    let run = |arguments: &[&str]| {
        let finished = lab.watchbell(arguments);
        assert_eq!(finished.code, Some(0), "{}", finished.show());
        finished
    };
    run(&["silence", "add", "--rule", "team.*", "--actor", "ANN", "--for", "2h", "--author", "bo", "-m", "planned"]);
    let text: String = recent(4).iter().map(|entry| format!("{entry}\n")).collect();
    lab.write("events.jsonl", text);
    run(&["events", "import", "events.jsonl", "--source", "test"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let told = || -> Vec<Value> {
        let text = fs::read_to_string(lab.path("alerts.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    assert!(runtime.block_on(eventually(|| told().len() == 2)), "{:?}", told());
    assert!(told().iter().all(|message| message["alert"]["evidence"]["actor"] == "bob"));
    let silences = lines(&run(&["silence", "list", "--format", "json"]));
    assert_eq!((&silences[0]["silenced"], &silences[0]["comment"]), (&json!(2), &json!("planned")));
    let listed = run(&["alerts", "list"]).stdout;
    assert_eq!(listed.matches("open, silenced").count(), 2, "{listed}");
    // Resolving an alert that was never delivered is not delivered either.
    let quiet = lines(&run(&["alerts", "list", "--actor", "ann", "--format", "json"]));
    run(&["alerts", "resolve", quiet[0]["id"].as_str().unwrap(), "--author", "bo"]);
    run(&["silence", "expire", "1"]);
    assert!(runtime.block_on(eventually(|| told().len() == 3)), "{:?}", told());
    let digest = &told()[2];
    assert_eq!((&digest["notice"], &digest["silence"]), (&json!("silence_digest"), &json!(1)));
    assert_eq!(digest["alerts"].as_array().unwrap().len(), 2);
    assert_eq!(lab.watchbell(&["silence", "expire", "1"]).code, Some(3), "it has ended");
    assert!(lab.watchbell(&["silence", "list"]).stderr.contains("no silences"));
    drop(agent);
}

#[test]
fn events_go_in_and_out_byte_for_byte() {
    let lab = lab(&[]);
    let agent = start(&lab, 0);
    let entries = recent(1_300);
    let text: String = entries.iter().map(|entry| format!("{entry}\n")).collect();
    // Lines, gzip, a page of the API, an entry that is not an event, and standard input.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    lab.write("lines.jsonl.gz", encoder.finish().unwrap());
    lab.write("page.json", serde_json::to_string_pretty(&json!({ "data": [entries[0], "x"], "meta": {} })).unwrap());
    let imported =
        lab.watchbell(&["events", "import", "lines.jsonl.gz", "page.json", "--source", "old", "--format", "json"]);
    let imported: Value = serde_json::from_str(&imported.stdout).unwrap_or_else(|_| panic!("{}", imported.show()));
    assert_eq!(imported, json!({ "stored": 1_300, "duplicates": 1, "quarantined": 1, "dropped": 0 }));
    let mut import = lab.command(&["events", "import", "-", "--source", "kept", "--no-evaluate"]);
    let mut import = import.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    import.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(import.wait().unwrap().success());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert!(runtime.block_on(eventually(|| status(&lab)["events"]["evaluated"] == 2_600)));
    // No rule was evaluated on events that were only imported.
    let matches = lines(&lab.watchbell(&["alerts", "list", "--limit", "5000", "--format", "json"]));
    assert_eq!(matches.iter().filter(|alert| alert["rule"] == "team.each").count(), 1_300);
    assert!(lab.watchbell(&["events", "list", "--quarantined"]).stdout.contains("not a JSON object"));
    let exported = lab.watchbell(&["events", "export", "--source", "old"]);
    assert_eq!(exported.stdout, text);
    lab.watchbell(&["events", "export", "--source", "kept", "--output", "out.jsonl"]);
    assert_eq!(fs::read_to_string(lab.path("out.jsonl")).unwrap(), text);
    assert_eq!(fs::metadata(lab.path("out.jsonl")).unwrap().permissions().mode() & 0o777, 0o600);
    drop(agent);
}

/// A script that imports events learns what was not imported.
#[test]
fn an_import_of_nothing_is_no_success() {
    let lab = lab(&[]);
    lab.write("garbage.json", "garbage");
    lab.write("empty.json", "");
    lab.write("cut.jsonl", format!("{}\n{{\"id\":", recent(1)[0]));
    for nothing in ["garbage.json", "empty.json"] {
        let imported = lab.watchbell(&["events", "import", nothing, "--source", "old"]);
        assert_eq!(imported.code, Some(3), "{}", imported.show());
        assert!(imported.stderr.contains("nothing was imported"), "{}", imported.show());
    }
    let imported = lab.watchbell(&["events", "import", "cut.jsonl", "--source", "old"]);
    assert_eq!(imported.code, Some(1), "{}", imported.show());
    assert!(imported.stdout.starts_with("1 event stored"), "{}", imported.show());
}

/// A part of the log is fetched again: missing events are added, existing ones are unchanged.
#[test]
fn a_part_of_the_log_is_fetched_again() {
    let lab =
        Lab::with_organization(SimulatorOptions::new(scenario(&recent(40))), "drop_off = \"30d\"\n# backfill below");
    let config = fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    lab.write("watchbell.toml", config.replace("backfill = \"180d\"", "backfill = \"1s\""));
    lab.write("rules/each.rhai", each("team.each"));
    let agent = start(&lab, 0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = lab.watchbell(&["events", "fetch", "--since", "2h"]);
    assert!(answer.stdout.contains("is being fetched again"), "{}", answer.show());
    assert!(runtime.block_on(eventually(|| status(&lab)["events"]["evaluated"] == 40)), "{:#}", status(&lab));
    let again = lab.watchbell(&["events", "fetch", "--since", "2h", "--source", "test"]);
    assert_eq!(again.code, Some(0));
    let over = || status(&lab)["sources"][0]["record"]["refetch"].is_null();
    assert!(runtime.block_on(eventually(|| over() && status(&lab)["sources"][0]["record"]["duplicates"] == 40)));
    assert_eq!(lab.watchbell(&["events", "fetch", "--since", "2h", "--source", "other"]).code, Some(3));
    assert_eq!(status(&lab)["events"]["stored"], 40);
    drop(agent);
}

/// Follows changes across the end of one agent and the start of the next.
#[test]
fn tail_follows_from_one_agent_to_the_next() {
    let lab = lab(&recent(5));
    let agent = start(&lab, 5);
    let mut tail = lab.command(&["events", "tail", "-f", "-n", "2", "--format", "json"]);
    let mut tail =
        Running(tail.stdout(fs::File::create(lab.path("tail")).unwrap()).stderr(Stdio::null()).spawn().unwrap());
    let seen = || fs::read_to_string(lab.path("tail")).unwrap().lines().count();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert!(runtime.block_on(eventually(|| seen() == 2)));
    let import = |from: usize, to: usize| {
        let text: String = recent(to)[from..].iter().map(|entry| format!("{entry}\n")).collect();
        lab.write("more.jsonl", text);
        assert_eq!(lab.watchbell(&["events", "import", "more.jsonl", "--source", "test"]).code, Some(0));
    };
    import(5, 8);
    assert!(runtime.block_on(eventually(|| seen() == 5)));
    drop(agent);
    import(8, 9);
    let agent = start(&lab, 9);
    assert!(runtime.block_on(eventually(|| seen() == 6)));
    tail.0.kill().unwrap();
    drop(agent);
}

fn raw(lab: &Lab, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(lab.path("data/agent.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // The request may be refused before it has been sent completely.
    stream.write_all(request).ok();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok();
    answer.lines().next().unwrap_or_default().to_owned()
}

fn ask(body: &str, headers: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST /v1/alerts HTTP/1.1\r\nhost: agent\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
        .into_bytes()
}

#[test]
fn the_socket_refuses_what_it_should() {
    let lab = lab(&recent(2));
    let agent = start(&lab, 2);
    let mode = |path: &str| fs::metadata(lab.path(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("data"), mode("data/agent.sock")), (0o700, 0o600));
    let status = "{}";
    assert!(raw(&lab, &ask(status, "")).contains("200"));
    // A web page's request has an `Origin` header.
    assert!(raw(&lab, &ask(status, "origin: http://evil.example\r\n")).contains("403"));
    assert!(raw(&lab, &ask(status, "sec-fetch-site: cross-site\r\n")).contains("403"));
    let form =
        ask(status, "").iter().map(|byte| *byte as char).collect::<String>().replace("application/json", "text/plain");
    assert!(raw(&lab, form.as_bytes()).contains("415"));
    assert!(raw(&lab, b"GET /v1/alerts HTTP/1.1\r\nhost: a\r\n\r\n").contains("405"));
    assert!(raw(&lab, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").contains("404"));
    for nonsense in ["", "[]", r#"{"limit":-1}"#, r#"{"unknown":1}"#, &"[".repeat(100_000)] {
        assert!(raw(&lab, &ask(nonsense, "")).contains("400"), "{nonsense:.40}");
    }
    assert!(raw(&lab, b"\x16\x03\x01 no http at all \r\n\r\n").contains("400"));
    // Bodies that are too large, with and without a content length.
    let announced = ask("", "").iter().map(|byte| *byte as char).collect::<String>();
    let announced = announced.replace("content-length: 0", "content-length: 99999999999");
    assert!(raw(&lab, announced.as_bytes()).contains("413"));
    assert!(raw(&lab, &ask(status, &format!("x: {}\r\n", "y".repeat(200_000)))).contains("431"));

    // Hundreds of silent connections: other requests wait for a free slot, and get one.
    let idle: Vec<UnixStream> =
        (0..100).filter_map(|_| UnixStream::connect(lab.path("data/agent.sock")).ok()).collect();
    assert!(idle.len() >= 64);
    drop(idle);
    let finished = lab.watchbell(&["status"]);
    assert_eq!(finished.code, Some(0), "{}", finished.show());
    // A client that stops in the middle of a request is disconnected, and has not blocked others.
    let mut slow = UnixStream::connect(lab.path("data/agent.sock")).unwrap();
    slow.write_all(b"POST /v1/alerts HTTP/1.1\r\nhost: a\r\n").unwrap();
    assert_eq!(lab.watchbell(&["status"]).code, Some(0));
    slow.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).ok();
    assert!(!String::from_utf8_lossy(&rest).contains("200 OK"));
    drop(agent);
}

/// A free port.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn get(port: u16, path: &str, headers: &str) -> (u16, String) {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n{headers}\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer)
}

#[test]
fn metrics_and_health_say_whether_the_agent_does_its_job() {
    let lab = lab(&recent(20));
    let port = free_port();
    let beats = Collector::start(tokio_runtime_leaked());
    let config = fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    lab.write(
        "watchbell.toml",
        format!(
            "{config}\n[metrics]\nlisten = \"127.0.0.1:{port}\"\n[heartbeat]\nurl = \"{}\"\nevery = \"1s\"\n",
            beats.url("/ping/1")
        ),
    );
    lab.write("rules/broken.rhai", "const RULE = #{");
    let agent = start(&lab, 20);
    let (code, text) = get(port, "/metrics", "");
    assert_eq!(code, 200);
    for wanted in [
        "watchbell_events_stored_total{source=\"test\"} 20.0",
        "watchbell_rule_matches_total{rule=\"team.each\"} 20.0",
        "watchbell_rule_calls_total{rule=\"team.each\"}",
        "watchbell_rule_seconds_total{rule=\"team.each\"}",
        "watchbell_alerts_open{severity=\"medium\"} 20.0",
        "watchbell_outbox_pending{destination=\"file\"} 0.0",
        "watchbell_polls_total{source=\"test\",outcome=\"ok\"}",
        "watchbell_evaluation_backlog{} 0.0",
        "watchbell_rule_files_broken{} 1.0",
        "watchbell_store_bytes",
        "# EOF",
    ] {
        assert!(text.contains(wanted), "{wanted} is missing in\n{text}");
    }
    assert_eq!((get(port, "/healthz", "").0, get(port, "/readyz", "").0), (200, 200));
    assert_eq!(get(port, "/metrics", "origin: http://evil.example\r\n").0, 403);
    assert_eq!(get(port, "/v1/alerts", "").0, 404, "no verb is reached here");
    // DNS rebinding: a web page whose host name resolves to this address.
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: evil.example\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("403"), "{answer}");
    let runtime = tokio_runtime();
    assert!(
        runtime.block_on(eventually(|| beats
            .received()
            .iter()
            .any(|beat| beat.method == "GET" && beat.path == "/ping/1")))
    );
    // A second agent reports that the port is in use.
    let other = Lab::with_organization(SimulatorOptions::new(scenario(&[])), "");
    let config = fs::read_to_string(other.path("watchbell.toml")).unwrap();
    other.write("watchbell.toml", format!("{config}\n[metrics]\nlisten = \"127.0.0.1:{port}\"\n"));
    let refused = other.watchbell(&["run"]);
    assert!(refused.code == Some(3) && refused.stderr.contains(&port.to_string()), "{}", refused.show());
    drop(agent);
}

fn tokio_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// An agent, a simulated organization with faults, a failing webhook, and every command at the same time. The agent is
/// killed and restarted: the numbers from the socket and from the store are the same.
#[test]
fn an_agent_under_load_is_asked_everything_at_once() {
    let entries = recent(400);
    // Without faults that quarantine entries: each raises its own alert, at the time of the next health check.
    let mut passing = Fault::PASSING.to_vec();
    passing.retain(|fault| !matches!(fault, Fault::Malformed | Fault::DeeplyNested));
    let lab = Lab::with_organization(
        SimulatorOptions {
            page_limit: 20,
            faults: Faults::some(&passing, 100, 5),
            ..SimulatorOptions::new(scenario(&entries))
        },
        "drop_off = \"30d\"",
    );
    lab.write("rules/each.rhai", each("team.each"));
    let hook = Collector::start(tokio_runtime_leaked());
    let mut count = 0;
    hook.always(move |_| {
        count += 1;
        if count % 3 == 0 { (200, String::new()) } else { (503, String::new()) }
    });
    let config = fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    let webhook = format!("[[destination]]\nname = \"hook\"\nkind = \"webhook\"\nurl = \"{}\"\n", hook.url("/"));
    lab.write("watchbell.toml", format!("{config}\n{webhook}"));
    let runtime = tokio_runtime();
    let agent = lab.spawn_agent();
    let socket = lab.path("data/agent.sock");
    assert!(runtime.block_on(eventually(|| UnixStream::connect(&socket).is_ok())));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let lab = &lab;
            scope.spawn(move || {
                for round in 0..3 {
                    let name = format!("backup-{thread}-{round}");
                    for verb in [
                        &["status"][..],
                        &["events", "list", "--limit", "20"],
                        &["events", "export"],
                        &["alerts", "list"],
                        &["alerts", "tail"],
                        &["rules", "list"],
                        &["destinations", "list"],
                        &["silence", "add", "--rule", "nobody.*", "--for", "1h", "--author", "t"],
                        &["silence", "list"],
                        &["events", "fetch", "--since", "2h"],
                        &["replay"],
                        &["store", "verify"],
                        &["store", "backup", &name],
                    ] {
                        let finished = lab.watchbell(verb);
                        assert_eq!(finished.code, Some(0), "{verb:?}: {}", finished.show());
                    }
                }
            });
        }
    });
    let evaluated = || status(&lab)["events"]["evaluated"] == 400 && status(&lab)["events"]["stored"] == 400;
    assert!(runtime.block_on(eventually(evaluated)), "{:#}", status(&lab));
    let alert = lines(&lab.watchbell(&["alerts", "list", "--format", "json", "--limit", "1"]))[0]["id"].clone();
    assert_eq!(lab.watchbell(&["alerts", "resolve", alert.as_str().unwrap(), "--author", "t"]).code, Some(0));
    // Deliveries and polls continue, so only stable numbers can be compared.
    let still = |status: &Value| {
        json!([status["events"], status["silences"], status["open_alerts"]["medium"], status["rules"]])
    };
    let before = still(&status(&lab));
    drop(agent);
    assert_eq!(still(&status(&lab)), before, "from the store");
    let agent = lab.spawn_agent();
    assert!(runtime.block_on(eventually(|| status(&lab)["agent"].is_object())));
    assert_eq!(still(&status(&lab)), before, "from the socket of the next");
    assert_eq!(lab.watchbell(&["store", "verify"]).code, Some(0));
    // A webhook that works again receives all pending deliveries.
    hook.always(|_| (200, String::new()));
    drop(agent);
    let told: BTreeSet<String> =
        hook.received().iter().map(|request| request.header("webhook-id").to_owned()).collect();
    assert!(!told.is_empty());
}

/// A runtime that lives as long as the test's servers.
fn tokio_runtime_leaked() -> &'static tokio::runtime::Runtime {
    Box::leak(Box::new(tokio_runtime()))
}

/// The service manager is notified when the agent is ready, alive, and stopping.
#[test]
fn the_service_manager_is_told() {
    let lab = lab(&[]);
    let socket = std::os::unix::net::UnixDatagram::bind(lab.path("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut command = lab.command(&["run"]);
    command.env("NOTIFY_SOCKET", lab.path("notify")).env("WATCHDOG_USEC", "200000");
    let mut agent = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let hear = |wanted: &str| {
        let mut bytes = [0; 1_024];
        loop {
            let length = socket.recv(&mut bytes).unwrap_or_else(|error| panic!("{wanted}: {error}"));
            if String::from_utf8_lossy(&bytes[..length]).contains(wanted) {
                return;
            }
        }
    };
    hear("READY=1");
    hear("WATCHDOG=1");
    hear("WATCHDOG=1");
    let id = rustix::process::Pid::from_raw(i32::try_from(agent.0.id()).unwrap()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    hear("STOPPING=1");
    assert!(agent.0.wait().unwrap().success());
}

/// A silence expires, and the alerts that opened meanwhile are delivered.
#[test]
fn a_silence_ends_when_its_time_is_over() {
    let lab = Lab::with_organization(crate::support::organization(&[entry("1", "x", 0, "ann")]), "");
    lab.write("rules/each.rhai", each("team.each"));
    let start = crate::support::now();
    {
        let (store, _) = lab.reader();
        let wanted = watchbell::model::silence::NewSilence {
            rule: "*".to_owned(),
            actor: None,
            source: None,
            until: time::after(start, Duration::from_secs(3_600)),
            author: "bo".to_owned(),
            comment: None,
        };
        store.writing().add_silence(wanted, start).unwrap();
    }
    let clock = Clock::manual(start);
    let told = || fs::read_to_string(lab.path("alerts.jsonl")).unwrap_or_default();
    let moved = std::cell::Cell::new(false);
    lab.run_agent_with(&clock, |reader| {
        let silenced = reader.silences().unwrap()[0].silenced;
        if silenced == 1 && !moved.replace(true) {
            assert_eq!(told(), "");
            clock.set(time::after(start, Duration::from_secs(3_601)));
        }
        told().contains("silence_digest")
    });
    assert_eq!(told().lines().count(), 1);
}

/// An alert that was delivered before a silence began is not silenced: its resolution is delivered.
#[test]
fn a_silence_does_not_swallow_the_end_of_what_was_told_before() {
    let lab = Lab::with_organization(SimulatorOptions::new(scenario(&[])), "drop_off = \"30d\"");
    let text = rule(
        "team.one",
        "dedup_period: \"7d\"",
        "fn rule(event) { true }\nfn dedup(event) { \"all\" }\nfn severity(event) { if event.action == \"action_1\" { \"high\" } else { \"low\" } }",
    );
    lab.write("rules/one.rhai", text);
    let agent = start(&lab, 0);
    let runtime = tokio_runtime();
    let told = || -> Vec<String> {
        let text = fs::read_to_string(lab.path("alerts.jsonl")).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["notice"].as_str().unwrap().to_owned())
            .collect()
    };
    let import = |entries: &[Value]| {
        lab.write("events.jsonl", entries.iter().map(|entry| format!("{entry}\n")).collect::<String>());
        assert_eq!(lab.watchbell(&["events", "import", "events.jsonl", "--source", "test"]).code, Some(0));
    };
    let entries = recent(2);
    import(&entries[..1]);
    assert!(runtime.block_on(eventually(|| told() == ["opened"])));
    assert_eq!(lab.watchbell(&["silence", "add", "--rule", "*", "--for", "1h", "--author", "bo"]).code, Some(0));
    import(&entries[1..]);
    assert!(runtime.block_on(eventually(|| status(&lab)["events"]["evaluated"] == 2)));
    let alert = lines(&lab.watchbell(&["alerts", "list", "--format", "json"]))[0].clone();
    assert_eq!((&alert["severity"], &alert["silenced_by"]), (&json!("high"), &Value::Null));
    let id = alert["id"].as_str().unwrap();
    assert_eq!(lab.watchbell(&["alerts", "resolve", id, "--author", "bo"]).code, Some(0));
    assert!(runtime.block_on(eventually(|| told() == ["opened", "resolved"])), "{:?}", told());
    assert_eq!(lab.watchbell(&["silence", "expire", "1"]).code, Some(0));
    assert!(runtime.block_on(eventually(|| told().len() == 3)));
    drop(agent);
}
