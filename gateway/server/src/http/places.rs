//! How much of the gateway one principal may take at a time: open requests, and bytes of large bodies and payloads in memory.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gatepost_api::problem::Code;
use gatepost_core::principal::Actor;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::problem::Refusal;

/// Most open requests of one principal.
pub(crate) const REQUESTS_OPEN_MAX: usize = 1024;
/// Bodies up to this size are not counted against the memory below.
pub(crate) const SMALL_BODY_BYTES: u64 = 64 * 1024;
/// Most bytes of larger bodies in memory at a time, of all principals.
const BODY_MEMORY_BYTES: u64 = 512 * 1024 * 1024;
/// The part of it that one principal may have, so that who sends slowly or much delays nobody but itself. Enough for the
/// largest body there is: 64 MiB in base64 with its attributes.
const BODY_SHARE_BYTES: u64 = BODY_MEMORY_BYTES / 4;
/// How long a large body waits for its turn before it is refused. Until then no more of it is read.
const BODY_TURN_WAIT: Duration = Duration::from_secs(10);
/// The same of a payload on its way out: an adapter that works on many large ones at a time asks for them all at once, and
/// better waits than gives deliveries back.
const ANSWER_TURN_WAIT: Duration = Duration::from_secs(45);
/// Unit of that account: a semaphore cannot count to its bytes.
const BODY_MEMORY_UNIT: u64 = 1024;

/// A semaphore for each principal. The map is bounded by the principals that configurations have named.
struct PerPrincipal {
    permits: usize,
    own: Mutex<HashMap<Actor, Arc<Semaphore>>>,
}

impl PerPrincipal {
    fn new(permits: usize) -> Self {
        Self { permits, own: Mutex::default() }
    }

    fn of(&self, actor: &Actor) -> Arc<Semaphore> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(semaphore) = own.get(actor) {
            return Arc::clone(semaphore);
        }
        let semaphore = Arc::new(Semaphore::new(self.permits));
        own.insert(actor.clone(), Arc::clone(&semaphore));
        semaphore
    }
}

impl fmt::Debug for PerPrincipal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PerPrincipal({})", self.permits)
    }
}

/// Open requests by principal.
#[derive(Clone, Debug, Default)]
pub(crate) struct OpenRequests(Arc<Mutex<HashMap<Actor, usize>>>);

/// A request's place among its principal's, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    open: OpenRequests,
    actor: Actor,
}

impl OpenRequests {
    /// A place for one more request of `actor`, who may have `max` of its own, and never more than [`REQUESTS_OPEN_MAX`].
    pub(crate) fn take(&self, actor: &Actor, max: Option<usize>) -> Result<Place, Refusal> {
        let max = max.unwrap_or(REQUESTS_OPEN_MAX).min(REQUESTS_OPEN_MAX);
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(actor.clone()).or_default();
        if *count >= max {
            let detail = format!("{max} requests of this principal are open");
            return Err(Refusal::new(Code::TooManyRequests, detail));
        }
        *count += 1;
        Ok(Place { open: self.clone(), actor: actor.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.open.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.actor) {
            *count -= 1;
        }
    }
}

/// Memory for large bodies, of requests or of answers. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct BodyMemory {
    all: Arc<Semaphore>,
    shares: Arc<PerPrincipal>,
    wait: Duration,
}

/// A large body's place in memory, given back when dropped.
#[derive(Debug)]
pub(crate) struct Room {
    own: OwnedSemaphorePermit,
    all: OwnedSemaphorePermit,
}

impl BodyMemory {
    pub(crate) fn for_requests() -> Self {
        Self::waiting(BODY_TURN_WAIT)
    }

    pub(crate) fn for_answers() -> Self {
        Self::waiting(ANSWER_TURN_WAIT)
    }

    fn waiting(wait: Duration) -> Self {
        let permits = |bytes| units(bytes) as usize;
        Self {
            all: Arc::new(Semaphore::new(permits(BODY_MEMORY_BYTES))),
            shares: Arc::new(PerPrincipal::new(permits(BODY_SHARE_BYTES))),
            wait,
        }
    }

    /// Room for a body of `actor` of at most `bytes`. Waits for its turn, but not for long.
    pub(crate) async fn reserve(&self, actor: &Actor, bytes: u64) -> Result<Room, Refusal> {
        let units = units(bytes.min(BODY_SHARE_BYTES));
        let turn = async {
            // The own share first: who waits for it holds nothing that others could want.
            let own = self.shares.of(actor).acquire_many_owned(units).await.ok()?;
            let all = Arc::clone(&self.all).acquire_many_owned(units).await.ok()?;
            Some(Room { own, all })
        };
        match timeout(self.wait, turn).await {
            Ok(Some(room)) => Ok(room),
            // The semaphores are never closed.
            Ok(None) => Err(Refusal::internal("the memory for bodies has ended")),
            Err(_) => Err(Refusal::new(
                Code::TooManyRequests,
                "the memory for large bodies is taken, by other requests of this principal or of many others",
            )),
        }
    }
}

impl Room {
    /// Gives back what a body did not need of the room that was reserved for it.
    pub(crate) fn shrink(&mut self, bytes: u64) {
        let needed = units(bytes) as usize;
        for permit in [&mut self.own, &mut self.all] {
            drop(permit.split(permit.num_permits().saturating_sub(needed)));
        }
    }
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(BODY_MEMORY_UNIT)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use gatepost_core::principal::ActorKind;

    use super::*;
    use crate::http::tests::pends;

    #[test]
    fn one_principals_flood_leaves_room_for_the_others() {
        let open = OpenRequests::default();
        let (ehr, ops) = (Actor::new(ActorKind::App, "ehr"), Actor::new(ActorKind::Operator, "ehr"));
        let mut held: Vec<_> = (0..REQUESTS_OPEN_MAX).map(|_| open.take(&ehr, None).unwrap()).collect();
        assert_eq!(open.take(&ehr, None).unwrap_err().code, Code::TooManyRequests);
        assert!(open.take(&ops, None).is_ok());
        held.pop();
        assert!(open.take(&ehr, None).is_ok());
        held.truncate(2);
        assert!(open.take(&ehr, Some(2)).is_err(), "its own limit, which a reload may lower at any time");
        assert!(open.take(&ehr, Some(3)).is_ok());
    }

    #[tokio::test]
    async fn a_principal_that_has_its_share_waits_and_the_others_do_not() {
        let memory = BodyMemory::for_requests();
        let (ehr, other) = (Actor::new(ActorKind::App, "ehr"), Actor::new(ActorKind::App, "other"));
        let mut held = memory.reserve(&ehr, BODY_SHARE_BYTES).await.unwrap();
        let mut waiting = Box::pin(memory.reserve(&ehr, 1));
        assert!(pends(waiting.as_mut()).await);
        assert!(!pends(Box::pin(memory.reserve(&other, BODY_SHARE_BYTES)).as_mut()).await);
        held.shrink(BODY_SHARE_BYTES - BODY_MEMORY_UNIT);
        assert!(waiting.await.is_ok());
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let memory = BodyMemory::waiting(Duration::ZERO);
        let ehr = Actor::new(ActorKind::App, "ehr");
        let _all = memory.reserve(&ehr, u64::MAX).await.unwrap();
        assert_eq!(memory.reserve(&ehr, 1).await.unwrap_err().code, Code::TooManyRequests);
    }

    #[tokio::test]
    async fn all_principals_together_are_bounded() {
        let memory = BodyMemory::waiting(Duration::ZERO);
        let actor = |n: u64| Actor::new(ActorKind::App, n.to_string());
        let mut held = Vec::new();
        for n in 0..BODY_MEMORY_BYTES / BODY_SHARE_BYTES {
            held.push(memory.reserve(&actor(n), BODY_SHARE_BYTES).await.unwrap());
        }
        assert!(memory.reserve(&actor(99), 1).await.is_err());
        held.pop();
        assert!(memory.reserve(&actor(99), 1).await.is_ok());
    }
}
