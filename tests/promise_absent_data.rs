use proptest::prelude::*;
use serde_json::{Value, json};
use watchbell::rule::SHIPPED;

use crate::support::{entry, event, events, found, rule, rule_set, run};

/// Matches only if every expression has the expected value, and throws if one throws.
fn holds(expressions: &[&str], entries: &[Value]) {
    for expression in expressions {
        let text = rule("a.absent", "", &format!("fn rule(event) {{ {expression} }}"));
        let lines = found(&text, entries);
        assert_eq!(lines, ["medium x1 a.absent fired [a.absent fired]"], "{expression}");
    }
}

#[test]
fn missing_fields_are_unit_at_any_depth() {
    holds(
        &[
            "event.attributes.actor.email == ()",
            "event.nope.nope[3].nope[\"x\"].nope == ()",
            "event[\"nope\"][\"x\"] == ()",
            "event.attributes.context[7].attributes.name == ()",
            "event.attributes.context[-9] == ()",
            "event.targets(\"users\")[0].attributes.email == ()",
            "event.targets().len == 0 && event.targets(\"x\").is_empty",
            "event.actor.name.contains(\"x\") == false",
            "!(\"x\" in event.nope)",
            "!event.nope.starts_with(\"a\") && !event.nope.ends_with(\"a\")",
            "event.nope.to_lower() == () && event.nope.len() == 0 && event.nope.is_empty()",
            "(event.nope ?? \"default\") == \"default\"",
            "event.get(\"a.b[2].c\") == () && event.get(\"a.b[2].c\", 5) == 5 && !event.has(\"a.b\")",
            "event.nope.get(\"x\", 1) == 1 && event.ip == () && event.actor == ()",
            "let n = 0; for x in event.nope.list { n += 1; } n == 0",
            "`${event.actor.email}` == \"\"",
            "!(event.nope > 5) && !(event.nope < 5) && event.nope != 5",
            "domain(event.actor.email) == ()",
            "\"abc\".contains(event.nope) == false",
        ],
        &[json!({ "id": "1", "attributes": { "action": "x" } })],
    );
}

/// A field of a type other than documented has no fields.
#[test]
fn other_types_have_nothing_below_them() {
    for other in [json!("text"), json!(5), json!(1.5), json!(true), json!([1])] {
        holds(
            &[
                "event.actor.auth.tokenId == () && event.actor.app.attributes.name == () && event.message.content == ()",
                "event.attributes.location.ip == () && event.ip == () && event.geo == () && event.links.self == ()",
                "event.target == () && event.targets(\"users\")[0].attributes.email == ()",
                "event.actor_name() == \"a\" && event.target_key() == event.id && event.from() == \"\"",
            ],
            &[json!({
                "id": "1", "message": other, "links": other,
                "attributes": {
                    "action": "x", "actor": { "id": "a", "auth": other, "app": other },
                    "location": other, "context": other, "container": other,
                },
            })],
        );
    }
}

/// The target is distinguished from the container and the actor, wherever they are in the list.
#[test]
fn the_target_is_neither_the_place_nor_the_actor() {
    let with = |context: Value, container: Value| json!({ "id": "1", "attributes": { "action": "x", "actor": { "id": "a", "email": "A@example.com" }, "context": context, "container": container } });
    let site = json!({ "id": "s", "type": "sites" });
    let space = json!({ "id": "sp", "type": "space" });
    let page = json!({ "id": "p", "type": "page" });
    let actor = json!({ "type": "users", "attributes": { "email": "a@example.com" } });
    let user = json!({ "id": "u", "type": "users" });
    for (context, container, target) in [
        (json!([site, space, page]), json!([]), "\"p\""),
        (json!([site, space]), json!([]), "\"sp\""),
        (json!([actor, user]), json!([]), "\"u\""),
        (json!([actor]), json!([]), "()"),
        (json!([site]), json!([{ "id": "w", "type": "workspace" }, { "id": "r", "type": "repository" }]), "\"r\""),
        (json!(page), json!([]), "\"p\""),
        (json!([site]), json!([]), "()"),
        (json!([7, "x", page]), json!(null), "\"p\""),
    ] {
        holds(&[&format!("event.target.id == {target} && event.target_id() == {target}")], &[with(context, container)]);
    }
    holds(
        &["event.is_actor(event.target) && event.is_actor(event.target(\"users\"))"],
        &[with(json!([actor]), json!([]))],
    );
    holds(&["event.target([\"x\", \"users\"]).id == \"u\""], &[with(json!([site, actor, user]), json!([]))]);
}

#[test]
fn short_names_and_paths_reach_what_is_there() {
    let mut given = entry("1", "x", 0, "ann");
    given["a.b"] = json!("dotted");
    holds(
        &[
            "event.action == \"x\" && event.attributes.action == event.action",
            "event.actor.email == \"ann@example.com\" && domain(event.actor.email) == \"example.com\"",
            "event.ip == \"203.0.113.9\" && event.source == \"test\"",
            "event.time == \"2026-03-01T12:00:00Z\"",
            "event.targets(\"users\")[0].attributes.email == \"target@example.com\"",
            "event.get(\"attributes.context[0].id\", \"none\") == \"u1\" && event.get(\"a.b\") == \"dotted\"",
            "event.message.content == \"ann did x\"",
        ],
        &[given],
    );
}

#[test]
fn context_as_an_object_is_a_list_of_one() {
    let mut given = entry("1", "x", 0, "ann");
    given["attributes"]["context"] = json!({ "type": "orgs", "attributes": { "name": "Example" } });
    holds(
        &["event.targets(\"orgs\")[0].attributes.name == \"Example\" && event.targets(\"users\").is_empty"],
        &[given],
    );
}

/// JSON of any shape under the names that rules use.
fn ragged() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        let name = prop::sample::select(vec![
            "actor",
            "context",
            "container",
            "location",
            "attributes",
            "email",
            "name",
            "id",
            "type",
            "countryName",
            "settingName",
            "x",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name.prop_map(str::to_owned), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    /// Reading any path of any event never throws.
    #[test]
    fn no_event_makes_a_path_throw(attributes in ragged(), actor in ragged()) {
        let text = rule("a.any", "", "fn rule(event) { event.attributes.actor.links.self[0].x == 1 || event.attributes.context[0].attributes.name == 2 || event.targets(\"users\")[0].attributes.email == 3 }");
        let mut given = json!({ "id": "1", "attributes": { "action": "x", "context": attributes, "actor": actor } });
        given["message"] = json!(null);
        let report = run(&rule_set(&[&text]), &events(&[given]));
        let errors: Vec<_> = report.rules.values().filter_map(|rule| rule.first_error.clone()).collect();
        // A string or number in place of an object has no fields, which is reported. Absence never is an error.
        for error in errors {
            let told = ["Unknown property", "ndexer", "expected string", "String index"].iter().any(|part| error.contains(part));
            prop_assert!(told, "{}", error);
        }
    }
}

#[test]
fn shipped_rules_stand_an_event_with_nothing_in_it() {
    let texts: Vec<&str> = SHIPPED.iter().filter(|file| file.path.ends_with(".rhai")).map(|file| file.text).collect();
    let rules = rule_set(&texts);
    for rule in &rules.detections {
        for action in rule.metadata.actions.iter().flatten() {
            let bare = json!({ "id": "1", "attributes": { "action": action.replace('*', "x") } });
            let report = run(&rules, &[event(1, &bare)]);
            let errors: Vec<_> = report.rules.values().filter_map(|rule| rule.first_error.clone()).collect();
            assert!(errors.is_empty(), "{}: {errors:?}", rule.id());
            for alert in &report.alerts {
                assert!(alert.errors.is_empty(), "{}: {:?}", rule.id(), alert.errors);
            }
        }
    }
}
