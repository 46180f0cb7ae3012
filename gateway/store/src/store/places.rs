//! Places of large accepts: so many of them the writer has at a time, and so many bytes of theirs. Further ones wait, in the order in which
//! they have come, before it hears of them. A sender that goes away takes back nothing that the writer has: its place is kept until that is
//! answered all the same.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ops::StoreError;

/// Payload bytes from which on an accept is large.
const LARGE_BYTES: usize = 256 * 1024;
/// Large accepts at a time.
const ACCEPTS_MAX: u32 = 64;
/// Payload bytes of them at a time; one of whatever size is taken alone.
const BYTES_MAX: usize = 512 * 1024 * 1024;
/// What is counted: a semaphore cannot count to their bytes.
const UNIT_BYTES: usize = 64 * 1024;
const UNITS: u32 = (BYTES_MAX / UNIT_BYTES) as u32;

pub(crate) type Place = OwnedSemaphorePermit;

#[derive(Clone)]
pub(crate) struct Places(Arc<Semaphore>);

impl Places {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(UNITS as usize)))
    }

    /// A place for an accept of so many payload bytes, when it has its turn; none is needed for a small one.
    pub(super) async fn take(&self, bytes: usize) -> Result<Option<Place>, StoreError> {
        if bytes < LARGE_BYTES {
            return Ok(None);
        }
        let place = Arc::clone(&self.0).acquire_many_owned(units(bytes)).await;
        place.map(Some).map_err(|_| StoreError::Stopping)
    }
}

fn units(bytes: usize) -> u32 {
    let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
    units.clamp(UNITS / ACCEPTS_MAX, UNITS)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;

    const MIB: usize = 1024 * 1024;

    async fn taken(places: &Places, bytes: usize) -> Vec<Place> {
        let mut taken = Vec::new();
        while let Some(place) = pin!(places.take(bytes)).now_or_never() {
            taken.extend(place.unwrap());
            // Tokio lets a task have only so much at a time.
            tokio::task::yield_now().await;
        }
        taken
    }

    #[tokio::test]
    async fn so_many_have_a_place_and_so_many_bytes_and_further_ones_wait_in_their_order() {
        let places = Places::new();
        assert!(places.take(LARGE_BYTES - 1).await.unwrap().is_none(), "a small one needs none");
        for (bytes, expected) in [
            (LARGE_BYTES, 64),
            (8 * MIB, 64),
            (8 * MIB + 1, 63),
            (64 * MIB, 8),
            (BYTES_MAX, 1),
            (usize::MAX, 1),
        ] {
            assert_eq!(taken(&places, bytes).await.len(), expected, "{bytes}");
        }
        let mut held = taken(&places, 64 * MIB).await;
        let (mut large, mut little) = (pin!(places.take(128 * MIB)), pin!(places.take(LARGE_BYTES)));
        assert!(large.as_mut().now_or_never().is_none());
        held.pop();
        assert!(large.as_mut().now_or_never().is_none());
        assert!(little.as_mut().now_or_never().is_none(), "it has come later");
        held.pop();
        let _large = large.await.unwrap();
        assert!(little.as_mut().now_or_never().is_none());
        held.pop();
        assert!(little.await.unwrap().is_some());
    }
}
