use std::{fmt::Write, fs, sync::Arc};

use proptest::prelude::*;
use watchbell::{
    model::{
        action::ListedAction,
        event::Event,
        name::{RuleId, RuleVersion},
    },
    rule::{Loader, RuleSet},
};

use crate::support::{entry, events, rule, run};

/// Everything that a rule can read besides its event, each part in one of two states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    Vips,
    OtherList,
    Library,
    Parameter,
    Exception,
    Catalog,
    OtherAction,
}

const INPUTS: [Input; 7] = [
    Input::Vips,
    Input::OtherList,
    Input::Library,
    Input::Parameter,
    Input::Exception,
    Input::Catalog,
    Input::OtherAction,
];

/// A rule with a library, lists, parameters, an exception, and a list of actions, one of which may be changed.
fn loaded(more: &str, functions: &str, condition: &str, changed: Option<Input>) -> Arc<RuleSet> {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let pick = |input, before: &'static str, after: &'static str| if changed == Some(input) { after } else { before };
    write("lists/vips.txt", pick(Input::Vips, "ann\n", "bob\n"));
    write("lists/others.txt", pick(Input::OtherList, "ann\n", "bob\n"));
    let library = pick(Input::Library, "ann", "bob");
    write(
        "lib/own.rhai",
        &format!(
            "fn is_vip(name) {{ name in list(\"vips\") }}\nfn is_known(name) {{ name == \"{library}\" }}\n\
             fn category_of(it) {{ it.category }}\nfn name_of(it) {{ it.actor.name }}\nfn same(it) {{ it }}"
        ),
    );
    write("rule.rhai", &rule("team.rule", &format!("params: #{{ name: \"ann\" }}, {more}"), functions));
    if changed == Some(Input::Parameter) {
        write("overrides.toml", "[override.\"team.rule\"]\nparams = { name = \"bob\" }\n");
    }
    if !condition.is_empty() {
        let condition =
            if changed == Some(Input::Exception) { format!("!({condition})") } else { condition.to_owned() };
        write(
            "exceptions.toml",
            &format!(
                "[[exception]]\nid = \"one\"\nrules = [\"team.rule\"]\nreason = \"r\"\nauthor = \"a\"\nexpires = \"never\"\ncondition = '{condition}'\n"
            ),
        );
    }
    let loader = Loader::of(vec![directory.path().to_owned()]).without_builtin().load();
    let errors: Vec<String> =
        loader.diagnostics.iter().map(|found| format!("{} {}", found.code, found.message)).collect();
    assert!(loader.set.detections.len() == 1, "{errors:?}\n{functions}");
    let listed = |id: &str, name: &str, group: &str| ListedAction {
        id: id.into(),
        name: Some(name.to_owned()),
        group: Some(group.to_owned()),
    };
    let (name, group) = if changed == Some(Input::Catalog) { ("Renamed", "AI") } else { ("Done", "Product access") };
    let other = pick(Input::OtherAction, "Other", "Changed");
    loader.set.with_actions([listed("x", name, group), listed("y", other, "Product access")])
}

fn version(set: &RuleSet) -> RuleVersion {
    set.versions()[&RuleId::parse("team.rule").unwrap()]
}

/// The parts whose change makes a new version of a rule.
fn read(more: &str, functions: &str, condition: &str) -> Vec<Input> {
    let before = version(&loaded(more, functions, condition, None));
    let changes = |input: &Input| version(&loaded(more, functions, condition, Some(*input))) != before;
    INPUTS.into_iter().filter(changes).collect()
}

#[test]
fn a_version_follows_what_the_syntax_tree_reads() {
    use Input::{Catalog, Exception, Library, OtherList, Parameter, Vips};
    let x = "actions: [\"x\"],";
    let both = [Vips, OtherList];
    // The lists that are named, in any notation; all of them if that is unknown.
    for (functions, lists) in [
        ("fn rule(event) { event.actor.name in list(\"vips\") }", &[Vips][..]),
        ("fn rule(event) { event.actor.name in list (\n \"vips\" ) }", &[Vips]),
        ("fn rule(event) { lookup(\"others\", event.actor.name) != () }", &[OtherList]),
        ("fn rule(event) { let name = \"vips\"; event.actor.name in list(name) }", &both),
        ("fn rule(event) { event.actor.name in Fn(\"list\").call(\"vips\") }", &both),
        ("fn rule(event) { let f = \"li\" + \"st\"; event.actor.name in Fn(f).call(\"vips\") }", &both),
        ("fn rule(event) { [\"vips\"].some(|name| event.actor.name in list(name)) }", &both),
        ("fn rule(event) { event.actor.name in \"vips\".list() }", &both),
        ("// list(\"vips\")\nfn rule(event) { event.actor.name == \"list(vips)\" }", &[]),
    ] {
        let mut expected = lists.to_vec();
        expected.extend([Parameter]);
        let mut found = read(x, functions, "");
        // A function named at run time could be any.
        if functions.contains("Fn(f)") {
            found.retain(|input| *input != Catalog);
        }
        assert_eq!(found, expected, "{functions}");
    }
    // The organization's data about actions.
    for functions in [
        "fn rule(event) { event.category == \"access\" }",
        "fn rule(event) { event[\"category\"] == \"access\" }",
        "fn rule(event) { let k = \"cate\" + \"gory\"; event[k] == \"access\" }",
        "fn rule(event) { event?.activity == \"Done\" }",
        "fn rule(event) { event.get(\"category\") == \"access\" }",
        "fn rule(event) { get(event, \"cate\" + \"gory\") == \"access\" }",
        "fn rule(event) { let e = event; let k = \"cate\" + \"gory\"; e[k] == \"access\" }",
        "fn rule(event) { event.values().contains(\"access\") }",
        "fn rule(event) { event.to_json().contains(\"access\") }",
        "fn rule(event) { `${event}`.contains(\"access\") }",
        "fn rule(event) { [event].some(|it| it[\"cate\" + \"gory\"] == \"access\") }",
        "fn rule(event) { #{ e: event }.e.to_json().contains(\"access\") }",
        "fn taken(it, k) { it[k] } fn rule(event) { taken(event, \"cate\" + \"gory\") == \"access\" }",
        "fn taken(it) { it } fn rule(event) { taken(event).values().contains(\"access\") }",
        "fn rule(e) { e.category == \"access\" }",
        "fn rule(e) { e.values().contains(\"access\") }",
        "fn rule(event) { true } fn title(event) { what(event) }",
        "fn rule(event) { true } fn title(e) { `${e.what()}` }",
        "fn rule(event) { true } fn dedup(event) { event.activity }",
        "fn rule(event) { \"category\" in [\"category\"] && event[\"category\".to_lower()] == \"access\" }",
    ] {
        assert_eq!(read(x, functions, ""), [Parameter, Catalog], "{functions}");
    }
    assert_eq!(
        read("actions: [\"x\"], group_by: [\"category\"],", "fn rule(event) { true }", ""),
        [Parameter, Catalog]
    );
    assert_eq!(read("activities: [\"Done\"],", "fn rule(event) { true }", ""), [Parameter, Catalog]);
    // None of these: the event's own fields, even if functions are passed the event.
    for functions in [
        "fn rule(event) { event.actor.name == \"ann\" && event[\"action\"] == \"x\" && event.attributes.context[0].id != () }",
        "// event.category\nfn rule(event) { event.action == \"x\" }",
        "fn named(it) { it.actor.name } fn rule(event) { named(event) == \"ann\" }",
        "fn rule(event) { event.targets(\"users\").some(|user| user.id == event.actor.id) }",
        "fn rule(event) { event.get(\"attributes.actor.name\") == \"ann\" && \"action\" in event }",
        "fn rule(event) { let i = 0; event.attributes.context[i].id != () } fn title(event) { `${event.actor_name()} in ${event.site()}` }",
        "fn rule(event) { let name = event.actor.name; let found = [name]; name in found }",
    ] {
        assert_eq!(read(x, functions, ""), [Parameter], "{functions}");
    }
    // Through an import.
    let import = "import \"lib/own\" as own;\n";
    for (functions, more) in [
        ("fn rule(event) { own::is_vip(event.actor.name) }", &[Catalog][..]),
        ("fn rule(event) { own::category_of(event) == \"access\" }", &[Catalog]),
    ] {
        let mut expected = vec![Vips, Library, Parameter];
        expected.extend(more);
        assert_eq!(read(x, &format!("{import}{functions}"), ""), expected, "{functions}");
    }
    // Through an exception.
    let always = "fn rule(event) { true }";
    assert_eq!(read(x, always, "event.actor.name in list(\"vips\")"), [Vips, Parameter, Exception]);
    assert_eq!(read(x, always, "event.category == \"ai\""), [Parameter, Exception, Catalog]);
    assert_eq!(read(x, always, "event.actor.name == params.name"), [Parameter, Exception]);
}

/// Parts of rules, including some with unusual ways of reading data.
const CONDITIONS: &[&str] = &[
    "event.actor.name in list(\"vips\")",
    "lookup(\"others\", event.actor.name) == ()",
    "event.category == \"access\"",
    "event[K] == \"access\"",
    "event.get(K) != \"access\"",
    "event.activity == \"Done\"",
    "own::is_vip(event.actor.name)",
    "own::is_known(event.actor.name)",
    "own::category_of(event) == \"access\"",
    "own::name_of(event) == params.name",
    "own::same(event).category == \"access\"",
    "Fn(\"list\").call(\"vips\").contains(event.actor.name)",
    "event.what() == \"Done\"",
    "event.to_json().contains(\"access\")",
    "[event].some(|it| it.values().contains(\"access\"))",
    "event.actor.name == params.name",
    "event.action == \"x\"",
    "event.actor.name == \"ann\"",
];

const TITLES: &[&str] =
    &["event.what()", "`${event.activity}`", "params.name", "event.actor_name()", "`${own::same(event)}`"];

fn answers(set: &Arc<RuleSet>, events: &[Event]) -> String {
    let report = run(set, events);
    let mut text = String::new();
    for alert in &report.alerts {
        writeln!(text, "{} {} {}", alert.title, alert.count, alert.dedup_key).unwrap();
    }
    let _ = writeln!(text, "{:?}", report.rules.values().map(|rule| &rule.first_error).collect::<Vec<_>>());
    text
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever changes a rule's results makes a new version of it.
    #[test]
    fn another_answer_is_another_version(
        first in prop::sample::select(CONDITIONS),
        second in prop::sample::select(CONDITIONS),
        title in prop::sample::select(TITLES),
        excepted in prop::sample::select(vec!["", "event.category == \"ai\"", "event.actor.name in list(\"others\")"]),
        any_action in any::<bool>(),
        changed in prop::sample::select(&INPUTS[..]),
    ) {
        let functions = format!(
            "import \"lib/own\" as own;\nconst K = \"cate\" + \"gory\";\nfn rule(event) {{ {first} || {second} }}\nfn title(event) {{ {title} }}"
        );
        let more = if any_action { "" } else { "actions: [\"x\"]," };
        let events = events(&[entry("1", "x", 0, "ann"), entry("2", "y", 1, "bob"), entry("3", "x", 2, "cid")]);
        let before = loaded(more, &functions, excepted, None);
        let after = loaded(more, &functions, excepted, Some(changed));
        if answers(&before, &events) != answers(&after, &events) {
            prop_assert_ne!(version(&before), version(&after), "{:?}\n{}", changed, functions);
        }
    }
}

/// Stored by one program and compared by another: these never change.
#[test]
fn versions_stay_as_they_are() {
    let all =
        "import \"lib/own\" as own;\nfn rule(event) { own::is_vip(event.actor.name) && event.category == \"access\" }";
    let plain = loaded("", "fn rule(event) { true }", "", None);
    let overridden = loaded("", "fn rule(event) { true }", "event.actor.name == \"x\"", Some(Input::Parameter));
    let more = "actions: [\"x\"], threshold: 3, window: \"5m\", tags: [\"a\", \"b\"],";
    let everything = loaded(more, all, "event.actor.name in list(\"others\")", None);
    let mut text = String::new();
    for (name, set) in [("plain", plain), ("overridden", overridden), ("everything", everything)] {
        writeln!(text, "{name} {}", version(&set)).unwrap();
    }
    assert_eq!(text, include_str!("data/versions.txt"));
}

/// The first releases wrote versions of half the length: such a store opens, and its rules count as changed once.
#[test]
fn an_earlier_version_is_read_and_is_no_version_of_now() {
    let old: RuleVersion = serde_json::from_str("\"0123456789abcdef\"").unwrap();
    assert_eq!(old.to_string(), "0123456789abcdef0000000000000000");
    let now = version(&loaded("", "fn rule(event) { true }", "", None));
    assert_ne!(old, now);
    assert_eq!(serde_json::from_str::<RuleVersion>(&serde_json::to_string(&now).unwrap()).unwrap(), now);
    for bad in ["\"\"", "\"0123\"", "\"x123456789abcdef\"", "7"] {
        assert!(serde_json::from_str::<RuleVersion>(bad).is_err(), "{bad}");
    }
}
