//! Host functions: what a rule can call beyond Rhai's own standard library. One file a subject; none of them does I/O,
//! reads a clock, or can fail on absent data.

use rhai::Engine;

mod absent;
mod event;
mod text;
mod time;

/// Registers all host functions.
pub(super) fn register(engine: &mut Engine) {
    absent::register(engine);
    event::register(engine);
    text::register(engine);
    time::register(engine);
}
