//! Reloads changed rule files while the agent runs. The whole set is loaded in the background and swapped in between
//! two batches.

use std::{path::PathBuf, sync::Arc};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use super::{ActionLists, crash::CrashLog, rule_guard};
use crate::{
    config::{
        Config, Guard,
        diagnostic::{Diagnostic, Level, any_error},
    },
    detect::Settings,
    model::time::Clock,
    replay::ReplayProgress,
    rule::{Loaded, Loader, RuleSet, WatchMode, Watcher},
    store::TaskStore,
};

pub(super) struct Reloading {
    pub(super) loader: Loader,
    pub(super) config_file: PathBuf,
    pub(super) mode: WatchMode,
    pub(super) rules: watch::Sender<Arc<RuleSet>>,
    /// Settings of the guard; `None` if it is off.
    pub(super) guard: Option<Guard>,
    pub(super) settings: Settings,
    pub(super) store: TaskStore,
    pub(super) lists: ActionLists,
    pub(super) crashes: Arc<CrashLog>,
    pub(super) clock: Clock,
}

impl Reloading {
    /// Reloads until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut watcher = Watcher::new(self.loader.roots(), self.mode);
        let mut hangup =
            signal(SignalKind::hangup()).inspect_err(|error| tracing::warn!(%error, "cannot handle SIGHUP")).ok();
        // Load once at the start: neither the agent's first load nor the watcher sees files saved in between.
        let mut unwatched = true;
        loop {
            let asked = async {
                match &mut hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = std::future::ready(()), if unwatched => unwatched = false,
                () = watcher.changed() => {}
                Ok(()) = self.lists.listed.changed() => {}
                _ = asked => {
                    tracing::info!("received SIGHUP: reloading the configuration and rules");
                    self.read_config();
                    watcher = Watcher::new(self.loader.roots(), self.mode);
                }
            }
            if watcher.is_stale() {
                watcher = Watcher::new(self.loader.roots(), self.mode);
            }
            // Must come before the lists are read: later ones are loaded in the next round.
            let listed = *self.lists.listed.borrow_and_update();
            let mut loader = self.loader;
            let trial = self
                .guard
                .clone()
                .map(|guard| (guard, Arc::clone(&self.rules.borrow()), self.settings.clone(), self.clock.now()));
            let progress = Arc::new(ReplayProgress::default());
            let trial_progress = Arc::clone(&progress);
            let crashes = Arc::clone(&self.crashes);
            // Compiling and replaying rules is CPU-bound: it must not block the threads of async tasks.
            let mut task = std::pin::pin!(self.store.run(move |store| {
                let reader = store.reader();
                match reader.catalog() {
                    Ok(catalog) => loader.set_catalog(catalog),
                    Err(error) => {
                        tracing::error!(%error, "cannot read the lists of actions: keeping the previous ones")
                    }
                }
                let mut loaded = loader.load();
                if let Err(error) = crashes.loaded() {
                    tracing::error!(%error, "cannot record that the rule files loaded");
                }
                loaded.set = crashes.without_suspended(&loaded.set);
                if let (true, Some((guard, running, settings, now))) = (loaded.changed, trial) {
                    let known = running.versions();
                    let trial = rule_guard::Trial {
                        guard: &guard,
                        settings: &settings,
                        reader: &reader,
                        crashes: &crashes,
                        now,
                        progress: &trial_progress,
                    };
                    loaded.set = trial.of(loaded.set, &known);
                }
                Ok((loader, loaded))
            }));
            let done = tokio::select! {
                done = &mut task => done,
                () = stop.cancelled() => {
                    // Shutdown must not wait for a replay over a long history.
                    progress.stop();
                    // Rules whose replay was cut short do not run.
                    task.await.ok();
                    return;
                }
            };
            match done {
                Ok((loader, loaded)) => {
                    self.loader = loader;
                    self.publish(loaded);
                    self.lists.taken.send_replace(listed);
                }
                Err(error) => {
                    tracing::error!(%error, "cannot load rules: keeping the running rules, no longer watching files");
                    stop.cancelled().await;
                    return;
                }
            }
        }
    }

    fn publish(&self, loaded: Loaded) {
        if !loaded.changed {
            return;
        }
        report(&loaded.diagnostics);
        let set = &loaded.set;
        for broken in &set.context.broken {
            let effect = if broken.last_good_runs { "its last good version runs" } else { "its rules do not run" };
            tracing::error!(generation = set.context.generation, "a rule file is broken, {effect}: {}", broken.problem);
        }
        tracing::info!(
            generation = set.context.generation,
            rules = set.detections.len(),
            checks = set.checks.len(),
            broken = set.context.broken.len(),
            "rules loaded"
        );
        self.rules.send_replace(loaded.set);
    }

    /// Applies the configuration's rule settings. All other settings take effect at the next start.
    fn read_config(&mut self) {
        let (config, diagnostics) = Config::load(&self.config_file);
        report(&diagnostics);
        match config {
            Some(config) => {
                self.mode = config.watch;
                self.guard = config.guard;
                self.loader.set_sources(config.rules);
                tracing::info!(
                    "reloaded rules, checks, `guard` and `watch`; all other changes take effect at the next start"
                );
            }
            None => tracing::error!("the configuration has errors: keeping the previous one"),
        }
    }
}

fn report(diagnostics: &[Diagnostic]) {
    for diagnostic in diagnostics {
        match diagnostic.level {
            Level::Error => tracing::error!(code = diagnostic.code, "{}", diagnostic.one_line()),
            Level::Warning => tracing::warn!(code = diagnostic.code, "{}", diagnostic.one_line()),
        }
    }
    if any_error(diagnostics) {
        tracing::error!("run `watchbell check --offline` to see the problems in full");
    }
}
