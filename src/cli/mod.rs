//! The command line: verbs and the flags they share. The only part of the program that prints, parses arguments, and knows
//! exit codes: 0 ok, 1 findings, 2 rules that do not load, 3 wrong arguments, configuration, connection or store.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode, sync::Arc};

use clap::{Parser, Subcommand, ValueEnum};
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
#[command(name = "watchbell", version = env!("WATCHBELL_VERSION"), about, propagate_version = true)]
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
    /// An alert a line, of `replay`
    Jsonl,
    /// A text for a pull request, of `replay`
    Markdown,
    /// A page for a browser, of `replay`
    Html,
    /// JUnit's XML, of `test` and `replay`
    Junit,
    /// Annotations for GitHub's workflows, of `test` and `check`
    Github,
    /// SARIF 2.1, of `check`
    Sarif,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Shows the agent at work on a simulated organization: no account, network or configuration needed
    Demo(demo::Demo),
    /// Writes a commented watchbell.toml and the shipped rules; overwrites nothing
    Init(init::Init),
    /// Validates the configuration, compiles all rules, and asks each source
    Check(check::Check),
    /// Runs the tests beside the rules
    Test(test::TestArgs),
    /// Says why a rule alerts on an event, or why it does not
    Explain(explain::Explain),
    /// Runs the agent
    Run(run::RunArgs),
    /// Runs rules over stored events or a file of events; writes and delivers nothing
    Replay(replay::ReplayArgs),
    /// Shows which actions occur, which rules look at them, and which none does
    Coverage(coverage::CoverageArgs),
    /// Lists rules
    Rules(rules::RulesArgs),
    /// Looks at the organizations' actions: what they are called, how often they were seen, which rules want them
    Actions(actions::Actions),
    /// Looks at stored events; takes events in and out
    Events(events::Events),
    /// Looks at alerts, and deals with them
    Alerts(alerts::Alerts),
    /// Looks at exceptions, and proposes them
    Exceptions(exceptions::Exceptions),
    /// Stops deliveries for a while
    Silence(silence::Silences),
    /// Looks at destinations, and tries them
    Destinations(destinations::Destinations),
    /// Shows how sources, rules, alerts and deliveries stand
    Status(status::StatusVerb),
    /// Looks at what rules remember, and makes them forget
    State(state::StateVerbs),
    /// Takes care of the store
    Store(store::StoreVerbs),
    /// Print a completion script for a shell
    Completions(manual::Completions),
    /// Write man pages to a directory
    Man(manual::Man),
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
    /// Asking the agent or the store: exit code 3.
    #[error(transparent)]
    Client(ClientError),
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
            Self::Usage(_) | Self::Store(_) | Self::Client(_) | Self::Agent(_) | Self::Output(_) => 3,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Agent(AgentError::Store(StoreError::Locked { .. })) => {
                Some("one agent can run on a data directory: give a second one a `data_dir` of its own")
            }
            Self::Store(StoreError::Locked { .. }) => Some("stop the agent first: this needs the store for itself"),
            Self::Client(ClientError::Store(StoreError::Locked { .. })) => {
                Some("whoever holds the store does not answer on its control socket: try again, or stop that process")
            }
            _ => None,
        }
    }
}

/// An error if a rules directory could not be read: nothing can be said of rules then, and none of them must seem to be all of them.
fn readable(diagnostics: &[Diagnostic]) -> Result<(), CliError> {
    match watchbell::rule::unreadable_root(diagnostics) {
        None => Ok(()),
        Some(found) => Err(CliError::Usage(format!("`{}`: {}", found.file.display(), found.message))),
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        match error {
            // Whoever read the output may have gone, which is no error.
            ClientError::Output(error) => Self::Output(error),
            other => Self::Client(other),
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
    let more: &[Format] = match &arguments.verb {
        Verb::Test(_) => &[Format::Junit, Format::Github],
        Verb::Check(_) => &[Format::Github, Format::Sarif],
        Verb::Replay(_) => &[Format::Jsonl, Format::Markdown, Format::Html, Format::Junit],
        _ => &[],
    };
    if !matches!(arguments.format, Format::Human | Format::Json) && !more.contains(&arguments.format) {
        let names = [Format::Human, Format::Json].iter().chain(more).filter_map(ValueEnum::to_possible_value);
        let names: Vec<String> = names.map(|name| format!("`{}`", name.get_name())).collect();
        let message = format!("this verb has no such `--format`: it has {}", names.join(", "));
        Output::new(Format::Human).error(&message, None);
        return ExitCode::from(3);
    }
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
        // sled panics on some kinds of damage to its file.
        if place.contains("/sled-") {
            tracing::error!(
                "the store is damaged ({text}): `watchbell store verify` says what is wrong, `watchbell store recover` saves what can be read"
            );
        } else {
            tracing::error!(place, "the program failed: {text}: please report this");
        }
    }));
}

impl Context {
    /// The configuration; its problems are shown.
    fn config(&self) -> Result<Config, CliError> {
        let (config, diagnostics) = Config::load(&self.config);
        self.output.diagnostics(&diagnostics);
        config.ok_or_else(|| CliError::Usage(problems("the configuration is not usable", &diagnostics)))
    }

    /// Whom to ask: the agent that runs, or the store.
    fn client(&self) -> Result<(Config, Client), CliError> {
        let config = self.config()?;
        let client = Client::open(&config, &Clock::system())?;
        Ok((config, client))
    }

    /// The same, for verbs that may be the first to store something.
    fn client_or_new_store(&self) -> Result<(Config, Client), CliError> {
        let config = self.config()?;
        if !config.data_dir.join("store").exists() {
            drop(Store::open(&config.data_dir)?);
        }
        let client = Client::open(&config, &Clock::system())?;
        Ok((config, client))
    }

    /// The configuration, for verbs that need the store for themselves.
    fn existing_store(&self) -> Result<Config, CliError> {
        let config = self.config()?;
        if config.data_dir.join("store").exists() {
            return Ok(config);
        }
        Err(CliError::Usage(format!("there is no store in `{}`", config.data_dir.display())))
    }

    /// The configured rules with what the organizations say of their actions, as far as that is stored.
    fn rule_sources(&self, config: &Config) -> RuleSources {
        let mut sources = config.rules.clone();
        if config.data_dir.join("store").exists() {
            let entries = Client::open(config, &Clock::system()).and_then(|client| client.all(request::Actions {}));
            match entries {
                Ok(entries) => sources.catalog = Arc::new(catalog_of(&entries)),
                // Rules can be looked at without a store, too.
                Err(error) => {
                    self.output.warning(&format!("what the organizations say of their actions is not known: {error}"));
                }
            }
        }
        sources
    }

    fn is_json(&self) -> bool {
        self.format == Format::Json
    }
}

/// What organizations say of their actions.
fn catalog_of(entries: &[answer::ActionEntry]) -> Catalog {
    let listed = entries.iter().filter(|entry| entry.record.listed.is_some());
    let action = |entry: &answer::ActionEntry| ListedAction {
        id: entry.id.as_str().into(),
        name: entry.record.name.clone(),
        group: entry.record.group.clone(),
    };
    listed.map(action).collect()
}

/// Asks again and again, of one agent after another if need be. Between them the store is left alone, so that the next can
/// start.
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
        context.output.note("no agent runs: waiting for one");
        loop {
            std::thread::sleep(std::time::Duration::from_secs(1));
            if std::os::unix::net::UnixStream::connect(watchbell::api::socket(&config.data_dir)).is_ok() {
                break;
            }
        }
        client = Client::open(config, &Clock::system())?;
    }
}

/// A new file, or an old one emptied, that nobody else may read.
fn private_file(path: &std::path::Path) -> Result<std::fs::File, CliError> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let opened = options.open(path).and_then(|file| {
        // An old one may have had another mode; what is no file (a pipe, `/dev/null`) keeps its own.
        if file.metadata()?.is_file() {
            file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        }
        Ok(file)
    });
    opened.map_err(|error| CliError::Usage(format!("`{}` cannot be written: {error}", path.display())))
}

/// Writes a file beside its place and then puts it there: an agent that is just reading sees the old one or the new one.
fn replace_file(path: &std::path::Path, text: &str) -> Result<(), CliError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!(".{name}.new"));
    let written = std::fs::write(&aside, text)
        .and_then(|()| match std::fs::metadata(path) {
            Ok(old) => std::fs::set_permissions(&aside, old.permissions()),
            Err(_) => Ok(()),
        })
        .and_then(|()| std::fs::rename(&aside, path));
    written.map_err(|error| CliError::Usage(format!("`{}` cannot be written: {error}", path.display())))
}

/// `what: 2 problems`.
fn problems(what: &str, diagnostics: &[Diagnostic]) -> String {
    let count = diagnostics.iter().filter(|diagnostic| any_error(std::slice::from_ref(diagnostic))).count();
    format!("{what}: {count} problem{}", if count == 1 { "" } else { "s" })
}

/// Runs rules on a thread with room for them, as the agent does.
fn on_a_rules_thread<T: Send>(run: impl FnOnce() -> T + Send) -> Result<T, CliError> {
    watchbell::rule::stack::run("rules", run)
        .map_err(|error| CliError::Usage(format!("no thread for the rules: {error}")))
}

/// An async runtime for the verbs that need one.
fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| CliError::Usage(format!("no runtime: {error}")))
}
