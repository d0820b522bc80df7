//! `watchbell demo`: runs the real agent on a simulated organization, in a temporary directory.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use tokio_util::sync::CancellationToken;
use watchbell::{
    agent::{Agent, AgentOptions, EvaluationProgress},
    config::Config,
    deliver::wrapped,
    model::{
        alert::Severity,
        time::{self, Clock},
    },
    simulator::{self, Simulator, Story, StoryLength},
    source::Timing,
};

use super::{CliError, Context, init, output, replay, run, runtime};

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Duration of the live part, at least 15s
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = time::parse_duration)]
    duration: Duration,
    /// Seed of the simulation; the same seed gives the same events
    #[arg(long, value_name = "NUMBER", default_value_t = 7)]
    seed: u64,
    /// Keep the configuration, the rules and the store in this new directory
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

const HISTORY_EVENTS: usize = 2_400;
/// A shorter live part has no time for the incident.
const MIN_DURATION: Duration = Duration::from_secs(15);

impl Demo {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        if self.duration < MIN_DURATION {
            return Err(CliError::Usage("`--duration` must be at least 15s".to_owned()));
        }
        let temporary = match &self.keep {
            Some(directory) => {
                keep(directory)?;
                None
            }
            None => {
                let temporary = tempfile::Builder::new().prefix("watchbell-demo-").tempdir();
                Some(
                    temporary
                        .map_err(|error| CliError::Usage(format!("cannot create a temporary directory: {error}")))?,
                )
            }
        };
        let directory = temporary.as_ref().map(tempfile::TempDir::path).or(self.keep.as_deref());
        let runtime = runtime()?;
        let progress = runtime.block_on(self.play(context, directory.unwrap_or(Path::new("."))))?;
        runtime.shutdown_timeout(Duration::from_millis(300));
        self.summary(context, &progress);
        Ok(())
    }

    async fn play(&self, context: &Context, directory: &Path) -> Result<EvaluationProgress, CliError> {
        let clock = Clock::system();
        let length = StoryLength {
            history: Duration::from_secs(86_400 - 600),
            history_events: HISTORY_EVENTS,
            live: self.duration,
        };
        let failed = |what: &str, error: std::io::Error| CliError::Usage(format!("{what}: {error}"));
        // The live part begins once the history has been read, which takes about a second.
        let start = time::after(clock.now(), Duration::from_secs(2));
        let options =
            simulator::SimulatorOptions::new(Story::tell(self.seed, start, length)).with_actions(simulator::ACTIONS);
        let history = options.scenario.processed_by(start) as u64;
        let simulator = Simulator::start(options.clone())
            .await
            .map_err(|error| failed("cannot start the simulated organization", error))?;
        let config = self.write_config(directory, &simulator, &options)?;
        let stop = run::stop_on_signal()?;

        let agent = Agent::open(
            config,
            AgentOptions { clock, timing: Timing::default(), terminal: run::terminal(context.format), pulse: None },
        )?;
        let mut progress = agent.progress();
        let rules = agent.rules().borrow().clone();
        let out = &context.output;
        let what = format!(
            "A simulated organization of eight people runs on {}. The agent reads its audit log and runs {} rules.",
            simulator.base_url(),
            rules.detections.len() + rules.checks.len(),
        );
        let how = format!(
            "First a day of history, then {} live. Watch Dana Wilson's account. Press Ctrl-C to stop.",
            time::show_duration(self.duration)
        );
        for line in [what, how] {
            out.note(&wrapped(&line, out.width(), 0));
        }
        out.note("");
        let ending = CancellationToken::new();
        let agent_stop = ending.clone();
        let agent = tokio::spawn(agent.run(agent_stop));

        let bar = replay::progress(history);
        let end = tokio::time::sleep(self.duration + Duration::from_secs(2));
        tokio::pin!(end);
        let mut backfilled = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = &mut end => break,
                changed = progress.changed() => {
                    if changed.is_err() { break }
                    let events = progress.borrow_and_update().events;
                    bar.set_position(events.min(history));
                    if !backfilled && events >= history {
                        backfilled = true;
                        bar.finish_and_clear();
                        out.note(&format!("{history} events of history read and evaluated. Now live:\n"));
                    }
                }
            }
        }
        bar.finish_and_clear();
        ending.cancel();
        let result = agent.await.map_err(|error| CliError::Usage(format!("the agent panicked: {error}")))?;
        let last = progress.borrow().clone();
        result?;
        Ok(last)
    }

    fn write_config(
        &self,
        directory: &Path,
        simulator: &Simulator,
        options: &simulator::SimulatorOptions,
    ) -> Result<Config, CliError> {
        let mut put = |path: &Path, text: &str| {
            init::write_new(path, text)
                .map(|_| ())
                .map_err(|error| CliError::Usage(format!("cannot write `{}`: {error}", path.display())))
        };
        put(&directory.join("key"), &options.key)?;
        init::write_rules(&directory.join("rules"), &mut put)?;
        let drop_off = self.duration.mul_f64(0.15);
        let text = format!(
            "[[source]]\nname = \"demo\"\norg_id = \"{}\"\nbase_url = \"{}\"\napi_key = {{ file = \"key\" }}\n\
             backfill = \"1d\"\npoll_interval = \"500ms\"\nrate_limit = 600\ndrop_off = \"{}ms\"\n",
            options.org_id,
            simulator.base_url(),
            drop_off.as_millis()
        );
        let file = directory.join("watchbell.toml");
        put(&file, &text)?;
        let (config, diagnostics) = Config::load(&file);
        config.ok_or_else(|| CliError::Usage(super::problems("the demo's configuration is invalid", &diagnostics)))
    }

    fn summary(&self, context: &Context, progress: &EvaluationProgress) {
        let alerts: Vec<String> = Severity::ALL
            .iter()
            .zip(progress.alerts)
            .rev()
            .filter(|(_, count)| *count > 0)
            .map(|(severity, count)| format!("{count} {severity}"))
            .collect();
        let total: u64 = progress.alerts.iter().sum();
        let out = &context.output;
        out.note(&format!(
            "{} fetched and evaluated, rules run {} times, {}{}{}",
            output::count(progress.events, "event"),
            progress.rules_run,
            output::count(total, "alert"),
            if alerts.is_empty() { "" } else { ": " },
            alerts.join(", ")
        ));
        if let Some(directory) = &self.keep {
            let directory = directory.display();
            out.note(&format!("\nThe rules and events are kept. Try in `{directory}`:\n"));
            out.note("  watchbell replay                 # run the rules on the events again");
            out.note("  watchbell replay --verify        # check that this gives the same alerts");
            out.note("  watchbell coverage               # list the actions that no rule covers");
        }
        out.note("\nNext, with your own organization:\n");
        out.note("  watchbell init       # write watchbell.toml and rules/");
        out.note("  watchbell check      # check the configuration and the connection");
        out.note("  watchbell run        # run the agent");
        let length = watchbell::model::time::show_duration(self.duration);
        out.note(&format!("\nTo repeat this demo: watchbell demo --seed {} --duration {length}", self.seed));
    }
}

/// Creates the directory, or checks that it is empty.
fn keep(directory: &Path) -> Result<(), CliError> {
    let first = std::fs::create_dir_all(directory).and_then(|()| std::fs::read_dir(directory)?.next().transpose());
    match first {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err(CliError::Usage(format!("`{}` is not empty; use a new directory", directory.display()))),
        Err(error) => Err(CliError::Usage(format!("cannot create `{}`: {error}", directory.display()))),
    }
}
