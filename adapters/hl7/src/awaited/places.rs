//! Places for messages whose acknowledgement is still to come: a share for each partner, so that one that owes many is nobody
//! else's trouble.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::partners::PARTNERS_MAX;
use crate::settings::Settings;

/// Most messages at a time of which a partner owes an application acknowledgement; of several partners, all of them together.
pub(crate) const AWAITED_MAX: usize = 4096;
/// What each of several partners has in any case.
const SHARE_MIN: usize = 16;
/// Each is kept in adapter state, in less than this with all that it may hold.
const KEPT_BYTES_MAX: usize = 2 * 1024;
const _: () =
    assert!(PARTNERS_MAX * SHARE_MIN * KEPT_BYTES_MAX <= 32 * 1024 * 1024, "they fit into the state");

pub(super) struct Places {
    of_several: HashMap<String, Arc<Semaphore>>,
    of_one: Arc<Semaphore>,
    share: usize,
}

/// Free again when it is dropped.
pub(super) type Place = OwnedSemaphorePermit;

impl Places {
    pub(super) fn new(settings: &Settings) -> Self {
        let names: Vec<_> = settings.names_sent_to().map(str::to_owned).collect();
        let share = (AWAITED_MAX / names.len().max(1)).max(SHARE_MIN);
        let places = || Arc::new(Semaphore::new(share));
        Self { of_several: names.into_iter().map(|name| (name, places())).collect(), of_one: places(), share }
    }

    /// How many a partner has.
    pub(super) fn share(&self) -> usize {
        self.share
    }

    pub(super) fn try_take(&self, partner: Option<&str>) -> Option<Place> {
        Arc::clone(self.of(partner)?).try_acquire_owned().ok()
    }

    /// Waits for one. `None`: there is no such partner.
    pub(super) async fn take(&self, partner: Option<&str>) -> Option<Place> {
        Arc::clone(self.of(partner)?).acquire_owned().await.ok()
    }

    fn of(&self, partner: Option<&str>) -> Option<&Arc<Semaphore>> {
        match partner {
            Some(partner) => self.of_several.get(partner),
            None => Some(&self.of_one),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(partners: usize) -> Places {
        let partners: Vec<_> =
            (0..partners).map(|n| json!({"name": format!("p{n}"), "connect": "a:1"})).collect();
        Places::new(&serde_json::from_value(json!({ "partners": partners })).unwrap())
    }

    #[test]
    fn what_one_partner_owes_takes_no_place_of_another() {
        assert_eq!([0, 1, 2, 1000].map(|partners| of(partners).share()), [4096, 4096, 2048, 16]);
        let places = of(300);
        let taken: Vec<_> = std::iter::from_fn(|| places.try_take(Some("p7"))).collect();
        assert_eq!(taken.len(), 16);
        assert!(places.try_take(Some("p8")).is_some() && places.try_take(None).is_some());
        drop(taken);
        assert!(places.try_take(Some("p7")).is_some());
        assert!(places.try_take(Some("gone")).is_none());
    }
}
