//! The desk in the hands of asynchronous tasks, which can do nothing with it but run work on a thread where it may wait for the disk: see
//! [`TaskStore`](crate::store::TaskStore).

use super::Desk;

/// A desk of which nothing can be called on an asynchronous thread.
#[derive(Debug, Clone)]
pub(super) struct TaskDesk(Desk);

impl TaskDesk {
    pub(super) fn new(desk: Desk) -> Self {
        Self(desk)
    }

    /// Runs `work` on a thread where it may wait; `None` if that panicked, or no thread is left.
    pub(super) async fn run<T: Send + 'static>(&self, work: impl FnOnce(&Desk) -> T + Send + 'static) -> Option<T> {
        let desk = self.0.clone();
        tokio::task::spawn_blocking(move || work(&desk)).await.ok()
    }

    /// Begins such work, and does not wait for its end.
    pub(super) fn start(&self, work: impl FnOnce(&Desk) + Send + 'static) {
        let desk = self.0.clone();
        tokio::task::spawn_blocking(move || work(&desk));
    }
}
