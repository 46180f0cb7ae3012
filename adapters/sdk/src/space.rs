//! A part of the adapter's state, with typed access: the keys that begin alike, as the gateway has them.

use std::collections::BTreeMap;
use std::fmt;

use gatepost_api::settle::SettleResponse;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::session::Session;
use crate::settlement::{SettleError, Settlement};
use crate::state::StateChanges;

/// Under the space's prefix, the version of the values beside it. No name begins like it.
const VERSION_NAME: &str = "@version";

/// The state under one prefix. It changes only when the gateway has said that a settlement was taken, which is why it lends itself out
/// for each: there is one of each prefix.
pub struct Space {
    session: Session,
    prefix: String,
    entries: BTreeMap<String, Vec<u8>>,
    version: u32,
    /// What the values in the gateway are written in; `None` where there are none.
    stored: Option<u32>,
}

#[derive(Debug, thiserror::Error)]
pub enum SpaceError {
    #[error(
        "the state under `{prefix}` is of version {found}, written by a newer program; this one knows up to {known}"
    )]
    Newer { prefix: String, found: u32, known: u32 },
    /// Without the value, which may be a partner's words.
    #[error("`{key}` in the state cannot be read")]
    Unreadable { key: String },
    #[error("`{key}` cannot be written as JSON")]
    Unwritable {
        key: String,
        #[source]
        source: serde_json::Error,
    },
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Space({:?}, {} entries)", self.prefix, self.entries.len())
    }
}

impl Session {
    /// The state whose keys begin with `prefix`, as it was when the session was opened; the names in it are what follows. `version` is the
    /// version of its values that this program writes: one that finds older ones ([`Space::stored_version`]) reads them as what they are,
    /// and rewrites all in one settlement.
    pub fn space(&self, prefix: impl Into<String>, version: u32) -> Result<Space, SpaceError> {
        let prefix = prefix.into();
        let mut entries: BTreeMap<String, Vec<u8>> = self
            .state()
            .range(prefix.clone()..)
            .map_while(|(key, value)| Some((key.strip_prefix(&prefix)?.to_owned(), value.clone())))
            .collect();
        let stored = entries.remove(VERSION_NAME).map(|value| {
            let key = || format!("{prefix}{VERSION_NAME}");
            serde_json::from_slice::<u32>(&value).map_err(|_| SpaceError::Unreadable { key: key() })
        });
        let stored = stored.transpose()?;
        match stored {
            Some(found) if found > version => Err(SpaceError::Newer { prefix, found, known: version }),
            _ => Ok(Space { session: self.clone(), prefix, entries, version, stored }),
        }
    }
}

impl Space {
    /// The version of the values that are there; `None` where nothing has been written under one.
    pub fn stored_version(&self) -> Option<u32> {
        self.stored
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.entries.get(name).map(Vec::as_slice)
    }

    /// A value that was [put](Space::put).
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, SpaceError> {
        let value = self.entries.get(name).map(|value| serde_json::from_slice(value));
        value.transpose().map_err(|_| SpaceError::Unreadable { key: format!("{}{name}", self.prefix) })
    }

    /// Names that begin with `start` and their values, in the order of the names: numbers in them need leading zeros.
    pub fn starting(&self, start: &str) -> impl Iterator<Item = (&str, &[u8])> {
        let start = start.to_owned();
        // What does not begin so comes after all that do.
        let named = self.entries.range(start.clone()..).take_while(move |(name, _)| name.starts_with(&start));
        named.map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// Adds a change to a settlement; it shows here once that has been [settled](Space::settle).
    pub fn set(&self, settlement: &mut Settlement, name: &str, value: impl Into<Vec<u8>>) {
        settlement.state.set(format!("{}{name}", self.prefix), value);
    }

    /// As [`Space::set`], a value as JSON.
    pub fn put(
        &self,
        settlement: &mut Settlement,
        name: &str,
        value: &impl Serialize,
    ) -> Result<(), SpaceError> {
        let key = || format!("{}{name}", self.prefix);
        let value =
            serde_json::to_vec(value).map_err(|source| SpaceError::Unwritable { key: key(), source })?;
        settlement.state.set(key(), value);
        Ok(())
    }

    pub fn delete(&self, settlement: &mut Settlement, name: &str) {
        settlement.state.delete(format!("{}{name}", self.prefix));
    }

    /// Commits a settlement, and takes up the changes under this prefix once the gateway has. As for [`Session::settle`], the future must not
    /// be dropped half way.
    pub async fn settle(&mut self, mut settlement: Settlement) -> Result<SettleResponse, SettleError> {
        let ours = settlement.state.iter().any(|(key, _)| key.starts_with(&self.prefix));
        if ours && self.stored != Some(self.version) {
            self.set(&mut settlement, VERSION_NAME, self.version.to_string());
        }
        let changes = settlement.state.clone();
        let settled = self.session.settle(settlement).await?;
        self.take_up(&changes);
        if ours {
            self.stored = Some(self.version);
        }
        Ok(settled)
    }

    fn take_up(&mut self, changes: &StateChanges) {
        for (key, value) in changes.iter() {
            match (key.strip_prefix(self.prefix.as_str()), value) {
                (None | Some(VERSION_NAME), _) => {}
                (Some(name), Some(value)) => {
                    self.entries.insert(name.to_owned(), value.to_vec());
                }
                (Some(name), None) => {
                    self.entries.remove(name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Call, Gateway};

    fn read(space: &Space) -> Vec<(String, String)> {
        let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
        space.starting("").map(|(name, value)| (name.to_owned(), text(value))).collect()
    }

    /// Settles while the gateway answers as it is told.
    async fn settled(
        space: &mut Space,
        gateway: &mut Gateway,
        settlement: Settlement,
        answer: impl FnOnce(Call),
    ) -> (Result<SettleResponse, SettleError>, serde_json::Value) {
        tokio::join!(space.settle(settlement), async {
            let call = gateway.next("/v1/settle").await;
            let state = call.body["state"].clone();
            answer(call);
            state
        })
    }

    #[tokio::test]
    async fn a_space_has_what_begins_with_its_prefix_and_takes_up_what_the_gateway_has_taken() {
        // "a/1" → "x", "a/2" → 7, "b/1" → "y", "a" and "a0" are not under "a/".
        let state = json!({"a/1": "eA==", "a/2": "Nw==", "b/1": "eQ==", "a": "eg==", "a0": "eg=="});
        let (mut gateway, session) = Gateway::open(json!({ "state": state })).await;
        let mut space = session.space("a/", 3).unwrap();
        assert_eq!((space.len(), space.get("1"), space.stored_version()), (2, Some(&b"x"[..]), None));
        assert_eq!(space.read::<u32>("2").unwrap(), Some(7));
        assert_eq!(space.read::<u32>("3").unwrap(), None);
        assert_eq!(space.read::<u32>("1").unwrap_err().to_string(), "`a/1` in the state cannot be read");

        let mut settlement = Settlement::default();
        space.set(&mut settlement, "1", *b"new");
        space.delete(&mut settlement, "2");
        space.put(&mut settlement, "out/01", &[1, 2]).unwrap();
        settlement.state.set("elsewhere", *b"z");
        let before = read(&space);
        let (refused, _) =
            settled(&mut space, &mut gateway, settlement, |call| call.answer_problem("no_route")).await;
        assert!(refused.is_err());
        assert_eq!(read(&space), before, "changed although the gateway refused");

        let mut settlement = Settlement::default();
        space.set(&mut settlement, "1", *b"new");
        space.delete(&mut settlement, "2");
        space.put(&mut settlement, "out/01", &[1, 2]).unwrap();
        settlement.state.set("elsewhere", *b"z");
        let (taken, said) = settled(&mut space, &mut gateway, settlement, |call| call.settled("ok")).await;
        taken.unwrap();
        let keys: Vec<_> = said.as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["a/1", "a/2", "a/@version", "a/out/01", "elsewhere"]);
        assert_eq!(said["a/@version"], "Mw==");
        assert_eq!(read(&space), [("1".into(), "new".into()), ("out/01".into(), "[1,2]".into())]);
        assert_eq!(space.starting("out/").count(), 1);
        assert_eq!(space.stored_version(), Some(3));

        // The version is written once; and not with what is none of this space.
        let mut settlement = Settlement::default();
        space.delete(&mut settlement, "1");
        let (_, said) = settled(&mut space, &mut gateway, settlement, |call| call.settled("ok")).await;
        assert_eq!(said, json!({"a/1": null}));
    }

    #[tokio::test]
    async fn older_values_are_known_as_such_and_newer_ones_refused() {
        let (_gateway, session) =
            Gateway::open(json!({"state": {"a/@version": "Mg==", "a/1": "eA=="}})).await;
        let space = session.space("a/", 3).unwrap();
        assert_eq!((space.stored_version(), space.len()), (Some(2), 1));
        let newer = session.space("a/", 1).unwrap_err().to_string();
        assert!(newer.contains("of version 2") && newer.contains("up to 1"), "{newer}");
    }
}
