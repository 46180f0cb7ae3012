//! How long this process goes on: running, draining, ended.

use std::sync::Arc;

use tokio::sync::watch;

/// Why the process must end at once, without draining.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// A newer session of this adapter is open.
    Superseded,
    /// The gateway's socket has been gone for too long.
    GatewayGone,
    /// The gateway refused a call in a way that this program cannot go on from.
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Draining,
    Ended(Ending),
}

/// The owner's side.
#[derive(Clone, Debug)]
pub(crate) struct Lifetime(Arc<watch::Sender<Phase>>);

impl Lifetime {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Phase::Running)))
    }

    /// Begin nothing new; finish what has begun.
    pub(crate) fn drain(&self) {
        self.0.send_if_modified(|phase| {
            let running = *phase == Phase::Running;
            if running {
                *phase = Phase::Draining;
            }
            running
        });
    }

    /// The first ending stands.
    pub(crate) fn end(&self, ending: Ending) {
        self.0.send_if_modified(|phase| {
            let alive = !matches!(phase, Phase::Ended(_));
            if alive {
                *phase = Phase::Ended(ending);
            }
            alive
        });
    }

    /// The ending, if there has been one.
    pub(crate) fn ending(&self) -> Option<Ending> {
        match *self.0.borrow() {
            Phase::Ended(ending) => Some(ending),
            Phase::Running | Phase::Draining => None,
        }
    }

    pub(crate) async fn ended(&self) -> Ending {
        let mut phases = self.0.subscribe();
        loop {
            if let Phase::Ended(ending) = *phases.borrow_and_update() {
                return ending;
            }
            if phases.changed().await.is_err() {
                // The sender is in `self`, so this cannot be reached; and waiting is the right answer if it were.
                std::future::pending::<()>().await;
            }
        }
    }

    pub(crate) fn stop(&self) -> Stop {
        Stop(self.0.subscribe())
    }
}

/// Tells that the adapter is to stop: begin nothing new, finish what has begun, return.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<Phase>);

impl Stop {
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() != Phase::Running
    }

    /// Comes back once stopping has been asked for. Safe to drop and call again.
    pub async fn requested(&self) {
        let mut phases = self.0.clone();
        // An error means that the owner is gone, which is a reason to stop as well.
        let _ = phases.wait_for(|phase| *phase != Phase::Running).await;
    }
}
