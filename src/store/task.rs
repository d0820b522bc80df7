//! The store in the hands of asynchronous tasks.
//!
//! Every call of a store may wait: for the disk, and for a backup, which closes it for a moment. On a thread that runs tasks this would
//! stop all the others on it. So tasks hold a [`TaskStore`], with which they can do nothing but run work on a thread where it may wait.

use super::{Store, StoreError};

/// A store of which nothing can be called on an asynchronous thread.
#[derive(Debug, Clone)]
pub struct TaskStore(Store);

impl TaskStore {
    /// Hands a store over to tasks.
    pub fn new(store: Store) -> Self {
        Self(store)
    }

    /// Runs `work` on a thread where it may wait. It goes on to its end although this future is dropped.
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
