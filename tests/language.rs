use std::{fs, sync::Arc};

use proptest::prelude::*;
use serde_json::{Value, json};
use watchbell::rule::{self, Loader, RuleSet, TOPICS};

use crate::support::{Lab, entry, event, run};

/// A rules directory with the lists of the examples, and one rule with this body.
fn with_lists(body: &str) -> (tempfile::TempDir, Arc<RuleSet>) {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("lists")).unwrap();
    for (name, text) in rule::EXAMPLE_LISTS {
        fs::write(directory.path().join("lists").join(name), text).unwrap();
    }
    let rule = crate::support::rule(
        "a.example",
        "",
        &format!("fn rule(event) {{ {body} }}\nfn expired(key, event) {{ true }}"),
    );
    fs::write(directory.path().join("rule.rhai"), rule).unwrap();
    let loaded = Loader::of(vec![directory.path().to_owned()]).without_builtin().load();
    assert!(loaded.diagnostics.is_empty(), "{body}: {:#?}", loaded.diagnostics);
    (directory, loaded.set)
}

/// True if the expression matches the event; an error if it fails.
fn is_true(body: &str, raw: &Value) -> Result<bool, String> {
    let (_directory, set) = with_lists(body);
    let report = run(&set, &[event(1, raw)]);
    let found = &report.rules.values().next().unwrap();
    match &found.first_error {
        Some(error) => Err(error.clone()),
        None => Ok(found.matches == 1),
    }
}

#[test]
fn every_example_gives_what_it_says() {
    let given: Value = serde_json::from_str(rule::EXAMPLE_EVENT).unwrap();
    for function in TOPICS.iter().flat_map(|subject| subject.functions) {
        assert!(!function.examples.is_empty(), "{} has an example", function.name);
        for (call, value) in function.examples {
            assert_eq!(is_true(&format!("{call} == {value}"), &given), Ok(true), "{call} == {value}");
        }
    }
}

/// Mistakes by the author are errors that say what is right; absent data never is an error.
#[test]
fn mistakes_of_the_author_are_told() {
    let given = entry("1", "x", 0, "ann");
    let errors: Vec<String> = [
        "glob(event.action, \"[\")",
        "matches(event.action, \"(\")",
        "matches(event.action, \"(a{1000}){1000}\")",
        "in_cidr(event.ip, \"10.0.0.0/99\")",
        "hour(event.time, \"Europe/Berln\") == 1",
        "within(event.time, \"9-17\")",
        "list(\"ad\" + \"min\").contains(event.actor.email)",
        "in_cidr(event.ip, list(\"admins\"))",
        "same(event.action, 5)",
        "duration(\"soon\") > 1",
        "event.get(5) == ()",
    ]
    .iter()
    .map(|body| is_true(body, &given).unwrap_err())
    .collect();
    insta::assert_snapshot!(errors.join("\n"), @r#"
    glob: invalid pattern `[`: unclosed character class; missing ']' (line 2, column 18)
    matches: invalid regular expression: unclosed group (line 2, column 18)
    matches: the regular expression is too large when compiled (line 2, column 18)
    in_cidr: invalid network `10.0.0.0/99`: expected CIDR notation, such as `10.0.0.0/8` (line 2, column 18)
    hour: unknown time zone `Europe/Berln`: expected a name such as `Europe/Berlin` or `UTC` (line 2, column 18)
    within: invalid span `9-17`: expected `09:00-18:00` or `mon-fri 09:00-18:00` (line 2, column 18)
    list: no list `admin`: did you mean `admins`? (line 2, column 18)
    in_cidr: invalid network `dana.wilson@example.com`: expected CIDR notation, such as `10.0.0.0/8` (line 2, column 18)
    same: `other` must be a string, a list of strings, or `list("…")`, found the number 5 (line 2, column 18)
    duration: `soon` is not a duration: write a number and a unit, such as `30s`, `5m`, `1h30m` or `7d` (line 2, column 18)
    get: the path must be a string, found the number 5 (line 2, column 24)
    "#);
}

#[test]
fn lists_are_compared_as_is_said() {
    let given = entry("1", "x", 0, "ann");
    for (body, expected) in [
        ("list(\"admins\").contains(\"DANA.wilson@example.com\")", false),
        ("same(\"DANA.wilson@example.com\", list(\"admins\"))", true),
        ("\"dana.wilson@example.com\" in list(\"admins\")", true),
        ("list(\"admins\").len() == 2 && list(\"admins\").len == 2 && !list(\"admins\").is_empty", true),
        ("let n = 0; for entry in list(\"admins\") { if glob(entry, \"*@example.com\") { n += 1; } } n == 2", true),
        ("in_cidr(\"::ffff:198.51.100.9\", list(\"offices\"))", true),
        ("lookup(\"offices\", \"198.51.100.0/24\") == #{ network: \"198.51.100.0/24\", city: \"Porto\" }", true),
        ("event.nothing in list(\"admins\") || 5 in list(\"admins\")", false),
        ("type_of(list(\"admins\")) == \"named list\" && list(\"admins\").values().len() == 2", true),
    ] {
        assert_eq!(is_true(body, &given), Ok(expected), "{body}");
    }
}

#[test]
fn a_list_that_is_saved_is_read_again_and_a_broken_one_keeps_its_last_good_version() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write(
        "r.rhai",
        &crate::support::rule("a.list", "", "fn rule(event) { lookup(\"people\", event.actor.name) != () }"),
    );
    write("lists/people.json", "{ \"ann\": { \"team\": \"red\" } }");
    let mut loader = Loader::of(vec![directory.path().to_owned()]).without_builtin();
    let events = [event(1, &entry("1", "x", 0, "ann")), event(2, &entry("2", "x", 1, "bob"))];
    let first = run(&loader.load().set, &events);
    assert_eq!((first.alerts.len(), first.alerts[0].count), (1, 1));
    let version = first.alerts[0].lists["people"].clone();
    write("lists/people.json", "{ \"ann\": {}, \"bob\": 5 }");
    let second = run(&loader.load().set, &events);
    assert_eq!(second.alerts[0].count, 2);
    assert_ne!(second.alerts[0].lists["people"], version);
    write("lists/people.json", "{ \"ann\": ");
    let loaded = loader.load();
    assert!(loaded.diagnostics[0].message.contains("cannot read the list"), "{:?}", loaded.diagnostics);
    assert!(loaded.set.context.broken[0].last_good_runs);
    assert_eq!(run(&loaded.set, &events).alerts[0].count, 2);
}

#[test]
fn addresses_are_looked_up_where_there_is_a_database() {
    let (city, asn) = (mmdb::city(), mmdb::asn());
    let lab = Lab::new();
    lab.write("city.mmdb", city);
    lab.write("asn.mmdb", asn);
    lab.write("watchbell.toml", "[rules]\ngeoip = [\"city.mmdb\", \"asn.mmdb\"]\n");
    let body = "let at = geo_ip(event.ip); at.country == \"DE\" && at.country_name == \"Germany\" && at.asn == 64500 && at.organization == \"Example Net\" \
                && geo_ip(\"192.0.2.1\") == ()";
    lab.write("rules/r.rhai", crate::support::rule("a.geo", "", &format!("fn rule(event) {{ {body} }}")));
    let sources = lab.config().rules;
    let loaded = Loader::new(sources).without_builtin().load();
    assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics);
    let report = run(&loaded.set, &[event(1, &entry("1", "x", 0, "ann"))]);
    assert_eq!(report.rules.values().next().unwrap().first_error, None);
    assert_eq!(report.alerts.len(), 1);
    // Without a database, the address counts as unknown; the same with a broken one, which is reported.
    lab.write("city.mmdb", "no database");
    let loaded = Loader::new(lab.config().rules).without_builtin().load();
    assert_eq!(loaded.diagnostics[0].code, "E005");
    assert_eq!(run(&loaded.set, &[event(1, &entry("1", "x", 0, "ann"))]).alerts.len(), 0);
}

/// Databases in MaxMind's format with one network, 203.0.113.0/24.
mod mmdb {
    /// A map in the format's encoding: a control byte with type and size, then the entries.
    fn text(text: &str) -> Vec<u8> {
        let size = match text.len() {
            short @ ..29 => vec![2 << 5 | short as u8],
            long => vec![2 << 5 | 29, (long - 29) as u8],
        };
        [size, text.as_bytes().to_vec()].concat()
    }

    fn map(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = vec![7 << 5 | entries.len() as u8];
        for (key, value) in entries {
            bytes.extend(text(key));
            bytes.extend(value);
        }
        bytes
    }

    fn number(kind: u8, value: u32) -> Vec<u8> {
        [vec![kind << 5 | 4], value.to_be_bytes().to_vec()].concat()
    }

    fn number16(value: u16) -> Vec<u8> {
        [vec![5 << 5 | 2], value.to_be_bytes().to_vec()].concat()
    }

    fn database(record: &[u8]) -> Vec<u8> {
        let network = [203_u8, 0, 113];
        let nodes = 24_u32;
        let mut tree = Vec::new();
        let put = |tree: &mut Vec<u8>, value: u32| tree.extend(&value.to_be_bytes()[1..]);
        for bit in 0..nodes {
            let one = network[bit as usize / 8] >> (7 - bit % 8) & 1 == 1;
            let next = if bit + 1 == nodes { nodes + 16 } else { bit + 1 };
            let (left, right) = if one { (nodes, next) } else { (next, nodes) };
            put(&mut tree, left);
            put(&mut tree, right);
        }
        let empty = vec![7 << 5];
        let metadata = map(&[
            ("binary_format_major_version", number16(2)),
            ("binary_format_minor_version", number16(0)),
            ("build_epoch", vec![1, 2, 1]),
            ("database_type", text("Test")),
            ("description", empty),
            ("ip_version", number16(4)),
            ("languages", vec![0, 4]),
            ("node_count", number(6, nodes)),
            ("record_size", number16(24)),
        ]);
        [tree, vec![0; 16], record.to_vec(), b"\xab\xcd\xefMaxMind.com".to_vec(), metadata].concat()
    }

    pub(super) fn city() -> Vec<u8> {
        database(&map(&[("country", map(&[("iso_code", text("DE")), ("names", map(&[("en", text("Germany"))]))]))]))
    }

    pub(super) fn asn() -> Vec<u8> {
        database(&map(&[
            ("autonomous_system_number", number(6, 64500)),
            ("autonomous_system_organization", text("Example Net")),
        ]))
    }
}

/// The reference is up to date, and the definitions include every function.
#[test]
fn documents_are_current() {
    let lab = Lab::new();
    let made = lab.watchbell(&["rules", "reference"]);
    assert_eq!(made.code, Some(0), "{}", made.show());
    let kept = fs::read_to_string("docs/rule-language.md").unwrap();
    assert!(kept == made.stdout, "run `watchbell rules reference > docs/rule-language.md`");
    let (_, definitions) = rule::definitions().remove(0);
    for function in TOPICS.iter().flat_map(|subject| subject.functions) {
        assert!(definitions.contains(&format!("fn {}(", function.name)), "{}", function.name);
    }
}

/// Values of every type, as they may appear anywhere in an event.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        prop::sample::select(vec![
            "10.0.0.1",
            "::1",
            "2026-03-01T12:00:00Z",
            "a@b.c",
            "aGk=",
            "9999-12-31T23:59:59Z",
            "-",
            "[",
            "*"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,5}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Arbitrary data as the data argument of any function is never an error.
    #[test]
    fn no_data_makes_a_helper_fail(values in prop::collection::vec(any_value(), 8)) {
        let calls = [
            "same(x, \"a\")", "glob(x, \"*\")", "matches(x, \"a.*b\")", "captures(x, \"(a)\")", "domain(x)", "trimmed(x)", "base64_encode(x)",
            "base64_decode(x)", "defang(x)", "in_cidr(x, \"10.0.0.0/8\")", "is_private(x)", "is_ip(x)", "hour(x, \"Asia/Tokyo\")", "weekday(x)",
            "within(x, \"22:00-06:00\")", "parse_time(x)", "seconds_between(x, event.time)", "seconds_between(event.time, x)", "time_plus(x, \"1d\")",
            "time_plus(x, \"-366d\")", "duration_text(x)", "list(\"admins\").contains(x)", "x in list(\"admins\")", "lookup(\"offices\", x)", "geo_ip(x)",
            "number(x, 1)", "as_list(x)", "join(x, \", \")", "join([x, x], \", \")", "x.get(\"a.b[0].c\", 1)", "x.has(\"a\")", "if type_of(x) != \"array\" { x.all(\"a[].b\") }",
            "x.targets(\"users\")", "targets(x)", "actor_name(x)", "actor_is_app(x)", "site(x)", "link(x)", "same(event.action, list(\"admins\"))",
            "glob(x, list(\"admins\"))", "in_cidr(x, list(\"offices\"))",
        ];
        let body: String = calls.iter().map(|call| format!("{call};")).collect();
        let (_directory, set) = with_lists(&format!("for x in event.values {{ {body} }} true"));
        let mut raw = entry("1", "x", 0, "ann");
        raw["values"] = values.into();
        let report = run(&set, &[event(1, &raw)]);
        prop_assert_eq!(&report.rules.values().next().unwrap().first_error, &None);
        prop_assert_eq!(report.alerts.len(), 1);
    }

    /// Arbitrary arguments give a result or an error, never a panic, and never exceed the limits.
    #[test]
    fn no_argument_makes_the_host_fail(values in prop::collection::vec(any_value(), 6)) {
        let mut body = String::new();
        for function in TOPICS.iter().flat_map(|subject| subject.functions) {
            for arguments in function.parameters.iter().filter(|parameter| !parameter.optional).count()..=function.parameters.len() {
                let given: Vec<String> = (0..arguments).map(|index| format!("event.values[{index}]")).collect();
                body += &format!("try {{ {}({}) }} catch {{ }} ", function.name, given.join(", "));
            }
        }
        let (_directory, set) = with_lists(&format!("{body} true"));
        let mut raw = entry("1", "x", 0, "ann");
        raw["values"] = values.into();
        let report = run(&set, &[event(1, &raw)]);
        prop_assert_eq!(&report.rules.values().next().unwrap().first_error, &None);
    }
}

/// Rhai's own `all` for lists takes a function name, and fails on a name that does not exist.
#[test]
fn a_list_in_place_of_a_map_has_nothing_at_a_path() {
    let given = json!({ "id": "1", "attributes": { "action": "x" }, "list": [], "texts": ["-"] });
    assert_eq!(is_true("event.list.all(\"-\") == [] && event.texts.all(\"a[].b\") == []", &given), Ok(true));
    assert_eq!(is_true("event.texts.all(|text| text == \"-\")", &given), Ok(true));
}

#[test]
fn regular_expressions_take_linear_time() {
    // Backtracking would take longer than the age of the universe.
    let given = entry("1", "x", 0, "ann");
    let long = "let text = \"\"; text.pad(200000, 'a');";
    let found = is_true(&format!("{long} matches(text, \"^(a+)+$\") && !matches(text, \"^(a+)+b$\")"), &given);
    assert_eq!(found, Ok(true));
}

/// Work inside a single call is subject to the time limit as well.
#[test]
fn heavy_calls_do_not_outrun_the_time_limit() {
    let patterns: Vec<String> = (0..1_200).map(|number| format!("*a{number}*b?c[xyz]*")).collect();
    let mut given = entry("1", "x", 0, "ann");
    given["patterns"] = json!(patterns);
    let error = is_true("let n = 0; while n < 100000 { glob(event.action, event.patterns); n += 1; } true", &given);
    let error = error.unwrap_err();
    assert!(error.contains("time limit"), "{error}");
}

/// Constants and `params` behave like any other value, in the rule and in its imports, which each have their own.
#[test]
fn constants_are_seen_by_functions() {
    let lab = Lab::new();
    lab.write(
        "lib/words.rhai",
        "const WORDS = [\"lib\"];\nfn has(word) { WORDS.contains(word) && WORDS[0] == \"lib\" }\n",
    );
    let body = "let out = [WORDS.contains(\"own\"), WORDS[0] == \"own\", params.list.contains(\"a\"), params.map.a.b == 1, params.list[0].len() == 1, MAP[event.action].len() == 1, \
                WORDS.filter(|word| word == \"own\").len() == 1, words::has(\"lib\"), !words::has(\"own\"), !WORDS.contains(\"lib\")]; \
                let n = 0; for word in WORDS { n += 1; } out.push(n == 1); if out.all(|yes| yes) { true } else { throw out.to_string() }";
    let text = format!(
        "import \"lib/words\" as words;\nconst RULE = #{{ id: \"a.constants\", title: \"t\", severity: \"low\", params: #{{ list: [\"a\"], map: #{{ a: #{{ b: 1 }} }} }} }};\n\
         const WORDS = [\"own\"];\nconst MAP = #{{ x: [1] }};\nfn rule(event) {{ {body} }}\nfn title(event) {{ `${{WORDS[0]}} ${{params.list.len()}}` }}\n"
    );
    lab.write("r.rhai", &text);
    lab.write(
        "r.test.yaml",
        "- { name: a, event: { attributes: { action: x } }, expect: { alerts: [{ title: own 1 }] } }\n",
    );
    // In the current directory, without a configuration.
    let finished = lab.watchbell(&["test", "."]);
    assert_eq!(finished.code, Some(0), "{}", finished.show());
    // The same without an import: the top level is then not run again for each call.
    lab.write(
        "r.rhai",
        text.replace("import \"lib/words\" as words;\n", "").replace("words::has(\"lib\"), !words::has(\"own\"), ", ""),
    );
    let finished = lab.watchbell(&["test", "."]);
    assert_eq!(finished.code, Some(0), "{}", finished.show());
}
