//! `watchbell run`: the agent.

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use watchbell::{
    agent::{Agent, Options},
    deliver::{Terminal, TerminalFormat},
    diagnostic::{Level, any_error},
    source::Timing,
    time::Clock,
};

use super::{CliError, Context, Format, runtime};

#[derive(Debug, Args)]
pub(super) struct Run {}

impl Run {
    #[expect(clippy::unused_self, reason = "every verb is called alike")]
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        let config = context.config()?;
        let options = Options {
            clock: Clock::system(),
            timing: Timing::default(),
            terminal: terminal(context.format),
            pulse: None,
        };
        let runtime = runtime()?;
        let result = runtime.block_on(async {
            let stop = stop_on_signal()?;
            let agent = Agent::open(config.clone(), options)?;
            for diagnostic in &agent.diagnostics {
                match diagnostic.level {
                    Level::Error => {
                        tracing::error!(code = diagnostic.code, "{}", diagnostic.one_line())
                    }
                    Level::Warning => {
                        tracing::warn!(code = diagnostic.code, "{}", diagnostic.one_line())
                    }
                }
            }
            if any_error(&agent.diagnostics) {
                // The agent goes on with the rules that load: silence would be worse.
                tracing::error!("some rules do not load: `watchbell check --offline` shows the problems in full");
            }
            let rules = agent.rules().borrow().clone();
            tracing::info!(
                sources = config.sources.len(),
                rules = rules.detections.len(),
                checks = rules.checks.len(),
                data_dir = %config.data_dir.display(),
                "watchbell {} runs", env!("CARGO_PKG_VERSION")
            );
            agent.run(stop).await?;
            tracing::info!("stopped");
            Ok(())
        });
        // A request that hangs, or a name that is being looked up, must not hold up the end.
        runtime.shutdown_timeout(std::time::Duration::from_millis(300));
        result
    }
}

/// The terminal that alerts are written to.
pub(super) fn terminal(format: Format) -> Terminal {
    let format = match format {
        Format::Human => TerminalFormat::Human,
        Format::Json => TerminalFormat::Json,
    };
    Terminal::new(Box::new(anstream::stdout()), format)
}

/// A token that is cancelled by SIGINT or SIGTERM.
pub(super) fn stop_on_signal() -> Result<CancellationToken, CliError> {
    let stop = CancellationToken::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let mut signal =
            signal(kind).map_err(|error| CliError::Usage(format!("signals cannot be listened to: {error}")))?;
        let stop = stop.clone();
        tokio::spawn(async move {
            signal.recv().await;
            tracing::info!("stopping");
            stop.cancel();
        });
    }
    Ok(stop)
}
