use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt, time::Duration};

use serde_json::Value;
use watchbell::model::{
    name::DestinationName,
    time::{self, Clock},
};

use watchbell::simulator::SimulatorOptions;

use crate::support::{Lab, base, collector::Collector, entry, evaluated, now, organization, rule};

/// Detection rules of the alerts in a file. (It may also contain the alert about the failed delivery, depending on
/// whether the check or the worker comes first.)
fn told(lab: &Lab, name: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(lab.path(name)).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter_map(|message| message["alert"]["rule"].as_str().map(str::to_owned))
        .filter(|rule| !rule.starts_with("builtin."))
        .collect()
}

fn lab(destinations: &str) -> Lab {
    let lab = Lab::with_organization(organization(&[entry("1", "x", 0, "ann")]), "");
    let config = fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    let sources = config.split("[[destination]]").next().unwrap().to_owned();
    lab.write("watchbell.toml", format!("{sources}\n{destinations}"));
    for (id, severity) in [("team.low", "low"), ("team.high", "high"), ("other.high", "high")] {
        let text = rule(id, "", "fn rule(event) { true }").replace("medium", severity);
        lab.write(&format!("rules/{id}.rhai"), text);
    }
    lab
}

fn destination(name: &str, path: &str, more: &str) -> String {
    format!("[[destination]]\nname = \"{name}\"\nkind = \"file\"\npath = \"{path}\"\n{more}\n")
}

fn names(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn alerts_go_where_severity_and_rule_say() {
    let lab = lab(&[
        destination("all", "all.jsonl", ""),
        destination("high", "high.jsonl", "min_severity = \"high\""),
        destination("team", "team.jsonl", "rules = [\"team.*\"]"),
    ]
    .concat());
    lab.run_agent_until(|reader| evaluated(reader, 1));
    assert_eq!(told(&lab, "all.jsonl"), names(&["team.low", "team.high", "other.high"]));
    assert_eq!(told(&lab, "high.jsonl"), names(&["team.high", "other.high"]));
    assert_eq!(told(&lab, "team.jsonl"), names(&["team.low", "team.high"]));
    let mode = fs::metadata(lab.path("all.jsonl")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
}

/// A failing destination does not hold up others; its pending deliveries survive a restart and are delivered later.
#[test]
fn a_dead_destination_delays_no_other_and_loses_nothing() {
    let lab = lab(&[destination("dead", "dead.jsonl", ""), destination("well", "well.jsonl", "")].concat());
    // A directory cannot be written to.
    fs::create_dir(lab.path("dead.jsonl")).unwrap();
    let dead = DestinationName::parse("dead").unwrap();
    lab.run_agent_until(|reader| {
        let outbox = reader.outbox().unwrap();
        evaluated(reader, 1) && outbox.len() == 1 && outbox.get(&dead).is_some_and(|pending| pending.error.is_some())
    });
    assert_eq!(told(&lab, "well.jsonl").len(), 3);
    let pending = lab.reader().1.outbox().unwrap();
    assert_eq!(pending[&dead].count, 3);
    assert!(pending[&dead].error.as_ref().unwrap().contains("cannot write"), "{pending:?}");

    fs::remove_dir(lab.path("dead.jsonl")).unwrap();
    // The clock of these tests does not advance; use a later one, so that the retry is due.
    let later = watchbell::model::time::after(crate::support::now(), std::time::Duration::from_secs(3_600));
    lab.run_agent_with(&watchbell::model::time::Clock::manual(later), |reader| reader.outbox().unwrap().is_empty());
    assert_eq!(told(&lab, "dead.jsonl").len(), 3);
    assert_eq!(told(&lab, "well.jsonl").len(), 3, "nothing is sent twice without a crash");
}

/// A crash cut off the last line; what follows starts on a new line.
#[test]
fn a_torn_line_stays_alone() {
    let lab = lab(&destination("file", "out.jsonl", ""));
    lab.write("out.jsonl", "{\"torn\": ");
    lab.run_agent_until(|reader| evaluated(reader, 1) && reader.outbox().unwrap().is_empty());
    let text = fs::read_to_string(lab.path("out.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 4);
    assert_eq!(text.lines().skip(1).filter(|line| serde_json::from_str::<Value>(line).is_ok()).count(), 3);
}

fn collector() -> (Collector, &'static tokio::runtime::Runtime) {
    // Lives as long as the test process, because servers outlive the agents that they serve.
    let runtime = Box::leak(Box::new(
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap(),
    ));
    (Collector::start(runtime), runtime)
}

fn hook(name: &str, collector: &Collector, more: &str) -> String {
    format!(
        "[[destination]]\nname = \"{name}\"\nkind = \"webhook\"\nurl = \"{}\"\n{more}\n",
        collector.url(&format!("/{name}"))
    )
}

/// Ids of the detection alerts in messages, one list per message.
fn messages(collector: &Collector) -> Vec<(String, Vec<String>)> {
    let rule = |alert: &Value| alert["rule"].as_str().unwrap().to_owned();
    collector
        .received()
        .iter()
        .map(|request| request.json())
        .map(|message| {
            let alerts = match message["alerts"].as_array() {
                Some(alerts) => alerts.iter().map(rule).collect(),
                None => vec![rule(&message["alert"])],
            };
            (message["notice"].as_str().unwrap().to_owned(), alerts)
        })
        .collect()
}

/// Refused or undeliverable messages become dead letters, which are reported to other destinations and can be retried.
#[test]
fn what_cannot_be_delivered_is_given_up_told_and_tried_again() {
    let (service, _) = collector();
    // One destination refuses everything, and one does not work.
    service
        .always(|request| if request.path == "/refuses" { (400, "no".to_owned()) } else { (500, "down".to_owned()) });
    let tables = [
        hook("refuses", &service, "rules = [\"team.*\"]"),
        hook("down", &service, "rules = [\"team.*\"]\ngive_up_after = \"1h\""),
        destination("well", "well.jsonl", ""),
    ];
    let lab = lab(&tables.concat());
    let (refuses, down) = (DestinationName::parse("refuses").unwrap(), DestinationName::parse("down").unwrap());
    lab.run_agent_until(|reader| {
        let outbox = reader.outbox().unwrap();
        evaluated(reader, 1)
            && outbox.get(&refuses).is_some_and(|pending| pending.given_up == 2 && pending.count == 0)
            && outbox.get(&down).is_some_and(|pending| pending.error.is_some())
    });
    // Hours later, its deliveries are given up as well.
    let later = Clock::manual(time::after(now(), Duration::from_secs(5 * 3_600)));
    let well = || fs::read_to_string(lab.path("well.jsonl")).unwrap_or_default();
    lab.run_agent_with(&later, |reader| {
        let given_up = reader.outbox().unwrap().get(&down).map(|pending| pending.given_up);
        let told = ["Alerts to refuses were given up", "Alerts to down were given up"]
            .iter()
            .all(|title| well().contains(title));
        given_up == Some(2) && told
    });
    // Neither received the alert about itself.
    assert!(messages(&service).iter().all(|(_, rules)| rules.iter().all(|rule| rule.starts_with("team."))));
    let dead = lab.watchbell(&["destinations", "dead", "refuses", "--format", "json"]);
    assert_eq!(dead.stdout.lines().count(), 2);
    assert!(dead.stdout.contains("127.0.0.1 answered 400 Bad Request: no"), "{}", dead.stdout);

    // Once fixed, a retry delivers the messages, and the alert about the destination resolves itself.
    service.take();
    service.always(|_| (200, String::new()));
    assert!(lab.watchbell(&["destinations", "retry"]).stdout.contains("4 deliveries"));
    let clock = Clock::system();
    lab.run_agent_with(&clock, |reader| {
        reader.outbox().unwrap().is_empty() && well().contains("Alerts are delivered again")
    });
    let told: BTreeSet<Vec<String>> = messages(&service).into_iter().map(|(_, rules)| rules).collect();
    assert_eq!(told, BTreeSet::from([vec!["team.low".to_owned()], vec!["team.high".to_owned()]]));
    assert!(lab.watchbell(&["destinations", "dead"]).stderr.contains("no deliveries were given up"));
}

/// After the hourly limit, the rest comes in one summary: nothing is dropped.
#[test]
fn more_than_the_rate_comes_as_one_summary() {
    let (service, _) = collector();
    let entries: Vec<Value> = (0..12).map(|number| entry(&format!("e{number}"), "x", number, "ann")).collect();
    let lab = Lab::with_organization(organization(&entries), "");
    let config = fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    let sources = config.split("[[destination]]").next().unwrap().to_owned();
    lab.write("watchbell.toml", format!("{sources}\n{}", hook("limited", &service, "rate = 3\nrules = [\"team.*\"]")));
    lab.write("rules/each.rhai", rule("team.each", "", "fn rule(event) { true }\nfn dedup(event) { event.id }"));
    let limited = DestinationName::parse("limited").unwrap();
    let pending =
        |reader: &watchbell::store::Reader| reader.outbox().unwrap().get(&limited).map_or(0, |pending| pending.count);
    lab.run_agent_until(|reader| evaluated(reader, 12) && pending(reader) == 9);
    assert_eq!(messages(&service).len(), 3);
    // The next agent respects the limit as well.
    let soon = Clock::manual(time::after(now(), Duration::from_secs(60)));
    lab.run_agent_with(&soon, |reader| evaluated(reader, 12) && pending(reader) == 9);
    assert_eq!(messages(&service).len(), 3);
    // An hour later, the rest comes in one message.
    let later = Clock::manual(time::after(now(), Duration::from_secs(3_700)));
    lab.run_agent_with(&later, |reader| pending(reader) == 0);
    let messages = messages(&service);
    assert_eq!(messages.len(), 4, "{messages:?}");
    assert_eq!((messages[3].0.as_str(), messages[3].1.len()), ("rate_digest", 9));
}

#[test]
fn tags_and_late_alerts_are_routed_as_configured() {
    let (service, _) = collector();
    // The events are two days old when they arrive.
    let entries = [entry("1", "x", -172_800, "ann"), entry("2", "x", 0, "ann")];
    let lab = Lab::with_organization(organization(&entries), "");
    let config = fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    let sources = config.split("[[destination]]").next().unwrap().to_owned();
    let tables = [
        hook("tagged", &service, "tags = [\"admin*\"]\nlate = \"each\""),
        destination("never", "never.jsonl", "late = \"never\"\nrules = [\"team.*\"]"),
        destination("digest", "digest.jsonl", "rules = [\"team.*\"]"),
    ];
    lab.write("watchbell.toml", format!("{sources}\n{}", tables.concat()));
    let each = "fn rule(event) { true }\nfn dedup(event) { event.id }";
    lab.write("rules/tagged.rhai", rule("team.tagged", "tags: [\"administration\"]", each));
    lab.write("rules/plain.rhai", rule("team.plain", "", each));
    // Digests wait until no more late alerts are added, or until the agent stops.
    lab.run_agent_until(|reader| evaluated(reader, 2) && messages(&service).len() == 2);
    let tagged: Vec<(String, Vec<String>)> = messages(&service);
    assert!(tagged.iter().all(|(notice, rules)| notice == "opened" && *rules == ["team.tagged"]), "{tagged:?}");
    let read = |name: &str| -> Vec<Value> {
        let text = fs::read_to_string(lab.path(name)).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    assert!(read("never.jsonl").iter().all(|message| message["alert"]["late"] == false));
    assert_eq!(read("never.jsonl").len(), 2);
    let digest = read("digest.jsonl");
    assert_eq!(digest.iter().filter(|message| message["notice"] == "late_digest").count(), 1, "{digest:?}");
    assert_eq!(digest.len(), 3);
}

/// A message that a service refuses holds up only its own alert.
#[test]
fn one_bad_message_does_not_hold_up_the_others() {
    let (service, _) = collector();
    service.always(|request| {
        if request.json()["alert"]["rule"] == "team.low" {
            (500, "cannot digest this".to_owned())
        } else {
            (200, String::new())
        }
    });
    let lab = lab(&hook("hook", &service, "rules = [\"team.*\", \"other.*\"]"));
    // Attempts now and repeatedly hours later: the clock advances with the retries.
    let clock = Clock::manual(now());
    let rules = || -> BTreeSet<String> {
        let delivered = messages(&service).into_iter().flat_map(|(_, rules)| rules);
        delivered.filter(|rule| rule != "team.low").collect()
    };
    lab.run_agent_with(&clock, |reader| {
        clock.set(time::after(clock.now(), Duration::from_secs(20)));
        evaluated(reader, 1) && rules() == names(&["team.high", "other.high"])
    });
    let pending = lab.reader().1.outbox().unwrap();
    assert_eq!(pending.values().map(|pending| pending.count).sum::<u64>(), 1);
}

/// With a rate limit, an incident is never closed before it was opened, nor opened after it was finally closed.
#[test]
fn what_closes_an_incident_does_not_overtake_what_opens_it() {
    let (service, _) = collector();
    service.always(|_| (202, String::new()));
    // User actions use the system clock, so these events are from today.
    let start = Clock::system().now();
    let offset = start.as_second() - crate::support::base().as_second() - 600;
    let entries: Vec<Value> = (0..4).map(|number| entry(&format!("e{number}"), "x", offset + number, "ann")).collect();
    let options = watchbell::simulator::SimulatorOptions::new(crate::support::scenario(&entries));
    let lab = Lab::with_organization(options, "");
    let at = |seconds: u64| Clock::manual(time::after(start, Duration::from_secs(seconds)));
    let config = fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    let sources = config.split("[[destination]]").next().unwrap().to_owned();
    lab.write("routing", "R0UT1NG");
    let table = format!(
        "[[destination]]\nname = \"pager\"\nkind = \"pagerduty\"\nrouting_key = {{ file = \"routing\" }}\nurl = \"{}\"\nrate = 1\nrules = [\"team.*\"]\n",
        service.url("/v2")
    );
    lab.write("watchbell.toml", format!("{sources}\n{table}"));
    lab.write("rules/each.rhai", rule("team.each", "", "fn rule(event) { true }\nfn dedup(event) { event.id }"));
    let pager = DestinationName::parse("pager").unwrap();
    let pending =
        |reader: &watchbell::store::Reader| reader.outbox().unwrap().get(&pager).map_or(0, |pending| pending.count);
    lab.run_agent_with(&at(0), |reader| evaluated(reader, 4) && pending(reader) == 3);
    let opened = service.take()[0].json()["dedup_key"].as_str().unwrap().to_owned();
    // All four are resolved: the known incident is closed immediately, the others wait.
    for alert in lab.watchbell(&["alerts", "list", "--format", "json"]).stdout.lines() {
        let id = serde_json::from_str::<Value>(alert).unwrap()["id"].as_str().unwrap().to_owned();
        assert_eq!(lab.watchbell(&["alerts", "resolve", &id, "--author", "ann"]).code, Some(0));
    }
    lab.run_agent_with(&at(600), |reader| pending(reader) == 6);
    let closed: Vec<Value> = service.take().iter().map(|request| request.json()).collect();
    assert_eq!(closed.len(), 1);
    assert_eq!(
        (closed[0]["event_action"].as_str(), closed[0]["dedup_key"].as_str()),
        (Some("resolve"), Some(&*opened))
    );
    lab.run_agent_with(&at(3_700), |reader| pending(reader) == 0);
    let actions: Vec<String> =
        service.take().iter().map(|request| request.json()["event_action"].as_str().unwrap().to_owned()).collect();
    assert_eq!(actions, ["trigger", "resolve", "resolve", "resolve"], "one summary, then what became of them");
}

/// A delivery that failed while the clock was five days ahead is tried again once the clock is right.
#[test]
fn a_clock_that_was_ahead_holds_nothing_back() {
    let (service, _) = collector();
    let lab = lab("");
    let config = fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    lab.write("watchbell.toml", format!("{config}\n{}", hook("hook", &service, "rules = [\"team.low\"]")));
    service.always(|_| (500, String::new()));
    let destination = DestinationName::parse("hook").unwrap();
    let failed = |reader: &watchbell::store::Reader| {
        reader.pending(&destination, 10).unwrap().iter().any(|delivery| delivery.attempts > 0)
    };
    let ahead = Clock::manual(time::after(now(), Duration::from_secs(5 * 86_400)));
    lab.run_agent_with(&ahead, |reader| evaluated(reader, 1) && failed(reader));
    service.always(|_| (200, String::new()));
    service.take();
    let right = Clock::manual(now());
    lab.run_agent_with(&right, |reader| reader.pending(&destination, 10).unwrap().is_empty());
    assert_eq!(messages(&service).len(), 1);
}

/// A flood of medium alerts uses up the rate, and does not hold back a critical one.
#[test]
fn a_critical_alert_does_not_wait_behind_a_flood() {
    let (service, _) = collector();
    let mut entries: Vec<Value> = (0..12).map(|number| entry(&format!("e{number}"), "x", number, "ann")).collect();
    let mut last = entry("last", "y", 60, "ann");
    last["attributes"]["processedAt"] = time::after(base(), Duration::from_secs(400)).to_string().into();
    entries.push(last);
    let clock = Clock::manual(time::after(base(), Duration::from_secs(100)));
    let lab = Lab::with_organization(SimulatorOptions { clock: clock.clone(), ..organization(&entries) }, "");
    let config = fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    let sources = config.split("[[destination]]").next().unwrap().to_owned();
    lab.write("watchbell.toml", format!("{sources}\n{}", hook("limited", &service, "rate = 3\nrules = [\"team.*\"]")));
    lab.write(
        "rules/each.rhai",
        rule("team.each", "", "fn rule(event) { event.action == \"x\" }\nfn dedup(event) { event.id }"),
    );
    let critical = rule("team.critical", "", "fn rule(event) { event.action == \"y\" }").replace("medium", "critical");
    lab.write("rules/critical.rhai", critical);
    let limited = DestinationName::parse("limited").unwrap();
    let pending =
        |reader: &watchbell::store::Reader| reader.outbox().unwrap().get(&limited).map_or(0, |pending| pending.count);
    lab.run_agent_with(&clock, |reader| evaluated(reader, 12) && pending(reader) == 9);
    assert_eq!(messages(&service).len(), 3);
    // The rate is used up when the critical event arrives.
    lab.run_agent_with(&clock, |reader| {
        clock.set(time::after(base(), Duration::from_secs(500)));
        evaluated(reader, 13) && pending(reader) == 9
    });
    let sent: Vec<Vec<String>> = messages(&service).into_iter().map(|(_, rules)| rules).collect();
    assert_eq!((sent.len(), &*sent[3]), (4, &["team.critical".to_owned()][..]), "{sent:?}");
}

/// A digest begins with the most severe alerts: some services show only the first.
#[test]
fn a_digest_begins_with_the_most_severe() {
    let (service, _) = collector();
    let entries: Vec<Value> = (0..30)
        .map(|number| entry(&format!("e{number}"), if number == 20 { "y" } else { "x" }, -172_800 + number, "ann"))
        .collect();
    let lab = Lab::with_organization(organization(&entries), "");
    let config = fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    let sources = config.split("[[destination]]").next().unwrap().to_owned();
    lab.write("watchbell.toml", format!("{sources}\n{}", hook("all", &service, "rules = [\"team.*\"]")));
    lab.write(
        "rules/each.rhai",
        rule("team.each", "", "fn rule(event) { event.action == \"x\" }\nfn dedup(event) { event.id }"),
    );
    let critical = rule("team.critical", "", "fn rule(event) { event.action == \"y\" }").replace("medium", "critical");
    lab.write("rules/critical.rhai", critical);
    // The digest is sent when the agent stops.
    lab.run_agent_until(|reader| evaluated(reader, 30));
    let (notice, rules) = messages(&service).remove(0);
    assert_eq!((notice.as_str(), rules.len(), rules[0].as_str()), ("late_digest", 30, "team.critical"));
}

/// A message that the service never takes does not hold up a digest.
#[test]
fn a_message_that_always_fails_does_not_hold_up_a_digest() {
    let (service, _) = collector();
    let entries = [entry("1", "x", 0, "ann"), entry("2", "y", -172_800, "ann")];
    let lab = Lab::with_organization(organization(&entries), "");
    let config = fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    let sources = config.split("[[destination]]").next().unwrap().to_owned();
    lab.write("watchbell.toml", format!("{sources}\n{}", hook("all", &service, "rules = [\"team.*\"]")));
    lab.write("rules/bad.rhai", rule("team.bad", "", "fn rule(event) { event.action == \"x\" }"));
    lab.write("rules/late.rhai", rule("team.late", "", "fn rule(event) { event.action == \"y\" }"));
    service.always(|request| {
        let bad = request.json().to_string().contains("team.bad");
        (if bad { 500 } else { 200 }, String::new())
    });
    let clock = Clock::manual(now());
    lab.run_agent_with(&clock, |_| {
        clock.set(time::after(clock.now(), Duration::from_secs(1)));
        messages(&service).iter().any(|(notice, rules)| notice == "late_digest" && *rules == ["team.late"])
    });
}

/// Messages that a service refuses for their content, as a firewall in front of it may, do not hold up others.
#[test]
fn refused_messages_do_not_hold_up_others() {
    let (service, _) = collector();
    let mut entries: Vec<Value> = (0..30).map(|number| entry(&format!("e{number}"), "x", number, "evil")).collect();
    entries.extend((0..5).map(|number| entry(&format!("good{number}"), "y", 60 + number, "ann")));
    let lab = Lab::with_organization(organization(&entries), "");
    let config = fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    let sources = config.split("[[destination]]").next().unwrap().to_owned();
    lab.write("watchbell.toml", format!("{sources}\n{}", hook("all", &service, "rules = [\"team.*\"]")));
    let each =
        "fn rule(event) { true }\nfn dedup(event) { event.id }\nfn title(event) { `${event.actor.email} ${event.id}` }";
    lab.write("rules/each.rhai", rule("team.each", "", each));
    service.always(|request| (if request.json().to_string().contains("evil@") { 403 } else { 200 }, String::new()));
    let clock = Clock::manual(now());
    let good = |service: &Collector| {
        let delivered = service.received().iter().filter(|request| request.json().to_string().contains("ann@")).count();
        delivered == 5
    };
    let began = clock.now();
    lab.run_agent_with(&clock, |_| {
        clock.set(time::after(clock.now(), Duration::from_millis(200)));
        good(&service)
    });
    // The content of 30 alerts is refused, each time: ordered by arrival, they alone would take four attempts each.
    assert!(time::since(clock.now(), began) < Duration::from_secs(600), "{}", clock.now());
}

/// What was pending for a destination that is renamed is reported, and can be sent or dropped.
#[test]
fn deliveries_to_a_renamed_destination_are_reported() {
    let (service, _) = collector();
    let lab = lab(&hook("old", &service, "rules = [\"team.low\"]"));
    service.always(|_| (500, String::new()));
    let old = DestinationName::parse("old").unwrap();
    let count =
        |reader: &watchbell::store::Reader| reader.outbox().unwrap().get(&old).map_or(0, |pending| pending.count);
    lab.run_agent_until(|reader| evaluated(reader, 1) && count(reader) == 1);
    let config = fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    lab.write("watchbell.toml", config.replace("name = \"old\"", "name = \"new\""));
    lab.run_agent_until(|reader| {
        let alerts = reader.alerts(watchbell::store::AlertFilter::default()).map(Result::unwrap);
        alerts.into_iter().any(|alert| alert.title == "Alerts to old were given up")
    });
    let dead = lab.watchbell(&["destinations", "dead"]);
    assert!(dead.stdout.contains("the destination is no longer configured"), "{}", dead.show());
}

/// A match that has just happened and escalates an alert that opened late is delivered, also where late alerts are not.
#[test]
fn a_late_alert_that_escalates_now_is_news() {
    let (service, _) = collector();
    let entries = [entry("1", "x", -90_000, "ann"), entry("2", "y", 0, "ann")];
    let lab = Lab::with_organization(organization(&entries), "");
    let config = fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    let sources = config.split("[[destination]]").next().unwrap().to_owned();
    let never = hook("never", &service, "late = \"never\"\nrules = [\"team.*\"]");
    lab.write("watchbell.toml", format!("{sources}\n{never}"));
    let functions =
        "fn rule(event) { true }\nfn severity(event) { if event.action == \"y\" { \"critical\" } else { \"low\" } }";
    lab.write("rules/team.rhai", rule("team.grows", "dedup_period: \"2d\",", functions));
    lab.run_agent_until(|reader| evaluated(reader, 2) && !messages(&service).is_empty());
    let told: Vec<String> = messages(&service).into_iter().map(|(notice, _)| notice).collect();
    assert_eq!(told, ["escalated"]);
}

/// A match that escalates an alert reaches the destinations that the rule asks for because of it.
#[test]
fn an_escalation_reaches_who_it_is_for() {
    let lab = Lab::with_organization(organization(&[entry("1", "x", 0, "ann"), entry("2", "y", 60, "ann")]), "");
    let config = fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    let sources = config.split("[[destination]]").next().unwrap().to_owned();
    lab.write("watchbell.toml", format!("{sources}\n{}", destination("pager", "pager.jsonl", "")));
    let functions = "fn rule(event) { true }\nfn severity(event) { if event.action == \"y\" { \"critical\" } else { \"low\" } }\n\
        fn destinations(event) { if event.action == \"y\" { [\"pager\"] } else { [] } }";
    lab.write("rules/team.rhai", rule("team.grows", "", functions));
    lab.run_agent_until(|reader| evaluated(reader, 2) && !told(&lab, "pager.jsonl").is_empty());
    let text = fs::read_to_string(lab.path("pager.jsonl")).unwrap();
    let notices: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|message| message["alert"]["rule"] == "team.grows")
        .map(|message| message["notice"].as_str().unwrap().to_owned())
        .collect();
    // In one batch, the opening is routed by what the alert has become.
    assert_eq!(notices.last().map(String::as_str), Some("escalated"), "{notices:?}");
}
