//! The command line: verbs and the flags they share. The only part of the program that prints, parses arguments, and knows
//! exit codes: 0 ok, 1 findings, 2 rules that do not load, 3 wrong arguments, configuration, connection or store.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;
use watchbell::{
    agent::AgentError,
    config::Config,
    diagnostic::{Diagnostic, any_error},
    store::{Reader, Store, StoreError},
};

mod alerts;
mod check;
mod demo;
mod events;
mod filter;
mod init;
mod output;
mod replay;
mod rules;
mod run;
mod status;

use output::Output;

/// A local detection agent for the audit log of an Atlassian Cloud organization.
#[derive(Debug, Parser)]
#[command(name = "watchbell", version, about, propagate_version = true)]
struct Arguments {
    /// The configuration
    #[arg(long, global = true, value_name = "FILE", env = "WATCHBELL_CONFIG", default_value = "watchbell.toml")]
    config: PathBuf,
    /// How data is printed
    #[arg(long, global = true, value_name = "FORMAT", default_value = "human")]
    format: Format,
    #[command(subcommand)]
    verb: Verb,
}

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Human,
    /// A JSON document, or one object a line where there are many
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Shows the agent at work on a simulated organization: no account, network or configuration needed
    Demo(demo::Demo),
    /// Writes a commented watchbell.toml and the shipped rules; overwrites nothing
    Init(init::Init),
    /// Validates the configuration, compiles all rules, and asks each source
    Check(check::Check),
    /// Runs the agent
    Run(run::Run),
    /// Runs rules over stored events or a file of events; writes and delivers nothing
    Replay(replay::Replay),
    /// Lists rules
    Rules(rules::Rules),
    /// Looks at stored events
    Events(events::Events),
    /// Looks at alerts
    Alerts(alerts::Alerts),
    /// Shows how sources, rules, alerts and deliveries stand
    Status(status::Status),
}

/// Why a verb did not do what it was asked.
#[derive(Debug, thiserror::Error)]
enum CliError {
    /// It worked, and there is something the caller should know: exit code 1.
    #[error("{0}")]
    Findings(String),
    /// Rules do not load: exit code 2. The diagnostics have been shown.
    #[error("{0}")]
    Rules(String),
    /// Arguments, configuration, connection: exit code 3.
    #[error("{0}")]
    Usage(String),
    /// The store: exit code 3.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The agent: exit code 3.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// Output that nobody reads any more is no error; other failures are.
    #[error("output cannot be written: {0}")]
    Output(#[from] std::io::Error),
}

impl CliError {
    fn code(&self) -> u8 {
        match self {
            Self::Findings(_) => 1,
            Self::Rules(_) => 2,
            Self::Usage(_) | Self::Store(_) | Self::Agent(_) | Self::Output(_) => 3,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Store(StoreError::Locked { .. }) => Some(
                "one process can have the store open: stop the agent to look at it, or give a second agent a `data_dir` of its own",
            ),
            _ => None,
        }
    }
}

/// What every verb gets.
struct Context {
    config: PathBuf,
    format: Format,
    output: Output,
}

/// Runs the program.
pub(crate) fn main() -> ExitCode {
    // Nothing that is written is for others to read.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            error.print().ok();
            return ExitCode::from(if error.use_stderr() { 3 } else { 0 });
        }
    };
    set_up_logging(&arguments);
    let mut context =
        Context { config: arguments.config, format: arguments.format, output: Output::new(arguments.format) };
    let result = match arguments.verb {
        Verb::Demo(verb) => verb.run(&mut context),
        Verb::Init(verb) => verb.run(&mut context),
        Verb::Check(verb) => verb.run(&mut context),
        Verb::Run(verb) => verb.run(&mut context),
        Verb::Replay(verb) => verb.run(&mut context),
        Verb::Rules(verb) => verb.run(&mut context),
        Verb::Events(verb) => verb.run(&mut context),
        Verb::Alerts(verb) => verb.run(&mut context),
        Verb::Status(verb) => verb.run(&mut context),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(CliError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            context.output.error(&error.to_string(), error.hint());
            ExitCode::from(error.code())
        }
    }
}

fn set_up_logging(arguments: &Arguments) {
    let default = match arguments.verb {
        Verb::Run(_) => "info",
        Verb::Demo(_) => "off",
        _ => "warn",
    };
    let filter = EnvFilter::builder().with_default_directive(default.parse().unwrap_or_default()).from_env_lossy();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let colour = std::io::stderr().is_terminal()
        && anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
    // Fails only if it was called before.
    if matches!(arguments.verb, Verb::Run(_)) && arguments.format == Format::Json {
        builder.json().flatten_event(true).try_init().ok();
    } else {
        builder.with_ansi(colour).try_init().ok();
    }
    // A panic is a bug of ours; one line of it is enough for people, and rules' threads catch theirs.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
        let text = text.unwrap_or("no message");
        tracing::error!(place, "the program failed: {text}: please report this");
    }));
}

impl Context {
    /// The configuration; its problems are shown.
    fn config(&self) -> Result<Config, CliError> {
        let (config, diagnostics) = Config::load(&self.config);
        self.output.diagnostics(&diagnostics);
        config.ok_or_else(|| CliError::Usage(problems("the configuration is not usable", &diagnostics)))
    }

    /// The store as the configuration says, to read. An agent that runs holds it.
    fn store(&self) -> Result<(Config, Store, Reader), CliError> {
        let config = self.config()?;
        if !config.data_dir.join("store").exists() {
            let path = config.data_dir.display();
            return Err(CliError::Usage(format!("there is no store in `{path}` yet: `watchbell run` makes it")));
        }
        let store = Store::open(&config.data_dir)?;
        let reader = store.reader();
        Ok((config, store, reader))
    }

    fn is_json(&self) -> bool {
        self.format == Format::Json
    }
}

/// `what: 2 problems`.
fn problems(what: &str, diagnostics: &[Diagnostic]) -> String {
    let count = diagnostics.iter().filter(|diagnostic| any_error(std::slice::from_ref(diagnostic))).count();
    format!("{what}: {count} problem{}", if count == 1 { "" } else { "s" })
}

/// An async runtime for the verbs that need one.
fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| CliError::Usage(format!("no runtime: {error}")))
}
