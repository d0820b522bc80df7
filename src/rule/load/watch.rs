//! Noticing that rule files may have changed. Says only "look again": what changed is found by reading (see `load`), so lost,
//! doubled or odd events of a file system do no harm.
//!
//! The directories are watched with what the system offers, and looked at every 30 seconds in any case. Where the system
//! offers nothing, or on request, they are looked at every second.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode,
    event::{AccessKind, AccessMode},
};
use notify_debouncer_full::{DebounceEventResult, Debouncer, RecommendedCache, new_debouncer};
use tokio::sync::watch;

/// How directories are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WatchMode {
    /// By the system's notifications where there are any.
    #[default]
    Auto,
    /// By looking every second: for network and other file systems without notifications.
    Poll,
}

/// How long files must be quiet before they are read: an editor saves in several steps.
const QUIET: Duration = Duration::from_millis(200);
const LOOK_ANYWAY: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_secs(1);

/// Watches directories until dropped.
#[derive(Debug)]
pub struct Watcher {
    /// Keeps the system's watches alive.
    _debouncer: Option<Debouncer<RecommendedWatcher, RecommendedCache>>,
    changed: watch::Receiver<u64>,
    interval: Duration,
    /// The directories as given, and what they stood for when watching began.
    directories: Vec<(PathBuf, Option<PathBuf>)>,
}

impl Watcher {
    /// Begins to watch. A directory that cannot be watched is polled.
    pub fn new(directories: &[PathBuf], mode: WatchMode) -> Self {
        let (sender, changed) = watch::channel(0);
        let debouncer = match mode {
            WatchMode::Poll => None,
            WatchMode::Auto => notifications(directories, sender)
                .inspect_err(
                    |error| tracing::warn!(%error, "rules directories cannot be watched: looking at them every second"),
                )
                .ok(),
        };
        let interval = if debouncer.is_some() { LOOK_ANYWAY } else { POLL };
        let directories = directories.iter().map(|path| (path.clone(), path.canonicalize().ok())).collect();
        Self { _debouncer: debouncer, changed, interval, directories }
    }

    /// Whether a directory now stands for another one, as when a symbolic link was swapped: time for a new watcher.
    pub fn is_stale(&self) -> bool {
        self.directories.iter().any(|(path, before)| path.canonicalize().ok() != *before)
    }

    /// Waits until it is time to look again.
    pub async fn changed(&mut self) {
        let look = tokio::time::sleep(self.interval);
        tokio::select! {
            () = look => {}
            result = self.changed.changed() => {
                if result.is_err() {
                    // Nobody will notify: only the timer is left.
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
    sender: watch::Sender<u64>,
) -> notify::Result<Debouncer<RecommendedWatcher, RecommendedCache>> {
    let mut debouncer = new_debouncer(QUIET, None, move |result: DebounceEventResult| {
        match result {
            // Whoever looks again reads the files, which is reported as well: that must not be a reason to look again.
            Ok(events) if events.iter().all(|event| is_reading(event.kind)) => {}
            Ok(_) => sender.send_modify(|count| *count += 1),
            Err(errors) => {
                tracing::debug!(?errors, "watching rules");
                sender.send_modify(|count| *count += 1);
            }
        }
    })?;
    for directory in directories {
        debouncer.watch(directory, RecursiveMode::Recursive)?;
        // A directory that is itself a symbolic link, or is replaced as a whole, changes in its parent.
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
    fn only_reading_is_no_reason_to_look_again() {
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
