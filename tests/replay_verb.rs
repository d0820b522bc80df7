use std::process::Command;

use insta::assert_snapshot;
use serde_json::Value;

use crate::support::{Finished, Lab, entry, rule, timeless};

/// A day of sign-ins and one impersonation, and rules: one noisy, one failing, one without matches.
fn lab() -> Lab {
    let lab = Lab::new();
    let mut lines: Vec<String> = (0..48)
        .map(|index| {
            let action = if index % 4 == 0 { "user_login_failed" } else { "user_login" };
            entry(
                &format!("e{index}"),
                action,
                index * 1_800,
                ["ann", "bob", "<b>eve"][usize::try_from(index).unwrap() % 3],
            )
            .to_string()
        })
        .collect();
    lines.push(entry("imp", "user_logged_in_as_user", 40_000, "bob").to_string());
    lab.write("events.jsonl", lines.join("\n"));
    lab.write(
        "rules/logins.rhai",
        rule("team.logins", "dedup_period: \"2h\",", "fn rule(event) { event.action == \"user_login_failed\" }\nfn title(event) { `${event.actor.id} failed to sign in` }\nfn dedup(event) { event.actor.id }"),
    );
    lab.write(
        "rules/imp.rhai",
        rule(
            "team.impersonation",
            "actions: [\"user_logged_in_as_user\"], attack: [\"T1098\", \"TA0003\"],",
            "fn rule(event) { true }",
        ),
    );
    lab.write("rules/never.rhai", rule("team.never", "actions: [\"never\"],", "fn rule(event) { true }"));
    lab
}

fn replay(lab: &Lab, more: &[&str]) -> Finished {
    let mut arguments = vec!["replay", "--rules", "rules", "--events", "events.jsonl"];
    arguments.extend(more);
    lab.watchbell(&arguments)
}

fn git(lab: &Lab, arguments: &[&str]) {
    let done = Command::new("git")
        .args(["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"])
        .args(arguments)
        .current_dir(lab.path("."))
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// Changes all rules but one, and adds one that fails.
fn edit(lab: &Lab) {
    lab.write(
        "rules/logins.rhai",
        rule("team.logins", "dedup_period: \"2h\",", "fn rule(event) { event.action == \"user_login_failed\" && event.actor.id != \"bob\" }\nfn severity(event) { \"high\" }\nfn title(event) { `${event.actor.id} could not sign in` }\nfn dedup(event) { event.actor.id }"),
    );
    std::fs::remove_file(lab.path("rules/imp.rhai")).unwrap();
    lab.write(
        "rules/bad.rhai",
        rule("team.bad", "actions: [\"user_login\"],", "fn rule(event) { event.actor.id == \"ann\" && 1 / 0 == 1 }"),
    );
}

#[test]
fn a_report_says_how_much_when_and_of_what() {
    let lab = lab();
    let found = replay(&lab, &["--show-alerts", "1"]);
    assert_snapshot!(timeless(&found.show()), @"
    exit: 0
    --- stdout
    49 events, 2026-03-01 12:00:00 to 2026-03-02 11:30:00 UTC

     RULE                MATCHES  ALERTS  PER DAY  ERRORS  TIME  WHEN
     team.logins         12       12      12       0  [TIME]  █▁█▁█▁█▁█▁█▁█▁█▁█▁█▁█▁█▁
     team.impersonation  1        1       1.00     0  [TIME]  ▁▁▁▁▁▁▁▁▁▁▁█▁▁▁▁▁▁▁▁▁▁▁▁

    no matches: team.never

    noisiest dedup keys and actors
      team.logins
        keys    <b>eve (4), ann (4), bob (4)
        actors  <b>eve@example.com (4), ann@example.com (4), bob@example.com (4)

    ● MEDIUM    ann failed to sign in
      who       ann@example.com from 203.0.113.9 (Berlin, Germany)
      when      2026-03-01 12:00:00 UTC
      rule      team.logins  alert bcad6a313b  source file

    … and 12 more alerts (`--show-alerts 13` shows all)
    --- stderr
    ");
    let only = replay(&lab, &["--rule", "*.impersonation", "team.never", "--show-alerts", "0"]);
    assert!(only.stdout.contains("team.impersonation") && !only.stdout.contains("team.logins"), "{}", only.stdout);
    let nothing = replay(&lab, &["--rule", "nope"]);
    assert_eq!(
        (nothing.code, nothing.stderr.contains("no rule matches `nope`")),
        (Some(3), true),
        "{}",
        nothing.stderr
    );
    let profile = replay(&lab, &["--profile", "--show-alerts", "0"]);
    let wanted = regex::Regex::new(r"team\.never +0 µs +0% +49").unwrap();
    assert!(wanted.is_match(&profile.stdout), "{}", profile.stdout);
    assert!(regex::Regex::new(r"  rule  .* 12").unwrap().is_match(&profile.stdout), "{}", profile.stdout);
}

#[test]
fn formats_are_for_programs_browsers_and_pull_requests() {
    let lab = lab();
    let json: Value = serde_json::from_str(&replay(&lab, &["--format", "json"]).stdout).unwrap();
    assert_eq!(json["rules"]["team.logins"]["matches"], 12);
    assert_eq!(json["rules"]["team.logins"]["cost"]["avoided"], 37);
    assert_eq!(json["rules"]["team.logins"]["hours"]["2026-03-01T12:00:00Z"], 1);
    let lines = replay(&lab, &["--format", "jsonl"]).stdout;
    assert_eq!(lines.lines().count(), json["alerts"].as_array().unwrap().len());
    assert!(lines.lines().all(|line| serde_json::from_str::<Value>(line).unwrap()["rule"].is_string()));
    assert_snapshot!(timeless(&replay(&lab, &["--format", "markdown", "--show-alerts", "2"]).stdout), @"
    ### watchbell replay

    49 events, 2026-03-01 12:00:00 to 2026-03-02 11:30:00 UTC  

    | rule | matches | alerts | per day | errors | when |
    |---|---:|---:|---:|---:|---|
    | `team.logins` | 12 | 12 | 12 | 0 | █▁█▁█▁█▁█▁█▁█▁█▁█▁█▁█▁█▁ |
    | `team.impersonation` | 1 | 1 | 1.00 | 0 | ▁▁▁▁▁▁▁▁▁▁▁█▁▁▁▁▁▁▁▁▁▁▁▁ |

    No matches: `team.never`.

    <details><summary>Alerts (13)</summary>

    - 2026-03-01 12:00:00 **medium** `team.logins` ann failed to sign in
    - 2026-03-01 14:00:00 **medium** `team.logins` bob failed to sign in
    - … and 11 more

    </details>
    ");
    let junit = replay(&lab, &["--format", "junit", "--fail-on", "alerts>3", "errors>0"]);
    assert_eq!(junit.code, Some(1));
    assert_snapshot!(timeless(&junit.stdout), @r#"
    <?xml version="1.0" encoding="UTF-8"?>
    <testsuites name="watchbell">
      <testsuite name="replay" tests="5" failures="1" errors="0">
        <testcase classname="replay" name="team.impersonation" time="[TIME]"><system-out>1 matches, 1 alerts</system-out></testcase>
        <testcase classname="replay" name="team.logins" time="[TIME]"><system-out>12 matches, 12 alerts</system-out></testcase>
        <testcase classname="replay" name="team.never" time="[TIME]"><system-out>0 matches, 0 alerts</system-out></testcase>
        <testcase classname="fail-on" name="alerts&gt;3"><failure message="alerts&gt;3: 13"></failure></testcase>
        <testcase classname="fail-on" name="errors&gt;0"></testcase>
      </testsuite>
    </testsuites>
    "#);
    let html = replay(&lab, &["--format", "html"]).stdout;
    // The report is static and loads nothing, whatever events contain.
    assert!(html.contains("Content-Security-Policy") && html.contains("default-src 'none'"));
    assert!(html.contains("&lt;b&gt;eve failed to sign in") && !html.contains("<b>"), "{html}");
    assert!(!html.contains("http://") && !html.contains("https://") && !html.contains("<script"));
    assert!(html.matches("<rect").count() > 12, "{html}");
    let refused = lab.watchbell(&["status", "--format", "html"]);
    assert_eq!(refused.code, Some(3));
}

#[test]
fn what_a_change_changes_is_told_against_a_directory_a_revision_and_what_was_saved() {
    let lab = lab();
    for file in ["logins.rhai", "imp.rhai", "never.rhai"] {
        lab.write(&format!("old/{file}"), std::fs::read(lab.path(&format!("rules/{file}"))).unwrap());
    }
    assert_eq!(replay(&lab, &["--save", "before.json"]).code, Some(0));
    let same = replay(&lab, &["--against", "before.json", "--fail-on", "added>0", "gone>0", "changed>0"]);
    assert_eq!(same.code, Some(0), "{}", same.show());
    assert!(same.stdout.contains("no differences from before.json: 3 rules with the same results"), "{}", same.stdout);
    edit(&lab);
    let found = replay(&lab, &["--against", "old", "--show-alerts", "2"]);
    assert_snapshot!(timeless(&found.show()), @"
    exit: 1
    --- stdout
    49 events, 2026-03-01 12:00:00 to 2026-03-02 11:30:00 UTC

     RULE                         MATCHES  ALERTS  ERRORS  ALERTS ADDED, GONE, CHANGED
     team.bad            new      0        0 → 1   0 → 12  +1
     team.impersonation  removed  1 → 0    1 → 0   0       -1
     team.logins         edited   12 → 8   12 → 8  0       -4 ~8

    1 rule with the same results as old

    team.bad: Division by zero: 1 / 0 (line 2, column 47)

    added (1)
      2026-03-01 13:30:00  high      team.bad  Rule `team.bad` throws (12 matches)

    gone (5)
      2026-03-01 14:00:00  medium    team.logins  bob failed to sign in
      2026-03-01 20:00:00  medium    team.logins  bob failed to sign in
      … and 3 more (`--show-alerts 5` shows all)

    changed (8)
      2026-03-01 12:00:00  high      team.logins  ann could not sign in
        title: ann failed to sign in → ann could not sign in
        severity: medium → high
      2026-03-01 16:00:00  high      team.logins  <b>eve could not sign in
        title: <b>eve failed to sign in → <b>eve could not sign in
        severity: medium → high
      … and 6 more (`--show-alerts 8` shows all)

    --- stderr
    error: some rules failed on events: 12 errors
    ");
    let saved = replay(&lab, &["--against", "before.json", "--show-alerts", "2"]);
    assert_eq!(timeless(&saved.show()).replace("before.json", "old"), timeless(&found.show()));
    let markdown = replay(&lab, &["--against", "old", "--format", "markdown", "--show-alerts", "1"]);
    assert_snapshot!(timeless(&markdown.stdout), @r"
    ### watchbell replay

    49 events, 2026-03-01 12:00:00 to 2026-03-02 11:30:00 UTC  

    Compared with `old`: 1 rule with the same results.

    | rule | | matches | alerts | errors | added | gone | changed |
    |---|---|---:|---:|---:|---:|---:|---:|
    | `team.bad` | new | 0 | 0 → 1 | 0 → 12 | 1 | 0 | 0 |
    | `team.impersonation` | removed | 1 → 0 | 1 → 0 | 0 | 0 | 1 | 0 |
    | `team.logins` | edited | 12 → 8 | 12 → 8 | 0 | 0 | 4 | 8 |

    <details><summary>Added (1)</summary>

    - 2026-03-01 13:30:00 **high** `team.bad` Rule \`team.bad\` throws (12 matches)

    </details>

    <details><summary>Gone (5)</summary>

    - 2026-03-01 14:00:00 **medium** `team.logins` bob failed to sign in
    - … and 4 more

    </details>

    <details><summary>Changed (8)</summary>

    - 2026-03-01 12:00:00 **high** `team.logins` ann could not sign in
      - title: ann failed to sign in → ann could not sign in
      - severity: medium → high
    - … and 7 more

    </details>
    ");
    let lines = replay(&lab, &["--against", "old", "--format", "jsonl"]).stdout;
    let changes: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let json: Value = serde_json::from_str(&replay(&lab, &["--against", "old", "--format", "json"]).stdout).unwrap();
    for change in ["added", "gone", "changed"] {
        let of = changes.iter().filter(|line| line["change"] == change).count();
        assert_eq!(json["diff"][change].as_array().unwrap().len(), of);
    }
    let html = replay(&lab, &["--against", "old", "--format", "html"]).stdout;
    assert!(html.contains("Compared with old") && html.contains("<h2>Gone"));
    for (limit, code) in [("gone>0", 1), ("gone>100", 1), ("errors>0", 1), ("added>=0", 1)] {
        // Rule errors always cause failure; the output says which limit was exceeded.
        let limited = replay(&lab, &["--against", "old", "--fail-on", limit]);
        assert_eq!(
            (limited.code, limited.stderr.contains("`--fail-on`")),
            (Some(code), limit != "gone>100"),
            "{limit}"
        );
    }
}

/// Skipped without git: tests must need nothing but Rust.
#[test]
fn a_revision_in_git_is_compared_with_the_working_tree() {
    if Command::new("git").arg("--version").output().is_err() {
        return;
    }
    let lab = lab();
    let refused = replay(&lab, &["--against", "git:HEAD"]);
    assert_eq!((refused.code, refused.stderr.contains("git has no `HEAD`")), (Some(3), true), "{}", refused.stderr);
    git(&lab, &["init", "-q"]);
    git(&lab, &["add", "rules"]);
    git(&lab, &["commit", "-qm", "rules"]);
    edit(&lab);
    let found = replay(&lab, &["--against", "git:HEAD"]);
    let logins = regex::Regex::new(r"team\.logins +edited +12 → 8").unwrap();
    assert!(logins.is_match(&found.stdout), "{}", found.stdout);
    let file =
        lab.watchbell(&["replay", "--rules", "rules/logins.rhai", "--events", "events.jsonl", "--against", "git:HEAD"]);
    assert!(logins.is_match(&file.stdout) && !file.stdout.contains("team.imp"), "{}", file.show());
    // The working tree and its index are unchanged.
    let status = Command::new("git").args(["status", "--short"]).current_dir(lab.path(".")).output().unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    assert_eq!(
        status.lines().filter(|line| line.contains("rules/")).collect::<Vec<_>>(),
        [" D rules/imp.rhai", " M rules/logins.rhai", "?? rules/bad.rhai"]
    );
    assert_eq!(replay(&lab, &["--against", "git:nope"]).code, Some(3));
}

#[test]
fn what_cannot_be_compared_is_told() {
    let lab = lab();
    for (arguments, reason) in [
        (vec!["--against", "live"], "`--against live` needs a configuration"),
        (vec!["--against", "git:"], "is not a revision"),
        (vec!["--against", "nowhere"], "`live`, a directory of rules, `git:REVISION`"),
        (vec!["--against", "events.jsonl"], "was not written by `replay --save`"),
        (vec!["--fail-on", "gone>0"], "`gone>0` needs a comparison"),
        (vec!["--fail-on", "gone"], "such as `added>20`"),
    ] {
        let refused = replay(&lab, &arguments);
        assert_eq!(refused.code, Some(3), "{arguments:?} {}", refused.show());
        assert!(refused.stderr.contains(reason), "{arguments:?} {}", refused.stderr);
        assert_eq!(refused.stdout, "");
    }
    replay(&lab, &["--save", "all.json"]);
    let fewer = replay(&lab, &["--action", "user_login_failed", "--against", "all.json"]);
    assert!(fewer.stdout.contains("different events: all.json has 49, this replay 12"), "{}", fewer.stdout);
}

#[test]
fn coverage_shows_what_nobody_looks_at() {
    let lab = lab();
    lab.write("rules/every.rhai", rule("team.every", "", "fn rule(event) { event.ip == \"192.0.2.1\" }"));
    let ask = |more: &[&str]| {
        let mut arguments = vec!["coverage", "--rules", "rules", "--events", "events.jsonl"];
        arguments.extend(more);
        lab.watchbell(&arguments)
    };
    assert_snapshot!(timeless(&ask(&[]).show()), @"
    exit: 0
    --- stdout
    49 events with 3 actions, 2026-03-01 12:00:00 to 2026-03-02 11:30:00 UTC; rules cover 2 of these actions

     ACTION                  EVENTS  COVERED BY
     user_login_failed       12      team.logins
     user_logged_in_as_user  1       team.impersonation

     ACTION NOT COVERED  EVENTS  LAST
     user_login          36      2026-03-02 11:30:00

    1 rule on every event: team.every

    1 rule without events to run on: team.never

    3 rules without an ATT&CK technique: team.every, team.logins, team.never

     ATT&CK  RULES
     T1098   team.impersonation
     TA0003  team.impersonation
    --- stderr
    ");
    let json: Value = serde_json::from_str(&ask(&["--format", "json"]).stdout).unwrap();
    assert_eq!(json["actions"][0]["action"], "user_login");
    assert_eq!(json["idle"], serde_json::json!(["team.never"]));
    let layer: Value = serde_json::from_str(&ask(&["--navigator"]).stdout).unwrap();
    assert_eq!(
        layer["techniques"],
        serde_json::json!([{ "techniqueID": "T1098", "score": 1, "comment": "team.impersonation" }])
    );
    assert_eq!((&layer["domain"], &layer["versions"]["layer"]), (&"enterprise-attack".into(), &"4.5".into()));
}
