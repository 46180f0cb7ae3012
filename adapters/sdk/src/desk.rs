//! Leasing: one call at a time asks for as much as surely finds a place, and what comes is handed on in the order of its leases.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use gatepost_api::queues::{LEASE_DELIVERIES_MAX, LEASE_MS_DEFAULT, LeaseRequest, LeaseResponse};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use uuid::Uuid;

use crate::client::{Call, CallError, Purpose};
use crate::delivery::Delivery;
use crate::evidence::Outcome;
use crate::lease::Leases;
use crate::lifetime::Ending;
use crate::patience::{Chain, Pause};
use crate::session::Session;

/// Payload bytes of one lease answer.
const LEASE_BYTES_MAX: u64 = 8 * 1024 * 1024;
const LEASE_WAIT: Duration = Duration::from_secs(20);
/// On top of the long poll, before the call counts as lost.
const LEASE_GRACE: Duration = Duration::from_secs(10);
const PROLONG_EVERY: Duration = Duration::from_secs(1);
/// After deliveries had to be given back because their worker has too many: long enough not to spin, short enough that
/// the other workers' queues do not run dry.
const OVERFLOW_PAUSE: Duration = Duration::from_millis(500);
/// Longest such pause, when everything there is belongs to workers that are full.
const OVERFLOW_PAUSE_MAX: Duration = Duration::from_secs(8);

/// Which worker gets a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// The same ordering key, the same worker.
    ByKey,
    /// Whoever is free.
    Anywhere,
}

/// Where deliveries are handed out.
pub(crate) struct Desk {
    pub(crate) session: Session,
    pub(crate) placement: Placement,
    /// Each worker's own queue, for deliveries that are placed by their key.
    pub(crate) own: Vec<mpsc::Sender<Delivery>>,
    pub(crate) shared: mpsc::Sender<Delivery>,
    pub(crate) leases: Arc<Leases>,
    /// A place for each delivery in hand.
    pub(crate) room: Arc<Semaphore>,
}

impl Desk {
    /// Only comes back when the gateway will give this process no more work.
    pub(crate) async fn keep_leasing(&self) {
        let mut pause = Pause::default();
        let mut appetite = Appetite::default();
        let mut request_id = Uuid::now_v7();
        loop {
            let Ok(first) = self.room.acquire().await else { return };
            let free = self.room.available_permits() + 1;
            drop(first);
            let call = match self.lease_call(appetite.of(free, self.fits_every_worker()), request_id) {
                Ok(call) => call,
                Err(error) => return self.give_up(&error),
            };
            match self.session.client().call::<LeaseResponse>(&call).await {
                Ok(answer) => {
                    pause = Pause::default();
                    request_id = Uuid::now_v7();
                    let placed = self.place_all(answer);
                    if let Some(pause) = appetite.after(placed) {
                        sleep(pause).await;
                    }
                }
                // The same request again: leases of an answer that was lost come back.
                Err(error) if error.retryable() => pause.after(&error).await,
                Err(error) => return self.give_up(&error),
            }
        }
    }

    fn give_up(&self, error: &CallError) {
        if error.superseded() {
            self.session.lifetime().end(Ending::Superseded);
        } else {
            tracing::error!(error = %Chain(error), "the gateway does not give this adapter any work");
            self.session.lifetime().end(Ending::Refused);
        }
    }

    fn lease_call(&self, free: usize, request_id: Uuid) -> Result<Call, CallError> {
        let request = LeaseRequest {
            max: u32::try_from(free).unwrap_or(u32::MAX).min(LEASE_DELIVERIES_MAX),
            max_bytes: Some(LEASE_BYTES_MAX),
            wait_ms: Some(crate::evidence::millis(LEASE_WAIT)),
            lease_ms: Some(LEASE_MS_DEFAULT),
            request_id: Some(request_id.to_string()),
            epoch: Some(self.session.epoch()),
        };
        let path = format!("/v1/queues/{}/lease", self.session.name());
        Call::post_json(Purpose::Poll, path, &request, LEASE_WAIT + LEASE_GRACE)
    }

    /// How many deliveries surely find a place, whichever worker they are for.
    fn fits_every_worker(&self) -> usize {
        match self.placement {
            Placement::ByKey => self.own.iter().map(mpsc::Sender::capacity).min().unwrap_or(0),
            Placement::Anywhere => self.shared.capacity(),
        }
    }

    /// Hands deliveries to their workers.
    fn place_all(&self, answer: LeaseResponse) -> Placed {
        let received = Instant::now();
        let mut placed = Placed::default();
        for leased in answer.deliveries {
            let id = leased.id;
            // Only this loop takes room, and it asked for no more than was free.
            let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
                tracing::warn!(delivery = %id, "the gateway leased more than was asked for; leaving the rest");
                break;
            };
            match Delivery::new(leased, received, room, self.session.clone()) {
                Ok(delivery) => match self.place(delivery) {
                    true => placed.taken += 1,
                    false => placed.given_back += 1,
                },
                Err((held, error)) => {
                    tracing::error!(delivery = %id, error = %Chain(&error), "the event cannot be read");
                    let reason = Outcome::reject("the adapter cannot read the event");
                    if let Ok(Some(item)) = reason.into_item(id, &held.token) {
                        self.session.settler().tell(item, held);
                    }
                }
            }
        }
        placed
    }

    fn place(&self, delivery: Delivery) -> bool {
        self.leases.add(delivery.held());
        let key = if self.placement == Placement::ByKey { delivery.partition_key() } else { None };
        let queue = match key {
            Some(key) => &self.own[worker_of(&key, self.own.len())],
            None => &self.shared,
        };
        match queue.try_send(delivery) {
            Ok(()) => true,
            Err(TrySendError::Full(delivery) | TrySendError::Closed(delivery)) => {
                delivery.finish(Outcome::Release);
                false
            }
        }
    }
}

/// What became of the deliveries of one lease.
#[derive(Debug, Default, Clone, Copy)]
struct Placed {
    taken: usize,
    given_back: usize,
}

/// How many deliveries to ask for. Which worker one is for is known only when it is here, and one that is given back costs
/// the gateway entries in its log. So no more is asked for than every worker could take; and while one can take nothing,
/// only what the others took last time.
#[derive(Debug)]
struct Appetite {
    /// What to ask for while some worker is full.
    cautious: usize,
    pause: Duration,
}

impl Default for Appetite {
    fn default() -> Self {
        Self { cautious: 1, pause: OVERFLOW_PAUSE }
    }
}

impl Appetite {
    fn of(&self, free: usize, fits_all: usize) -> usize {
        free.min(if fits_all > 0 { fits_all } else { self.cautious })
    }

    /// Learns from a lease; says how long to wait before the next one.
    fn after(&mut self, placed: Placed) -> Option<Duration> {
        if placed.given_back == 0 {
            // An empty answer says nothing about what would fit.
            self.cautious = self.cautious.max(placed.taken * 2);
            self.pause = OVERFLOW_PAUSE;
            return None;
        }
        self.cautious = placed.taken.max(1);
        let pause = if placed.taken > 0 { OVERFLOW_PAUSE } else { self.pause };
        self.pause = (pause * 2).min(OVERFLOW_PAUSE_MAX);
        Some(pause)
    }
}

/// The same for equal keys as long as the process lives, which is as long as its connections.
pub(crate) fn worker_of(key: &str, workers: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    // The remainder is below `workers`, so it fits.
    (hasher.finish() % workers as u64) as usize
}

/// Prolongs what is in hand, until it is dropped.
pub(crate) async fn prolong(session: Session, leases: Arc<Leases>) {
    let mut ticks = interval(PROLONG_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for held in leases.due() {
            session.settler().prolong(held);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_asked_for_than_surely_fits_and_little_while_a_worker_is_full() {
        let mut appetite = Appetite::default();
        assert_eq!(appetite.of(100, 64), 64);
        assert_eq!(appetite.of(10, 64), 10);
        assert_eq!(appetite.of(10, 0), 1);
        // The others take what comes: more is asked for.
        for expected in [2, 4, 8] {
            let placed = Placed { taken: appetite.of(100, 0), given_back: 0 };
            assert_eq!(appetite.after(placed), None);
            assert_eq!(appetite.of(100, 0), expected);
        }
        assert_eq!(appetite.after(Placed { taken: 6, given_back: 2 }), Some(OVERFLOW_PAUSE));
        assert_eq!(appetite.of(100, 0), 6);
        // Nothing but work for the full worker: ever fewer tries, up to a limit.
        let stuck = Placed { taken: 0, given_back: 1 };
        let pauses: Vec<_> = (0..6).map(|_| appetite.after(stuck).unwrap().as_millis()).collect();
        assert_eq!(pauses, [1000, 2000, 4000, 8000, 8000, 8000]);
        assert_eq!(appetite.of(100, 0), 1);
        // One place somewhere else, and it is as before.
        assert_eq!(appetite.after(Placed { taken: 1, given_back: 0 }), None);
        assert_eq!(appetite.after(stuck), Some(OVERFLOW_PAUSE));
    }
}
