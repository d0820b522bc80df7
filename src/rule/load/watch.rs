//! Watching rule files for changes. A watcher only reports that files may have changed. The loader finds out what
//! changed by reading them (see `load`), so lost, duplicate or spurious file system events do no harm.
//!
//! The directories are watched with the system's notifications, and polled every 30 seconds in any case. Without
//! notifications, or on request, they are polled every second.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode,
    event::{AccessKind, AccessMode},
};
use notify_debouncer_full::{DebounceEventResult, Debouncer, RecommendedCache, new_debouncer};

use crate::model::signal::{Listener, Signal};

/// How to watch directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WatchMode {
    /// Use the system's notifications, if available.
    #[default]
    Auto,
    /// Poll every second, for network and other file systems without notifications.
    Poll,
}

/// How long files must be unchanged before they are read, because editors save in several steps.
const QUIET: Duration = Duration::from_millis(200);
const FALLBACK_POLL: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_secs(1);

/// Watches directories until dropped.
#[derive(Debug)]
pub struct Watcher {
    /// Keeps the system's watches alive.
    _debouncer: Option<Debouncer<RecommendedWatcher, RecommendedCache>>,
    changed: Listener,
    interval: Duration,
    /// The directories as given, and the paths that they resolved to when watching began.
    directories: Vec<(PathBuf, Option<PathBuf>)>,
}

impl Watcher {
    /// Starts watching. If a directory cannot be watched, all are polled every second.
    pub fn new(directories: &[PathBuf], mode: WatchMode) -> Self {
        let signal = Signal::default();
        let changed = signal.subscribe();
        let debouncer = match mode {
            WatchMode::Poll => None,
            WatchMode::Auto => notifications(directories, signal)
                .inspect_err(
                    |error| tracing::warn!(%error, "cannot watch the rules directories: polling them every second"),
                )
                .ok(),
        };
        let interval = if debouncer.is_some() { FALLBACK_POLL } else { POLL };
        let directories = directories.iter().map(|path| (path.clone(), path.canonicalize().ok())).collect();
        Self { _debouncer: debouncer, changed, interval, directories }
    }

    /// Whether a directory now resolves to a different one, such as after a symbolic link was swapped. A stale watcher
    /// must be replaced.
    pub fn is_stale(&self) -> bool {
        self.directories.iter().any(|(path, before)| path.canonicalize().ok() != *before)
    }

    /// Waits until the files may have changed, or until the next poll is due.
    pub async fn changed(&mut self) {
        let next_poll = tokio::time::sleep(self.interval);
        tokio::select! {
            () = next_poll => {}
            result = self.changed.changed() => {
                if result.is_err() {
                    // The sender is gone, so only the timer is left.
                    tokio::time::sleep(self.interval).await;
                }
            }
        }
    }
}

fn is_reading(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

fn notifications(
    directories: &[PathBuf],
    signal: Signal,
) -> notify::Result<Debouncer<RecommendedWatcher, RecommendedCache>> {
    let mut debouncer = new_debouncer(QUIET, None, move |result: DebounceEventResult| {
        match result {
            // The loader's own reads are reported as well. They must not trigger another load.
            Ok(events) if events.iter().all(|event| is_reading(event.kind)) => {}
            Ok(_) => signal.send(),
            Err(errors) => {
                tracing::debug!(?errors, "error while watching the rules directories");
                signal.send();
            }
        }
    })?;
    for directory in directories {
        debouncer.watch(directory, RecursiveMode::Recursive)?;
        // If the directory is itself a symbolic link, or is replaced as a whole, the change happens in its parent.
        if let Some(parent) = directory.parent() {
            let parent = if parent == Path::new("") { Path::new(".") } else { parent };
            debouncer.watch(parent, RecursiveMode::NonRecursive)?;
        }
    }
    Ok(debouncer)
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, DataChange, ModifyKind};

    use super::*;

    #[test]
    fn only_reads_are_ignored() {
        for reading in [AccessKind::Any, AccessKind::Read, AccessKind::Open(AccessMode::Any)] {
            assert!(is_reading(EventKind::Access(reading)), "{reading:?}");
        }
        for writing in [
            EventKind::Access(AccessKind::Close(AccessMode::Write)),
            EventKind::Create(CreateKind::File),
            EventKind::Modify(ModifyKind::Data(DataChange::Any)),
            EventKind::Any,
        ] {
            assert!(!is_reading(writing), "{writing:?}");
        }
    }
}
