//! The service in the hands of asynchronous tasks, which can do nothing with it but run work on a thread where it may wait for the disk: see
//! [`TaskStore`](crate::store::TaskStore).

use super::Service;

/// A service of which nothing can be called on an asynchronous thread.
#[derive(Debug, Clone)]
pub(super) struct TaskService(Service);

impl TaskService {
    pub(super) fn new(service: Service) -> Self {
        Self(service)
    }

    /// Runs `work` on a thread where it may wait; `None` if that panicked, or no thread is left.
    pub(super) async fn run<T: Send + 'static>(&self, work: impl FnOnce(&Service) -> T + Send + 'static) -> Option<T> {
        let service = self.0.clone();
        tokio::task::spawn_blocking(move || work(&service)).await.ok()
    }

    /// Begins such work, and does not wait for its end.
    pub(super) fn start(&self, work: impl FnOnce(&Service) + Send + 'static) {
        let service = self.0.clone();
        tokio::task::spawn_blocking(move || work(&service));
    }
}
