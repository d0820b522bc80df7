//! Functions that look into named lists.

use std::any::TypeId;

use rhai::{Array, Dynamic, Engine, Module};

use super::{HostFunction, Returned, Topic, first, given, needs, or_unit};
use crate::rule::{
    manifest::value::data,
    script::{host::Call, lists::NamedList},
};

pub(super) const TOPIC: Topic = Topic {
    title: "Lists",
    about: "Files under `rules/lists/`: `admins.txt` is `list(\"admins\")`. A `.txt` has an entry a line, with `#` for comments; a `.csv` a header \
            row, and entries in its first column; a `.json` a list of texts, or an object whose keys are the entries. They are read again \
            when they are saved, and an alert says which version of a list its rule looked into (`lists`).\n\n\
            How entries are compared is said where it is asked: `list(\"admins\").contains(x)` and `x in list(\"admins\")` exactly, \
            `same(x, list(…))` whatever the case, `glob(x, list(…))` with entries as patterns, `in_cidr(ip, list(…))` with entries as networks. \
            A list has `len()`, `is_empty()` and `values()`, and can be gone through with `for`.",
    functions: FUNCTIONS,
};

const FUNCTIONS: &[HostFunction] = &[
    HostFunction {
        name: "list",
        parameters: &[needs("name", "text")],
        gives: "a named list",
        about: "The list that the file `rules/lists/NAME.txt`, `.csv` or `.json` holds.",
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
        parameters: &[needs("name", "text"), needs("key", "text")],
        gives: "a map, or `()`",
        about: "What a list says of one of its entries: the columns of its row by the names in the header, or the object's value. The entry \
                is looked for exactly, then whatever the case of its letters.",
        examples: &[
            (r#"lookup("offices", "203.0.113.0/24").city"#, r#""Berlin""#),
            (r#"lookup("offices", event.nothing).city"#, "()"),
        ],
        errors: "there is no such list",
        run: lookup,
    },
];

/// What Rhai needs to know of the type: `in`, `for`, and the questions asked of any list.
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
    let name = given(first(arguments, 0), "the list's name")?.unwrap_or_default();
    call.list(&name).map(Dynamic::from)
}

fn lookup(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let name = given(first(arguments, 0), "the list's name")?.unwrap_or_default();
    let list = call.list(&name)?;
    let key = data(first(arguments, 1));
    Ok(or_unit(key.and_then(|key| list.row(&key))))
}
