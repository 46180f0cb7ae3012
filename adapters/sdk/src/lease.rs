//! The lease of a delivery in hand: how long it runs, and who has been told what about it.

use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;
use uuid::Uuid;

use crate::client::locked;

/// The lease ended, or somebody else has it: this attempt must not send anything.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the lease is over")]
pub struct LeaseLost;

/// What proves the right to settle a delivery. Kept in adapter state it settles a `sent` one in a later session too.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    pub delivery: Uuid,
    token: String,
}

impl Lease {
    pub(crate) fn token(&self) -> &str {
        &self.token
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("delivery", &self.delivery).finish_non_exhaustive()
    }
}

/// The lease itself, shared by the worker, the reporter and the prolonger. Its room is free when the last one lets go.
pub(crate) struct Held {
    pub(crate) id: Uuid,
    pub(crate) token: String,
    pub(crate) length: Duration,
    until: Mutex<Instant>,
    lost: AtomicBool,
    reported: AtomicBool,
    begun: AtomicBool,
    prolonging: AtomicBool,
    prolonging_ended: Notify,
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
            begun: AtomicBool::new(false),
            prolonging: AtomicBool::new(false),
            prolonging_ended: Notify::new(),
            _room: room,
        }
    }

    pub(crate) fn is_valid(&self) -> bool {
        !self.lost.load(Ordering::Acquire) && Instant::now() < *locked(&self.until)
    }

    /// An outcome has been handed over for reporting; prolonging would only race it.
    pub(crate) fn is_reported(&self) -> bool {
        self.reported.load(Ordering::SeqCst)
    }

    pub(crate) fn report(&self) {
        self.reported.store(true, Ordering::SeqCst);
    }

    /// The outcome was not taken: the lease goes on.
    pub(crate) fn unreport(&self) {
        self.reported.store(false, Ordering::SeqCst);
    }

    pub(crate) fn lease(&self) -> Lease {
        Lease { delivery: self.id, token: self.token.clone() }
    }

    /// Bytes may leave, or have left.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    pub(crate) fn begin(&self) {
        self.begun.store(true, Ordering::Release);
    }

    /// Whether the caller is the one to ask for more time; nobody else is until [`Held::end_prolonging`].
    pub(crate) fn begin_prolonging(&self) -> bool {
        !self.prolonging.swap(true, Ordering::SeqCst)
    }

    pub(crate) fn end_prolonging(&self) {
        self.prolonging.store(false, Ordering::SeqCst);
        self.prolonging_ended.notify_waiters();
    }

    /// Comes back once no prolonging is on its way. After a report none is sent any more: the reporter looks for one after `prolonging` was
    /// set, this looks at `prolonging` after the report, and in one order of all (`SeqCst`) one of them sees the other.
    pub(crate) async fn prolonging_over(&self) {
        let mut ended = pin!(self.prolonging_ended.notified());
        // Listening before looking, so that an end in between is not missed.
        ended.as_mut().enable();
        if self.prolonging.load(Ordering::SeqCst) {
            ended.await;
        }
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
