//! Functions for named lists.

use std::any::TypeId;

use rhai::{Array, Dynamic, Engine, Module};

use super::{HostFunction, Returned, Topic, first, given, needs, or_unit};
use crate::rule::{
    manifest::value::data,
    script::{host::Call, lists::NamedList},
};

pub(super) const TOPIC: Topic = Topic {
    title: "Lists",
    about: "Files under `rules/lists/`: `list(\"admins\")` is `admins.txt`, `admins.csv` or `admins.json`. A `.txt` \
            file has one entry per line, with `#` for comments; a `.csv` file has a header row, and the entries in \
            its first column; a `.json` file has a list of strings, or an object whose keys are the entries. Lists \
            are reloaded when they are saved, and an alert records which version of a list its rule used \
            (`lists`).\n\n\
            The function that uses a list decides how entries are compared: `list(\"admins\").contains(x)` and `x in \
            list(\"admins\")` exactly, `same(x, list(…))` ignoring case, `glob(x, list(…))` as patterns, \
            `in_cidr(ip, list(…))` as networks. A list has `len()`, `is_empty()` and `values()`, and works in `for` \
            loops.",
    functions: FUNCTIONS,
};

const FUNCTIONS: &[HostFunction] = &[
    HostFunction {
        name: "list",
        parameters: &[needs("name", "string")],
        gives: "a named list",
        about: "Open the list in the file `rules/lists/NAME.txt`, `.csv` or `.json`.",
        examples: &[
            (r#"list("admins").contains(event.actor.email)"#, "true"),
            (r#"event.nothing in list("admins")"#, "false"),
            (r#"in_cidr(event.ip, list("offices"))"#, "true"),
        ],
        errors: "there is no such list",
        run: list,
    },
    HostFunction {
        name: "lookup",
        parameters: &[needs("name", "string"), needs("key", "string")],
        gives: "a map, or `()`",
        about: "Look up an entry of a list: the columns of its row by the names in the header, or the object's \
                value. An exact match is preferred to one that ignores case.",
        examples: &[
            (r#"lookup("offices", "203.0.113.0/24").city"#, r#""Berlin""#),
            (r#"lookup("offices", event.nothing).city"#, "()"),
        ],
        errors: "there is no such list",
        run: lookup,
    },
];

/// Registers the type with Rhai: `in`, `for`, and the methods that any list has.
pub(super) fn register(engine: &mut Engine) {
    engine.register_type_with_name::<NamedList>("named list");
    engine.register_fn("contains", |list: &mut NamedList, value: Dynamic| {
        data(&value).is_some_and(|text| list.contains(&text))
    });
    let length = |list: &mut NamedList| i64::try_from(list.entries().len()).unwrap_or(i64::MAX);
    engine.register_fn("len", length);
    engine.register_get("len", length);
    engine.register_fn("is_empty", |list: &mut NamedList| list.entries().is_empty());
    engine.register_get("is_empty", |list: &mut NamedList| list.entries().is_empty());
    engine.register_fn("values", |list: &mut NamedList| -> Array {
        list.entries().iter().cloned().map(Dynamic::from).collect()
    });
    engine.register_fn("to_string", |list: &mut NamedList| format!("a list of {}", list.entries().len()));
    let mut entries = Module::new();
    entries.set_iter(TypeId::of::<NamedList>(), |list| {
        let list = list.read_lock::<NamedList>().map(|list| list.clone());
        let entry = move |index: usize| list.as_ref().and_then(|list| list.entries().get(index).cloned());
        Box::new((0..).map_while(entry).map(Dynamic::from))
    });
    engine.register_global_module(entries.into());
}

fn list(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let name = given(first(arguments, 0), "the name")?.unwrap_or_default();
    call.list(&name).map(Dynamic::from)
}

fn lookup(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let name = given(first(arguments, 0), "the name")?.unwrap_or_default();
    let list = call.list(&name)?;
    let key = data(first(arguments, 1));
    Ok(or_unit(key.and_then(|key| list.row(&key))))
}
