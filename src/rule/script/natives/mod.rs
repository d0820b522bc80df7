//! Standard functions of Rhai that are unsafe for rules, replaced or refused.
//!
//! Rhai checks sizes after a function has built its result. A function that makes much out of little must therefore
//! be checked before: `replace` can ask for gigabytes in one operation. Others run code without limits
//! (`parse_json`), follow closures without end (`to_json`), take time that is not counted, or reveal details of the
//! host. Every function that Rhai registers was reviewed; a test keeps the list complete.

use std::any::TypeId;

use rhai::{Array, Dynamic, Engine, EvalAltResult, FnPtr, ImmutableString, Map};

use crate::rule::{
    manifest::value::to_json_value,
    script::bounds::{MAX_BYTES, MAX_DEPTH, MAX_ITEMS, MAX_STRING, Weight, is_or_holds_closure, too_large},
};

type Answer<T> = Result<T, Box<EvalAltResult>>;

/// Replacement for `curry`: see [`crate::rule::script::sandbox`].
pub(in crate::rule) const CURRIED: &str = "curried";
/// Maximum number of arguments of one `curry`.
const MAX_CURRIED: usize = 16;
/// Maximum size of each argument, in bytes: they are copied with each copy of the function.
const MAX_CURRIED_BYTES: usize = 4 * 1024;
/// Maximum number of comparisons in one search of a list.
const MAX_COMPARED: usize = 1_000_000;

pub(in crate::rule) fn register(engine: &mut Engine) {
    // Ends the process, to test crash recovery.
    #[cfg(debug_assertions)]
    engine.register_fn("abort_for_tests", || -> () { std::process::abort() });
    texts(engine);
    lists(engine);
    functions(engine);
    refused(engine);
}

fn texts(engine: &mut Engine) {
    engine
        .register_fn("replace", |text: &mut ImmutableString, find: &str, with: &str| replace(text, find, with))
        .register_fn("replace", |text: &mut ImmutableString, find: char, with: &str| {
            replace(text, find.encode_utf8(&mut [0; 4]), with)
        })
        .register_fn("replace", |text: &mut ImmutableString, find: &str, with: char| {
            replace(text, find, with.encode_utf8(&mut [0; 4]))
        })
        .register_fn("replace", |text: &mut ImmutableString, find: char, with: char| {
            replace(text, find.encode_utf8(&mut [0; 4]), with.encode_utf8(&mut [0; 4]))
        });
    engine.register_fn("pad", |text: &mut ImmutableString, length: i64, padding: &str| pad_text(text, length, padding));
    // Rhai's own functions return an iterator, whose characters no limit counts.
    engine
        .register_get("chars", |text: &mut ImmutableString| characters(text, 0, i64::MAX))
        .register_fn("chars", |text: ImmutableString| characters(&text, 0, i64::MAX))
        .register_fn("chars", |text: ImmutableString, start: i64| characters(&text, start, i64::MAX))
        .register_fn("chars", |text: ImmutableString, start: i64, count: i64| characters(&text, start, count))
        .register_fn("chars", |text: ImmutableString, range: std::ops::Range<i64>| {
            let start = range.start.max(0);
            characters(&text, start, range.end.saturating_sub(start))
        })
        .register_fn("chars", |text: ImmutableString, range: std::ops::RangeInclusive<i64>| {
            let start = (*range.start()).max(0);
            characters(&text, start, range.end().saturating_sub(start).saturating_add(1))
        });
    // Rhai's own function evaluates its argument as an expression, outside all limits.
    engine.register_fn("parse_json", |text: ImmutableString| parse_json(&text));
    engine.register_fn("to_json", |map: &mut Map| to_json_value(&Dynamic::from(map.clone())).to_string());
}

fn lists(engine: &mut Engine) {
    engine.register_fn("pad", |list: &mut Array, length: i64, item: Dynamic| pad_list(list, length, item));
    engine.register_fn("contains", |list: &mut Array, wanted: Dynamic| {
        Ok::<_, Box<EvalAltResult>>(position(list, &wanted, 0)?.is_some())
    });
    let index_of = |list: &mut Array, wanted: &Dynamic, start: i64| -> Answer<i64> {
        let start = usize::try_from(start)
            .unwrap_or_else(|_| list.len().saturating_sub(usize::try_from(start.unsigned_abs()).unwrap_or(usize::MAX)));
        Ok(position(list, wanted, start)?.and_then(|index| i64::try_from(index).ok()).unwrap_or(-1))
    };
    engine
        .register_fn("index_of", move |list: &mut Array, wanted: Dynamic| index_of(list, &wanted, 0))
        .register_fn("index_of", move |list: &mut Array, wanted: Dynamic, start: i64| index_of(list, &wanted, start))
        // Rhai's own function prefers to treat a string as the name of a function.
        .register_fn("index_of", move |list: &mut Array, wanted: ImmutableString| index_of(list, &wanted.into(), 0))
        .register_fn("index_of", move |list: &mut Array, wanted: ImmutableString, start: i64| {
            index_of(list, &wanted.into(), start)
        });
}

fn functions(engine: &mut Engine) {
    for arguments in 1..=MAX_CURRIED {
        let mut types = vec![TypeId::of::<FnPtr>()];
        types.resize(arguments + 1, TypeId::of::<Dynamic>());
        engine.register_raw_fn(CURRIED, types, |_, arguments| {
            let mut given = arguments.iter();
            let function = given.next().and_then(|first| first.read_lock::<FnPtr>().map(|function| function.clone()));
            let mut function = function.ok_or("`curry` can only be called on functions")?;
            for argument in given {
                if is_or_holds_closure(argument) || Weight::of(argument).bytes > MAX_CURRIED_BYTES {
                    return Err(too_large("`curry` takes values of at most 4 KiB, and no closures; use a closure"));
                }
                function.add_curry((*argument).clone().flatten());
            }
            Ok(function)
        });
    }
    // Captured values are not shown: they can be large, and can contain the closure itself.
    engine.register_fn("to_debug", |function: &mut FnPtr| format!("Fn({})", function.fn_name()));
    engine.register_fn("debug", |function: &mut FnPtr| format!("Fn({})", function.fn_name()));
}

fn refused(engine: &mut Engine) {
    // `sleep` would block the thread in a place that no callback interrupts.
    engine.register_fn("sleep", |_: i64| refuse::<()>("`sleep` is disabled: rules cannot wait"));
    engine.register_fn("sleep", |_: f64| refuse::<()>("`sleep` is disabled: rules cannot wait"));
    // Tags mark values that need not be checked again: see `bounds`.
    const TAGS: &str = "values cannot be tagged";
    engine.register_fn("set_tag", |_: &mut Dynamic, _: i64| refuse::<()>(TAGS));
    engine.register_set("tag", |_: &mut Dynamic, _: i64| refuse::<()>(TAGS));
    const LISTING: &str = "`get_fn_metadata_list` is disabled";
    engine
        .register_fn("get_fn_metadata_list", || refuse::<Array>(LISTING))
        .register_fn("get_fn_metadata_list", |_: ImmutableString| refuse::<Array>(LISTING))
        .register_fn("get_fn_metadata_list", |_: ImmutableString, _: i64| refuse::<Array>(LISTING));
}

fn refuse<T>(why: &str) -> Answer<T> {
    Err(why.into())
}

fn replace(text: &mut ImmutableString, find: &str, with: &str) -> Answer<()> {
    let found = text.matches(find).count();
    let added = found.saturating_mul(with.len());
    let left = text.len().saturating_sub(found.saturating_mul(find.len()));
    if left.saturating_add(added) > MAX_STRING {
        return Err(too_large("Length of string"));
    }
    if found > 0 && !text.is_empty() {
        *text = text.replace(find, with).into();
    }
    Ok(())
}

fn pad_text(text: &mut ImmutableString, length: i64, padding: &str) -> Answer<()> {
    let Ok(length) = usize::try_from(length) else {
        return Ok(());
    };
    let known = text.chars().count();
    if length <= known {
        return Ok(());
    }
    if padding.is_empty() {
        return refuse("pad: the padding is empty");
    }
    if length > MAX_STRING {
        return Err(too_large("Length of string"));
    }
    let mut padded = text.to_string();
    for character in padding.chars().cycle().take(length - known) {
        padded.push(character);
    }
    if padded.len() > MAX_STRING {
        return Err(too_large("Length of string"));
    }
    *text = padded.into();
    Ok(())
}

/// Characters of a string from an index on; a negative index counts from the end.
fn characters(text: &str, start: i64, count: i64) -> Answer<Array> {
    let count = usize::try_from(count).unwrap_or(0);
    let start = usize::try_from(start).unwrap_or_else(|_| {
        let back = usize::try_from(start.unsigned_abs()).unwrap_or(usize::MAX);
        text.chars().count().saturating_sub(back)
    });
    let found: Array = text.chars().skip(start).take(count.min(MAX_ITEMS + 1)).map(Dynamic::from).collect();
    if found.len() > MAX_ITEMS { Err(too_large("Size of array")) } else { Ok(found) }
}

fn parse_json(text: &str) -> Answer<Dynamic> {
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|error| format!("parse_json: invalid JSON: {error}"))?;
    let value = rhai::serde::to_dynamic(value)?;
    Weight::of(&value).check()?;
    Ok(value)
}

fn pad_list(list: &mut Array, length: i64, item: Dynamic) -> Answer<()> {
    let Ok(length) = usize::try_from(length) else {
        return Ok(());
    };
    let Some(added) = length.checked_sub(list.len()) else {
        return Ok(());
    };
    let item = item.flatten();
    let weight = Weight::of(&item);
    if length > MAX_ITEMS
        || added.saturating_mul(weight.nodes) > MAX_ITEMS
        || added.saturating_mul(weight.text) > MAX_STRING
        || added.saturating_mul(weight.bytes) > MAX_BYTES
    {
        return Err(too_large("Size of array"));
    }
    list.resize(length, item);
    Ok(())
}

/// The index of a value in a list.
fn position(list: &Array, wanted: &Dynamic, start: usize) -> Answer<Option<usize>> {
    let nodes = Weight::of(wanted).nodes;
    if nodes > 1 && nodes.saturating_mul(list.len()) > MAX_COMPARED {
        return Err(too_large("searching the list would take more than 1,000,000 comparisons"));
    }
    let found = list.iter().skip(start).position(|item| is_equal(item, wanted, MAX_DEPTH));
    Ok(found.map(|index| index + start))
}

/// Like Rhai's `==`: integers and floats compare by value, and values of different types are not equal.
fn is_equal(one: &Dynamic, other: &Dynamic, levels: usize) -> bool {
    if levels == 0 {
        return false;
    }
    if let (Ok(one), Ok(other)) = (one.as_int(), other.as_int()) {
        return one == other;
    }
    let number = |value: &Dynamic| {
        #[expect(clippy::cast_precision_loss, reason = "as Rhai compares an integer with a float")]
        value.as_float().ok().or_else(|| value.as_int().ok().map(|whole| whole as f64))
    };
    if let (Some(one), Some(other)) = (number(one), number(other)) {
        #[expect(clippy::float_cmp, reason = "as Rhai compares them")]
        return one == other;
    }
    if let (Some(one), Some(other)) = (one.read_lock::<ImmutableString>(), other.read_lock::<ImmutableString>()) {
        return *one == *other;
    }
    if let (Ok(one), Ok(other)) = (one.as_bool(), other.as_bool()) {
        return one == other;
    }
    if let (Ok(one), Ok(other)) = (one.as_char(), other.as_char()) {
        return one == other;
    }
    if let (Some(one), Some(other)) = (one.read_lock::<Array>(), other.read_lock::<Array>()) {
        return one.len() == other.len()
            && one.iter().zip(other.iter()).all(|(one, other)| is_equal(one, other, levels - 1));
    }
    if let (Some(one), Some(other)) = (one.read_lock::<Map>(), other.read_lock::<Map>()) {
        let same = |(name, one): (&rhai::Identifier, &Dynamic)| {
            other.get(name).is_some_and(|other| is_equal(one, other, levels - 1))
        };
        return one.len() == other.len() && one.iter().all(same);
    }
    one.is_unit() && other.is_unit()
}

#[cfg(test)]
mod tests;
