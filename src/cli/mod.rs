//! The command line: the verbs and their shared flags. Only this part of the program prints, parses arguments and knows
//! exit codes: 0 ok, 1 findings, 2 rules that do not load, 3 bad arguments, configuration, connection or store.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode, sync::Arc};

use clap::{
    Parser, Subcommand, ValueEnum,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use tracing_subscriber::EnvFilter;
use watchbell::{
    agent::AgentError,
    api::{Client, ClientError, answer, request},
    config::{
        Config,
        diagnostic::{Diagnostic, any_error},
    },
    model::{
        action::{Catalog, ListedAction},
        time::Clock,
    },
    rule::RuleSources,
    store::{Store, StoreError},
};

mod actions;
mod alerts;
mod author;
mod check;
mod coverage;
mod demo;
mod destinations;
mod events;
mod exceptions;
mod explain;
mod filter;
mod init;
mod junit;
mod manual;
mod output;
mod replay;
mod rules;
mod run;
mod silence;
mod state;
mod status;
mod store;
mod test;
mod validate;

use output::Output;

/// A local detection agent for the audit log of an Atlassian Cloud organization.
#[derive(Debug, Parser)]
#[command(name = "watchbell", version = env!("WATCHBELL_VERSION"), about)]
struct Arguments {
    /// Path of the configuration file
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        value_name = "FILE",
        env = "WATCHBELL_CONFIG",
        hide_env_values = true,
        default_value = "watchbell.toml"
    )]
    config: PathBuf,
    /// Output format
    #[arg(long, global = true, help_heading = "Global options", value_name = "FORMAT", default_value = "human", value_parser = formats(&[]))]
    format: Format,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Human-readable text
    Human,
    /// JSON: one document, or one object per line for lists
    Json,
    /// JSON Lines, one alert per line
    Jsonl,
    /// Markdown for a pull request
    Markdown,
    /// A self-contained HTML page
    Html,
    /// JUnit XML
    Junit,
    /// GitHub Actions annotations
    Github,
    /// SARIF 2.1
    Sarif,
}

/// Parses the formats that a verb has: text, JSON, and `more`. Verbs that have more define the argument again, with the
/// same id, in place of the global one.
fn formats(more: &[Format]) -> impl TypedValueParser<Value = Format> + use<> {
    let all = [Format::Human, Format::Json].into_iter().chain(more.iter().copied());
    let values: Vec<PossibleValue> = all.filter_map(|format| format.to_possible_value()).collect();
    PossibleValuesParser::new(values).try_map(|name| Format::from_str(&name, false))
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the agent on a simulated organization; needs no account, network or configuration
    Demo(demo::Demo),
    /// Write a commented watchbell.toml and the shipped rules; overwrites nothing
    Init(init::Init),
    /// Validate the configuration, compile all rules and query each source
    Check(check::Check),
    /// Run the tests of the rules
    Test(test::TestArgs),
    /// Explain why a rule alerts on an event, or why it does not
    Explain(explain::Explain),
    /// Run the agent
    Run(run::RunArgs),
    /// Run rules on stored events or on files of events; stores and delivers nothing
    Replay(replay::ReplayArgs),
    /// Show which actions occur, and which rules cover them
    Coverage(coverage::CoverageArgs),
    /// List, show, create, format and document rules
    Rules(rules::RulesArgs),
    /// List the organizations' actions, how often they were seen, and the rules that use them
    Actions(actions::Actions),
    /// List, import and export stored events
    Events(events::Events),
    /// List, acknowledge and resolve alerts
    Alerts(alerts::Alerts),
    /// List exceptions and propose new ones
    Exceptions(exceptions::Exceptions),
    /// Mute the deliveries of matching alerts for a while
    Silence(silence::Silences),
    /// List and test destinations, and handle deliveries that were given up
    Destinations(destinations::Destinations),
    /// Show the state of the agent, sources, rules, alerts and deliveries
    Status(status::StatusVerb),
    /// Inspect or clear rule state
    State(state::StateVerbs),
    /// Verify, back up and repair the store
    Store(store::StoreVerbs),
    /// Print a completion script for a shell
    Completions(manual::Completions),
    /// Write man pages to a directory
    Man(manual::Man),
}

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    /// The verb ran and found something that the caller should know: exit code 1.
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
    /// A request to the agent or the store: exit code 3.
    #[error(transparent)]
    Client(ClientError),
    /// The agent: exit code 3.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// Output that cannot be written: exit code 3. A closed pipe is not an error.
    #[error("cannot write output: {0}")]
    Output(#[from] std::io::Error),
}

impl CliError {
    fn code(&self) -> u8 {
        match self {
            Self::Findings(_) => 1,
            Self::Rules(_) => 2,
            Self::Usage(_) | Self::Store(_) | Self::Client(_) | Self::Agent(_) | Self::Output(_) => 3,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Agent(AgentError::Store(StoreError::Locked { .. })) => {
                Some("only one agent can run on a data directory; give each agent its own `data_dir`")
            }
            Self::Store(StoreError::Locked { .. }) => Some("stop the agent first; this needs the store to itself"),
            Self::Client(ClientError::Store(StoreError::Locked { .. })) => {
                Some("the process that locks the store does not answer on its control socket; try again, or stop it")
            }
            _ => None,
        }
    }
}

/// Fails if a rules directory could not be read: an empty set of rules must not pass for the full one.
fn ensure_readable(diagnostics: &[Diagnostic]) -> Result<(), CliError> {
    match watchbell::rule::unreadable_root(diagnostics) {
        None => Ok(()),
        Some(problem) => Err(CliError::Usage(format!("`{}`: {}", problem.file.display(), problem.message))),
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        match error {
            // The reader of the output may be gone, which is not an error.
            ClientError::Output(error) => Self::Output(error),
            other => Self::Client(other),
        }
    }
}

/// What every verb receives.
struct Context {
    config: PathBuf,
    format: Format,
    output: Output,
}

pub(crate) fn main() -> ExitCode {
    // Files that the program writes are private to its user.
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
        Verb::Test(verb) => verb.run(&mut context),
        Verb::Explain(verb) => verb.run(&mut context),
        Verb::Run(verb) => verb.run(&mut context),
        Verb::Replay(verb) => verb.run(&mut context),
        Verb::Coverage(verb) => verb.run(&mut context),
        Verb::Rules(verb) => verb.run(&mut context),
        Verb::Actions(verb) => verb.run(&mut context),
        Verb::Events(verb) => verb.run(&mut context),
        Verb::Alerts(verb) => verb.run(&mut context),
        Verb::Exceptions(verb) => verb.run(&mut context),
        Verb::Silence(verb) => verb.run(&mut context),
        Verb::Destinations(verb) => verb.run(&mut context),
        Verb::Status(verb) => verb.run(&mut context),
        Verb::State(verb) => verb.run(&mut context),
        Verb::Store(verb) => verb.run(&mut context),
        Verb::Completions(verb) => verb.run(&mut context),
        Verb::Man(verb) => verb.run(&mut context),
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
    // Fails only if logging is already set up.
    if matches!(arguments.verb, Verb::Run(_)) && arguments.format == Format::Json {
        builder.json().flatten_event(true).try_init().ok();
    } else {
        builder.with_ansi(colour).try_init().ok();
    }
    // A panic is a bug in Watchbell. One line is enough for the user; the threads of rules catch their own panics.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
        let text = text.unwrap_or("no message");
        // sled panics on some kinds of file damage.
        if place.contains("/sled-") {
            tracing::error!(
                "the store is damaged ({text}); see `watchbell store verify`, or save it with `watchbell store recover`"
            );
        } else {
            tracing::error!(place, "internal error: {text}; please report this");
        }
    }));
}

impl Context {
    /// Loads the configuration and shows its problems.
    fn config(&self) -> Result<Config, CliError> {
        let (config, diagnostics) = Config::load(&self.config);
        self.output.diagnostics(&diagnostics);
        config.ok_or_else(|| CliError::Usage(problems("invalid configuration", &diagnostics)))
    }

    /// A client of the running agent, or of the store if no agent runs.
    fn client(&self) -> Result<(Config, Client), CliError> {
        let config = self.config()?;
        let client = Client::open(&config, &Clock::system())?;
        Ok((config, client))
    }

    /// Like [`Self::client`], but creates a missing store: for verbs that may be the first to store something.
    fn client_or_new_store(&self) -> Result<(Config, Client), CliError> {
        let config = self.config()?;
        if !config.data_dir.join("store").exists() {
            drop(Store::open(&config.data_dir)?);
        }
        let client = Client::open(&config, &Clock::system())?;
        Ok((config, client))
    }

    /// The configuration, for verbs that need exclusive access to an existing store.
    fn existing_store(&self) -> Result<Config, CliError> {
        let config = self.config()?;
        if config.data_dir.join("store").exists() {
            return Ok(config);
        }
        Err(CliError::Usage(format!("no store in `{}`", config.data_dir.display())))
    }

    /// The configured rules, with the organizations' action lists if these are stored.
    fn rule_sources(&self, config: &Config) -> RuleSources {
        let mut sources = config.rules.clone();
        if config.data_dir.join("store").exists() {
            let entries = Client::open(config, &Clock::system()).and_then(|client| client.all(request::Actions {}));
            match entries {
                Ok(entries) => sources.catalog = Arc::new(catalog_of(&entries)),
                // Rules can be used without a store.
                Err(error) => {
                    self.output.warning(&format!("cannot read the stored lists of actions: {error}"));
                }
            }
        }
        sources
    }

    fn is_json(&self) -> bool {
        self.format == Format::Json
    }
}

/// The actions that organizations list.
fn catalog_of(entries: &[answer::ActionEntry]) -> Catalog {
    let listed = entries.iter().filter(|entry| entry.record.listed.is_some());
    let action = |entry: &answer::ActionEntry| ListedAction {
        id: entry.id.as_str().into(),
        name: entry.record.name.clone(),
        group: entry.record.group.clone(),
    };
    listed.map(action).collect()
}

/// Polls the agent until an error occurs. If the agent stops, waits for the next one and polls that. The store stays
/// closed while it waits, so that the next agent can open it.
fn follow(
    context: &Context,
    config: &Config,
    mut client: Client,
    mut ask: impl FnMut(&Client) -> Result<(), ClientError>,
) -> Result<(), CliError> {
    loop {
        if client.is_agent() {
            match ask(&client) {
                Ok(()) => continue,
                Err(ClientError::Agent(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        drop(client);
        context.output.note("no agent is running; waiting for one to start");
        loop {
            std::thread::sleep(std::time::Duration::from_secs(1));
            if std::os::unix::net::UnixStream::connect(watchbell::api::socket(&config.data_dir)).is_ok() {
                break;
            }
        }
        client = Client::open(config, &Clock::system())?;
    }
}

/// Creates or truncates a file that only its owner can read.
fn private_file(path: &std::path::Path) -> Result<std::fs::File, CliError> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let opened = options.open(path).and_then(|file| {
        // An existing file may have another mode. What is not a regular file (a pipe, `/dev/null`) keeps its mode.
        if file.metadata()?.is_file() {
            file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        }
        Ok(file)
    });
    opened.map_err(|error| CliError::Usage(format!("cannot write `{}`: {error}", path.display())))
}

/// Replaces a file atomically: an agent that reads at the same time sees either the old text or the new.
fn replace_file(path: &std::path::Path, text: &str) -> Result<(), CliError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.new"));
    let result = std::fs::write(&temporary, text)
        .and_then(|()| match std::fs::metadata(path) {
            Ok(old) => std::fs::set_permissions(&temporary, old.permissions()),
            Err(_) => Ok(()),
        })
        .and_then(|()| std::fs::rename(&temporary, path));
    result.map_err(|error| CliError::Usage(format!("cannot write `{}`: {error}", path.display())))
}

/// `what: 2 problems`.
fn problems(what: &str, diagnostics: &[Diagnostic]) -> String {
    let count = diagnostics.iter().filter(|diagnostic| any_error(std::slice::from_ref(diagnostic))).count();
    format!("{what}: {count} problem{}", if count == 1 { "" } else { "s" })
}

/// Runs rules on a thread with a large enough stack, as the agent does.
fn on_rule_thread<T: Send>(run: impl FnOnce() -> T + Send) -> Result<T, CliError> {
    watchbell::rule::stack::run("rules", run)
        .map_err(|error| CliError::Usage(format!("cannot start a thread for rules: {error}")))
}

fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| CliError::Usage(format!("cannot start the async runtime: {error}")))
}
