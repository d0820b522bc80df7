//! Durations as texts: `duration_text(5400)` is `"1h 30m"`.

use std::time::Duration;

use rhai::{Dynamic, Engine};

use crate::time;

pub(super) fn register(engine: &mut Engine) {
    engine.register_fn("duration_text", |seconds: i64| {
        time::show_duration(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    });
    engine.register_fn("duration_text", |(): ()| Dynamic::UNIT);
}
