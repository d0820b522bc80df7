use std::{fs, process::Stdio, time::Duration};

use insta::assert_snapshot;
use serde_json::Value;
use watchbell::simulator::{Fault, Faults, Scenario, SimulatorOptions};

use crate::support::{Finished, Lab, Running, entry, evaluated, eventually, organization, rule, timeless};

/// Replaces everything that changes from run to run.
fn snapshot(finished: &Finished) -> String {
    let mut text = finished.show();
    for (pattern, replacement) in [
        (r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}(\.\d+)?Z?", "[TIME]"),
        (r"127\.0\.0\.1:\d+", "127.0.0.1:[PORT]"),
        (r"last alive [\w ]+ ago", "last alive [AGO]"),
        (r"\b\d+[dhms]( \d+[hms])? ago", "[AGO]"),
        (r" +\n", "\n"),
    ] {
        text = regex_lite(&text, pattern, replacement);
    }
    text
}

fn regex_lite(text: &str, pattern: &str, replacement: &str) -> String {
    regex::Regex::new(pattern).unwrap().replace_all(text, replacement).into_owned()
}

/// A lab whose agent has evaluated a few events and stopped.
fn evaluated_lab() -> Lab {
    let entries = [
        entry("e1", "user_login", 0, "ann"),
        entry("e2", "user_logged_in_as_user", 60, "bob"),
        entry("e3", "user_logged_in_as_user", 120, "bob"),
        entry("e4", "user_login", 180, "eve"),
    ];
    let lab = Lab::with_organization(organization(&entries), "");
    lab.write("rules/imp.rhai", rule("team.impersonation", "actions: [\"user_logged_in_as_user\"], runbook: \"Ask why.\", attack: [\"T1098\"],", "fn rule(event) { true }\nfn title(event) { `${event.actor.name} became somebody else` }\nfn context(event) { #{ target: event.targets(\"users\")[0].attributes.email } }"));
    lab.write(
        "rules/bad.rhai",
        rule("team.bad", "actions: [\"user_login\"],", "fn rule(event) { event.actor.id == \"eve\" && 1 / 0 == 1 }"),
    );
    lab.run_agent_until(|reader| evaluated(reader, 4));
    lab
}

#[test]
fn init_writes_what_check_accepts_and_overwrites_nothing() {
    let lab = Lab::new();
    let first = lab.watchbell(&["init"]);
    assert_eq!(first.code, Some(0));
    assert!(first.stdout.contains("watchbell check") && first.stdout.contains("watchbell run"), "{}", first.stdout);
    lab.write("watchbell.toml", fs::read_to_string(lab.path("watchbell.toml")).unwrap() + "\n# mine\n");
    let again = lab.watchbell(&["init", "."]);
    assert!(again.stderr.contains("kept ./watchbell.toml"), "{}", again.stderr);
    assert!(fs::read_to_string(lab.path("watchbell.toml")).unwrap().ends_with("# mine\n"));
    let checked = lab.watchbell(&["check", "--offline"]);
    assert_eq!(checked.code, Some(0), "{}", checked.show());
    // Without the key nothing can be requested, which is reported.
    let asked = lab.watchbell(&["check"]);
    assert_eq!(asked.code, Some(3));
    assert!(asked.stdout.contains("`ATLASSIAN_API_KEY` is not set"), "{}", asked.show());
}

#[test]
fn a_garbled_configuration_is_told_all_at_once() {
    let lab = Lab::new();
    lab.write(
        "watchbell.toml",
        "data_dri = \"x\"\nretention = \"soon\"\n\n[rules]\npaths = \"rules\"\n\n[[source]]\nname = \"a\"\norg_id = \"no spaces please\"\nbase_url = \"http://api.atlassian.com\"\napi_key = \"SECRET\"\npoll_intervall = \"30s\"\nrate_limit = 0\n\n[[destination]]\nname = \"f\"\nkind = \"slak\"\nmin_severity = \"loud\"\n",
    );
    let finished = lab.watchbell(&["run"]);
    assert_snapshot!(snapshot(&finished), @r#"
    exit: 3
    --- stdout
    --- stderr
    error[E105]: unknown key `data_dri` in the configuration
     --> watchbell.toml:1:1
      |
    1 | data_dri = ***
      | ^^^^^^^^
      |
      = help: did you mean `data_dir`?

    error[E101]: `retention`: `soon` is not a duration: write a number and a unit, such as `30s`, `5m`, `1h30m` or `7d`
     --> watchbell.toml:2:13
      |
    2 | retention = "soon"
      |             ^^^^^^

    error[E102]: `paths` must be a list of strings, found the string "rules"
     --> watchbell.toml:5:9
      |
    5 | paths = "rules"
      |         ^^^^^^^

    error[E101]: `org_id` is not a valid organization ID
     --> watchbell.toml:9:10
      |
    9 | org_id = "no spaces please"
      |          ^^^^^^^^^^^^^^^^^^
      |
      = help: copy the organization ID from admin.atlassian.com: letters, digits and `-`

    error[E101]: `base_url`: the URL must use `https` (`http` is allowed for loopback only)
      --> watchbell.toml:10:12
       |
    10 | base_url = "http://api.atlassian.com"
       |            ^^^^^^^^^^^^^^^^^^^^^^^^^^

    error[E104]: `api_key` must be `{ env = "NAME" }` or `{ file = "PATH" }`
      --> watchbell.toml:11:11
       |
    11 | api_key = ********
       |           ^^^^^^^^
       |
       = help: secrets must not be written in the configuration itself

    error[E105]: unknown key `poll_intervall` in `[[source]]`
      --> watchbell.toml:12:1
       |
    12 | poll_intervall = *****
       | ^^^^^^^^^^^^^^
       |
       = help: did you mean `poll_interval`?

    error[E102]: `rate_limit` must be a whole number from 1 to 6000, found the number 0
      --> watchbell.toml:13:14
       |
    13 | rate_limit = 0
       |              ^

    error[E101]: unknown destination kind `slak`
      --> watchbell.toml:17:8
       |
    17 | kind = "slak"
       |        ^^^^^^
       |
       = help: did you mean `slack`?

    error[E101]: `min_severity`: `loud` is not a severity: write `info`, `low`, `medium`, `high` or `critical`
      --> watchbell.toml:18:16
       |
    18 | min_severity = "loud"
       |                ^^^^^^

    error: invalid configuration: 10 problems
    "#);
    for garbage in ["= = =", "[[source]", "\u{0}\u{1}"] {
        lab.write("watchbell.toml", garbage);
        assert_eq!(lab.watchbell(&["check"]).code, Some(3));
    }
    lab.write("watchbell.toml", [0xff, 0xfe, 0x00]);
    assert!(lab.watchbell(&["check"]).stderr.contains("not valid UTF-8"));
    fs::remove_file(lab.path("watchbell.toml")).unwrap();
    let missing = lab.watchbell(&["run"]);
    assert_eq!(missing.code, Some(3));
    assert!(missing.stderr.contains("create one with `watchbell init`"), "{}", missing.stderr);
}

/// A key written in the configuration by mistake is not shown, whatever else is wrong.
#[test]
fn a_key_in_the_configuration_is_never_shown() {
    let lab = Lab::new();
    for wrong in [
        "api_key = \"HUSH-1\"",
        "api_kye = \"HUSH-1\"",
        "api_key = HUSH-1",
        "api_key = { env = \"A\", kee = \"HUSH-1\" }",
        "api_key = { HUSH-1 }",
    ] {
        lab.write("watchbell.toml", format!("[[source]]\nname = \"a\"\norg_id = \"b\"\n{wrong}\n"));
        for format in ["human", "json"] {
            let finished = lab.watchbell(&["check", "--offline", "--format", format]);
            assert_eq!(finished.code, Some(3), "{wrong}");
            assert!(!finished.show().contains("HUSH"), "{}", finished.show());
        }
    }
}

#[test]
fn broken_rules_are_shown_with_their_line_and_a_caret() {
    let lab = Lab::with_organization(organization(&[]), "");
    lab.write("rules/a.rhai", "const RULE = #{\n    id: \"team.a\",\n    title: \"t\",\n    sevrity: \"high\",\n};\nfn rule(event) { true }\n");
    lab.write("rules/b.rhai", "const RULE = #{ id: \"team.b\", title: \"t\", severity: \"low\" };\nfn rule(event) {\n    event.actor.nmae == owner\n}\n");
    let finished = lab.watchbell(&["check", "--offline"]);
    assert_snapshot!(snapshot(&finished), @r#"
    exit: 2
    --- stdout
    ok       configuration watchbell.toml: 1 source, 1 destination
    FAILED   0 rules and 13 checks compiled, 2 broken
    ok       data directory data
    skipped  sources and secrets, because of `--offline`
    --- stderr
    error[E201]: unknown key `sevrity` in `RULE`
     --> rules/a.rhai:4:5
      |
    4 |     sevrity: "high",
      |     ^^^^^^^
      |
      = help: did you mean `severity`?

    error[E204]: missing key `severity` in `RULE`
     --> rules/a.rhai:1:7
      |
    1 | const RULE = #{
      |       ^^^^
      |
      = help: add `severity: "medium"`

    error[E200]: `owner` is not defined
     --> rules/b.rhai:3:25
      |
    3 |     event.actor.nmae == owner
      |                         ^^^^^
      |
      = help: functions can use their parameters and variables, the file's constants, and `params`

    error: some rules do not load: 3 problems
    "#);
}

#[test]
fn wrong_arguments_are_code_3() {
    let lab = Lab::new();
    assert_eq!(lab.watchbell(&["chekc"]).code, Some(3));
    assert_eq!(lab.watchbell(&["alerts", "list", "--severity", "loud"]).code, Some(3));
    assert_eq!(lab.watchbell(&["--help"]).code, Some(0));
    let version = lab.watchbell(&["--version"]);
    assert!(version.code == Some(0) && version.stdout.contains(env!("CARGO_PKG_VERSION")), "{}", version.show());
}

/// `check` and `run` refuse a retention that would delete events that are still fetched or alerted on.
#[test]
fn a_retention_that_is_too_short_is_refused_with_both_values() {
    let lab = Lab::with_organization(organization(&[entry("e1", "x", 0, "ann")]), "");
    let config = std::fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    for (retention, backfill, max_age, told) in [
        ("8d", "20d", "1d", "`retention` (8d) is shorter than `backfill` of source `test` (20d)"),
        ("8d", "7d", "40d", "`retention` (8d) is shorter than `max_age` in `[alerts]` (40d)"),
    ] {
        let config = config.replace("backfill = \"180d\"", &format!("backfill = \"{backfill}\""));
        lab.write(
            "watchbell.toml",
            format!("retention = \"{retention}\"\n{config}\n[alerts]\nmax_age = \"{max_age}\"\n"),
        );
        for arguments in [["check", "--offline"].as_slice(), &["run"]] {
            let refused = lab.watchbell(arguments);
            assert_eq!(refused.code, Some(3), "{}", refused.show());
            assert!(refused.stderr.contains("E107") && refused.stderr.contains(told), "{}", refused.show());
        }
    }
}

#[test]
fn check_says_what_to_do_about_each_refusal() {
    let lab = Lab::with_organization(organization(&[entry("e1", "x", 0, "ann")]), "");
    let simulator = lab.simulator.as_ref().unwrap();
    let mut told = Vec::new();
    for fault in
        [Fault::Unauthorized, Fault::Forbidden, Fault::NotFound, Fault::ServerError, Fault::Redirect, Fault::BrokenJson]
    {
        simulator.set_faults(Faults::always(fault));
        let finished = lab.watchbell(&["check"]);
        assert_eq!(finished.code, Some(3), "{fault:?}");
        let line = finished.stdout.lines().find(|line| line.starts_with("FAILED")).unwrap();
        told.push(regex_lite(line, r"127\.0\.0\.1(:\d+)?", "[HOST]"));
        assert!(!finished.show().contains("demo-key"), "{}", finished.show());
    }
    assert_snapshot!(told.join("\n"), @r#"
    FAILED   source "test": [HOST] answered 401 Unauthorized: Unauthenticated (key_refused)
    FAILED   source "test": [HOST] answered 403 Forbidden: Forbidden (acceptable scopes: ["read:events:admin"]) (key_lacks_scope)
    FAILED   source "test": [HOST] answered 404 Not Found (organization_not_found)
    FAILED   source "test": [HOST] answered 500 Internal Server Error: InternalError (server_error)
    FAILED   source "test": [HOST] answered 302 Found, a redirect (redirected)
    FAILED   source "test": [HOST] did not return a valid events page: EOF while parsing a list at line 1 column 10 (unreadable_answer)
    "#);
    simulator.set_faults(Faults::none());
    let config = fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    lab.write("watchbell.toml", config.replace("127.0.0.1", "localhost"));
    assert!(lab.watchbell(&["check"]).stdout.contains("the key is accepted"));
    lab.write(
        "watchbell.toml",
        config.replace("http://127.0.0.1:", "http://127.0.0.1:1#").split('#').next().unwrap().to_owned()
            + "\"\napi_key = { file = \"key\" }\n",
    );
    assert!(lab.watchbell(&["check"]).stdout.contains("unreachable"), "{}", lab.watchbell(&["check"]).show());
}

#[test]
fn an_organization_without_events_is_inconclusive() {
    let options = SimulatorOptions::new(Scenario::of(Vec::new()));
    let lab = Lab::with_organization(options, "");
    let finished = lab.watchbell(&["check"]);
    // A warning to the caller, not a failure.
    assert_eq!(finished.code, Some(1));
    assert!(finished.stdout.contains("unclear") && finished.stdout.contains("Guard"), "{}", finished.stdout);
}

#[test]
fn what_was_found_is_listed_and_shown() {
    let lab = evaluated_lab();
    assert_snapshot!(snapshot(&lab.watchbell(&["alerts", "list"])), @"
    exit: 0
    --- stdout
     ALERT       OPENED (UTC)         SEVERITY  STATUS  EVENTS  TITLE                     RULE
     47801b432d  [TIME]  high      open    1       Rule `team.bad` throws    team.bad
     ece239efb2  [TIME]  medium    open    2       bob became somebody else  team.impersonation
    --- stderr
    ");
    assert_snapshot!(snapshot(&lab.watchbell(&["events", "list", "--action", "*_as_user", "--actor", "BOB"])), @"
    exit: 0
    --- stdout
     TIME (UTC)           ACTION                  ACTOR            FROM                           EVENT
     [TIME]  user_logged_in_as_user  bob@example.com  203.0.113.9 (Berlin, Germany)  e3
     [TIME]  user_logged_in_as_user  bob@example.com  203.0.113.9 (Berlin, Germany)  e2
    --- stderr
    ");
    assert_snapshot!(snapshot(&lab.watchbell(&["rules", "list"])), @"
    exit: 0
    --- stdout
     RULE                        SEVERITY  STATE  EVIDENCE  RUNS ON                 MATCHES  ERRORS
     team.bad                    medium    on     -         user_login              0        1
     team.impersonation          medium    on     -         user_logged_in_as_user  2        0
     builtin.clock_wrong         medium    on     -         on a timer              0        0
     builtin.cursor_stuck        low       on     -         on a timer              0        0
     builtin.delivery_failing    high      on     -         on a timer              0        0
     builtin.events_quarantined  medium    on     -         on a timer              0        0
     builtin.key_expiring        info      on     -         on a timer              0        0
     builtin.log_drop_off        high      on     -         on a timer              0        0
     builtin.new_action          info      on     -         on a timer              0        0
     builtin.rule_broken         medium    on     -         on a timer              0        0
     builtin.rule_ended_agent    high      on     -         on a timer              0        0
     builtin.rule_guarded        medium    on     -         on a timer              0        0
     builtin.rule_suspended      high      on     -         on a timer              0        0
     builtin.source_failing      medium    on     -         on a timer              0        0
     builtin.source_refused      high      on     -         on a timer              0        0
    --- stderr
    ");

    let json: Vec<Value> = lab
        .watchbell(&["alerts", "list", "--format", "json", "--severity", "medium", "--rule", "team.imp*"])
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(json.len(), 1);
    assert_eq!(
        (json[0]["count"].as_u64(), json[0]["context"]["target"].as_str()),
        (Some(2), Some("target@example.com"))
    );
    let id = json[0]["id"].as_str().unwrap();
    assert_snapshot!(snapshot(&lab.watchbell(&["alerts", "show", &id[..8]])), @"
    exit: 0
    --- stdout
    ● MEDIUM    bob became somebody else
      who       bob@example.com from 203.0.113.9 (Berlin, Germany)
      when      [TIME] UTC to [TIME] UTC, 2 events
      evidence  target: target@example.com
      do        Ask why.
      rule      team.impersonation  alert ece239efb2  source test
      id        ece239efb288aed553257a2896b37790
      status    open, revision 2
      dedup key bob became somebody else
      rule file d28bab2f1cb58e657f1138c0b8ee424f of generation 1
      raised    [TIME] UTC
      ATT&CK    T1098
      message   bob did user_logged_in_as_user

      history:
        [TIME]  opened

      2 events, in order of arrival:
        e2
        e3
    --- stderr
    ");

    // An event as it arrived, byte for byte.
    let shown = lab.watchbell(&["events", "show", "e2", "--format", "json"]);
    assert_eq!(shown.stdout.trim_end(), entry("e2", "user_logged_in_as_user", 60, "bob").to_string());
    assert_eq!(lab.watchbell(&["events", "show", "nope"]).code, Some(3));
    assert_eq!(lab.watchbell(&["alerts", "show", "ffffff"]).code, Some(3));
    assert!(
        lab.watchbell(&["rules", "show", "team.impersonatoin"]).stderr.contains("did you mean `team.impersonation`")
    );
    let since = lab.watchbell(&["events", "list", "--since", "2026-03-01T12:01:30Z", "--format", "json"]);
    assert_eq!(since.stdout.lines().count(), 2);

    let status = lab.watchbell(&["status", "--format", "json"]);
    let status: Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!((status["events"]["stored"].as_u64(), status["events"]["backlog"].as_u64()), (Some(4), Some(0)));
    assert_eq!(status["sources"][0]["record"]["stored"].as_u64(), Some(4));
    let human = lab.watchbell(&["status"]);
    assert!(human.stdout.contains("team.bad: 1 error"), "{}", human.stdout);
}

#[test]
fn replay_runs_over_a_file_without_store_or_configuration() {
    let lab = Lab::new();
    lab.write("rules/a.rhai", rule("team.a", "", "fn rule(event) { event.action == \"x\" }"));
    let lines: Vec<String> = [entry("1", "x", 0, "ann"), entry("2", "y", 1, "ann"), entry("3", "x", 2, "bob")]
        .iter()
        .map(ToString::to_string)
        .collect();
    lab.write("events.jsonl", lines.join("\n"));
    let found = lab.watchbell(&["replay", "--rules", "rules", "--events", "events.jsonl"]);
    assert_snapshot!(timeless(&snapshot(&found)), @"
    exit: 0
    --- stdout
    3 events, [TIME] to [TIME] UTC

     RULE    MATCHES  ALERTS  PER DAY  ERRORS  TIME  WHEN
     team.a  2        1       1.00     0  [TIME]  █

    ● MEDIUM    team.a fired
      who       ann@example.com from 203.0.113.9 (Berlin, Germany)
      when      [TIME] UTC to [TIME] UTC, 2 events
      rule      team.a  alert 861aa7a411  source file

    --- stderr
    ");
    assert!(!lab.path("data").exists());
    assert_eq!(lab.watchbell(&["replay", "--rules", "nowhere", "--events", "events.jsonl"]).code, Some(3));
    assert_eq!(lab.watchbell(&["replay", "--rules", "rules", "--events", "nowhere"]).code, Some(3));
}

/// SIGTERM and SIGINT end the agent within two seconds, whatever it waits for; a second agent is refused.
#[test]
fn run_refuses_to_start_twice_and_stops_when_asked() {
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let lab = Lab::with_organization(
            SimulatorOptions { faults: Faults::always(Fault::Unauthorized), ..organization(&[]) },
            "",
        );
        let mut agent = Running(
            lab.command(&["run", "--format", "json"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap(),
        );
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let simulator = lab.simulator.as_ref().unwrap();
        assert!(runtime.block_on(eventually(|| simulator.requests() > 0)));
        let second = lab.watchbell(&["run"]);
        assert_eq!(second.code, Some(3));
        let holder = format!("in use by process {}", agent.0.id());
        assert!(second.stderr.contains(&holder), "{}", second.stderr);
        // Other commands query the agent.
        let status = lab.watchbell(&["status"]);
        assert!(status.stdout.contains(&format!("process {}", agent.0.id())), "{}{}", status.stdout, status.stderr);
        // Those that need exclusive access to the store are refused.
        assert!(lab.watchbell(&["store", "compact"]).stderr.contains(&holder));
        let id = rustix::process::Pid::from_raw(i32::try_from(agent.0.id()).unwrap()).unwrap();
        let asked = std::time::Instant::now();
        rustix::process::kill_process(id, signal).unwrap();
        let status = agent.0.wait().unwrap();
        assert!(status.success(), "{status}");
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        assert!(!lab.path("data/agent.pid").exists());
    }
}

#[test]
fn an_unwritable_data_directory_and_a_missing_secret_are_told() {
    let lab = Lab::with_organization(organization(&[]), "");
    fs::remove_file(lab.path("key")).unwrap();
    let missing = lab.watchbell(&["run"]);
    assert_eq!(missing.code, Some(3));
    assert!(missing.stderr.contains("cannot read"), "{}", missing.stderr);
    lab.write("key", "two words");
    assert!(lab.watchbell(&["run"]).stderr.contains("characters that a key cannot have"));
    lab.write("key", "fine");
    // A file in place of the directory: not writable for root either.
    fs::remove_dir_all(lab.path("data")).ok();
    lab.write("data", "");
    let unwritable = lab.watchbell(&["run"]);
    assert_eq!(unwritable.code, Some(3));
    assert!(unwritable.stderr.contains("data directory"), "{}", unwritable.stderr);
    assert!(lab.watchbell(&["check"]).stdout.contains("cannot write the data directory"));
}

#[test]
fn a_demo_ends_by_itself_and_tells_its_story() {
    let lab = Lab::new();
    let finished = lab.watchbell(&["demo", "--duration", "15s", "--format", "json"]);
    assert_eq!(finished.code, Some(0), "{}", finished.show());
    let rules: Vec<String> = finished
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|message| message["notice"] == "opened")
        .map(|message| message["alert"]["rule"].as_str().unwrap().to_owned())
        .collect();
    for expected in
        ["atlassian.admin.impersonated_user", "atlassian.admin.organization_admin_added", "builtin.log_drop_off"]
    {
        assert!(rules.iter().any(|rule| rule == expected), "{expected}: {}", finished.show());
    }
    assert!(finished.stderr.contains("watchbell init"), "{}", finished.stderr);
}

/// Problems that would keep the agent from starting, or an alert from being delivered, are reported beforehand.
#[test]
fn check_looks_at_destinations_as_the_agent_does() {
    let lab = Lab::with_organization(organization(&[entry("e1", "user_login", 0, "ann")]), "");
    let config = fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    let more = "[[destination]]\nname = \"hook\"\nkind = \"webhook\"\nurl = { file = \"nowhere\" }\ntags = [\"nope\"]\n\
                [[destination]]\nname = \"program\"\nkind = \"command\"\ncommand = [\"/nowhere/program\"]\n";
    lab.write("watchbell.toml", format!("{config}{more}"));
    lab.write("rules/a.rhai", rule("team.a", "destinations: [\"slak\"],", "fn rule(event) { false }"));
    let checked = lab.watchbell(&["check"]);
    assert_eq!(checked.code, Some(3), "{}", checked.show());
    assert!(checked.stdout.contains("FAILED   destination \"hook\": "), "{}", checked.show());
    for doubt in [
        "the program `/nowhere/program` does not exist",
        "`tags` matches no loaded rule",
        "rule `team.a`: no destination \"slak\"",
    ] {
        assert!(checked.stderr.contains(doubt), "{doubt}: {}", checked.show());
    }
    // CI has no secrets; warnings count there as well.
    assert_eq!(lab.watchbell(&["check", "--offline"]).code, Some(0));
    let denied = lab.watchbell(&["check", "--offline", "--deny-warnings"]);
    assert_eq!(denied.code, Some(1), "{}", denied.show());
}

/// Paths resolve as in the shell, also above the current directory; an unreadable path is never an empty set of rules.
#[test]
fn rules_are_read_where_the_path_leads() {
    let lab = Lab::new();
    lab.write("p/rules/one.rhai", rule("team.one", "", "fn rule(event) { true }"));
    lab.write("cwd/rules/two.rhai", rule("team.two", "", "fn rule(event) { true }"));
    lab.write("cwd/events.jsonl", entry("1", "x", 0, "ann").to_string());
    lab.write(
        "p/watchbell.toml",
        "[[source]]\nname = \"s\"\norg_id = \"o\"\nbase_url = \"http://127.0.0.1:9\"\napi_key = { file = \"key\" }\n[rules]\npaths = [\"rules\"]\n",
    );
    lab.write("p/key", "k");
    let said = |arguments: &[&str]| {
        let output = lab.command(arguments).current_dir(lab.path("cwd")).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    for (rules, id) in [("../p/rules", "team.one"), ("rules/../../p/./rules", "team.one"), ("./rules", "team.two")] {
        let (code, text) = said(&["replay", "--rules", rules, "--events", "events.jsonl"]);
        assert!(code == Some(0) && text.contains(id), "{rules}: {code:?} {text}");
    }
    let (code, text) = said(&["check", "--offline", "--config", "../p/watchbell.toml"]);
    assert!(text.contains("1 rule and"), "{code:?} {text}");
    std::fs::remove_dir_all(lab.path("p/rules")).unwrap();
    for arguments in [
        &["replay", "--rules", "../p/rules", "--events", "events.jsonl"][..],
        &["replay", "--rules", "rules", "--rules", "../p/rules", "--events", "events.jsonl"],
        &["check", "../p/rules"],
        &["check", "--offline", "--config", "../p/watchbell.toml"],
        &["run", "--config", "../p/watchbell.toml"],
        &["test", "../p/rules"],
        &["rules", "list", "--config", "../p/watchbell.toml"],
    ] {
        let (code, text) = said(arguments);
        assert!(code == Some(3) && text.contains("../p/rules"), "{arguments:?}: {code:?} {text}");
    }
}

/// What packages install: a completion script per shell, and a man page per command.
#[test]
fn completions_and_man_pages_name_every_verb() {
    let lab = Lab::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = lab.watchbell(&["completions", shell]);
        assert!(script.code == Some(0) && script.stdout.contains("coverage"), "{shell}: {}", script.show());
    }
    let written = lab.watchbell(&["man", "man/man1"]);
    assert_eq!(written.code, Some(0), "{}", written.show());
    for verb in ["demo", "run", "replay", "store-recover"] {
        let page = fs::read_to_string(lab.path(&format!("man/man1/watchbell-{verb}.1"))).unwrap();
        assert!(page.contains(".TH"), "{verb}");
    }
}
