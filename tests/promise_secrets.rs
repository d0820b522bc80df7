use std::{collections::BTreeMap, fs, os::unix::net::UnixStream, path::Path, process::Stdio, time::Duration};

use watchbell::{
    model::time::{self, Clock},
    simulator::{Fault, Faults, SimulatorOptions},
};

use crate::support::{Lab, Running, base, collector::Collector, entry, eventually, rule, scenario};

/// The secrets to search for: none of them may appear in anything that is written or printed.
const NAMES: [&str; 9] = ["KEY", "HOOK", "SIGNING", "SLACK", "TEAMS", "ROUTING", "TOKEN", "COMMAND", "BEAT"];

fn marked(name: &str) -> String {
    format!("MARKED-{name}-7f3a9c1e5d")
}

/// Every file below a directory with its content, except those that contain the secrets on purpose.
fn files(directory: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("secrets") {
                files(&path, found);
            }
        } else if path.is_file() {
            found.insert(path.display().to_string(), fs::read(&path).unwrap());
        }
    }
}

fn check(what: &str, bytes: &[u8]) {
    for name in NAMES {
        let secret = marked(name);
        let there = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!there, "{name} is in {what}");
    }
}

/// Runs everything with marked secrets, with and without failures, at the highest log level, and then searches all
/// output and files for them.
#[test]
fn no_secret_reaches_a_log_an_error_an_alert_an_export_or_the_process_list() {
    let start = time::before(Clock::system().now(), Duration::from_secs(3_600));
    let offset = start.as_second() - base().as_second();
    let entries: Vec<_> = (0..30).map(|index| entry(&format!("e{index}"), "x", offset + index, "ann")).collect();
    let options = SimulatorOptions {
        key: marked("KEY"),
        faults: Faults::some(&Fault::PASSING, 300, 3),
        page_limit: 5,
        ..SimulatorOptions::new(scenario(&entries))
    };
    let lab = Lab::with_organization(options, "");
    let runtime = Box::leak(Box::new(
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap(),
    ));
    let service = Collector::start(runtime);
    // A failing service that echoes what it was sent.
    service.always(|request| {
        let headers: Vec<String> =
            request.headers.values().map(|value| value.to_str().unwrap_or("").to_owned()).collect();
        (500, format!("{} {} {}", request.path, headers.join(" "), String::from_utf8_lossy(&request.body)))
    });
    for name in NAMES {
        lab.write(&format!("secrets/{name}"), marked(name));
    }
    lab.write("secrets/KEY", marked("KEY"));
    lab.write("secrets/SLACK", service.url(&format!("/services/{}", marked("SLACK"))));
    lab.write("secrets/TEAMS", service.url(&format!("/w?sig={}", marked("TEAMS"))));
    lab.write("secrets/BEAT", service.url(&format!("/ping/{}", marked("BEAT"))));
    fs::remove_file(lab.path("key")).unwrap();
    let config = fs::read_to_string(lab.path("watchbell.toml")).unwrap().replace("\"key\"", "\"secrets/KEY\"");
    let destinations = [
        format!(
            "name = \"hook\"\nkind = \"webhook\"\nurl = \"{}\"\nheaders = {{ Authorization = {{ file = \"secrets/HOOK\" }} }}\nsigning_key = {{ file = \"secrets/SIGNING\" }}",
            service.url("/hook")
        ),
        "name = \"slack\"\nkind = \"slack\"\nurl = { file = \"secrets/SLACK\" }".to_owned(),
        "name = \"teams\"\nkind = \"teams\"\nurl = { file = \"secrets/TEAMS\" }".to_owned(),
        format!("name = \"pager\"\nkind = \"pagerduty\"\nrouting_key = {{ file = \"secrets/ROUTING\" }}\nurl = \"{}\"", service.url("/v2")),
        format!(
            "name = \"jira\"\nkind = \"jira\"\nbase_url = \"{}\"\nemail = \"bot@example.com\"\napi_token = {{ file = \"secrets/TOKEN\" }}\nproject = \"SEC\"",
            service.url("")
        ),
        "name = \"command\"\nkind = \"command\"\ncommand = [\"/bin/sh\", \"-c\", \"env >&2; exit 1\"]\nenv = { TOKEN = { file = \"secrets/COMMAND\" } }"
            .to_owned(),
    ];
    let destinations: String = destinations.iter().map(|table| format!("[[destination]]\n{table}\n")).collect();
    let heartbeat = "[heartbeat]\nurl = { file = \"secrets/BEAT\" }\nevery = \"1s\"\n";
    lab.write("watchbell.toml", format!("{config}\n{destinations}\n{heartbeat}"));
    lab.write("rules/each.rhai", rule("team.each", "", "fn rule(event) { true }\nfn dedup(event) { event.id }"));
    lab.write("rules/fails.rhai", rule("team.fails", "", "fn rule(event) { throw event }"));

    let mut command = lab.command(&["run", "--format", "json"]);
    let log = |name: &str| fs::File::create(lab.path(name)).unwrap();
    command.env("RUST_LOG", "trace").stdout(log("run.out")).stderr(log("run.log"));
    let agent = Running(command.spawn().unwrap());
    let socket = lab.path("data/agent.sock");
    assert!(runtime.block_on(eventually(|| UnixStream::connect(&socket).is_ok())));
    let said = |arguments: &[&str]| {
        let mut command = lab.command(arguments);
        let output = command.env("RUST_LOG", "trace").stdin(Stdio::null()).output().unwrap();
        check(&format!("the output of {arguments:?}"), &output.stdout);
        check(&format!("the errors of {arguments:?}"), &output.stderr);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    // Until every destination has failed at least once.
    let all_failed = || {
        let status = said(&["status", "--format", "json"]);
        let status: serde_json::Value = serde_json::from_str(&status).unwrap_or_default();
        let failing = status["destinations"].as_array().into_iter().flatten().filter(|state| !state["error"].is_null());
        status["events"]["evaluated"] == 30 && failing.count() == 6
    };
    assert!(runtime.block_on(eventually(all_failed)), "{}", said(&["status"]));
    let id = agent.0.id();
    for file in ["cmdline", "status"] {
        check(&format!("/proc/{file}"), &fs::read(format!("/proc/{id}/{file}")).unwrap());
    }
    for arguments in [
        &["status"][..],
        &["check"],
        &["events", "export", "--output", "export.jsonl"],
        &["events", "fetch", "--since", "1d"],
        &["alerts", "list", "--format", "json"],
        &["alerts", "tail"],
        &["rules", "list", "--format", "json"],
        &["destinations", "list", "--format", "json"],
        &["destinations", "test", "hook"],
        &["destinations", "test", "slack"],
        &["destinations", "test", "teams"],
        &["destinations", "test", "pager"],
        &["destinations", "test", "jira"],
        &["destinations", "test", "command"],
        &["store", "backup", "backup.wb"],
        &["store", "verify"],
    ] {
        said(arguments);
    }
    // The key is refused.
    lab.simulator.as_ref().unwrap().set_faults(Faults::always(Fault::Unauthorized));
    said(&["check"]);
    drop(agent);
    said(&["status"]);
    said(&["alerts", "list"]);
    // A secret written in the configuration by mistake is not shown either.
    for wrong in [
        "api_key = \"SECRET\"",
        "api_kee = \"SECRET\"",
        "routing_key = \"SECRET\"",
        "url = { \"SECRET\" = \"SECRET\" }",
        "\"SECRET\" = \"SECRET\"",
        "url = \"MARKEDSECRET\"",
        "url = \"https://user:SECRET@hooks.example.com/x\"",
        "url = \"http://hooks.example.com/SECRET\"",
        "url = { env = [\"SECRET\"] }",
        "url = { env = \"A\", file = 7, more = \"SECRET\" }",
        "url = \n SECRET",
        "bearer = SECRET",
        "headers = { Authorization = [\"SECRET\"] }",
        "headers = [\"SECRET\"]",
        "[heartbeat]\nurl = \"ftp://ping.example.com/SECRET\"",
        "[[source]]\nname = \"y\"\nbase_url = \"https://api.example.com/?token=SECRET\"",
    ] {
        let text = fs::read_to_string(lab.path("watchbell.toml")).unwrap();
        let wrong = wrong.replace("SECRET", &marked("KEY"));
        let mistaken = format!("{text}\n[[destination]]\nname = \"x\"\nkind = \"webhook\"\n{wrong}\n");
        fs::create_dir_all(lab.path("secrets")).unwrap();
        lab.write("secrets/wrong.toml", mistaken);
        said(&["--config", "secrets/wrong.toml", "check", "--offline"]);
    }
    let mut found = BTreeMap::new();
    files(&lab.path(""), &mut found);
    assert!(found.keys().any(|name| name.ends_with("run.log")) && found.keys().any(|name| name.ends_with("store/db")));
    assert!(found.values().map(Vec::len).sum::<usize>() > 100_000, "there is something to search");
    for (name, bytes) in &found {
        check(name, bytes);
    }
}

/// Reading a pipe would block, and reading a device would exhaust memory.
#[test]
fn a_secret_is_read_from_a_regular_file_only() {
    let lab = Lab::with_organization(crate::support::organization(&[]), "");
    let config = fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    lab.write("long", "x".repeat(100_000));
    for (file, wanted) in
        [("/dev/zero", "not a regular file"), ("long", "larger than 64 KiB"), (".", "not a regular file")]
    {
        lab.write("watchbell.toml", config.replace("\"key\"", &format!("\"{file}\"")));
        let checked = lab.watchbell(&["check"]);
        let said = format!("{}{}", checked.stdout, checked.stderr);
        assert!(checked.code != Some(0) && said.contains(wanted), "{file}: {}", checked.show());
    }
}
