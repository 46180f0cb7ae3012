//! How much of the gateway one principal may take at a time: open requests, and bytes of bodies and payloads in memory
//! over all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use gatepost_api::problem::Code;
use gatepost_core::principal::Actor;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::Refusal;

/// Most open requests of one principal.
pub(crate) const REQUESTS_OPEN_MAX: usize = 1024;
/// Bodies up to this size are not counted against the memory below.
pub(crate) const SMALL_BODY_BYTES: u64 = 64 * 1024;
/// Most bytes of larger bodies in memory at a time; further requests wait for their turn before more of theirs is read.
const BODY_MEMORY_BYTES: u64 = 512 * 1024 * 1024;
/// Unit of that account: a semaphore cannot count to its bytes.
const BODY_MEMORY_UNIT: u64 = 1024;

/// Open requests by principal. The map is bounded by the principals that configurations have named.
#[derive(Debug, Default)]
pub(crate) struct OpenRequests {
    places: Mutex<HashMap<Actor, Arc<Semaphore>>>,
}

impl OpenRequests {
    /// A place for one more request of `actor`; given back when dropped.
    pub(crate) fn take(&self, actor: &Actor) -> Result<OwnedSemaphorePermit, Refusal> {
        let places = {
            let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            match places.get(actor) {
                Some(own) => Arc::clone(own),
                None => Arc::clone(
                    places
                        .entry(actor.clone())
                        .or_insert_with(|| Arc::new(Semaphore::new(REQUESTS_OPEN_MAX))),
                ),
            }
        };
        places.try_acquire_owned().map_err(|_| {
            let detail = format!("{REQUESTS_OPEN_MAX} requests of this principal are open");
            Refusal::new(Code::TooManyRequests, detail)
        })
    }
}

/// Memory for large bodies, of requests or of answers.
#[derive(Clone, Debug)]
pub(crate) struct BodyMemory {
    units: Arc<Semaphore>,
}

impl BodyMemory {
    pub(crate) fn new() -> Self {
        let units = usize::try_from(BODY_MEMORY_BYTES / BODY_MEMORY_UNIT).unwrap_or(Semaphore::MAX_PERMITS);
        Self { units: Arc::new(Semaphore::new(units)) }
    }

    /// Room for a body of at most `bytes`; waits for it. Bodies up to [`SMALL_BODY_BYTES`] need none.
    pub(crate) async fn reserve(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let units = bytes.min(BODY_MEMORY_BYTES).div_ceil(BODY_MEMORY_UNIT);
        // Never closed; and the whole account is enough for any one body.
        Arc::clone(&self.units).acquire_many_owned(u32::try_from(units).unwrap_or(u32::MAX)).await.ok()
    }
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
        let mut held: Vec<_> = (0..REQUESTS_OPEN_MAX).map(|_| open.take(&ehr).unwrap()).collect();
        assert_eq!(open.take(&ehr).unwrap_err().code, Code::TooManyRequests);
        assert!(open.take(&ops).is_ok());
        held.pop();
        assert!(open.take(&ehr).is_ok());
    }

    #[tokio::test]
    async fn large_bodies_wait_for_memory() {
        let memory = BodyMemory::new();
        let all = memory.reserve(BODY_MEMORY_BYTES).await;
        assert!(all.is_some());
        let mut waiting = Box::pin(memory.reserve(1));
        assert!(pends(waiting.as_mut()).await);
        drop(all);
        assert!(waiting.await.is_some());
    }
}
