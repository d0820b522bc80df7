use proptest::prelude::*;
use serde_json::{Value, json};
use watchbell::{
    detect::{Detector, Settings},
    model::outcome::Outcome,
};

use crate::support::{event, load, rule};

/// Paths that rules use, some of them through values of any type.
const PATHS: [&str; 18] = [
    "event.action",
    "event.source",
    "event.id",
    "event.ip",
    "event.actor",
    "event.actor.email",
    "event.actor.email.more",
    "event.geo.country",
    "event.geo.nothing",
    "event.attributes.actor.email",
    "event.attributes.flag",
    "event.attributes.number",
    "event.attributes.context[0].id",
    "event.attributes.context[1].attributes.name",
    "event[\"attributes\"].container[0].type",
    "event.message.content",
    "event.nothing.at.all",
    "given.x",
];

const CONSTANTS: [&str; 10] =
    ["\"a\"", "\"A\"", "\"\"", "\"add_x\"", "()", "true", "false", "5", "params.text", "CONSTANT"];

const LISTS: [&str; 5] = ["[\"a\", \"b\"]", "[]", "LIST", "params.list", "[\"a\", 5]"];

fn path() -> impl Strategy<Value = String> {
    prop::sample::select(&PATHS[..]).prop_map(str::to_owned)
}

fn constant() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&CONSTANTS[..])
}

fn condition() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        (path(), constant()).prop_map(|(path, constant)| format!("{path} == {constant}")),
        (constant(), path()).prop_map(|(constant, path)| format!("{constant} != {path}")),
        (path(), prop::sample::select(&LISTS[..])).prop_map(|(path, list)| format!("{path} in {list}")),
        (path(), prop::sample::select(&LISTS[..])).prop_map(|(path, list)| format!("{path} !in {list}")),
        (path(), constant()).prop_map(|(path, constant)| format!("{path}.starts_with({constant})")),
        (path(), constant()).prop_map(|(path, constant)| format!("{path}.contains({constant})")),
        (path(), constant()).prop_map(|(path, constant)| format!("{path}.ends_with({constant})")),
        path().prop_map(|path| format!("glob({path}, \"a*\")")),
        path().prop_map(|path| format!("{path}.glob(\"*[ab]\")")),
        path().prop_map(|path| format!("same({path}, LIST)")),
        path().prop_map(|path| format!("same({path}, \"A\")")),
        path(),
        path().prop_map(|path| format!("{path} > 3")),
        path().prop_map(|path| format!("({path}) ?? true")),
        path().prop_map(|path| format!("own({path})")),
        path().prop_map(|path| format!("count({path}, \"1h\") > 1")),
        Just("true".to_owned()),
        Just("false".to_owned()),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 2..4).prop_map(|parts| format!("({})", parts.join(" && "))),
            prop::collection::vec(inner.clone(), 2..4).prop_map(|parts| format!("({})", parts.join(" || "))),
            inner.prop_map(|inner| format!("!({inner})")),
        ]
    })
}

/// A function written in one of the ways in which people write them.
fn function() -> impl Strategy<Value = String> {
    let body = (0_u8..9, condition(), condition(), condition(), path()).prop_map(|(shape, one, two, three, path)| match shape {
        0 => one,
        1 => format!("{one} && {two} && {three}"),
        2 => format!("if !({one}) {{ return false; }} {two}"),
        3 => format!("if {one} {{ return false; }} let given = event.attributes; {two} && {three}"),
        4 => format!("if {one} {{ {two} }} else {{ false }}"),
        5 => format!("if {one} {{ false }} else {{ {two} && {three} }}"),
        6 => format!("let name = {path}; let other = domain({path}); if {one} {{ return false; }} return name == \"a\" || other == \"a\";"),
        7 => format!("let name = event.targets(\"x\")[0]; let other = {path}.targets()[1]; {one} && {two}"),
        _ => format!("if {one} {{ false }} {two}"),
    });
    body.prop_map(|body| {
        let given =
            if body.contains("given") && !body.contains("let given") { "let given = event.attributes; " } else { "" };
        format!("{given}{body}")
    })
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop::sample::select(vec![json!(5), json!(-1), json!(5.0), json!(u64::MAX), json!(2.5)]),
        prop::sample::select(&["a", "A", "b", "", "abc", "add_x", "\u{e4}\"", "a@a"][..]).prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec((prop::sample::select(&["id", "email", "name", "attributes", "x"][..]), inner), 0..3)
                .prop_map(|entries| Value::Object(
                    entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
                )),
        ]
    })
}

/// An event with arbitrary content, except for an id and an action.
fn any_event() -> impl Strategy<Value = Value> {
    let maybe = || prop::option::weighted(0.8, any_value());
    let attributes = (
        prop::sample::select(&["a", "add_x", "b"][..]),
        prop_oneof![3 => (maybe(), maybe()).prop_map(|(email, id)| Some(json!({ "email": email, "id": id }))), 1 => maybe()],
        prop_oneof![2 => (maybe(), maybe()).prop_map(|(country, ip)| Some(json!({ "countryName": country, "ip": ip }))), 1 => maybe()],
        prop_oneof![2 => prop::collection::vec(any_value(), 0..3).prop_map(|items| Some(items.into())), 1 => maybe()],
        maybe(),
        maybe(),
        maybe(),
    );
    (attributes, maybe(), maybe()).prop_map(|((action, actor, location, context, flag, number, x), message, container)| {
        let mut event = json!({ "id": "a", "attributes": { "action": action, "actor": actor, "location": location, "context": context, "flag": flag, "number": number, "x": x, "container": container } });
        if let Some(message) = message {
            event["message"] = json!({ "content": message });
        }
        event
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("WATCHBELL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(300), ..ProptestConfig::default() })]

    /// The prefilter changes nothing: same matches, same alerts, same errors, same state.
    #[test]
    fn what_is_left_out_would_have_said_no(
        functions in prop::collection::vec(function(), 1..5),
        given in prop::collection::vec(any_event(), 1..8),
    ) {
        let texts: Vec<String> = functions
            .iter()
            .enumerate()
            .map(|(index, function)| {
                let head = "params: #{ text: \"a\", list: [\"a\", \"abc\"] }, dedup_period: \"1s\"";
                let rest = format!("const CONSTANT = \"a\";\nconst LIST = [\"a\", \"abc\"];\nfn own(x) {{ x == \"a\" }}\nfn rule(event) {{ {function} }}");
                rule(&format!("r.r{index}"), head, &rest)
            })
            .collect();
        let (set, _) = load(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        let run = |prefilter: bool| {
            let mut detector = Detector::new(set.clone(), Settings { prefilter, ..Settings::default() });
            let outcomes: Vec<Outcome> = given
                .iter()
                .enumerate()
                .map(|(index, raw)| {
                    let mut raw = raw.clone();
                    raw["attributes"]["time"] = format!("2026-03-01T12:00:{index:02}Z").into();
                    let outcome = detector.evaluate(&event(index as u64 + 1, &raw));
                    Outcome { rules_run: 0, ..outcome }
                })
                .collect();
            let mut state = detector.take_changes();
            state.sort();
            (outcomes, state)
        };
        prop_assert_eq!(run(true), run(false));
    }
}

/// The prefilter is worthwhile: it understands the usual first conditions of rules.
#[test]
fn what_rules_begin_with_is_understood() {
    let run = |function: &str| {
        let head = "params: #{ domains: [\"a.example\"] }";
        let (set, problems) = load(&[&rule("r.one", head, &format!("const NAMES = [\"x\", \"y\"];\n{function}"))]);
        assert!(problems.is_empty(), "{problems:?}");
        let mut detector = Detector::new(set, Settings::default());
        detector.evaluate(&event(1, &crate::support::entry("1", "user_login", 0, "ann"))).rules_run
    };
    for function in [
        "fn rule(event) { event.action == \"other\" }",
        "fn rule(event) { event.action in NAMES && event.nope() }",
        "fn rule(event) { event.action.starts_with(\"org_\") }",
        "fn rule(e) { e.attributes.action != \"user_login\" || e.actor.name == \"bob\" }",
        "fn rule(event) { if event.action != \"other\" { return false; } count(\"k\", \"1h\") > 1 }",
        "fn rule(event) { if event.action == \"other\" { true } else { false } }",
        "fn rule(event) { let who = event.actor.email; who.ends_with(\"@else.example\") && count(who, \"1h\") > 5 }",
        "fn rule(event) { event.geo.country != \"Germany\" && true }",
        "fn rule(event) { !glob(event.ip, \"203.*\") }",
        "fn rule(event) { let who = event.targets(\"users\")[0]; event.attributes.container[0].id == \"1\" }",
        "fn rule(event) { event.actor.name in params.domains }",
        "fn rule(event) { event.attributes.nothing != () }",
        "fn rule(event) { same(event.actor.email, \"BOB@example.com\") }",
        "fn rule(event) { event.source == \"another\" }",
    ] {
        assert_eq!(run(function), 0, "{function}");
    }
    assert_eq!(run("fn rule(event) { event.action == \"user_login\" && event.actor.name == \"bob\" }"), 0);
    assert_eq!(run("fn rule(event) { event.actor.name == \"ann\" && event.actor.email.len() > 99 }"), 1);
}
