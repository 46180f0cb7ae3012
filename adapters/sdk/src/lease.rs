//! The lease of a delivery in hand: how long it runs, and who has been told what about it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use uuid::Uuid;

use crate::client::locked;

/// The lease ended, or somebody else has it: this attempt must not send anything.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the lease is over")]
pub struct LeaseLost;

/// The lease itself, shared by the worker, the reporter and the prolonger. Its room is free when the last one lets go.
pub(crate) struct Held {
    pub(crate) id: Uuid,
    pub(crate) token: String,
    pub(crate) length: Duration,
    until: Mutex<Instant>,
    lost: AtomicBool,
    reported: AtomicBool,
    prolonging: AtomicBool,
    _room: OwnedSemaphorePermit,
}

impl Held {
    pub(crate) fn new(
        id: Uuid,
        token: String,
        length: Duration,
        received: Instant,
        room: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            id,
            token,
            length,
            until: Mutex::new(received + length),
            lost: AtomicBool::new(false),
            reported: AtomicBool::new(false),
            prolonging: AtomicBool::new(false),
            _room: room,
        }
    }

    pub(crate) fn is_valid(&self) -> bool {
        !self.lost.load(Ordering::Acquire) && Instant::now() < *locked(&self.until)
    }

    /// An outcome has been handed over for reporting; prolonging would only race it.
    pub(crate) fn is_reported(&self) -> bool {
        self.reported.load(Ordering::Acquire)
    }

    pub(crate) fn report(&self) {
        self.reported.store(true, Ordering::Release);
    }

    /// Whether the caller is the one to ask for more time; nobody else is until [`Held::end_prolonging`].
    pub(crate) fn begin_prolonging(&self) -> bool {
        !self.prolonging.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn end_prolonging(&self) {
        self.prolonging.store(false, Ordering::Release);
    }

    pub(crate) fn lose(&self) {
        self.lost.store(true, Ordering::Release);
    }

    pub(crate) fn prolonged(&self, received: Instant) {
        *locked(&self.until) = received + self.length;
    }

    /// Less than half of the lease is left.
    fn is_due(&self) -> bool {
        let left = locked(&self.until).saturating_duration_since(Instant::now());
        !self.is_reported() && !self.lost.load(Ordering::Acquire) && left < self.length / 2
    }
}

/// Every lease in hand, so that long work does not lose its lease.
#[derive(Default)]
pub(crate) struct Leases(Mutex<HashMap<Uuid, Weak<Held>>>);

impl Leases {
    pub(crate) fn add(&self, held: &Arc<Held>) {
        locked(&self.0).insert(held.id, Arc::downgrade(held));
    }

    /// The leases that should be prolonged now.
    pub(crate) fn due(&self) -> Vec<Arc<Held>> {
        let mut leases = locked(&self.0);
        leases.retain(|_, held| held.strong_count() > 0);
        leases.values().filter_map(Weak::upgrade).filter(|held| held.is_due()).collect()
    }
}
