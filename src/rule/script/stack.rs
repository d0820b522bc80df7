//! The stack of the threads that compile and run rules.
//!
//! Rhai recurses on the machine's stack: into calls and expressions, and into values, which may nest as deep as their
//! maximum number of items if a native function built them in one step. The size fits the deepest such value,
//! formatted as text, in a debug build. Memory is only allocated as far as the stack is used.

use std::{io, thread};

/// Stack size of each thread that compiles or runs rules, in bytes.
pub const STACK: usize = 192 * 1024 * 1024;

/// A builder for a thread that may run rules.
pub fn thread(name: &str) -> thread::Builder {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK)
}

/// Runs a function on a new thread that may run rules, and waits for its result.
pub fn run<T: Send>(name: &str, run: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let running = thread(name).spawn_scoped(scope, run)?;
        match running.join() {
            Ok(done) => Ok(done),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
