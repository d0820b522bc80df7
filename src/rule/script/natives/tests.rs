//! Keeps the list of reviewed Rhai functions complete, and calls each function with hostile arguments.

use std::collections::{BTreeMap, BTreeSet};

use rhai::{
    EvalAltResult, Scope,
    packages::{Package, StandardPackage},
};

use super::*;
use crate::rule::{
    manifest::problem::Exceeded,
    script::{library::TOPICS, meter::Limits, sandbox::sandbox},
};

/// Name, number of overloads, verdict.
fn judged() -> Vec<(&'static str, usize, &'static str)> {
    let lines = include_str!("judged.tsv").lines().filter(|line| !line.starts_with('#'));
    let row = |line: &'static str| {
        let mut parts = line.split('\t');
        (parts.next().unwrap(), parts.next().unwrap().parse().unwrap(), parts.next().unwrap())
    };
    lines.map(row).collect()
}

/// The functions of an engine: names, each with the parameter types of each overload.
fn registered(engine: &Engine) -> BTreeMap<String, BTreeSet<Vec<TypeId>>> {
    let of = |info: rhai::FuncInfo<'_>| Some((info.metadata.name.to_string(), info.metadata.param_types.to_vec()));
    let mut found: BTreeMap<String, BTreeSet<Vec<TypeId>>> = BTreeMap::new();
    for (name, types) in engine.collect_fn_metadata(None, of, true) {
        found.entry(name).or_default().insert(types);
    }
    found
}

/// A function that is new in Rhai must be reviewed by the criteria at the top of `judged.tsv` before it is allowed.
#[test]
fn every_function_of_rhai_has_been_judged() {
    let mut engine = Engine::new_raw();
    engine.register_global_module(StandardPackage::new().as_shared_module());
    let found: Vec<(String, usize)> =
        registered(&engine).into_iter().map(|(name, overloads)| (name, overloads.len())).collect();
    let known: Vec<(String, usize)> = judged().into_iter().map(|(name, count, _)| (name.to_owned(), count)).collect();
    assert_eq!(found, known);
}

#[test]
fn what_is_refused_is_refused_in_every_overload() {
    let mut raw = Engine::new_raw();
    raw.register_global_module(StandardPackage::new().as_shared_module());
    let mut own = Engine::new_raw();
    register(&mut own);
    let (raw, own) = (registered(&raw), registered(&own));
    for (name, _, judgement) in judged() {
        if judgement == "refused" || ["replace", "chars", "get$chars", "parse_json", "to_json"].contains(&name) {
            assert!(own[name].is_superset(&raw[name]), "{name}");
        }
    }
}

/// Adds values of every type, at the limits of that type, to the scope; returns expressions for them.
fn hostile(scope: &mut Scope<'_>) -> Vec<&'static str> {
    let text = "a\u{202e}é".repeat(MAX_STRING / 8);
    let list: Array = (0..i64::try_from(MAX_ITEMS).unwrap() - 1_000).map(Dynamic::from).collect();
    let deep = (0..MAX_DEPTH - 5).fold(Dynamic::from(1_i64), |inner, _| Dynamic::from_array(vec![inner]));
    let map = Map::from([("k".repeat(100_000).into(), Dynamic::from(text.clone())), ("deep".into(), deep.clone())]);
    scope.push("text", text).push("empty", "").push("list", list).push_dynamic("deep", deep).push("map", map);
    scope.push("least", i64::MIN).push("most", i64::MAX).push("nan", f64::NAN).push("char", '\0').push("unit", ());
    scope.push_dynamic("numbers", Dynamic::from_array(vec![f64::NAN.into(), 0.0.into(), (-0.0).into()]));
    vec!["text", "empty", "list", "deep", "map", "least", "most", "nan", "char", "unit", "numbers", "|x| [x, text]"]
}

/// Calls every function in every way that a rule could: nothing may panic, hang, or use disproportionate memory.
#[test]
fn hostile_arguments_do_no_harm() {
    let limits = Limits { operations: 20_000, time: std::time::Duration::from_secs(20) };
    let (engine, call) = sandbox(&limits);
    let mut names: Vec<String> = judged().into_iter().map(|(name, ..)| name.to_owned()).collect();
    names.extend(TOPICS.iter().flat_map(|subject| subject.functions).map(|function| function.name.to_owned()));
    names.extend(["curry", "type_of", "is_shared", "call", "keys", "print"].map(str::to_owned));
    // Operators are written differently, and getters are called as `x.name`.
    let word = |name: &String| name.chars().all(|character| character.is_alphanumeric() || character == '_');
    let mut values = Scope::new();
    let variables = hostile(&mut values);
    for name in names.iter().filter(|name| word(name)) {
        let mut reached = false;
        for one in &variables {
            let mut calls = vec![format!("({one}).{name}"), format!("{name}({one})")];
            for other in &variables {
                calls.push(format!("let it = {one}; it.{name}({other}); it"));
            }
            for (other, third) in
                [("most", "text"), ("least", "list"), ("text", "text"), ("empty", "empty"), ("text", "deep")]
            {
                calls.push(format!("let it = {one}; it.{name}({other}, {third}); it"));
            }
            for script in calls {
                let mut scope = values.clone();
                call.begin(limits.time);
                let answer = engine.eval_with_scope::<Dynamic>(&mut scope, &script);
                call.end();
                // Any result can be weighed and dropped, and the time limit was not reached.
                match answer.map_err(|error| *error) {
                    Ok(value) => {
                        reached = true;
                        Weight::of(&value).check().ok();
                    }
                    Err(EvalAltResult::ErrorFunctionNotFound(..) | EvalAltResult::ErrorParsing(..)) => {}
                    Err(error) => {
                        reached = true;
                        assert!(!ran_out_of_time(&error), "{script}: {error}");
                    }
                }
            }
        }
        assert!(reached, "no call reached `{name}`");
    }
}

fn ran_out_of_time(error: &EvalAltResult) -> bool {
    match error {
        EvalAltResult::ErrorInFunctionCall(_, _, inner, _) => ran_out_of_time(inner),
        EvalAltResult::ErrorTerminated(token, _) => {
            let token = token.read_lock::<ImmutableString>();
            token.is_some_and(|token| Exceeded::of_token(&token) != Some(Exceeded::Budget))
        }
        _ => false,
    }
}
