//! Texts: `domain("dana@example.com")`.

use rhai::{Dynamic, Engine, ImmutableString};

pub(super) fn register(engine: &mut Engine) {
    engine.register_fn("domain", |address: ImmutableString| domain(&address));
    engine.register_fn("domain", |(): ()| Dynamic::UNIT);
}

/// What follows the last `@`, in lower case; `()` where there is none.
fn domain(address: &str) -> Dynamic {
    match address.rsplit_once('@') {
        Some((_, domain)) if !domain.is_empty() => domain.to_lowercase().into(),
        _ => Dynamic::UNIT,
    }
}
