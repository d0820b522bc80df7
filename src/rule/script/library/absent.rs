//! Lets scripts go on from an absent field: indexing `()` gives `()`, and the usual methods of strings and lists
//! behave as on an empty one.

use std::any::TypeId;

use rhai::{Array, Dynamic, Engine, ImmutableString, Module, Target};

use crate::rule::script::vocabulary;

pub(super) fn register(engine: &mut Engine) {
    engine.register_indexer_get(|_: &mut (), _: &str| Dynamic::UNIT);
    engine.register_indexer_get(|_: &mut (), _: i64| Dynamic::UNIT);
    // A string, number or list where a map is documented: everything below it reads as absent. Rhai resolves getters
    // by name only, so this covers just the names that Atlassian documents.
    for name in vocabulary::names() {
        engine.register_get(name, |_: &mut ImmutableString| Dynamic::UNIT);
        engine.register_get(name, |_: &mut i64| Dynamic::UNIT);
        engine.register_get(name, |_: &mut f64| Dynamic::UNIT);
        engine.register_get(name, |_: &mut bool| Dynamic::UNIT);
        engine.register_get(name, |_: &mut Array| Dynamic::UNIT);
    }
    engine.on_invalid_array_index(|_, _, _| Ok(Target::from(Dynamic::UNIT)));

    for name in ["contains", "starts_with", "ends_with"] {
        engine.register_fn(name, |(): (), _: Dynamic| false);
        // `"text".contains(event.absent)` is false: nothing contains an absent value.
        engine.register_fn(name, |_: ImmutableString, (): ()| false);
    }
    engine.register_fn("is_empty", |(): ()| true);
    engine.register_get("is_empty", |_: &mut ()| true);
    engine.register_fn("len", |(): ()| 0_i64);
    engine.register_get("len", |_: &mut ()| 0_i64);
    for name in ["to_lower", "to_upper"] {
        engine.register_fn(name, |(): ()| Dynamic::UNIT);
    }
    for name in ["keys", "values"] {
        engine.register_fn(name, |(): ()| Array::new());
    }
    engine.register_fn("split", |(): (), _: Dynamic| Array::new());
    // The body of `for item in event.absent { … }` never runs.
    let mut nothing = Module::new();
    nothing.set_iter(TypeId::of::<()>(), |_| Box::new(std::iter::empty()));
    engine.register_global_module(nothing.into());
}
