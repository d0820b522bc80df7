use std::sync::Arc;

use insta::assert_snapshot;
use watchbell::{
    detect::{Detector, Settings},
    rule::{Loader, RuleSources, test_file},
};

use crate::support::{Lab, entry, event, events, found, load, rule, rule_set, run};

const GOOD: &str = "const RULE = #{ id: \"good.rule\", title: \"good\", severity: \"low\" };\nfn rule(event) { event.attributes.context[0].id == \"u1\" && event.extra == () && event.actor.name == \"ann\" }";

/// The bad rule's id sorts before the good one's, so it runs first.
#[track_caller]
fn good_rule_lives_beside(functions: &str) -> String {
    let bad = rule("bad.rule", "", functions);
    let report = run(&rule_set(&[&bad, GOOD]), &events(&[entry("1", "x", 0, "ann")]));
    assert!(report.alerts.iter().any(|alert| alert.rule.as_str() == "good.rule"), "{functions}");
    report.rules.values().find_map(|rule| rule.first_error.clone()).unwrap_or_default()
}

#[test]
fn limits_stop_what_never_ends() {
    let errors: Vec<String> = [
        "fn rule(event) { loop {} }",
        "fn rule(event) { while true { let x = 1; } }",
        "fn deeper(n) { deeper(n + 1) } fn rule(event) { deeper(0) }",
        "fn rule(event) { let s = \"x\"; loop { s += s; } }",
        "fn rule(event) { let a = [1]; loop { a.append(a); } }",
        "fn rule(event) { let a = []; a.pad(1000000000, 1); true }",
        "fn rule(event) { let m = #{}; let i = 0; loop { m[i.to_string()] = i; i += 1; } }",
        "fn rule(event) { sleep(3600); true }",
        "fn rule(event) { \"yes\" }",
        "fn rule(event) { }",
        "fn rule(event) { throw #{ code: 5 } }",
        "fn rule(event) { 1 / 0 == 1 }",
        "fn rule(event) { 9223372036854775807 + 1 == 0 }",
    ]
    .into_iter()
    .map(good_rule_lives_beside)
    .collect();
    assert_snapshot!(errors.join("\n"), @r#"
    exceeded the operation budget (infinite loop?)
    exceeded the operation budget (infinite loop?)
    function calls nest too deep (infinite recursion?)
    a string must not exceed 256 KiB
    a list must not exceed 20,000 items
    a list must not exceed 20,000 items
    exceeded the operation budget (infinite loop?)
    `sleep` is disabled: rules cannot wait (line 2, column 18)
    `rule` must return true or false, but returned the string "yes"
    `rule` must return true or false, but returned `()`
    threw {"code":5} (line 2, column 18)
    Division by zero: 1 / 0 (line 2, column 20)
    Addition overflow: 9223372036854775807 + 1 (line 2, column 38)
    "#);
}

/// Address space for a replay of one event, including stacks and code: a rule that uses more ends the process.
const MEMORY_KIB: u64 = 1_500_000;

const LIMITS: [&str; 8] = ["budget", "time limit", "memory", "MiB", "KiB", "items", "levels deep", "comparisons"];

/// Each file of `tests/data/hostile_rules` runs next to a good rule: the good one matches as usual, and the hostile one
/// ends with its own error or harmlessly. Run as a process, so that an abort is detected.
#[test]
fn hostile_rules_hurt_only_themselves() {
    let lab = Lab::new();
    lab.write("events.jsonl", entry("1", "x", 0, "ann").to_string());
    let mut told = Vec::new();
    let mut files: Vec<_> =
        std::fs::read_dir("tests/data/hostile_rules").unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    for file in files {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        lab.write("rules/hostile.rhai", std::fs::read(&file).unwrap());
        lab.write("rules/good.rhai", GOOD);
        let arguments = ["replay", "--rules", "rules", "--events", "events.jsonl", "--format", "json"];
        let done = lab.watchbell_within(MEMORY_KIB, &arguments);
        let report: serde_json::Value =
            serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{name}: {}", done.show()));
        let found = report["alerts"].as_array().unwrap().iter().filter(|alert| alert["rule"] == "good.rule").count();
        assert_eq!(found, 1, "{name}: {}", done.show());
        let error = report["rules"].as_object().unwrap().values().find_map(|rule| rule["first_error"].as_str());
        told.push(match error {
            _ if done.code == Some(2) => format!("{name}: does not load"),
            None => format!("{name}: harmless"),
            // If a rule exceeds several limits, the machine determines which one is hit first.
            Some(error) if LIMITS.iter().any(|limit| error.contains(limit)) => format!("{name}: a limit"),
            Some(error) => format!("{name}: {}", error.split(" (line").next().unwrap()),
        });
    }
    assert_snapshot!(told.join("\n"));
}

#[test]
fn nothing_outside_can_be_reached() {
    let (_, problems) = load(&[
        &rule("a.eval", "", "fn rule(event) { eval(\"1 == 1\") }"),
        &rule("a.passwd", "", "import \"/etc/passwd\" as p;\nfn rule(event) { true }"),
        &rule("a.climb", "", "import \"../../../../etc/passwd\" as p;\nfn rule(event) { true }"),
        &rule("a.undefined", "", "fn rule(event) { env == 1 }"),
        &rule("a.this", "", "fn rule(event) { [event].for_each(|| this = 1); true }"),
    ]);
    assert_snapshot!(problems.join("\n"), @"
    E200 rule0.rhai:2:18 reserved keyword 'eval' is disabled
    E214 rule1.rhai:2:8 cannot find `/etc/passwd.rhai` next to this file or under the rules directories
    E214 rule2.rhai:2:8 cannot find `../../../../etc/passwd.rhai` next to this file or under the rules directories
    E200 rule3.rhai:2:18 `env` is not defined
    E200 rule4.rhai:2:38 `this` is not available
    ");
    // Functions that other hosts offer do not exist here.
    for call in [
        "timestamp()",
        "open_file(\"/etc/passwd\")",
        "env(\"HOME\")",
        "http_get(\"http://127.0.0.1\")",
        "rand()",
        "exit(1)",
    ] {
        let error = good_rule_lives_beside(&format!("fn rule(event) {{ {call} == 1 }}"));
        assert!(error.contains("no function") || error.contains("must return"), "{call}: {error}");
    }
}

/// All ways to modify a value in Rhai. Whether the bad rule fails or modifies its own copy, the next rule sees the
/// original event.
#[test]
fn no_rule_can_change_what_the_next_one_sees() {
    let forms = [
        "event.attributes.action = \"x2\";",
        "event.attributes = #{};",
        "event.extra = 5;",
        "event[\"extra\"] = 5;",
        "event.attributes.extra = 5; event.extra = event.attributes.extra;",
        "event.attributes.context[0].id = \"other\";",
        "event.attributes.context[0][\"id\"] = \"other\";",
        "event.attributes.context.push(1);",
        "event.attributes.context.clear();",
        "event.attributes.context.remove(0);",
        "event.attributes.context += [1];",
        "event.attributes.context[0].attributes.remove(\"name\");",
        "event.remove(\"attributes\");",
        "event.clear();",
        "event.mixin(#{ extra: 1 });",
        "event += #{ extra: 1 };",
        "event.fill_with(#{ extra: 1 });",
        "let copy = event; copy.extra = 1; copy.attributes.context.clear();",
        "let a = event.attributes; a.context.clear(); a.actor.name = \"eve\";",
        "for entry in event.attributes.context { entry.id = \"other\"; }",
        "let f = |e| { e.extra = 1; }; f.call(event);",
        "event.attributes.context.map(|entry| { entry.id = \"other\"; entry });",
        "event.attributes.context.retain(|entry| false);",
        "event.attributes.context.drain(|entry| true);",
        "event.attributes.context.sort();",
        "event.attributes.actor.name.make_upper();",
        "event.attributes.actor.name.append(\"x\");",
        "event.attributes.actor.name += \"x\";",
        "event.attributes.actor.name[0] = 'z';",
        "event.actor.name = \"eve\";",
        "let list = [event]; list[0].extra = 1; list[0].attributes.context.clear();",
        "let map = #{ e: event }; map.e.extra = 1; map.e.attributes.context.clear();",
        "change(event);",
        "event.change();",
        "swap(event.attributes.context, []);",
    ];
    for form in forms {
        good_rule_lives_beside(&format!("fn change(e) {{ e.extra = 1; }}\nfn rule(event) {{ {form} false }}"));
        // Nor does any other function, nor the rule's own next call.
        let bad = rule(
            "bad.title",
            "",
            &format!(
                "fn change(e) {{ e.extra = 1; }}\nfn rule(event) {{ event.extra == () && event.attributes.context[0].id == \"u1\" }}\nfn title(event) {{ {form} \"t\" }}\nfn context(event) {{ #{{ extra: event.extra }} }}"
            ),
        );
        let report = run(&rule_set(&[&bad, GOOD]), &events(&[entry("1", "x", 0, "ann"), entry("2", "x", 1, "ann")]));
        assert_eq!(report.rules.values().map(|rule| rule.matches).sum::<u64>(), 4, "{form}");
        assert!(
            report.alerts.iter().all(|alert| alert.context.get("extra").is_none_or(serde_json::Value::is_null)),
            "{form}"
        );
    }
}

#[test]
fn a_rule_that_exceeds_its_limits_three_times_in_a_row_is_suspended_until_its_file_changes() {
    let looping = rule("a.loop", "", "fn rule(event) { if event.action == \"slow\" { loop {} } true }");
    let rules = rule_set(&[&looping]);
    let mut detector = Detector::new(Arc::clone(&rules), Settings::default());
    let mut run = |id: &str, action: &str| {
        let outcome = detector.evaluate(&event(1, &entry(id, action, 0, "ann")));
        (outcome.rules_run, outcome.matches.len(), outcome.failures.len())
    };
    assert_eq!([run("1", "slow"), run("2", "slow")], [(1, 0, 1), (1, 0, 1)]);
    // One success in between: the count starts again.
    assert_eq!(run("3", "fine"), (1, 1, 0));
    assert_eq!([run("4", "slow"), run("5", "slow"), run("6", "slow")], [(1, 0, 1); 3]);
    assert_eq!(run("7", "fine"), (0, 0, 0));
    // The file changes, and the rule runs again.
    detector.set_rules(rule_set(&[&looping.replace("medium", "high")]));
    assert_eq!(detector.evaluate(&event(8, &entry("8", "fine", 0, "ann"))).matches.len(), 1);
}

#[test]
fn files_that_are_no_rules_are_told_with_their_place() {
    let (set, problems) = load(&[
        "const RULE = #{ id: \"a.ok\", title: \"t\", severity: \"low\" };\nfn rule(event) { true }",
        "const RULE = #{ id: \"a.two\", title: \"t\", sevrity: \"low\" };\nfn rule(event) { true }",
        "const RULE = #{ id: 5, title: \"\", severity: \"hihg\", actions: [\"a b\"], threshold: 0, dedup_period: \"soon\", tags: \"x\" };\nfn rule(event) { true }",
        "const RULE = #{ id: \"a.four\", title: \"t\", severity: \"low\" };\nfn rul(event) { true }",
        "const RULE = #{ id: \"a.five\", title: \"t\", severity: \"low\" };\nfn rule(event, more) { true }",
        "const RULE = #{ id: \"a.six\", title: \"t\", severity: \"low\" };\nfn rule(event) { event.a == }",
        "const RULE = #{ id: \"a.ok\", title: \"t\", severity: \"low\" };\nfn rule(event) { true }",
        "const RULE = 7;\nfn rule(event) { true }",
        "const RULE = #{ id: \"a.nine\", title: \"t\", severity: \"low\" };\nfn rule(event) { true }\nfn Title(event) { \"t\" }",
        "const RULE = #{ id: \"a.ten\", title: \"t\", severity: \"low\" };\nloop {}\nfn rule(event) { true }",
        "fn helper(x) { x + }",
        "const RULES = #{ id: \"a.eleven\", title: \"t\", severity: \"low\" };\nfn rule(event) { true }",
        "garbage",
        "const RULE = #{ id: \"a.thirteen\", title: \"t\", severity: \"low\" };\nfn rule(event) { true }\nfn titel(event) { \"t\" }",
    ]);
    let ids: Vec<&str> = set.detections.iter().map(|rule| rule.id().as_str()).collect();
    assert_eq!(ids, ["a.nine", "a.ok", "a.thirteen"]);
    assert_snapshot!(problems.join("\n"), @r#"
    E201 rule1.rhai:1:42 unknown key `sevrity` in `RULE`
    E204 rule1.rhai:1:7 missing key `severity` in `RULE`
    E200 rule10.rhai:1:20 unexpected '}'
    E211 rule11.rhai:2:4 the file has `fn rule` but no `const RULE`
    W202 rule12.rhai:0:0 the file is not a rule and has nothing to import
    W201 rule13.rhai:3:4 `fn titel` is never called
    E202 rule2.rhai:1:21 `id` must be a string, found the number 5
    E203 rule2.rhai:1:31 `title` must not be empty
    E203 rule2.rhai:1:45 `hihg` is not a severity: write `info`, `low`, `medium`, `high` or `critical`
    E203 rule2.rhai:1:99 `dedup_period`: `soon` is not a duration: write a number and a unit, such as `30s`, `5m`, `1h30m` or `7d`
    E203 rule2.rhai:1:62 `a b` is not an action ID
    E202 rule2.rhai:1:113 `tags` must be a list of strings, found the string "x"
    E202 rule2.rhai:1:82 `threshold` must be a whole number from 1 to 10000, found the number 0
    W201 rule3.rhai:2:4 `fn rul` is never called
    E206 rule3.rhai:1:7 the file has `RULE` but no `fn rule(event)`
    E207 rule4.rhai:2:4 `fn rule` must have 1 parameter, found 2
    E200 rule5.rhai:2:29 unexpected '}'
    E210 rule6.rhai:1:21 rule ID `a.ok` is already used by `[DIR]/rule0.rhai`
    E205 rule7.rhai:1:7 `RULE` must be a map
    W201 rule8.rhai:3:4 `fn Title` is never called
    E213 rule9.rhai:2:6 the file's top level failed: exceeded the operation budget (infinite loop?) (line 2, column 6)
    "#);
}

#[test]
fn binary_and_oversized_files_are_told() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("binary.rhai"), [0x7f, b'E', b'L', b'F', 0xff, 0xfe]).unwrap();
    std::fs::write(directory.path().join("large.rhai"), vec![b' '; 2 << 20]).unwrap();
    std::fs::write(directory.path().join("notes.txt"), "not a rule").unwrap();
    // Opening a pipe would block until something writes to it.
    let pipe = directory.path().join("pipe.rhai");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let loaded = Loader::of(vec![directory.path().to_owned()]).without_builtin().load();
    let messages: Vec<&str> = loaded.diagnostics.iter().map(|found| found.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "the file is not valid UTF-8 (at byte 4)",
            "the file is larger than 64 KiB, the limit for a rule file",
            "not a regular file"
        ]
    );
    assert_eq!(loaded.set.context.broken.len(), 3);
}

#[test]
fn constants_helpers_and_imports_work_inside_functions() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("lib/names.rhai", "const ADMINS = [\"ann\", \"bob\"];\nfn is_admin(name) { name in ADMINS }");
    write(
        "admin/rule.rhai",
        "import \"lib/names\" as names;\nconst LIMIT = 2;\nconst RULE = #{ id: \"a.imports\", title: \"t\", severity: \"low\", params: #{ extra: 1 } };\nfn small(n) { n < LIMIT + params.extra }\nfn rule(event) { names::is_admin(event.actor.id) && small(2) }",
    );
    let mut loader = Loader::of(vec![directory.path().to_owned()]).without_builtin();
    let loaded = loader.load();
    assert!(loaded.diagnostics.is_empty(), "{:#?}", loaded.diagnostics);
    let (ann, eve) = (event(1, &entry("1", "x", 0, "ann")), event(2, &entry("2", "x", 9_999, "eve")));
    assert_eq!(run(&loaded.set, &[ann.clone(), eve.clone()]).alerts.len(), 1);
    let hash = loaded.set.detections[0].hash.clone();

    // The imported file changes, and with it the rule; the old set continues unchanged.
    write("lib/names.rhai", "fn is_admin(name) { name == \"eve\" }");
    let again = loader.load();
    assert!(again.changed);
    assert_ne!(again.set.detections[0].hash, hash);
    let found = run(&again.set, &[ann.clone(), eve.clone()]);
    assert_eq!(found.alerts[0].first_events[0].as_str(), "2");
    assert_eq!(run(&loaded.set, &[ann, eve]).alerts[0].first_events[0].as_str(), "1");

    // It breaks, and the last good version runs.
    write("lib/names.rhai", "fn is_admin(name) {");
    let broken = loader.load();
    assert_eq!(broken.set.detections.len(), 1);
    assert!(broken.set.context.broken.iter().any(|file| file.last_good_runs));
    assert!(!loader.load().changed);
}

#[test]
fn print_and_debug_do_not_disturb() {
    let text = rule("a.print", "", "fn rule(event) { print(event.action); debug(event); true }");
    assert_eq!(found(&text, &[entry("1", "x", 0, "ann")]).len(), 1);
}

/// The rules directory disappears, as during a checkout: the rules keep running, and the problem is reported.
#[test]
fn a_rules_directory_that_vanishes_takes_no_rules_along() {
    let directory = tempfile::tempdir().unwrap();
    let rules = directory.path().join("rules");
    std::fs::create_dir(&rules).unwrap();
    std::fs::write(rules.join("a.rhai"), rule("a.stays", "", "fn rule(event) { true }")).unwrap();
    let mut loader = Loader::of(vec![rules.clone()]).without_builtin();
    assert_eq!(loader.load().set.detections.len(), 1);
    std::fs::rename(&rules, directory.path().join("away")).unwrap();
    let gone = loader.load().set;
    assert_eq!((gone.detections.len(), gone.context.broken.len()), (1, 2));
    assert!(gone.context.broken.iter().any(|file| file.last_good_runs));
    std::fs::rename(directory.path().join("away"), &rules).unwrap();
    let back = loader.load().set;
    assert_eq!((back.detections.len(), back.context.broken.len()), (1, 0));
    // A file deleted from an existing directory is deleted on purpose.
    std::fs::remove_file(rules.join("a.rhai")).unwrap();
    assert!(loader.load().set.detections.is_empty());
}

/// A link in a directory that several users can write to must not leak a secret of this machine into a message.
#[test]
fn a_link_out_of_the_rules_directories_is_refused() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    for name in ["rules/lists", "rules/shared", "elsewhere"] {
        std::fs::create_dir_all(path(name)).unwrap();
    }
    let secret = "ATATT-very-secret";
    std::fs::write(path("elsewhere/key"), secret).unwrap();
    std::fs::set_permissions(path("elsewhere/key"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(path("elsewhere/rule.rhai"), rule("else.where", "", "fn rule(event) { true }")).unwrap();
    std::fs::write(path("rules/shared/in.rhai"), rule("in.side", "", "fn rule(event) { true }")).unwrap();
    symlink(path("elsewhere/key"), path("rules/key.rhai")).unwrap();
    symlink(path("elsewhere/key"), path("rules/lists/keys.txt")).unwrap();
    symlink(path("elsewhere/key"), path("rules/exceptions.toml")).unwrap();
    symlink(path("elsewhere"), path("rules/more")).unwrap();
    let load = |follow_links| {
        let sources = RuleSources { roots: vec![path("rules")], follow_links, ..RuleSources::default() };
        let loaded = Loader::new(sources).without_builtin().load();
        let told = format!("{:?}", loaded.diagnostics);
        assert!(!told.contains(secret), "{told}");
        let ids: Vec<String> = loaded.set.detections.iter().map(|rule| rule.id().to_string()).collect();
        let refused = loaded.diagnostics.iter().filter(|found| found.message.contains("is a link")).count();
        (ids.join(" "), refused)
    };
    assert_eq!(load(false), ("in.side".to_owned(), 4));
    // Files that only their owner can read are never read through a link.
    assert_eq!(load(true), ("else.where in.side".to_owned(), 3));

    // A rules directory may itself be a link; links within it may point anywhere in it.
    symlink(path("rules/shared"), path("linked")).unwrap();
    symlink("in.rhai", path("rules/shared/again.rhai")).unwrap();
    let loaded = Loader::of(vec![path("linked")]).without_builtin().load();
    assert_eq!(loaded.set.detections.len(), 1);
    assert!(loaded.diagnostics.iter().all(|found| found.code == "E210"), "{:?}", loaded.diagnostics);

    // Nor are they read through a test, or through the events file that a test names.
    symlink(path("elsewhere/key"), path("rules/shared/in.test.yaml")).unwrap();
    let found = test_file::text_of(&path("rules/shared/in.test.yaml")).unwrap_err();
    assert!(found[0].message.contains("is a link"), "{found:?}");
    let text = "- name: a\n  events: ../../elsewhere/key\n  expect: { alert: true }\n";
    let (cases, found) = test_file::read(&path("rules/shared/x.test.yaml"), text, &|_| Ok(Vec::new()));
    assert!(cases.is_empty() && found[0].message.contains("out of the rules directories"), "{found:?}");
}

/// Rhai indexes everything that a module imports, once per `import`: files that import each other twice would double
/// the work at each level.
#[test]
fn imports_that_multiply_are_refused() {
    let lab = Lab::new();
    lab.write("events.jsonl", entry("1", "x", 0, "ann").to_string());
    lab.write("rules/good.rhai", GOOD);
    for level in 0..41 {
        let next = level + 1;
        let text = format!("import \"d{next}\" as n;\nimport \"d{next}\" as m;\nfn f() {{ n::f() && m::f() }}");
        lab.write(&format!("rules/d{level}.rhai"), text);
        lab.write(&format!("rules/chain{level}.rhai"), format!("import \"chain{next}\" as n;\nfn f() {{ n::f() }}"));
    }
    lab.write("rules/d20.rhai", "fn f() { true }");
    lab.write("rules/chain41.rhai", "fn f() { true }");
    let many: String = (0..450).map(|number| format!("fn f{number}() {{}}\n")).collect();
    lab.write("rules/many.rhai", many);
    let wide: String = (0..16).map(|number| format!("import \"many\" as m{number};\n")).collect();
    lab.write("rules/wide.rhai", format!("{wide} fn f() {{ true }}"));
    let lists: String = (0..50).map(|number| format!("export const A{number} = made();\n")).collect();
    lab.write("rules/e0.rhai", format!("fn made() {{ let a = []; a.pad(1000, 1); a }}\n{lists}fn f() {{ true }}"));
    for level in 1..13 {
        let under = level - 1;
        let text = format!("import \"e{under}\" as n;\nimport \"e{under}\" as m;\nfn f() {{ n::f() && m::f() }}");
        lab.write(&format!("rules/e{level}.rhai"), text);
    }
    lab.write("rules/wider.rhai", "import \"wide\" as a;\nimport \"wide\" as b;\nfn f() { true }");
    for (name, wanted) in [
        ("d0", "this file and its imports have more than 10000 functions and exported values"),
        ("chain0", "is imported through a chain of more than 32 files"),
        ("e12", "have more than 10000 functions and exported values"),
        ("wider", "have more than 10000 functions and exported values"),
    ] {
        let text = rule("bad.rule", "", "fn rule(event) { lib::f() }");
        lab.write("rules/bad.rhai", format!("import \"{name}\" as lib;\n{text}"));
        let done = lab.watchbell_within(MEMORY_KIB, &["replay", "--rules", "rules", "--events", "events.jsonl"]);
        assert!(done.stdout.contains("good.rule") && done.stderr.contains(wanted), "{name}: {}", done.show());
    }
}

/// File names may be chosen by an attacker, and are shown.
#[test]
fn names_of_files_are_shown_escaped() {
    let lab = Lab::new();
    lab.write("rules/b\u{202e}\nok       all rules are fine.rhai", "const RULE = #{ };\nfn rule(event) { true }");
    for format in ["human", "json", "sarif", "github"] {
        let done = lab.watchbell(&["check", "rules", "--format", format]);
        let said = format!("{}{}", done.stdout, done.stderr);
        assert!(said.contains("202e") && !said.contains('\u{202e}'), "{format}: {said}");
        assert!(!said.lines().any(|line| line.starts_with("ok ")), "{format}: {said}");
    }
}

#[test]
fn directories_that_nest_too_deep_are_told() {
    let lab = Lab::new();
    lab.write(&format!("rules/{}bad.rhai", "d/".repeat(17)), GOOD);
    lab.write(&format!("rules/{}good.rhai", "e/".repeat(16)), GOOD);
    let done = lab.watchbell(&["check", "rules"]);
    assert!(done.stderr.contains("directories nest more than 16 levels deep"), "{}", done.show());
    assert!(done.stdout.contains("1 rule"), "{}", done.show());
}

/// A rule file may declare `RULE` on any line.
#[test]
fn a_rule_on_one_line_is_a_rule() {
    let (set, problems) = load(&[
        "const A = 1; const RULE = #{ id: \"a.b\", title: \"t\", severity: \"low\" }; fn rule(event) { A == 1 }",
        "/* a library\nconst RULE = */ fn f() { 1 }",
    ]);
    assert_eq!((set.detections.len(), problems), (1, Vec::new()));
}

/// Rhai copies a constant to each place that uses it.
#[test]
fn copies_of_constants_are_bounded() {
    let lab = Lab::new();
    lab.write("events.jsonl", entry("1", "x", 0, "ann").to_string());
    lab.write("rules/good.rhai", GOOD);
    let large = "fn made() { let a = []; a.pad(20000, 1); a }\nconst L = made();\n";
    let often = "L;".repeat(25_000);
    let own = rule("bad.rule", "", &format!("{large}fn rule(event) {{ {often} true }}"));
    lab.write("rules/lib.rhai", format!("{large}fn f() {{ {often} true }}"));
    let imported = format!("import \"lib\" as lib;\n{}", rule("bad.rule", "", "fn rule(event) { lib::f() }"));
    for text in [own, imported] {
        lab.write("rules/bad.rhai", text);
        let done = lab.watchbell_within(MEMORY_KIB, &["replay", "--rules", "rules", "--events", "events.jsonl"]);
        assert!(done.stdout.contains("good.rule"), "{}", done.show());
        assert!(done.stderr.contains("the file's constants are too large"), "{}", done.show());
    }
}

/// The repository's own rules include the built-in ones, which always run.
#[test]
fn a_copy_of_a_built_in_rule_is_that_rule() {
    let directory = tempfile::tempdir().unwrap();
    let load = |change: &str| {
        for file in watchbell::rule::BUILTIN {
            let path = directory.path().join(file.path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{change}{}", file.text)).unwrap();
        }
        Loader::new(RuleSources { roots: vec![directory.path().to_owned()], ..RuleSources::default() }).load()
    };
    let loaded = load("");
    assert_eq!((loaded.diagnostics.len(), loaded.set.context.broken.len()), (0, 0), "{:#?}", loaded.diagnostics);
    assert_eq!(loaded.set.checks.len(), watchbell::rule::BUILTIN.len());
    let loaded = load("// Changed.\n");
    let told: Vec<String> = loaded.diagnostics.iter().map(|found| found.message.clone()).collect();
    assert_snapshot!(told.join("\n"), @"rule ID `builtin.clock_wrong` is already used by a built-in rule, and 12 other files use IDs of built-in rules");
    assert_eq!(loaded.set.context.broken.len(), 1, "one alert");
    assert_eq!(loaded.set.checks.len(), watchbell::rule::BUILTIN.len());
}

/// Rhai evaluates constants of constants when it parses, before any limit applies: also in imported files, and with
/// values of their top level.
#[test]
fn constants_made_of_each_other_are_bounded() {
    let lab = Lab::new();
    lab.write("events.jsonl", entry("1", "x", 0, "ann").to_string());
    lab.write("rules/good.rhai", GOOD);
    let levels = |first: &str| {
        let mut text = first.to_owned();
        for level in 1..9 {
            let of = format!("A{},", level - 1).repeat(10);
            text.push_str(&format!("const A{level} = [{of}];\n"));
        }
        text
    };
    let made = "fn made() { let a = []; a.pad(5000, 1); a }\nconst A0 = made();\n";
    let library = |text: &str| {
        lab.write("rules/lib.rhai", text);
        format!("import \"lib\" as lib;\n{}", rule("bad.rule", "", "fn rule(event) { lib::f() }"))
    };
    for text in [
        library(&format!("{}fn f() {{ A8 == 1 }}", levels("const A0 = [0];\n"))),
        library(&format!("fn f() {{ {} A8 == 1 }}", levels("const A0 = [0];\n"))),
        library(&format!("{made}fn f() {{ {} A8 == 1 }}", levels(""))),
        rule(
            "bad.rule",
            "",
            &format!("fn rule(event) {{ const L = [{}]; {} true }}", "0,".repeat(15_000), "L;".repeat(6_000)),
        ),
        rule(
            "bad.rule",
            &format!("params: #{{ a: [{}] }},", "0,".repeat(10_000)),
            &format!("fn rule(event) {{ {} true }}", "params;".repeat(6_000)),
        ),
        rule("bad.rule", "", &format!("{made}fn rule(event) {{ {} A8 == 1 }}", levels(""))),
    ] {
        lab.write("rules/bad.rhai", text);
        let done = lab.watchbell_within(MEMORY_KIB, &["replay", "--rules", "rules", "--events", "events.jsonl"]);
        assert!(done.stdout.contains("good.rule"), "{}", done.show());
        assert!(done.stderr.contains("the file's constants are too large"), "{}", done.show());
    }
}

/// Rules that subscribe to each other in layers form no cycle, but the number of paths doubles at each layer.
#[test]
fn rules_that_listen_crosswise_are_stopped() {
    let mut rules = vec![rule("z.first", "tags: [\"l0\"],", "fn rule(event) { true }"), GOOD.to_owned()];
    for layer in 1..24 {
        for side in ["a", "b"] {
            let more = format!("on: [\"tag:l{}\"], tags: [\"l{layer}\"],", layer - 1);
            rules.push(rule(&format!("{side}.layer{layer}"), &more, "fn rule(event) { true }"));
        }
    }
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    let report = run(&rule_set(&rules), &events(&[entry("1", "x", 0, "ann")]));
    assert!(report.alerts.iter().any(|alert| alert.rule.as_str() == "good.rule"));
    let errors: Vec<&String> = report.rules.values().filter_map(|rule| rule.first_error.as_ref()).collect();
    assert!(errors.len() == 1 && errors[0].contains("subscribe to each other"), "{errors:?}");
}

/// Each row of a list has the names of its columns.
#[test]
fn a_list_that_would_multiply_is_refused() {
    let lab = Lab::new();
    lab.write("events.jsonl", entry("1", "x", 0, "ann").to_string());
    lab.write("rules/good.rhai", GOOD);
    let (one, other) = ("a".repeat(200_000), "b".repeat(200_000));
    lab.write("rules/lists/wide.csv", format!("{one},{other}\n{}", "k,v\n".repeat(60_000)));
    let done = lab.watchbell_within(MEMORY_KIB, &["replay", "--rules", "rules", "--events", "events.jsonl"]);
    assert!(done.stdout.contains("good.rule") && done.stderr.contains("too many values"), "{}", done.show());
}

/// An empty directory, as when a mount is missing, is not an all-clear.
#[test]
fn losing_all_rules_is_told() {
    let lab = Lab::with_organization(crate::support::organization(&[entry("1", "x", 0, "ann")]), "");
    lab.write("rules/good.rhai", GOOD);
    let told = |reader: &watchbell::store::Reader| {
        let alerts = reader.alerts(watchbell::store::AlertFilter::default()).map(Result::unwrap);
        let mut titles = alerts.filter(|alert| alert.rule.as_str() == "builtin.rule_broken").map(|alert| alert.title);
        titles.any(|title| title == "No detection rule is running")
    };
    let removed = std::cell::Cell::new(false);
    lab.run_agent_until(|reader| {
        if crate::support::evaluated(reader, 1) && !removed.replace(true) {
            std::fs::remove_file(lab.path("rules/good.rhai")).unwrap();
        }
        told(reader)
    });
}
