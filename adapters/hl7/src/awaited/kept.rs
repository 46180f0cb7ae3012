//! What adapter state holds of messages that a partner has accepted and whose application acknowledgement is to come.

use std::collections::{BTreeMap, HashMap};

use gatepost_adapter::Lease;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Id, Places, Stage, Waiting};
use crate::peer::Peer;

const PREFIX: &str = "await/";

/// Of one attempt; all of it is of bounded size, whatever the message's control id and the partner's certificate are.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    pub(super) id: Id,
    pub(super) lease: Lease,
    /// Seconds since 1970.
    pub(super) until: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) partner: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) peer: Option<Peer>,
}

/// Of one attempt and no other: an old one can be forgotten while the next is under way.
pub(super) fn new_key() -> String {
    format!("{PREFIX}{}", uuid::Uuid::now_v7().simple())
}

/// What earlier sessions were waiting for, and the keys of what cannot be read, which nobody would ever delete.
pub(super) fn restore(
    state: &BTreeMap<String, Vec<u8>>,
    places: &Places,
) -> (HashMap<Id, Vec<Waiting>>, Vec<String>) {
    let mut all: HashMap<Id, Vec<Waiting>> = HashMap::new();
    let mut unreadable = Vec::new();
    for (key, value) in state.iter().filter(|(key, _)| key.starts_with(PREFIX)) {
        let kept = serde_json::from_slice::<Kept>(value).ok();
        let kept = kept.and_then(|kept| Some((OffsetDateTime::from_unix_timestamp(kept.until).ok()?, kept)));
        let Some((until, kept)) = kept else {
            unreadable.push(key.clone());
            continue;
        };
        // What a partner owes that has left the settings, or had a larger share, takes none: its deadline ends it.
        let place = places.try_take(kept.partner.as_deref());
        let waiting = Waiting {
            lease: kept.lease,
            partner: kept.partner,
            peer: kept.peer,
            stage: Stage::Sent { until, key: key.clone() },
            _place: place,
        };
        all.entry(kept.id).or_default().push(waiting);
    }
    if !unreadable.is_empty() {
        let keys = unreadable.len();
        tracing::warn!(keys, "the state of sent messages cannot be read; their deliveries will be in doubt");
    }
    (all, unreadable)
}
