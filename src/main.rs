//! The `watchbell` binary: parses arguments, runs a verb and turns its result into an exit code.

use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    cli::main()
}
