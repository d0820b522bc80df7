use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use base64::Engine as _;
use serde_json::{Value, json};
use watchbell::{
    config::Config,
    deliver::{Destination, DigestNotice, KINDS, Message, Receipt, SendOutcome, Terminal, TerminalFormat},
    model::{
        alert::{Alert, AlertAction, AlertChange, Disposition, Notice, Remark, Severity},
        name::SilenceId,
        time::Clock,
    },
};

use crate::support::{
    Lab, base,
    collector::{Collector, Received},
    entry, events, now, rule, rule_set, run,
};

const SECRET: &str = "s3cr3t-MARKED";

/// An alert with a value in every field that a destination shows.
fn alert() -> Alert {
    let text = rule(
        "team.admin.added",
        "tags: [\"admin\"], attack: [\"T1098.003\", \"TA0004\"], reference: \"https://example.com/ref\", runbook: \"Ask <them> & check.\", description: \"What it means.\"",
        "fn rule(event) { true }\nfn title(event) { `${event.actor.email} became an admin` }\nfn severity(event) { \"high\" }\nfn context(event) { #{ target: event.targets(\"users\")[0].attributes.email } }",
    );
    let mut alert = run(&rule_set(&[&text]), &events(&[entry("e1", "x", 0, "ann")])).alerts.remove(0);
    alert.raised_at = Some(base());
    alert
}

fn resolved(mut alert: Alert) -> Alert {
    let remark = Remark { author: "bo".to_owned(), at: now(), comment: Some("was planned".to_owned()) };
    let action = AlertAction::Resolve(Some(Disposition::FalsePositive));
    alert.apply(&AlertChange::Handled { alert: alert.id, action, remark });
    alert
}

/// A lab with one destination of this kind.
struct Bench {
    lab: Lab,
    runtime: tokio::runtime::Runtime,
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let lab = Lab::new();
        lab.write("secret", SECRET);
        Self { lab, runtime }
    }

    fn open(&self, table: &str) -> Box<dyn Destination> {
        let text = format!("[[destination]]\nname = \"tested\"\n{table}\n");
        self.lab.write("watchbell.toml", text);
        let (config, problems) = Config::load(&self.lab.path("watchbell.toml"));
        let config = config.unwrap_or_else(|| panic!("{problems:#?}"));
        let terminal = Terminal::new(Box::new(std::io::sink()), TerminalFormat::Human);
        let _inside = self.runtime.enter();
        config.destinations[0].open(&terminal, &Clock::manual(now())).unwrap()
    }

    fn send(&self, destination: &mut Box<dyn Destination>, message: &Message, reference: Option<&str>) -> SendOutcome {
        self.runtime.block_on(destination.send(message, reference))
    }
}

fn delivered(verdict: SendOutcome) -> Receipt {
    match verdict {
        SendOutcome::Delivered(receipt) => receipt,
        other => panic!("{other:?}"),
    }
}

fn opened() -> Message {
    Message::alert(Notice::Opened, alert())
}

fn digest(count: u64) -> Message {
    let alerts = (0..count)
        .map(|number| {
            let mut alert = alert();
            alert.count = number;
            alert
        })
        .collect();
    Message::digest(DigestNotice::SilenceDigest, Some(SilenceId(3)), alerts)
}

/// The kinds that use HTTP, each with a table that points to the collector.
fn over_http(collector: &Collector, lab: &Lab) -> BTreeMap<&'static str, String> {
    lab.write("slack-url", collector.url(&format!("/services/T0/B0/{SECRET}")));
    lab.write("teams-url", collector.url(&format!("/workflows/1?sig={SECRET}")));
    BTreeMap::from([
        (
            "webhook",
            format!(
                "kind = \"webhook\"\nurl = \"{}\"\nheaders = {{ X-Token = {{ file = \"secret\" }}, X-Team = \"blue\" }}\nsigning_key = {{ file = \"secret\" }}",
                collector.url("/hook")
            ),
        ),
        ("slack", "kind = \"slack\"\nurl = { file = \"slack-url\" }".to_owned()),
        ("teams", "kind = \"teams\"\nurl = { file = \"teams-url\" }".to_owned()),
        (
            "pagerduty",
            format!(
                "kind = \"pagerduty\"\nrouting_key = {{ file = \"secret\" }}\nurl = \"{}\"",
                collector.url("/v2/enqueue")
            ),
        ),
        (
            "jira",
            format!(
                "kind = \"jira\"\nbase_url = \"{}\"\nemail = \"bot@example.com\"\napi_token = {{ file = \"secret\" }}\nproject = \"SEC\"\nresolve_transition = \"done\"",
                collector.url("")
            ),
        ),
    ])
}

/// Every kind that uses HTTP handles each status correctly, and no message contains a secret.
#[test]
fn every_http_destination_keeps_the_contract() {
    let bench = Bench::new();
    let collector = Collector::start(&bench.runtime);
    for (kind, table) in over_http(&collector, &bench.lab) {
        let mut destination = bench.open(&table);
        for (status, retry) in [
            (400, false),
            (413, false),
            (422, false),
            (401, true),
            (403, true),
            (404, true),
            (408, true),
            (429, true),
            (500, true),
            (503, true),
            (302, true),
        ] {
            let echo = format!("no: {SECRET} \u{7} is not known");
            collector.next(status, &echo, &[("retry-after", "17"), ("location", "http://127.0.0.1:1/")]);
            let (reason, again) = match bench.send(&mut destination, &opened(), None) {
                SendOutcome::Retry { reason, after } => {
                    assert_eq!(after, Some(Duration::from_secs(17)), "{kind} {status}");
                    (reason, true)
                }
                SendOutcome::Refused(reason) => (reason, false),
                SendOutcome::Delivered(receipt) => panic!("{kind} {status}: {receipt:?}"),
            };
            assert_eq!(again, retry, "{kind} {status}: {reason}");
            assert!(reason.contains(&status.to_string()) && reason.contains("127.0.0.1"), "{kind}: {reason}");
            assert!(!reason.contains(SECRET) && !reason.contains('\u{7}'), "{kind}: {reason}");
        }
        // Redirects were not followed, and no request was sent twice.
        assert_eq!(collector.take().len(), 11, "{kind}");
    }
    // Nothing listens there any more.
    let mut gone = collector.clone();
    gone.address = "127.0.0.1:1".parse().unwrap();
    for (kind, table) in over_http(&gone, &bench.lab) {
        match bench.send(&mut bench.open(&table), &opened(), None) {
            SendOutcome::Retry { reason, .. } => assert!(!reason.contains(SECRET), "{kind}: {reason}"),
            other => panic!("{kind}: {other:?}"),
        }
    }
}

#[test]
fn a_webhook_is_signed_and_can_tell_repetitions() {
    let bench = Bench::new();
    let collector = Collector::start(&bench.runtime);
    let mut webhook = bench.open(&over_http(&collector, &bench.lab)["webhook"]);
    let receipt = delivered(bench.send(&mut webhook, &opened(), None));
    assert_eq!(receipt.answer, "200 OK: ok");
    delivered(bench.send(&mut webhook, &opened(), None));
    delivered(bench.send(&mut webhook, &Message::alert(Notice::Resolved, resolved(alert())), None));
    let received = collector.take();
    let first = &received[0];
    assert_eq!((first.method.as_str(), first.path.as_str()), ("POST", "/hook"));
    assert_eq!((first.header("x-token"), first.header("x-team")), (SECRET, "blue"));
    assert_eq!(first.header("content-type"), "application/json");
    let id = first.header("webhook-id").to_owned();
    assert_eq!(id, format!("{}-1-opened", alert().id));
    assert_eq!(first.header("idempotency-key"), id);
    assert_eq!(received[1].header("webhook-id"), id, "the same news has the same id");
    assert_ne!(received[2].header("webhook-id"), id);
    // Verified the way a receiver would.
    let signed = [format!("{id}.{}.", first.header("webhook-timestamp")).as_bytes(), &first.body].concat();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
    let signature = first.header("webhook-signature").strip_prefix("v1,").unwrap().to_owned();
    let signature = base64::engine::general_purpose::STANDARD.decode(signature).unwrap();
    ring::hmac::verify(&key, &signed, &signature).unwrap();
    assert_eq!(first.header("webhook-timestamp"), now().as_second().to_string());
    let body = first.json();
    assert_eq!(body["notice"], "opened");
    assert_eq!(body["alert"]["title"], "ann@example.com became an admin");
    assert_eq!(body["alert"]["id"], alert().id.to_string());
    let last = received[2].json();
    assert_eq!((&last["notice"], &last["alert"]["disposition"]), (&json!("resolved"), &json!("false_positive")));
}

/// Fields that schema 1.4.0 requires for class 2004 and the objects it uses.
fn check_ocsf(finding: &Value) {
    for required in
        ["activity_id", "category_uid", "class_uid", "type_uid", "severity_id", "time", "metadata", "finding_info"]
    {
        assert!(!finding[required].is_null(), "{required} of {finding:#}");
    }
    assert_eq!((&finding["class_uid"], &finding["category_uid"]), (&json!(2004), &json!(2)));
    let activity = finding["activity_id"].as_u64().unwrap();
    assert_eq!(finding["type_uid"].as_u64().unwrap(), 2004 * 100 + activity);
    assert!((1..=3).contains(&activity));
    assert!((1..=5).contains(&finding["severity_id"].as_u64().unwrap()));
    assert_eq!(finding["metadata"]["version"], "1.4.0");
    assert!(finding["metadata"]["product"]["vendor_name"].is_string());
    assert!(finding["finding_info"]["uid"].is_string() && finding["finding_info"]["title"].is_string());
    assert!(finding["finding_info"]["analytic"]["type_id"].is_u64());
    assert!(finding["time"].is_i64());
}

#[test]
fn alerts_are_ocsf_detection_findings_where_wanted() {
    let bench = Bench::new();
    let mut file = bench.open("kind = \"file\"\npath = \"ocsf.jsonl\"\nformat = \"ocsf\"");
    delivered(bench.send(&mut file, &opened(), None));
    delivered(bench.send(&mut file, &Message::alert(Notice::Resolved, resolved(alert())), None));
    delivered(bench.send(&mut file, &digest(2), None));
    let lines = fs::read_to_string(bench.lab.path("ocsf.jsonl")).unwrap();
    let findings: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(findings.len(), 4, "a digest is one finding for each alert");
    findings.iter().for_each(check_ocsf);
    let (first, closed) = (&findings[0], &findings[1]);
    assert_eq!((&first["activity_id"], &first["severity_id"], &first["status_id"]), (&json!(1), &json!(4), &json!(1)));
    assert_eq!(first["is_alert"], true);
    assert_eq!(first["evidences"][0]["actor"]["user"]["email_addr"], "ann@example.com");
    assert_eq!(first["evidences"][0]["src_endpoint"]["ip"], "203.0.113.9");
    assert_eq!(first["finding_info"]["attacks"][0]["sub_technique"]["uid"], "T1098.003");
    assert_eq!(first["finding_info"]["attacks"][1]["tactic"]["uid"], "TA0004");
    assert_eq!((&closed["activity_id"], &closed["status_id"]), (&json!(3), &json!(3)));
}

#[test]
fn slack_gets_blocks_within_its_limits() {
    let bench = Bench::new();
    let collector = Collector::start(&bench.runtime);
    let mut slack = bench.open(&over_http(&collector, &bench.lab)["slack"]);
    delivered(bench.send(&mut slack, &opened(), None));
    let mut long = alert();
    long.title = "<!channel> & ".repeat(60);
    long.runbook = Some("x".repeat(9_000));
    delivered(bench.send(&mut slack, &Message::alert(Notice::Escalated, long), None));
    delivered(bench.send(&mut slack, &digest(500), None));
    let received = collector.take();
    assert_eq!(received[0].path, format!("/services/T0/B0/{SECRET}"));
    let body = received[0].json();
    assert_eq!(body["text"], "HIGH: ann@example.com became an admin");
    assert_eq!(body["blocks"][0]["type"], "header");
    assert_eq!(body["blocks"][0]["text"]["type"], "plain_text");
    let section = body["blocks"][1]["text"]["text"].as_str().unwrap();
    assert!(section.contains("*who*  ann@example.com from 203.0.113.9 (Berlin, Germany)"), "{section}");
    assert!(section.contains("Ask &lt;them&gt; &amp; check."), "{section}");
    assert_eq!(body["blocks"][2]["type"], "context");
    for request in &received {
        let body = request.json();
        assert!(!body["text"].as_str().unwrap().contains("<!channel>"));
        assert!(body["blocks"].as_array().unwrap().len() <= 50);
        for block in body["blocks"].as_array().unwrap() {
            let limit = if block["type"] == "header" { 150 } else { 3_000 };
            let text = block["text"]["text"].as_str().unwrap_or_default();
            assert!(text.chars().count() <= limit, "{}", text.len());
            assert!(block["type"] == "header" || !text.contains("<!channel>"), "{text}");
        }
    }
    let told = received[2].json()["blocks"][1]["text"]["text"].as_str().unwrap().to_owned();
    assert!(told.contains("… and 480 more"), "{told}");
}

#[test]
fn teams_gets_an_adaptive_card_within_its_limit() {
    let bench = Bench::new();
    let collector = Collector::start(&bench.runtime);
    collector.always(|_| (202, String::new()));
    let mut teams = bench.open(&over_http(&collector, &bench.lab)["teams"]);
    assert_eq!(delivered(bench.send(&mut teams, &opened(), None)).answer, "202 Accepted");
    let mut long = alert();
    long.runbook = Some("x".repeat(90_000));
    long.description = Some("y".repeat(90_000));
    delivered(bench.send(&mut teams, &Message::alert(Notice::Opened, long), None));
    delivered(bench.send(&mut teams, &digest(500), None));
    let received = collector.take();
    let body = received[0].json();
    assert_eq!(body["type"], "message");
    let attachment = &body["attachments"][0];
    assert_eq!(attachment["contentType"], "application/vnd.microsoft.card.adaptive");
    let card = &attachment["content"];
    assert_eq!((&card["type"], &card["version"]), (&json!("AdaptiveCard"), &json!("1.4")));
    assert_eq!(card["body"][0]["text"], "HIGH: ann@example.com became an admin");
    let facts = card["body"][1]["facts"].as_array().unwrap();
    assert!(facts.iter().any(|fact| fact["title"] == "evidence" && fact["value"] == "target: target@example.com"));
    for request in received {
        assert!(request.body.len() < 28 * 1024, "{}", request.body.len());
    }
}

#[test]
fn pagerduty_has_one_incident_for_an_alert() {
    let bench = Bench::new();
    let collector = Collector::start(&bench.runtime);
    collector.always(|_| (202, r#"{"status":"success","message":"Event processed"}"#.to_owned()));
    let mut pagerduty = bench.open(&over_http(&collector, &bench.lab)["pagerduty"]);
    let notices = [Notice::Opened, Notice::Escalated, Notice::Acknowledged, Notice::Resolved, Notice::Reopened];
    for notice in notices {
        delivered(bench.send(&mut pagerduty, &Message::alert(notice, alert()), None));
    }
    delivered(bench.send(&mut pagerduty, &digest(2), None));
    let received: Vec<Value> = collector.take().iter().map(Received::json).collect();
    let actions: Vec<&str> = received.iter().map(|event| event["event_action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["trigger", "trigger", "acknowledge", "resolve", "trigger", "trigger"]);
    for event in &received {
        assert_eq!(event["routing_key"], SECRET);
        assert!(event["dedup_key"].as_str().unwrap().len() <= 255);
    }
    assert!(received[..5].iter().all(|event| event["dedup_key"] == alert().id.to_string()));
    let payload = &received[0]["payload"];
    assert_eq!(
        (&payload["summary"], &payload["severity"]),
        (&json!("ann@example.com became an admin"), &json!("error"))
    );
    assert_eq!((&payload["source"], &payload["class"]), (&json!("test"), &json!("team.admin.added")));
    assert_eq!(payload["timestamp"], "2026-03-01T12:00:00Z");
    assert_eq!(payload["custom_details"]["context"]["target"], "target@example.com");
    assert_eq!(received[0]["links"][0]["href"], "https://example.com/ref");
    // Every severity maps to one that PagerDuty knows.
    for severity in Severity::ALL {
        let alert = Alert { severity, ..alert() };
        delivered(bench.send(&mut pagerduty, &Message::alert(Notice::Opened, alert), None));
    }
    let severities: Vec<Value> =
        collector.take().iter().map(|event| event.json()["payload"]["severity"].clone()).collect();
    assert_eq!(severities, ["info", "info", "warning", "error", "critical"]);
}

/// A fake Jira that keeps issues, and finds them by label only after a delay.
fn jira(collector: &Collector) -> Arc<Mutex<Vec<(String, String)>>> {
    let calls: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
    let kept = Arc::clone(&calls);
    let mut labels: Vec<Value> = Vec::new();
    collector.always(move |request| {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let path = request.path.strip_prefix("/rest/api/3/").unwrap().to_owned();
        kept.lock().unwrap().push((format!("{} {path}", request.method), body.to_string()));
        match (request.method.as_str(), path.as_str()) {
            ("POST", "search/jql") => {
                let jql = body["jql"].as_str().unwrap();
                let found = labels.iter().any(|label| jql.contains(&format!("labels = {label}")));
                let issues = if found { json!([{ "key": "SEC-7" }]) } else { json!([]) };
                (200, json!({ "issues": issues, "isLast": true }).to_string())
            }
            ("POST", "issue") => {
                labels.extend(body["fields"]["labels"].as_array().unwrap().clone());
                (201, json!({ "id": "1", "key": "SEC-7" }).to_string())
            }
            ("GET", "issue/SEC-7/transitions") => (
                200,
                json!({ "transitions": [{ "id": "11", "name": "Start" }, { "id": "31", "name": "Done" }] }).to_string(),
            ),
            ("POST", "issue/SEC-7/transitions") => (204, String::new()),
            ("POST", "issue/SEC-7/comment") => (201, json!({ "id": "5" }).to_string()),
            other => (404, format!("{other:?}")),
        }
    });
    calls
}

#[test]
fn jira_has_one_issue_for_an_alert() {
    let bench = Bench::new();
    let collector = Collector::start(&bench.runtime);
    let calls = jira(&collector);
    let mut destination = bench.open(&over_http(&collector, &bench.lab)["jira"]);
    let names =
        || -> Vec<String> { std::mem::take(&mut *calls.lock().unwrap()).into_iter().map(|(name, _)| name).collect() };

    let receipt = delivered(bench.send(&mut destination, &opened(), None));
    assert_eq!((receipt.reference.as_deref(), receipt.answer.as_str()), (Some("SEC-7"), "issue SEC-7 created"));
    let made: Value = serde_json::from_str(&calls.lock().unwrap()[1].1).unwrap();
    let fields = &made["fields"];
    assert_eq!((&fields["project"]["key"], &fields["issuetype"]["name"]), (&json!("SEC"), &json!("Task")));
    assert_eq!(fields["summary"], "HIGH: ann@example.com became an admin");
    assert_eq!(fields["labels"], json!(["watchbell", format!("watchbell-{}", alert().id)]));
    let document = &fields["description"];
    assert_eq!((&document["type"], &document["version"]), (&json!("doc"), &json!(1)));
    assert!(document["content"].to_string().contains("target: target@example.com"));
    assert_eq!(names(), ["POST search/jql", "POST issue"]);
    let authorization = collector.take()[0].header("authorization").to_owned();
    let expected = base64::engine::general_purpose::STANDARD.encode(format!("bot@example.com:{SECRET}"));
    assert_eq!(authorization, format!("Basic {expected}"));

    // Sent again after a crash: found by its label, so there is no duplicate.
    assert_eq!(delivered(bench.send(&mut destination, &opened(), None)).reference.as_deref(), Some("SEC-7"));
    assert_eq!(names(), ["POST search/jql"]);
    // Later changes become comments on the issue with the stored key.
    delivered(bench.send(&mut destination, &Message::alert(Notice::Grew, alert()), Some("SEC-7")));
    assert_eq!(names(), ["POST issue/SEC-7/comment"]);
    delivered(bench.send(&mut destination, &Message::alert(Notice::Resolved, resolved(alert())), Some("SEC-7")));
    let last = calls.lock().unwrap().clone();
    assert!(last[0].1.contains("was planned") && last[0].1.contains("false positive"), "{}", last[0].1);
    assert!(last[2].1.contains("\"31\""));
    assert_eq!(names(), ["POST issue/SEC-7/comment", "GET issue/SEC-7/transitions", "POST issue/SEC-7/transitions"]);
    // The resolution of an alert without an issue is not sent.
    let mut other = alert();
    other.id = watchbell::model::name::AlertId::from_bytes([1; 16]);
    let receipt = delivered(bench.send(&mut destination, &Message::alert(Notice::Resolved, other), None));
    assert_eq!(receipt.reference, None);
    assert_eq!(names(), ["POST search/jql"]);
}

/// Files with a certificate for this machine and the CA that signed it.
fn certificate(lab: &Lab) -> Arc<rustls::ServerConfig> {
    rustls::crypto::ring::default_provider().install_default().ok();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    lab.write("ca.pem", made.cert.pem());
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config =
        rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key);
    Arc::new(config.unwrap())
}

/// Serves one mail over SMTP on a stream and returns what the client sent. Never offers `STARTTLS`.
fn smtp(mut stream: impl Read + Write, answer: &str) -> String {
    let mut said = String::new();
    let mut reader = BufReader::new(&mut stream);
    reader.get_mut().write_all(b"220 localhost ready\r\n").unwrap();
    let mut in_data = false;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return said;
        }
        said.push_str(&line);
        let reply = if in_data {
            if line.trim_end() != "." {
                continue;
            }
            in_data = false;
            answer.to_owned()
        } else {
            match line.split_whitespace().next().unwrap_or_default().to_uppercase().as_str() {
                "EHLO" => "250-localhost\r\n250 AUTH PLAIN".to_owned(),
                "AUTH" => "235 ok".to_owned(),
                "DATA" => {
                    in_data = true;
                    "354 go on".to_owned()
                }
                "QUIT" => "221 bye".to_owned(),
                _ => "250 ok".to_owned(),
            }
        };
        if reader.get_mut().write_all(format!("{reply}\r\n").as_bytes()).is_err() {
            return said;
        }
    }
}

/// A mail server on loopback, with or without TLS, that accepts one mail after another.
fn mail_server(tls: Option<Arc<rustls::ServerConfig>>, answer: &'static str) -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let said = match &tls {
                None => smtp(stream, answer),
                Some(config) => {
                    let connection = rustls::ServerConnection::new(Arc::clone(config)).unwrap();
                    smtp(rustls::StreamOwned::new(connection, stream), answer)
                }
            };
            if sender.send(said).is_err() {
                return;
            }
        }
    });
    (port, receiver)
}

#[test]
#[cfg(feature = "email")]
fn email_is_encrypted_and_threads_what_belongs_together() {
    let bench = Bench::new();
    let tls = certificate(&bench.lab);
    let (port, mails) = mail_server(Some(tls), "250 2.0.0 queued as 42");
    let table = format!(
        "kind = \"email\"\nhost = \"localhost\"\nport = {port}\ntls = \"implicit\"\nca_file = \"ca.pem\"\nusername = \"bell\"\npassword = {{ file = \"secret\" }}\nfrom = \"Watchbell <bell@example.com>\"\nto = [\"sec@example.com\", \"ops@example.com\"]"
    );
    let mut email = bench.open(&table);
    let receipt = delivered(bench.send(&mut email, &opened(), None));
    assert!(receipt.answer.contains("queued as 42"), "{}", receipt.answer);
    let said = mails.recv().unwrap();
    assert!(said.contains("MAIL FROM:<bell@example.com>"), "{said}");
    assert!(said.contains("RCPT TO:<sec@example.com>") && said.contains("RCPT TO:<ops@example.com>"));
    assert!(said.contains("Subject: HIGH: ann@example.com became an admin"), "{said}");
    assert!(said.contains("text/plain") && said.contains("text/html"));
    assert!(said.contains("Ask &lt;them&gt; &amp; check.") && said.contains("Ask <them> & check."), "{said}");
    let id = format!("<{}@watchbell.invalid>", alert().id);
    assert!(said.contains(&format!("Message-ID: {id}")), "{said}");
    let login = base64::engine::general_purpose::STANDARD.encode(format!("\0bell\0{SECRET}"));
    assert!(said.contains(&format!("AUTH PLAIN {login}")));
    delivered(bench.send(&mut email, &Message::alert(Notice::Resolved, resolved(alert())), None));
    let said = mails.recv().unwrap();
    assert!(said.contains(&format!("In-Reply-To: {id}")) && said.contains("was planned"), "{said}");
    delivered(bench.send(&mut email, &digest(30), None));
    assert!(mails.recv().unwrap().contains("30 alerts opened during silence 3"));

    // A title cannot add headers.
    let mut injected = alert();
    injected.title = "x\r\nBcc: evil@example.com".to_owned();
    delivered(bench.send(&mut email, &Message::alert(Notice::Opened, injected), None));
    let said = mails.recv().unwrap();
    assert!(!said.contains("\nBcc:"), "{said}");

    // An untrusted certificate is refused, and so is a server without STARTTLS.
    let (port, _mails) = mail_server(Some(certificate(&Lab::new())), "250 ok");
    let mut wrong = bench.open(&table.replace("port = ", &format!("port = {port} # ")));
    let SendOutcome::Retry { reason, .. } = bench.send(&mut wrong, &opened(), None) else { panic!() };
    assert!(!reason.contains(SECRET), "{reason}");
    let (port, _mails) = mail_server(None, "250 ok");
    let open = table.replace("implicit", "starttls").replace("port = ", &format!("port = {port} # "));
    let verdict = bench.send(&mut bench.open(&open), &opened(), None);
    assert!(matches!(verdict, SendOutcome::Retry { .. }), "{verdict:?}");
    // A rejected mail would be rejected again.
    let (port, _mails) = mail_server(None, "554 5.7.1 looks like spam");
    let table = format!(
        "kind = \"email\"\nhost = \"127.0.0.1\"\nport = {port}\ntls = \"none\"\nfrom = \"bell@example.com\"\nto = [\"sec@example.com\"]"
    );
    let verdict = bench.send(&mut bench.open(&table), &opened(), None);
    assert!(matches!(&verdict, SendOutcome::Refused(reason) if reason.contains("looks like spam")), "{verdict:?}");
}

/// RFC 5424: priority, version, time, host, program, process, message id, no data, and JSON after a byte order mark.
fn check_syslog(line: &str, priority: u16, kind: &str) -> Value {
    let parts: Vec<&str> = line.splitn(8, ' ').collect();
    assert_eq!(parts[0], format!("<{priority}>1"), "{line}");
    assert_eq!(parts[1], "2026-03-02T00:00:00.000Z");
    assert_eq!((parts[3], parts[5], parts[6]), ("watchbell", kind, "-"));
    serde_json::from_str(parts[7].strip_prefix('\u{feff}').unwrap()).unwrap()
}

/// Splits octet-counted frames.
fn frames(mut bytes: &[u8]) -> Vec<String> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|byte| *byte == b' ').unwrap();
        let length: usize = std::str::from_utf8(&bytes[..space]).unwrap().parse().unwrap();
        frames.push(String::from_utf8(bytes[space + 1..space + 1 + length].to_vec()).unwrap());
        bytes = &bytes[space + 1 + length..];
    }
    frames
}

#[test]
fn syslog_over_udp_tcp_and_tls() {
    let bench = Bench::new();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let table = |protocol: &str, port: u16, more: &str| {
        format!(
            "kind = \"syslog\"\nhost = \"localhost\"\nport = {port}\nprotocol = \"{protocol}\"\nfacility = 13\n{more}"
        )
    };
    // `localhost` may resolve to an IPv6 address first.
    let udp = table("udp", socket.local_addr().unwrap().port(), "").replace("localhost", "127.0.0.1");
    delivered(bench.send(&mut bench.open(&udp), &opened(), None));
    let mut datagram = [0; 65_536];
    let length = socket.recv(&mut datagram).unwrap();
    let value = check_syslog(std::str::from_utf8(&datagram[..length]).unwrap(), 13 * 8 + 3, "opened");
    assert_eq!(value["alert"]["title"], "ann@example.com became an admin");

    let tls = certificate(&bench.lab);
    for protocol in ["tcp", "tls"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = (protocol == "tls").then(|| Arc::clone(&tls));
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut bytes = Vec::new();
            match config {
                None => (&stream).read_to_end(&mut bytes).unwrap(),
                Some(config) => {
                    let connection = rustls::ServerConnection::new(config).unwrap();
                    rustls::StreamOwned::new(connection, stream).read_to_end(&mut bytes).unwrap()
                }
            };
            bytes
        });
        let more = "ca_file = \"ca.pem\"\nformat = \"ocsf\"";
        let table = table(protocol, port, more).replace("localhost", "127.0.0.1");
        delivered(bench.send(&mut bench.open(&table), &digest(3), None));
        let frames = frames(&server.join().unwrap());
        assert_eq!(frames.len(), 3, "{protocol}");
        for frame in &frames {
            check_ocsf(&check_syslog(frame, 13 * 8 + 3, "digest"));
        }
    }
    // Nothing listens there.
    let verdict = bench.send(&mut bench.open(&table("tcp", 1, "")), &opened(), None);
    assert!(matches!(verdict, SendOutcome::Retry { .. }), "{verdict:?}");
}

#[test]
fn a_command_gets_json_and_nothing_of_our_environment() {
    let bench = Bench::new();
    let script = |name: &str, text: &str| {
        bench.lab.write(name, text);
        fs::set_permissions(bench.lab.path(name), fs::Permissions::from_mode(0o700)).unwrap();
    };
    script("handler", "#!/bin/sh\ncat > got.json\nenv > got.env\nprintf '%s' \"$1\" > got.argument\necho fine >&2\n");
    let table = "kind = \"command\"\ncommand = [\"./handler\", \"$(touch pwned); a b\"]\nenv = { TOKEN = { file = \"secret\" }, TEAM = \"blue\" }";
    let receipt = delivered(bench.send(&mut bench.open(table), &opened(), None));
    assert!(receipt.answer.contains("fine"), "{}", receipt.answer);
    let got: Value = serde_json::from_str(&fs::read_to_string(bench.lab.path("got.json")).unwrap()).unwrap();
    assert_eq!((&got["notice"], &got["alert"]["rule"]), (&json!("opened"), &json!("team.admin.added")));
    // No shell interpreted the argument.
    assert_eq!(fs::read_to_string(bench.lab.path("got.argument")).unwrap(), "$(touch pwned); a b");
    assert!(!bench.lab.path("pwned").exists());
    let environment = fs::read_to_string(bench.lab.path("got.env")).unwrap();
    assert!(environment.contains(&format!("TOKEN={SECRET}")) && environment.contains("TEAM=blue"));
    assert!(!environment.contains("CARGO"), "{environment}");

    script("fails", "#!/bin/sh\necho \"no: $TOKEN\" >&2\nexit 7\n");
    let fails = table.replace("./handler", "./fails");
    let SendOutcome::Retry { reason, .. } = bench.send(&mut bench.open(&fails), &opened(), None) else { panic!() };
    assert!(reason.contains("exit status: 7") && !reason.contains(SECRET), "{reason}");

    // A program that takes too long and does not read is killed, together with its child processes.
    script("hangs", "#!/bin/sh\nsleep 300 &\necho $! > child\nwait\n");
    let hangs = "kind = \"command\"\ncommand = [\"./hangs\"]\ntimeout = \"1s\"";
    let SendOutcome::Retry { reason, .. } = bench.send(&mut bench.open(hangs), &opened(), None) else { panic!() };
    assert!(reason.contains("did not finish within"), "{reason}");
    let child = fs::read_to_string(bench.lab.path("child")).unwrap().trim().to_owned();
    let gone = || match fs::read_to_string(format!("/proc/{child}/stat")) {
        // It may be a zombie if nothing reaps it.
        Ok(stat) => stat.contains(") Z"),
        Err(_) => true,
    };
    assert!(bench.runtime.block_on(crate::support::eventually(gone)), "{child} still runs");
    let missing = "kind = \"command\"\ncommand = [\"./missing\"]";
    let SendOutcome::Retry { reason, .. } = bench.send(&mut bench.open(missing), &opened(), None) else { panic!() };
    assert!(reason.contains("missing"), "{reason}");
}

/// Every kind of destination needs a test here.
#[test]
fn every_kind_is_tested() {
    let tested = ["terminal", "file", "webhook", "slack", "teams", "pagerduty", "jira", "email", "syslog", "command"];
    assert!(KINDS.iter().all(|kind| tested.contains(kind)), "{KINDS:?}");
}

/// Length in UTF-16 units, the longer of the two ways in which services count.
fn units(text: &str) -> usize {
    text.encode_utf16().count()
}

/// All strings in a value.
fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Object(map) => map.values().for_each(|item| texts(item, found)),
        _ => {}
    }
}

/// Services accept any alert: their limits are listed with sources in docs/destinations.md.
#[test]
fn no_field_of_any_service_is_too_long() {
    let bench = Bench::new();
    let collector = Collector::start(&bench.runtime);
    collector.always(|_| (202, String::new()));
    let mut services: BTreeMap<&str, Box<dyn Destination>> =
        over_http(&collector, &bench.lab).into_iter().map(|(kind, table)| (kind, bench.open(&table))).collect();
    for filling in ["x", "é", "山", "😀", "\\", "&", "\"", "\u{1}", "\n", "*who*  ", "\u{202e}"] {
        let long = filling.repeat(100_000);
        let mut hostile = alert();
        hostile.title.clone_from(&long);
        for text in [
            &mut hostile.evidence.actor,
            &mut hostile.evidence.email,
            &mut hostile.evidence.ip,
            &mut hostile.evidence.place,
            &mut hostile.evidence.message,
            &mut hostile.description,
            &mut hostile.runbook,
        ] {
            *text = Some(long.clone());
        }
        hostile.context = (0..50).map(|number| (format!("{number}{filling}"), Value::from(long.clone()))).collect();
        hostile.errors = (0..9)
            .map(|_| watchbell::model::alert::FunctionError { function: "title".to_owned(), error: long.clone() })
            .collect();
        let alerts = std::iter::repeat_n(hostile.clone(), 60).collect();
        let messages = [
            Message::alert(Notice::Opened, hostile),
            Message::digest(DigestNotice::SilenceDigest, Some(SilenceId(3)), alerts),
        ];
        for message in &messages {
            for kind in ["slack", "teams", "pagerduty"] {
                delivered(bench.send(services.get_mut(kind).unwrap(), message, None));
                let request = collector.take().remove(0);
                let body = request.json();
                match kind {
                    "slack" => {
                        assert!(units(body["text"].as_str().unwrap()) <= 3_000);
                        for block in body["blocks"].as_array().unwrap() {
                            let limit = if block["type"] == "header" { 150 } else { 3_000 };
                            let text = block["text"]["text"].as_str().unwrap_or("x");
                            assert!(!text.is_empty() && units(text) <= limit, "{filling:?}: {}", units(text));
                            // No escape is cut.
                            if block["type"] != "header" {
                                let rest = text.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "");
                                assert!(!rest.contains('&') && !rest.contains('<'), "{rest}");
                            }
                        }
                    }
                    "teams" => {
                        let text = String::from_utf8(request.body.to_vec()).unwrap();
                        assert!(text.len() <= 18_000, "{filling:?}: {}", text.len());
                        assert!(Value::from(text).to_string().len() <= 28_000, "{filling:?}");
                    }
                    _ => {
                        let payload = &body["payload"];
                        assert!(units(payload["summary"].as_str().unwrap()) <= 1_024);
                        assert!(units(payload["component"].as_str().unwrap_or_default()) <= 255);
                        assert!(request.body.len() < 300_000, "{filling:?}: {}", request.body.len());
                        let mut all = Vec::new();
                        texts(&payload["custom_details"], &mut all);
                        assert!(all.iter().all(|text| units(text) <= 8_000), "{filling:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn jira_takes_whatever_an_alert_holds() {
    let bench = Bench::new();
    let collector = Collector::start(&bench.runtime);
    let calls = jira(&collector);
    let mut destination = bench.open(&over_http(&collector, &bench.lab)["jira"]);
    for filling in ["x", "😀", "\n"] {
        let mut hostile = alert();
        let long = filling.repeat(100_000);
        hostile.title.clone_from(&long);
        hostile.evidence.actor = Some(long.clone());
        hostile.runbook = Some(long.clone());
        hostile.description = Some(long.clone());
        hostile.context = (0..50).map(|number| (number.to_string(), Value::from(long.clone()))).collect();
        calls.lock().unwrap().clear();
        delivered(bench.send(&mut destination, &Message::alert(Notice::Acknowledged, hostile.clone()), Some("SEC-7")));
        let sent = calls.lock().unwrap().last().unwrap().1.clone();
        let comment: Value = serde_json::from_str(&sent).unwrap();
        let mut all = Vec::new();
        texts(&comment["body"], &mut all);
        assert!(all.iter().map(|text| units(text)).sum::<usize>() <= 20_000, "{filling:?}");
    }
}
