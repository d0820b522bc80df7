//! `watchbell run`: runs the agent.

use std::{os::unix::net::UnixStream, time::Duration};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use watchbell::{
    agent::{Agent, AgentError, AgentOptions},
    api,
    config::{
        Config,
        diagnostic::{Level, any_error},
    },
    deliver::{Terminal, TerminalFormat},
    model::time::Clock,
    source::Timing,
    store::StoreError,
};

use super::{CliError, Context, Format, ensure_readable, output, runtime};

#[derive(Debug, Args)]
pub(super) struct RunArgs {}

impl RunArgs {
    #[expect(clippy::unused_self, reason = "all verbs have the same signature")]
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        let config = context.config()?;
        let runtime = runtime()?;
        let result = runtime.block_on(async {
            let stop = stop_on_signal()?;
            let mut agent = open(&config, context.format, true)?;
            loop {
                let Err(error) = agent.run(stop.clone()).await else { break };
                // The disk is full or failing. What was not written is fetched or evaluated again once the store works.
                let AgentError::Store(_) = &error else { return Err(error.into()) };
                tracing::error!("{error}");
                agent = loop {
                    tracing::error!(
                        "nothing is stored or evaluated until the store works again; retrying in {AFTER_FAILURE:?}"
                    );
                    tokio::select! {
                        () = stop.cancelled() => return Err(error.into()),
                        () = tokio::time::sleep(AFTER_FAILURE) => {}
                    }
                    match open(&config, context.format, false) {
                        Ok(agent) => break agent,
                        Err(error) => tracing::error!("{error}"),
                    }
                };
                tracing::info!("the store works again");
            }
            tracing::info!("stopped");
            Ok(())
        });
        // A request that hangs, or a name that is being resolved, must not delay the exit.
        runtime.shutdown_timeout(Duration::from_millis(300));
        result
    }
}

/// Delay before a store that failed is opened again.
const AFTER_FAILURE: Duration = Duration::from_secs(15);

fn open(config: &Config, format: Format, first: bool) -> Result<Agent, CliError> {
    let options =
        AgentOptions { clock: Clock::system(), timing: Timing::default(), terminal: terminal(format), pulse: None };
    // Another verb may have the store open for a moment.
    let mut attempts = 30;
    let agent = loop {
        match Agent::open(config.clone(), options.clone()) {
            Err(AgentError::Store(StoreError::Locked { .. }))
                if attempts > 0 && UnixStream::connect(api::socket(&config.data_dir)).is_err() =>
            {
                attempts -= 1;
                std::thread::sleep(Duration::from_millis(100));
            }
            opened => break opened?,
        }
    };
    // Only at the start: later, a directory may be missing for a moment while it is replaced.
    if first {
        ensure_readable(&agent.diagnostics)?;
    }
    for diagnostic in &agent.diagnostics {
        match diagnostic.level {
            Level::Error => tracing::error!(code = diagnostic.code, "{}", diagnostic.one_line()),
            Level::Warning => tracing::warn!(code = diagnostic.code, "{}", diagnostic.one_line()),
        }
    }
    if any_error(&agent.diagnostics) {
        // The agent goes on with the rules that load: to detect nothing would be worse.
        tracing::error!("some rules do not load; `watchbell check --offline` shows the problems in full");
    }
    let rules = agent.rules().borrow().clone();
    if first && rules.detections.is_empty() {
        tracing::warn!("no detection rules are loaded; `watchbell init` writes the shipped rules");
    }
    tracing::info!(
        sources = config.sources.len(),
        rules = rules.detections.len(),
        checks = rules.checks.len(),
        data_dir = %config.data_dir.display(),
        "watchbell {} started", env!("CARGO_PKG_VERSION")
    );
    Ok(agent)
}

/// The terminal that alerts are written to.
pub(super) fn terminal(format: Format) -> Terminal {
    let format = match format {
        Format::Json => TerminalFormat::Json,
        _ => TerminalFormat::Human,
    };
    Terminal::new(Box::new(anstream::stdout()), format).with_width(output::terminal_width())
}

/// A token that is cancelled by SIGINT or SIGTERM.
pub(super) fn stop_on_signal() -> Result<CancellationToken, CliError> {
    let stop = CancellationToken::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let mut signal = signal(kind).map_err(|error| CliError::Usage(format!("cannot handle signals: {error}")))?;
        let stop = stop.clone();
        tokio::spawn(async move {
            signal.recv().await;
            tracing::info!("stopping");
            // Notified only here: an agent that waits for disk space is not stopping.
            sd_notify::notify(&[sd_notify::NotifyState::Stopping]).ok();
            stop.cancel();
        });
    }
    Ok(stop)
}
