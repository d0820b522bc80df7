//! A signal that something has changed, for tasks and threads that then look again. Signals that come while nobody looks are one
//! signal, so there is no queue to bound.

use tokio::sync::watch;

/// Signals to all its listeners. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Signal(watch::Sender<u64>);

/// Waits for a [`Signal`]. Its value, the number of signals so far, means nothing else.
pub type Listener = watch::Receiver<u64>;

impl Signal {
    /// Signals that something has changed.
    pub fn send(&self) {
        self.0.send_modify(|count| *count += 1);
    }

    /// A listener, which sees only signals sent from now on.
    pub fn subscribe(&self) -> Listener {
        self.0.subscribe()
    }
}
