//! What sessions that are not in the settings any more have left in the adapter's state. It stays, since the settings may only be wrong for a
//! while, until an operator has it deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gatepost_adapter::{Session, Settlement};
use serde_json::{Map, Value, json};
use tokio::sync::Mutex;

use crate::engine::{is_numbers, is_pending};
use crate::room::Room;

/// Most keys that one settlement deletes.
const KEYS_MAX: usize = 400;

/// Keys, and what each takes with its value, bytes.
type Keys = Vec<(String, usize)>;

pub(crate) struct LeftBehind {
    /// By the session's name.
    of: Mutex<BTreeMap<String, Keys>>,
    room: Arc<Room>,
    /// How many are in the settings.
    sessions: usize,
}

impl LeftBehind {
    /// `here`: the sessions that are in the settings.
    pub(crate) fn new(state: &BTreeMap<String, Vec<u8>>, here: &BTreeSet<&str>, room: Arc<Room>) -> Self {
        let mut of: BTreeMap<String, Keys> = BTreeMap::new();
        for (key, value) in state {
            let name = key.split('/').nth(1).unwrap_or_default();
            if !here.contains(name) {
                of.entry(name.to_owned()).or_default().push((key.clone(), key.len() + value.len()));
            }
        }
        for (name, keys) in &mut of {
            // Should this end in the middle, whatever is left has still its numbers.
            keys.sort_by_key(|(key, _)| is_numbers(key));
            tracing::warn!(
                session = name,
                bytes = bytes(keys),
                "the adapter's state holds what a session has left that is not in the settings; if it does not come back, an operator can have \
                 it deleted (`gatepost adapter call NAME forget session={name}`)"
            );
        }
        room.left_behind(of.values().map(bytes).sum(), here.len());
        Self { of: Mutex::new(of), room, sessions: here.len() }
    }

    /// Each of them, for operators; or the one of this name.
    pub(crate) async fn shown(&self, only: Option<&str>) -> Map<String, Value> {
        let of = self.of.lock().await;
        let wanted = of.iter().filter(|(name, _)| only.is_none_or(|only| only == *name));
        wanted.map(|(name, keys)| (name.clone(), shown(keys))).collect()
    }

    /// Deletes what a session has left; gives what that was.
    pub(crate) async fn forget(&self, name: &str, gateway: &Session) -> Result<Value, String> {
        let mut of = self.of.lock().await;
        let keys = of.get_mut(name).ok_or_else(|| format!("nothing is left of a session `{name}`"))?;
        let was = shown(keys);
        while !keys.is_empty() {
            let some = keys.len().min(KEYS_MAX);
            let mut settlement = Settlement::default();
            keys[..some].iter().for_each(|(key, _)| settlement.state.delete(key));
            let settled = gateway.settle(settlement).await;
            settled.map_err(|error| format!("not all of it is deleted: {error}"))?;
            keys.drain(..some);
        }
        of.remove(name);
        self.room.left_behind(of.values().map(bytes).sum(), self.sessions);
        Ok(was)
    }
}

fn bytes(keys: &Keys) -> usize {
    keys.iter().map(|(_, bytes)| bytes).sum()
}

fn shown(keys: &Keys) -> Value {
    let pending = keys.iter().filter(|(key, _)| is_pending(key)).count();
    json!({ "state": "not_in_settings", "bytes": bytes(keys), "waiting_for_proof": pending })
}

#[cfg(test)]
mod tests {
    use gatepost_adapter::testing::Gateway;

    use super::*;

    #[tokio::test]
    async fn what_a_session_has_left_is_deleted_in_pieces_its_numbers_last_and_nothing_else() {
        let (mut gateway, session) = Gateway::open(json!({})).await;
        let mut state: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for name in ["here", "old", "older"] {
            state.insert(format!("n/{name}"), vec![b'x'; 100]);
            state.insert(format!("o/{name}/1/1"), vec![b'x'; 100]);
            for seq in 0..500 {
                state.insert(format!("m/{name}/1/{seq}"), vec![b'x'; 100]);
                state.insert(format!("p/{name}/1/{seq}"), vec![b'x'; 100]);
            }
        }
        let left = LeftBehind::new(&state, &["here"].into(), Arc::default());
        assert_eq!(left.shown(None).await.keys().collect::<Vec<_>>(), ["old", "older"]);
        let old = left.shown(Some("old")).await["old"].clone();
        let keys = |name: &str| -> BTreeSet<String> {
            state.keys().filter(|key| key.split('/').nth(1) == Some(name)).cloned().collect()
        };
        let bytes: usize = keys("old").iter().map(|key| key.len() + 100).sum();
        assert_eq!(old, json!({"state": "not_in_settings", "bytes": bytes, "waiting_for_proof": 500}));
        assert!(left.forget("here", &session).await.unwrap_err().contains("nothing is left"));

        let mut order = Vec::new();
        // The gateway is away in the middle of it; then the rest goes.
        let (first, ()) = tokio::join!(left.forget("old", &session), async {
            let call = gateway.next("/v1/settle").await;
            order.extend(call.body["state"].as_object().unwrap().keys().cloned());
            call.settled("ok");
            gateway.next("/v1/settle").await.answer_problem("forbidden");
        });
        assert!(first.unwrap_err().contains("not all of it is deleted"));
        assert_eq!(left.shown(Some("old")).await["old"]["state"], "not_in_settings");
        let (second, ()) = tokio::join!(left.forget("old", &session), async {
            while order.len() < 1002 {
                let call = gateway.next("/v1/settle").await;
                let state = call.body["state"].as_object().unwrap();
                assert!(state.len() <= KEYS_MAX && state.values().all(Value::is_null));
                order.extend(state.keys().cloned());
                call.settled("ok");
            }
        });
        second.unwrap();
        assert_eq!(order.iter().cloned().collect::<BTreeSet<_>>(), keys("old"));
        assert!(!order[..2 * KEYS_MAX].contains(&"n/old".to_owned()), "its numbers go with the last");
        assert_eq!(left.shown(None).await.keys().collect::<Vec<_>>(), ["older"]);
    }
}
