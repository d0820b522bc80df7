//! Looking into an event: `event.targets("users")`, `event.get("attributes.context[0].id", "none")`, `event.has(…)`.

use rhai::{Array, Dynamic, Engine, FuncRegistration, Map};

pub(super) fn register(engine: &mut Engine) {
    // Methods called on the read-only event must be registered as pure, else Rhai refuses them.
    let method = |name: &'static str| FuncRegistration::new(name).with_purity(true).with_volatility(false);
    method("targets").register_into_engine(engine, |event: &mut Map| targets(event, None));
    method("targets").register_into_engine(engine, |event: &mut Map, kind: &str| targets(event, Some(kind)));
    method("get").register_into_engine(engine, |map: &mut Map, path: &str| get(map, path).unwrap_or(Dynamic::UNIT));
    method("get").register_into_engine(engine, |map: &mut Map, path: &str, default: Dynamic| {
        get(map, path).filter(|value| !value.is_unit()).unwrap_or(default)
    });
    method("has")
        .register_into_engine(engine, |map: &mut Map, path: &str| get(map, path).is_some_and(|value| !value.is_unit()));
    engine.register_fn("targets", |(): ()| Array::new());
    engine.register_fn("targets", |(): (), _: &str| Array::new());
    engine.register_fn("get", |(): (), _: &str| Dynamic::UNIT);
    engine.register_fn("get", |(): (), _: &str, default: Dynamic| default);
    engine.register_fn("has", |(): (), _: &str| false);
}

/// The entries of `attributes.context` of one type, or all. Where `context` is an object instead of a list (both were
/// seen), it is taken as a list of one.
fn targets(event: &Map, kind: Option<&str>) -> Array {
    let Some(context) = get(event, "attributes.context") else {
        return Array::new();
    };
    let wanted = |item: &Dynamic| {
        let Some(map) = item.read_lock::<Map>() else {
            return false;
        };
        kind.is_none_or(|kind| {
            map.get("type")
                .and_then(|found| found.read_lock::<rhai::ImmutableString>().map(|found| *found == kind))
                .unwrap_or(false)
        })
    };
    if let Some(items) = context.read_lock::<Array>() {
        return items.iter().filter(|item| wanted(item)).cloned().collect();
    }
    if wanted(&context) { vec![context.clone()] } else { Array::new() }
}

/// The value at a path of keys joined by dots and indexes in brackets. A key that itself contains a dot is found only as the
/// whole path.
fn get(map: &Map, path: &str) -> Option<Dynamic> {
    if let Some(value) = map.get(path) {
        return Some(value.clone());
    }
    let mut value: Option<Dynamic> = None;
    for step in path.split('.') {
        let (key, indexes) = step.split_once('[').map_or((step, ""), |(key, rest)| (key, rest));
        if !key.is_empty() {
            value = match &value {
                None => map.get(key).cloned(),
                Some(value) => value.read_lock::<Map>().and_then(|map| map.get(key).cloned()),
            };
        }
        for index in indexes.split('[').filter(|index| !index.is_empty()) {
            let index: usize = index.strip_suffix(']')?.parse().ok()?;
            value = value?.read_lock::<Array>().and_then(|array| array.get(index).cloned());
        }
        value.as_ref()?;
    }
    value
}
