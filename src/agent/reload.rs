//! Taking up changed rule files while the agent runs: the whole set is loaded aside and swapped between two batches.

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
    /// Whether rules are tried before they run, and what that needs.
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
        let mut hangup = signal(SignalKind::hangup())
            .inspect_err(|error| tracing::warn!(%error, "SIGHUP cannot be listened to"))
            .ok();
        // What was saved between the agent's first load and the watch is seen by neither.
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
                    tracing::info!("SIGHUP: reading configuration and rules again");
                    self.read_config();
                    watcher = Watcher::new(self.loader.roots(), self.mode);
                }
            }
            if watcher.is_stale() {
                watcher = Watcher::new(self.loader.roots(), self.mode);
            }
            // Before the lists are read: what comes later is taken up in the next round.
            let listed = *self.lists.listed.borrow_and_update();
            let mut loader = self.loader;
            let trial = self
                .guard
                .clone()
                .map(|guard| (guard, Arc::clone(&self.rules.borrow()), self.settings.clone(), self.clock.now()));
            let progress = Arc::new(ReplayProgress::default());
            let told = Arc::clone(&progress);
            let crashes = Arc::clone(&self.crashes);
            // Compiling, and trying rules, is work for a processor, not for the tasks' threads.
            let mut task = std::pin::pin!(self.store.run(move |store| {
                let reader = store.reader();
                match reader.catalog() {
                    Ok(catalog) => loader.set_catalog(catalog),
                    Err(error) => {
                        tracing::error!(%error, "the lists of actions cannot be read: what was known before holds")
                    }
                }
                let mut loaded = loader.load();
                if let Err(error) = crashes.loaded() {
                    tracing::error!(%error, "could not record that the rule files loaded");
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
                        progress: &told,
                    };
                    loaded.set = trial.of(loaded.set, &known);
                }
                Ok((loader, loaded))
            }));
            let done = tokio::select! {
                done = &mut task => done,
                () = stop.cancelled() => {
                    // Trying rules on a long history takes its time; what stops does not wait for it.
                    progress.stop();
                    // Rules that were tried in part only are not run.
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
                    tracing::error!(%error, "loading rules failed: the rules that run go on, and files are no longer watched");
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
        for broken in &set.broken {
            let runs = if broken.last_good_runs { "its last good version runs" } else { "nothing of it runs" };
            tracing::error!(generation = set.generation, "the file on disk is broken, {runs}: {}", broken.problem);
        }
        tracing::info!(
            generation = set.generation,
            rules = set.detections.len(),
            checks = set.checks.len(),
            broken = set.broken.len(),
            "rules loaded"
        );
        self.rules.send_replace(loaded.set);
    }

    /// Takes up what the configuration says about rules. The rest of it takes effect at the next start.
    fn read_config(&mut self) {
        let (config, diagnostics) = Config::load(&self.config_file);
        report(&diagnostics);
        match config {
            Some(config) => {
                self.mode = config.watch;
                self.guard = config.guard;
                self.loader.set_sources(config.rules);
                tracing::info!(
                    "rules, checks, `guard` and `watch` are read again; all other changes take effect at the next start"
                );
            }
            None => tracing::error!("the configuration is not usable: what was read before stays in force"),
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
        tracing::error!("`watchbell check --offline` shows the problems in full");
    }
}
