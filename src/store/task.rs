//! The store for asynchronous tasks.
//!
//! Every call of a store may block: on the disk, and while a backup blocks writes. On a thread that runs tasks, this
//! would stop all other tasks on it. A [`TaskStore`] only allows running work on a thread that may block.

use super::{Store, StoreError};

/// A store that cannot be used on an asynchronous thread.
#[derive(Debug, Clone)]
pub struct TaskStore(Store);

impl TaskStore {
    /// Wraps a store for tasks.
    pub fn new(store: Store) -> Self {
        Self(store)
    }

    /// Runs `work` on a thread that may block. It runs to its end even if this future is dropped.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.0.clone();
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(done) => done,
            // sled panics on some kinds of damage.
            Err(error) if error.is_panic() => Err(StoreError::Panicked),
            Err(error) => Err(StoreError::Sync(std::io::Error::other(error))),
        }
    }
}
