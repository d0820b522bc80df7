//! The stack that rules run on, and are compiled on.
//!
//! Rhai recurses on the machine's stack: into calls and expressions, and into values, which may nest as deep as they may have items
//! where a native function made them within one step. The size is that of the deepest, shown as text, in a debug build. Memory is
//! taken only as far as the stack is used.

use std::{io, thread};

/// Bytes of stack of each thread that runs or compiles rules.
pub const STACK: usize = 192 * 1024 * 1024;

/// A thread that may run rules.
pub fn thread(name: &str) -> thread::Builder {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK)
}

/// Runs something on a thread that may run rules, and waits for it.
pub fn run<T: Send>(name: &str, run: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let running = thread(name).spawn_scoped(scope, run)?;
        match running.join() {
            Ok(done) => Ok(done),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
