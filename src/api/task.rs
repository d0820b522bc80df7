//! A [`Service`] for asynchronous tasks. They can only run work on it in threads that may block on the disk, like
//! [`TaskStore`](crate::store::TaskStore) for the store.

use super::Service;

/// A service that runs only on blocking threads.
#[derive(Debug, Clone)]
pub(super) struct TaskService(Service);

impl TaskService {
    pub(super) fn new(service: Service) -> Self {
        Self(service)
    }

    /// Runs `work` on a thread where it may block; `None` if it panicked or no thread is available.
    pub(super) async fn run<T: Send + 'static>(&self, work: impl FnOnce(&Service) -> T + Send + 'static) -> Option<T> {
        let service = self.0.clone();
        tokio::task::spawn_blocking(move || work(&service)).await.ok()
    }

    /// Starts `work` on such a thread, without waiting for it to end.
    pub(super) fn start(&self, work: impl FnOnce(&Service) + Send + 'static) {
        let service = self.0.clone();
        tokio::task::spawn_blocking(move || work(&service));
    }
}
