use std::{fs, process::Command};

use insta::assert_snapshot;
use proptest::prelude::*;
use serde_json::{Value, json};
use watchbell::{
    model::action::Catalog,
    rule::{self, Limits, RuleInput, SHIPPED, Tracer},
};

use crate::support::{Lab, entry, event, load, rule, rule_set};

const RULE: &str = r#"const RULE = #{
    id: "team.rule",
    title: "Team rule",
    severity: "medium",
    actions: ["user_login"],
    runbook: "Ask.",
    attack: ["T1078"],
    params: #{ domain: "example.com" },
};

fn rule(event) {
    if event.actor.email == () { return false; }
    domain(event.actor.email) == params.domain
        && event.geo.country != "Germany"
}

fn title(event) { `${event.actor_name()} from ${event.geo.country}` }
fn context(event) { #{ city: event.geo.city } }
"#;

const TESTS: &str = r#"- name: from elsewhere
  event:
    { "attributes": { "action": "user_login", "actor": { "email": "ann@example.com" }, "location": { "countryName": "Peru", "city": "Lima" } } }
  expect:
    alerts:
      - title: ann@example.com from Peru
        severity: medium
        dedup: ann@example.com from Peru
        count: 1
        context: { city: Lima }

- name: from home
  event: { attributes: { action: user_login, actor: { email: ann@example.com }, location: { countryName: Germany } } }
  expect: { alert: false }

- name: another domain, if we say so
  params: { domain: example.net }
  event: { attributes: { action: user_login, actor: { email: ann@example.net }, location: { countryName: Peru } } }
  expect: { alerts: 1 }
"#;

/// Tests that cannot be read do not count as passed.
#[test]
fn a_test_file_that_is_not_text_fails() {
    let lab = with_rule();
    lab.write("rules/rule.test.yaml", [b'-', 0xff]);
    let tested = lab.watchbell(&["test", "rules"]);
    assert_eq!(tested.code, Some(1), "{}", tested.show());
    assert!(tested.stderr.contains("E401") && tested.stderr.contains("cannot read the test file"), "{}", tested.show());
    let checked = lab.watchbell(&["check", "--offline", "rules"]);
    assert!(checked.stderr.contains("E401"), "{}", checked.show());
}

/// `RULE` has the effective values: titles show the threshold set by an override.
#[test]
fn titles_know_of_overridden_thresholds() {
    let lab = Lab::new();
    lab.write(
        "rules/rule.rhai",
        "const RULE = #{ id: \"own.rule\", title: \"t\", severity: \"low\", threshold: 5, window: \"10m\" };\nfn rule(event) { true }\nfn dedup(event) { \"k\" }\nfn title(event) { `${RULE.threshold} within ${RULE.window}` }\n",
    );
    let test = |expected: &str, count: u32| {
        format!(
            "- name: n\n  events: [{{ repeat: {count}, event: {{ attributes: {{ action: a }} }} }}]\n  expect: {{ alerts: [{{ title: {expected} }}] }}\n"
        )
    };
    lab.write("rules/rule.test.yaml", test("5 within 10m", 5));
    assert_eq!(lab.watchbell(&["test", "rules"]).code, Some(0));
    lab.write("rules/overrides.toml", "[override.\"own.rule\"]\nthreshold = 2\nwindow = \"1h\"\n");
    lab.write("rules/rule.test.yaml", test("2 within 1h", 2));
    let tested = lab.watchbell(&["test", "rules", "--tuned"]);
    assert_eq!(tested.code, Some(0), "{}", tested.show());
}

/// A display name is not a key: two actors without a name are not the same.
#[test]
fn names_for_people_as_keys_are_doubted() {
    let lab = Lab::new();
    lab.write(
        "rules/rule.rhai",
        "const RULE = #{ id: \"own.rule\", title: \"t\", severity: \"low\" };\nfn rule(event) { count(event.actor_name(), \"1h\") > 2 }\nfn dedup(event) { event.target_name() }\nfn title(event) { event.actor_name() }\n",
    );
    let checked = lab.watchbell(&["check", "--offline", "rules"]);
    let doubts: Vec<&str> = checked.stderr.lines().filter(|line| line.contains("W211")).collect();
    assert_eq!(
        doubts,
        [
            "warning[W211]: `actor_name()` is a display name: as a key, it groups unrelated events that have no name",
            "warning[W211]: `target_name()` is a display name: as a key, it groups unrelated events that have no name",
        ],
        "{}",
        checked.show()
    );
}

fn with_rule() -> Lab {
    let lab = Lab::new();
    lab.write("rules/rule.rhai", RULE);
    lab.write("rules/rule.test.yaml", TESTS);
    lab
}

/// Replaces the duration, which varies.
fn without_time(text: &str) -> String {
    let text = regex::Regex::new(r"in \d+m?s").unwrap().replace_all(text, "in [TIME]");
    regex::Regex::new(r#"("took": |time=")[\d.]+"#).unwrap().replace_all(&text, "$1[TIME]").into_owned()
}

#[test]
fn tests_that_hold_are_a_line_a_rule() {
    let lab = with_rule();
    lab.write("rules/untested.rhai", rule("a.untested", "", "fn rule(event) { true }"));
    let finished = lab.watchbell(&["test", "rules"]);
    assert_snapshot!(without_time(&finished.show()), @"
    exit: 0
    --- stdout
    ?     a.untested  no tests
    ok    team.rule   3 cases

    3 cases of 2 rules, 0 failed, in [TIME]
    --- stderr
    ");
    // Requiring tests for every rule reports the one without any.
    let finished = lab.watchbell(&["test", "rules", "--min-cases", "2"]);
    assert_snapshot!(without_time(&finished.show()), @"
    exit: 1
    --- stdout
    FAIL  a.untested  no tests
          0 cases found, at least 2 required
          no case that alerts
          no case that does not alert; add a near miss that the rule must ignore
    ok    team.rule   3 cases

    3 cases of 2 rules, 0 failed, in [TIME]
    --- stderr
    error: 1 rule failed
    ");
}

#[test]
fn a_failing_test_shows_what_to_change() {
    let lab = with_rule();
    lab.write(
        "rules/rule.test.yaml",
        TESTS
            .replace("title: ann@example.com from Peru", "title: ann from Peru")
            .replace("alert: false", "alert: true"),
    );
    let finished = lab.watchbell(&["test", "rules/rule.test.yaml"]);
    assert_snapshot!(without_time(&finished.show()), @r#"
    exit: 1
    --- stdout
    FAIL  team.rule  3 cases

          from elsewhere (rules/rule.test.yaml:1)
            title of alert 1:
              - expected  ann from Peru
              + found     ann@example.com from Peru
            what the rule saw:
                12  event.actor.email                           "ann@example.com"
                12  event.actor.email == ()                     false
                13  domain(event.actor.email)                   "example.com"
                13  event.actor.email                           "ann@example.com"
                13  domain(event.actor.email) == "example.com"  true
                14  event.geo.country                           "Peru"
                14  event.geo.country != "Germany"              true
                17  event.actor_name()                          "ann@example.com"
                17  event.geo.country                           "Peru"
                18  event.geo.city                              "Lima"


          from home (rules/rule.test.yaml:12)
            alert:
              - expected  an alert
              + found     no alert
            what the rule saw:
                12  event.actor.email                           "ann@example.com"
                12  event.actor.email == ()                     false
                13  domain(event.actor.email)                   "example.com"
                13  event.actor.email                           "ann@example.com"
                13  domain(event.actor.email) == "example.com"  true
                14  event.geo.country                           "Germany"
                14  event.geo.country != "Germany"              false


    3 cases of 1 rule, 2 failed, in [TIME]
    --- stderr
    error: 1 rule failed
    "#);
}

#[test]
fn a_rule_that_fails_anywhere_fails_its_test() {
    let lab = with_rule();
    let differences = |rule: &str, tests: &str| {
        lab.write("rules/rule.rhai", rule);
        lab.write("rules/rule.test.yaml", tests);
        let finished = lab.watchbell(&["test", "rules", "--format", "json"]);
        let report: Value = serde_json::from_str(&finished.stdout).unwrap();
        let cases = report["rules"][0]["cases"].as_array().unwrap();
        let found = cases.iter().flat_map(|case| case["differences"].as_array().unwrap());
        let found: Vec<String> = found.map(|difference| difference["found"].as_str().unwrap().to_owned()).collect();
        (finished.code, found.join("; "))
    };
    let (code, found) = differences(&RULE.replace("city: event.geo.city", "city: nothing(event)"), TESTS);
    assert_eq!(code, Some(1));
    assert!(found.contains("fn context: ") && found.contains("nothing"), "{found}");
    let (code, found) = differences(
        &RULE.replace("return false", "throw \"no actor\""),
        "- { name: a, event: { attributes: { action: user_login } }, expect: { alert: false } }",
    );
    assert_eq!(code, Some(1));
    assert!(found.contains("no actor"), "{found}");
    // An expected error is not a failure.
    let tests = "- { name: a, event: { attributes: { action: user_login } }, expect: { errors: [no actor] } }";
    assert_eq!(differences(&RULE.replace("return false", "throw \"no actor\""), tests), (Some(0), String::new()));
}

#[test]
fn sequences_are_timed_and_files_can_be_used() {
    let lab = Lab::new();
    lab.write(
        "rules/many.rhai",
        rule(
            "a.many",
            "threshold: 3, window: \"10m\"",
            "fn rule(event) { event.action == \"x\" } fn dedup(event) { \"k\" }",
        ),
    );
    let lines: String = (0..3).map(|number| format!("{}\n", entry(&number.to_string(), "x", number, "ann"))).collect();
    lab.write("rules/three.jsonl", lines);
    lab.write(
        "rules/many.test.yaml",
        "- name: in time\n  events: [{ repeat: 3, every: 4m, event: { attributes: { action: x } } }]\n  expect: { alerts: [{ count: 3 }] }\n\
         - name: too slow\n  events: [{ repeat: 3, every: 6m, event: { attributes: { action: x } } }]\n  expect: { alert: false }\n\
         - name: of a file\n  events: three.jsonl\n  expect: { alerts: 1 }\n\
         - name: the same event three times is one\n  events: [{ id: a, attributes: { action: x } }, { id: a, attributes: { action: x } }, { id: a, attributes: { action: x } }]\n  expect: { alert: false }\n",
    );
    let finished = lab.watchbell(&["test", "rules"]);
    assert_eq!(finished.code, Some(0), "{}", finished.show());
    // Only the requested rules.
    let finished = lab.watchbell(&["test", "rules", "--filter", "too slow"]);
    assert!(finished.stdout.contains("1 case of 1 rule"), "{}", finished.show());
    // Another unexpected rule is listed on request.
    lab.write("rules/other.rhai", rule("a.other", "", "fn rule(event) { true }"));
    let finished = lab.watchbell(&["test", "rules", "--all-rules", "--filter", "in time"]);
    assert_eq!(finished.code, Some(1));
    assert!(finished.stdout.contains("rule a.other"), "{}", finished.show());
}

#[test]
fn reports_for_programs() {
    let lab = with_rule();
    lab.write("rules/rule.test.yaml", TESTS.replace("alert: false", "alert: true"));
    assert_snapshot!(without_time(&lab.watchbell(&["test", "rules", "--format", "junit"]).stdout), @r#"
    <?xml version="1.0" encoding="UTF-8"?>
    <testsuites name="watchbell">
      <testsuite name="team.rule" file="rules/rule.rhai" tests="3" failures="1" errors="0">
        <testcase classname="team.rule" name="from elsewhere" time="[TIME]"></testcase>
        <testcase classname="team.rule" name="from home" time="[TIME]"><failure message="alert">alert:
      - expected  an alert
      + found     no alert
    what the rule saw:
        12  event.actor.email                           &quot;ann@example.com&quot;
        12  event.actor.email == ()                     false
        13  domain(event.actor.email)                   &quot;example.com&quot;
        13  event.actor.email                           &quot;ann@example.com&quot;
        13  domain(event.actor.email) == &quot;example.com&quot;  true
        14  event.geo.country                           &quot;Germany&quot;
        14  event.geo.country != &quot;Germany&quot;              false</failure></testcase>
        <testcase classname="team.rule" name="another domain, if we say so" time="[TIME]"></testcase>
      </testsuite>
    </testsuites>
    "#);
    assert_snapshot!(without_time(&lab.watchbell(&["test", "rules", "--format", "github"]).stdout), @r#"::error file=rules/rule.test.yaml,line=12,title=team.rule%3A from home::alert:%0A  - expected  an alert%0A  + found     no alert%0Awhat the rule saw:%0A    12  event.actor.email                           "ann@example.com"%0A    12  event.actor.email == ()                     false%0A    13  domain(event.actor.email)                   "example.com"%0A    13  event.actor.email                           "ann@example.com"%0A    13  domain(event.actor.email) == "example.com"  true%0A    14  event.geo.country                           "Germany"%0A    14  event.geo.country != "Germany"              false"#);
    assert_eq!(lab.watchbell(&["test", "rules", "--format", "sarif"]).code, Some(3));
    lab.write("rules/rule.rhai", RULE.replace("domain(event.actor.email)", "domian(event.actor.emial)"));
    assert_snapshot!(lab.watchbell(&["check", "rules", "--format", "github"]).stdout, @"
    ::warning file=rules/rule.rhai,line=13,title=W206::unknown function `domian`%0Adid you mean `domain`?
    ::warning file=rules/rule.rhai,line=13,title=W207::no known event has `event.actor.emial`%0Adid you mean `email`?
    ");
    let sarif: Value = serde_json::from_str(&lab.watchbell(&["check", "rules", "--format", "sarif"]).stdout).unwrap();
    assert_eq!(
        sarif["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["region"],
        json!({ "startLine": 13, "startColumn": 5 })
    );
    assert_eq!(lab.watchbell(&["check", "rules"]).code, Some(0));
    assert_eq!(lab.watchbell(&["check", "rules", "--deny-warnings"]).code, Some(1));
}

#[test]
fn files_that_cannot_be_used_are_told() {
    let lab = with_rule();
    lab.write("rules/rule.test.yaml", "- name: a\n  event: { attributes: { action: x }\n  expect: {}\n");
    lab.write("rules/gone.test.yaml", "[]\n");
    let finished = lab.watchbell(&["test", "rules"]);
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("E401") && finished.stderr.contains("E403"), "{}", finished.show());
    assert_eq!(lab.watchbell(&["test", "nowhere"]).code, Some(3));
    lab.write("rules/rule.rhai", "const RULE = #{");
    assert_eq!(lab.watchbell(&["test", "rules"]).code, Some(2));
}

/// The warnings about a rule, one per line.
fn doubts(text: &str) -> Vec<String> {
    let lab = Lab::new();
    lab.write("rules/r.rhai", text);
    lab.write("rules/r.test.yaml", "[]");
    let finished = lab.watchbell(&["check", "rules", "--format", "json"]);
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    report["diagnostics"]
        .as_array()
        .unwrap()
        .iter()
        .map(|found| {
            let help = found["help"].as_str().unwrap_or_default();
            format!(
                "{} {}:{} {} ({help})",
                found["code"].as_str().unwrap(),
                found["line"],
                found["column"],
                found["message"].as_str().unwrap()
            )
        })
        .collect()
}

#[test]
fn what_is_doubtful_is_told() {
    let text = r#"const RULE = #{
    id: "a.bad", title: "Bad", severity: "high", actions: ["user_logn", "zebra_painted"], attack: ["T1", "T1098"],
    exception_slots: #{ x: ["actor.mail"] },
};
fn helper(a, b) { a + b }
fn unused_thing(event) { 1 }
fn Title(event) { "x" }
fn rule(event) {
    event.actor.emial == "x" && event.targets("users")[0].attributes.nme == "y" && event.get("attributes.actr.id") != 5
        && event.action == "user_login" && event.actor.email.to_lower() == "Dana" && event.time == 5
        && domain(event.actor.email, 1) == "x" && helper(1) == 2 && in_cdir(event.ip, "10.0.0.0/8") && event.attributes.nothing.here
}
"#;
    assert_snapshot!(doubts(text).join("\n"), @r#"
    W201 7:4 `fn Title` is never called (did you mean `fn title`?)
    W402 1:7 the rule has no runbook (add `runbook: "…"`: how to verify the alert, how to undo the change, whom to ask)
    W405 1:7 all matches of the rule join one alert, because its title never changes and it has no `fn dedup` (add `fn dedup(event)`, or a `fn title(event)` that names the actor and the target)
    W406 2:60 unknown action `user_logn`: the rule may never run (did you mean `user_login`?)
    W406 2:73 unknown action `zebra_painted`: the rule may never run (no public source has this action; compare it with your own audit log)
    W404 2:100 `T1` is not an ATT&CK ID (write a tactic such as `TA0004`, or a technique such as `T1098` or `T1098.003`)
    W407 3:29 exception slot `x`: no known event has `actor.mail` (did you mean `email`?)
    W203 6:4 `fn unused_thing` is never called (call it or remove it)
    W207 9:5 no known event has `event.actor.emial` (did you mean `email`?)
    W207 9:33 no known event has `event.attributes.context[…].attributes.nme` (did you mean `name`?)
    W207 9:84 no known event has `event.attributes.actr.id` (did you mean `actor`?)
    W208 10:28 this is never true: the rule runs only on `user_logn`, `zebra_painted`, not on `user_login` (did you mean `user_logn`?)
    W208 10:76 this is never true: a lower-case string cannot equal `Dana` (write `dana`)
    W208 10:100 this is never true: `event.time` is a string (compare it with a string)
    W205 11:12 `domain(email)` is called with 2 arguments (the call fails when it is reached)
    W205 11:51 `fn helper` takes 2 arguments, found 1 (the call fails when it is reached)
    W206 11:69 unknown function `in_cdir` (did you mean `in_cidr`?)
    W207 11:104 no known event has `event.attributes.nothing.here` (known fields: action, actor, container, context, location, processedAt, time)
    "#);
    // Correct code causes no warnings.
    assert_eq!(doubts(RULE), Vec::<String>::new());
}

#[test]
fn fields_that_an_organization_has_are_not_doubted() {
    let lab = Lab::new();
    lab.write("watchbell.toml", "");
    lab.write(
        "rules/r.rhai",
        RULE.replace("event.geo.city", "event.attributes.shoe_size").replace("user_login", "shoe_bought"),
    );
    let mut own = entry("1", "shoe_bought", 0, "ann");
    own["attributes"]["shoe_size"] = 42.into();
    lab.write("rules/r.test.yaml", "[]");
    let doubts = || lab.watchbell(&["check", "rules", "--format", "github"]).stdout;
    assert!(doubts().contains("W207") && doubts().contains("W406"), "{}", doubts());
    lab.write("events.jsonl", own.to_string());
    assert_eq!(lab.watchbell(&["events", "import", "events.jsonl", "--source", "own"]).code, Some(0));
    assert_eq!(doubts(), "");
}

#[test]
fn explain_says_in_which_line() {
    let lab = with_rule();
    lab.write("watchbell.toml", "");
    let mut given = entry("1", "user_login", 0, "ann");
    lab.write("event.json", given.to_string());
    let finished = lab.watchbell(&["explain", "--rule", "team.rule", "--event", "event.json"]);
    assert_snapshot!(finished.stdout, @r#"
    rule       team.rule (rules/rule.rhai)
    event      1 user_login at 2026-03-01 12:00:00 UTC

    rule()     false
        12:8   event.actor.email                           "ann@example.com"
        12:26  event.actor.email == ()                     false
        13:12  event.actor.email                           "ann@example.com"
        13:5   domain(event.actor.email)                   "example.com"
        13:31  domain(event.actor.email) == "example.com"  true
        14:12  event.geo.country                           "Germany"
        14:30  event.geo.country != "Germany"              false
      returned false at line 14: && event.geo.country != "Germany"

    verdict    no alert: `rule` returned false at line 14
    "#);
    given["attributes"].as_object_mut().unwrap().remove("actor");
    lab.write("event.json", given.to_string());
    let finished = lab.watchbell(&["explain", "--rule", "team.rule", "--event", "event.json"]);
    assert!(
        finished.stdout.contains("returned false at line 12: if event.actor.email == () { return false; }"),
        "{}",
        finished.show()
    );
    // A stored event, an alert that opens, and one that is joined.
    given = entry("2", "user_login", 10, "ann");
    given["attributes"]["location"]["countryName"] = "Peru".into();
    let mut next = entry("3", "user_login", 20, "ann");
    next["attributes"]["location"]["countryName"] = "Peru".into();
    lab.write("events.jsonl", format!("{given}\n{next}\n"));
    lab.watchbell(&["events", "import", "events.jsonl", "--source", "own"]);
    let verdict = |id: &str| {
        let finished = lab.watchbell(&["explain", "--rule", "team.rule", "--event", id]);
        finished.stdout.lines().last().unwrap_or_default().to_owned()
    };
    assert!(verdict("2").contains("opens"), "{}", verdict("2"));
    assert!(verdict("3").contains("no new alert: the match joins alert"), "{}", verdict("3"));
    assert_eq!(lab.watchbell(&["explain", "--rule", "team.rul", "--event", "2"]).code, Some(3));
}

/// Tracing does not change a rule's results: checked with every shipped rule on every event of the demo.
#[test]
fn watched_rules_say_the_same() {
    let texts: Vec<&str> = SHIPPED.iter().filter(|file| file.path.ends_with(".rhai")).map(|file| file.text).collect();
    let set = rule_set(&texts);
    let tracer = Tracer::new(&Limits::default());
    let host = rule::RuleHost::new(&Limits::default());
    let text = fs::read_to_string("examples/events/week.jsonl").unwrap();
    let mut looked = 0;
    for (number, line) in text.lines().enumerate().step_by(7) {
        let event = event(number as u64 + 1, &serde_json::from_str(line).unwrap());
        let catalog = Catalog::default();
        let input = RuleInput::new(&event, &catalog);
        for rule in &set.detections {
            let trace = tracer.run(rule, "rule", &input).unwrap();
            assert_eq!(trace.result.ok(), host.matches(rule, &input).ok().map(|said| said.to_string()));
            for function in rule::OPTIONAL_FUNCTIONS {
                if let (Some(trace), Some(plain)) =
                    (tracer.run(rule, function, &input), host.text(rule, function, &input))
                {
                    // Values that are not strings are compared by whether they failed.
                    match plain {
                        Ok(text) => {
                            let whole = serde_json::to_string(&text).unwrap();
                            let shown = trace.result.unwrap();
                            // Long values are truncated.
                            match shown.split_once('…') {
                                Some((beginning, _)) => assert!(whole.starts_with(beginning), "{shown} of {whole}"),
                                None => assert_eq!(shown, whole),
                            }
                        }
                        Err(_) => looked += 1,
                    }
                    looked += 1;
                }
            }
        }
    }
    assert!(looked > 100);
}

#[test]
fn a_new_rule_works_and_is_nobodys() {
    let lab = Lab::new();
    lab.write("watchbell.toml", "");
    lab.write("event.json", rule::EXAMPLE_EVENT);
    let finished = lab.watchbell(&["rules", "new", "team.access.first", "--from-event", "event.json"]);
    assert_eq!(finished.stdout, "rules/access/first.rhai\nrules/access/first.test.yaml\n", "{}", finished.show());
    let written = fs::read_to_string(lab.path("rules/access/first.test.yaml")).unwrap();
    assert!(!written.contains("Dana") && !written.contains("Inês") && !written.contains("712020"), "{written}");
    let finished = lab.watchbell(&["test", "rules", "--min-cases", "2"]);
    assert_eq!(finished.code, Some(0), "{}", finished.show());
    // Only the author knows the technique: nothing is claimed in the meantime.
    let checked = lab.watchbell(&["check", "rules"]);
    assert!(
        checked.stdout.contains("1 rule: 0 errors, 1 warning") && checked.stderr.contains("W403"),
        "{}",
        checked.show()
    );
    assert_eq!(lab.watchbell(&["rules", "fmt", "--check"]).code, Some(0));
    // Nothing is overwritten, and no id is used twice.
    assert_eq!(lab.watchbell(&["rules", "new", "team.access.first"]).code, Some(3));
    assert_eq!(lab.watchbell(&["rules", "new", "other.access.first"]).code, Some(3));
}

#[test]
fn formatting_puts_space_right_and_nothing_else() {
    let lab = Lab::new();
    lab.write("watchbell.toml", "");
    lab.write("rules/r.rhai", RULE.replace("    ", "\t").replace(", ", ","));
    assert_eq!(lab.watchbell(&["rules", "fmt", "--check"]).code, Some(1));
    assert_eq!(lab.watchbell(&["rules", "fmt"]).code, Some(0));
    assert_eq!(fs::read_to_string(lab.path("rules/r.rhai")).unwrap(), RULE);
    for file in SHIPPED.iter().filter(|file| file.path.ends_with(".rhai")) {
        assert_eq!(rule::format(file.text), file.text, "{} is formatted", file.path);
    }
}

#[test]
fn definitions_are_written_and_settings_kept() {
    let lab = Lab::new();
    lab.write(".vscode/settings.json", "mine");
    assert_eq!(lab.watchbell(&["rules", "definitions"]).code, Some(0));
    assert_eq!(fs::read_to_string(lab.path(".vscode/settings.json")).unwrap(), "mine");
    assert!(fs::read_to_string(lab.path("definitions/watchbell.d.rhai")).unwrap().contains("fn in_cidr("));
}

/// `--watch` runs again when a file is saved.
#[test]
fn saving_a_file_runs_the_tests_again() {
    use std::io::{BufRead, BufReader};
    let lab = with_rule();
    let mut command: Command = lab.command(&["test", "rules", "--watch", "--format", "github"]);
    let mut child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let errors = BufReader::new(child.stderr.take().unwrap());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let running = crate::support::Running(child);
    let mut errors = errors.lines();
    // The tests have run once, and the command is waiting.
    assert!(errors.any(|line| line.unwrap().contains("watching")));
    lab.write("rules/rule.test.yaml", TESTS.replace("alert: false", "alert: true"));
    assert!(lines.next().unwrap().unwrap().contains("from home"));
    drop(running);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Formatting is idempotent for any input, and only changes white space.
    #[test]
    fn formatting_is_stable(text in "([a-z +\\-=!&{}()\\[\\],.;\"`'#$/*\\\\\n\t]|\\$\\{|/\\*|\\*/|//|#\\{){0,60}") {
        let once = rule::format(&text);
        prop_assert_eq!(rule::format(&once), once.clone());
        let solid = |text: &str| text.chars().filter(|character| !character.is_whitespace()).collect::<String>();
        prop_assert_eq!(solid(&once), solid(&text));
    }

    /// A test file with arbitrary content is accepted or refused, and never makes the reader fail.
    #[test]
    fn any_test_file_is_read_or_refused(text in "(- name: a|  event: |  expect: \\{ alert: true \\}|[a-z:\\-{}\\[\\]\"'&*!|> \n]){0,40}") {
        let (cases, found) = rule::test_file::read(std::path::Path::new("x.test.yaml"), &text, &|_| Err("none".to_owned()));
        prop_assert!(!cases.is_empty() || !found.is_empty() || text.contains('['));
    }

    /// Traced or not, a rule returns the same for any event.
    #[test]
    fn watching_changes_nothing(name in ".{0,6}", number in any::<i64>(), flag in any::<bool>()) {
        let text = rule("a.any", "", "fn deep(x) { x.attributes.actor } fn rule(event) { let n = 0; for c in event.attributes.values { if c == 3 { n += 1; } } \
            if event.flag { return n > 0 || deep(event).name.len() > 3; } if event.attributes.values.some(|v| v == 7) { let w = event.attributes.values.filter(|v| { v == 7 }); return w.len() == 1; } switch event.attributes.number { 0..5 => true, _ => event.attributes.actor.name.contains(\"a\") && n == 0 } }");
        let (set, problems) = load(&[&text]);
        prop_assert!(problems.is_empty(), "{problems:?}");
        let mut raw = entry("1", "x", 0, "ann");
        raw["flag"] = flag.into();
        raw["attributes"]["number"] = number.into();
        raw["attributes"]["actor"]["name"] = name.into();
        raw["attributes"]["values"] = json!([number, 3, flag]);
        let event = event(1, &raw);
        let catalog = Catalog::default();
        let input = RuleInput::new(&event, &catalog);
        let rule = &set.detections[0];
        let watched = Tracer::new(&Limits::default()).run(rule, "rule", &input).unwrap();
        let plain = rule::RuleHost::new(&Limits::default()).matches(rule, &input);
        prop_assert_eq!(watched.result.ok(), plain.ok().map(|said| said.to_string()));
    }
}

/// A hundred rules with two tests each take less than a second on a fast machine; here, all of them have to run.
#[test]
fn a_hundred_rules_are_tested_at_once() {
    let lab = Lab::new();
    for number in 0..100 {
        let name = format!("rules/r{number}");
        lab.write(&format!("{name}.rhai"), RULE.replace("team.rule", &format!("team.rule{number}")));
        lab.write(&format!("{name}.test.yaml"), TESTS);
    }
    let finished = lab.watchbell(&["test", "rules"]);
    assert!(finished.stdout.contains("300 cases of 100 rules, 0 failed"), "{}", finished.show());
}

/// Conditions that can never match are reported before an event arrives.
#[test]
fn constants_that_can_never_be_right_are_told() {
    let lab = Lab::new();
    let check = |body: &str| {
        let functions = format!("fn rule(event) {{ {body} }}\nfn dedup(event) {{ event.id }}");
        lab.write("rules/a.rhai", rule("team.a", "params: #{ domains: [\"example.com\"] },", &functions));
        lab.watchbell(&["check", "rules"]).stderr
    };
    for (body, code, told) in [
        ("event.actor.email in params.domians", "W209", "did you mean `domains`?"),
        ("matches(event.actor.email, \"(\")", "W210", "invalid regular expression"),
        ("event.actor.email.matches(\"(\")", "W210", "invalid regular expression"),
        ("in_cidr(event.ip, [\"10.0.0.0/8\", \"10.0.0.0/33\"])", "W210", "10.0.0.0/33"),
        ("within(event.time, \"mon-fri 09:00-18:00\", \"Europe/Berln\")", "W210", "Europe/Berln"),
        ("count(event.actor.email, \"10x\") > 3", "W210", "`10x` is not a duration"),
        (
            "count(\"10m\", event.actor.email) > 3 && count(event.actor.email, 600) > 3",
            "W210",
            "`600` is not a duration",
        ),
        ("common(\"all\").count(event.actor.email, \"1y\") > 3", "W210", "`1y` is not a duration"),
    ] {
        let found = check(body);
        assert!(found.contains(code) && found.contains(told), "{body}: {found}");
    }
    for right in [
        "event.actor.email in params.domains && params.contains(\"other\")",
        "matches(event.actor.email, `^a\\.b$`) && event.actor.email.matches(\"b\")",
        "in_cidr(event.ip, params.domains) && in_cidr(event.ip, \"10.0.0.0/8\")",
        "within(event.time, \"mon-fri 09:00-18:00\", \"Europe/Berlin\")",
        "count(event.actor.email, \"10m\") > 3 && common(\"all\").count(\"key\", \"1h 30m\") > 2",
    ] {
        let found = check(right);
        assert!(!found.contains("W209") && !found.contains("W210"), "{right}: {found}");
    }
}

/// Mistakes in a test file are reported precisely, down to one alert in a list, and such tests do not count as passed.
#[test]
fn what_is_wrong_in_a_test_file_is_named() {
    let lab = Lab::new();
    lab.write("rules/a.rhai", rule("team.a", "", "fn rule(event) { event.action == \"x\" }"));
    for (expected, told) in [
        ("{ alerts: [{ severity: urgent }] }", "unknown variant `urgent`"),
        ("{ alerts: [{ titel: x }] }", "did you mean `title`?"),
        ("{ alerts: yes }", "expected a number of alerts or a list of alerts"),
        ("{ alret: true }", "did you mean `alert`?"),
    ] {
        lab.write("rules/a.test.yaml", format!("- name: one\n  event: {{}}\n  expect: {expected}\n"));
        let tested = lab.watchbell(&["test", "rules"]);
        assert!(tested.code != Some(0) && tested.stderr.contains(told), "{expected}: {}", tested.show());
        assert!(
            tested.stdout.contains("FAIL") && !tested.stderr.contains(" at line "),
            "{expected}: {}",
            tested.show()
        );
    }
}

/// Lints point to the place in the syntax tree, not to the first similar text in the file.
#[test]
fn lints_are_not_misled_by_comments_and_spaces() {
    let lab = Lab::new();
    lab.write(
        "rules/a.rhai",
        "// The RULE below is about logins. Not \"T1562\" any more, nor \"ghost_action\".\n\
         const RULE = #{ id: \"a.b\", title: \"T1562\", severity: \"low\", attack: [\"T1562\"], actions: [\"ghost_action\"] };\n\
         fn rule(event) { true }\nfn title(event) { `x ${event.actor.name}` }\n",
    );
    lab.write(
        "rules/b.rhai",
        "/* const RULE = \"a.c\" */ const RULE = #{ id: \"a.c\", title: \"t\", severity: \"low\", attack:[], actions: [\"x\"] };\n\
         fn rule(event) { true }\n",
    );
    lab.write(
        "rules/c.rhai",
        "// \"a.c\"\nconst RULE = #{ id: \"a.c\", title: \"t\", severity: \"low\" };\nfn rule(event) { true }",
    );
    let done = lab.watchbell(&["check", "rules", "--format", "json"]);
    let report: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    let told = report["diagnostics"].as_array().unwrap().iter().map(|found| {
        let file = found["file"].as_str().unwrap().rsplit('/').next().unwrap();
        format!("{} {file}:{}:{}", found["code"].as_str().unwrap(), found["line"], found["column"])
    });
    let mut told: Vec<String> = told.collect();
    told.sort();
    insta::assert_snapshot!(told.join("\n"), @"
    E210 c.rhai:2:21
    W401 a.rhai:2:7
    W401 b.rhai:1:32
    W402 a.rhai:2:7
    W402 b.rhai:1:32
    W404 a.rhai:2:70
    W405 b.rhai:1:32
    W406 a.rhai:2:90
    W406 b.rhai:1:103
    ");
}
