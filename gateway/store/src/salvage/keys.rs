//! The keys of a data directory: what everything was indexed, sealed and signed with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;

use gatepost_audit::{SignerKey, VerifierKey};
use rusqlite::types::Value;

use super::damage::{Damage, Fate};
use super::mend::mended;
use crate::data_dir::{DataDir, from_hex};
use crate::keyring::source::{SealKeySource, SealKeysFrom};
use crate::keyring::{Keyring, SealKey, SealKeys, WrappedTree};
use crate::seal::Vault;

/// Those of a data directory that are what they were.
pub(super) struct Keys {
    pub(super) store: Option<[u8; 32]>,
    pub(super) seal: BTreeMap<u32, [u8; 32]>,
    pub(super) signer: Option<SignerKey>,
    /// The public half of the log's key, as it stands beside the log.
    pub(super) vkey: Option<VerifierKey>,
}

/// The keys, where they are what they were. The store's row knows its key, and the log's key its own public half.
pub(super) fn read(
    data: &DataDir,
    seal_keys: &SealKeysFrom,
    store: Option<&[Value]>,
    trees: &BTreeMap<u64, WrappedTree>,
    damage: &mut Vec<Damage>,
) -> Keys {
    let mark = store.and_then(|store| match store.get(5) {
        Some(Value::Blob(mark)) => Some(mark.clone()),
        _ => None,
    });
    let parse = |text: &[u8]| from_hex(std::str::from_utf8(text).ok()?.trim());
    let right =
        |key: &[u8; 32]| mark.as_ref().is_none_or(|mark| Vault::new(key).key_mark() == mark.as_slice());
    let stored = fs::read(data.store_key()).unwrap_or_default();
    let mut store_key = parse(&stored).filter(&right);
    if store_key.is_none() {
        let sound = mended(&stored, |text| mark.is_some() && parse(text).is_some_and(|key| right(&key)));
        store_key = sound.as_deref().and_then(parse);
        let (fate, why) = match store_key {
            Some(_) => (Fate::Mended, "one bit had flipped"),
            None => (
                Fate::Lost,
                "it is not the key of this data: idempotency keys, and what messages are searched and kept in order by, \
                 mean nothing any more",
            ),
        };
        damage.push(Damage::file("keys/store.key", fate, why));
    }
    let parse = |text: &[u8]| SignerKey::parse(std::str::from_utf8(text).ok()?.trim()).ok();
    let stored = fs::read(data.audit_key()).unwrap_or_default();
    let mut signer = parse(&stored);
    if signer.is_none() {
        signer = mended(&stored, |text| parse(text).is_some()).as_deref().and_then(parse);
        let (fate, why) = match signer {
            Some(_) => (Fate::Mended, "one bit had flipped"),
            None => (Fate::Lost, "it is no key: nothing can be signed with it any more"),
        };
        damage.push(Damage::file("keys/audit.key", fate, why));
    }
    let vkey = fs::read_to_string(data.audit().join(gatepost_audit::VKEY)).ok();
    let vkey = vkey.and_then(|text| VerifierKey::parse(text.trim()).ok());
    Keys {
        store: store_key,
        seal: read_seal_keys(&*data.seal_key_source(seal_keys), trees, damage),
        signer,
        vkey,
    }
}

/// The versions of the seal key. Each unwraps the trees that were wrapped with it, and no other key does.
fn read_seal_keys(
    source: &dyn SealKeySource,
    trees: &BTreeMap<u64, WrappedTree>,
    damage: &mut Vec<Damage>,
) -> BTreeMap<u32, [u8; 32]> {
    let parse = |text: &[u8]| from_hex(std::str::from_utf8(text).ok()?.trim());
    let mut versions: BTreeSet<u32> = trees.values().map(|tree| tree.key).collect();
    versions.extend(source.versions());
    let mut keys = BTreeMap::new();
    for version in versions {
        let of = |tree: &&WrappedTree| tree.key == version;
        let unwraps = |key: [u8; 32]| match trees.values().find(of) {
            Some(tree) => {
                let keys = SealKeys::new([(version, SealKey::new(key))]);
                keys.is_ok_and(|keys| Keyring::new(Arc::new(keys)).learn(tree).is_ok())
            }
            None => true,
        };
        let path = source.place(version);
        let stored = fs::read(&path).unwrap_or_default();
        let right = |text: &[u8]| parse(text).is_some_and(unwraps);
        let key = match right(&stored) {
            true => parse(&stored),
            false => {
                let known = trees.values().any(|tree| of(&tree));
                let sound = mended(&stored, |text| known && right(text));
                let (fate, why) = match sound {
                    Some(_) => (Fate::Mended, "one bit had flipped"),
                    None => (Fate::Lost, "what was sealed with it cannot be read any more"),
                };
                let file = path.file_name().unwrap_or_default().to_string_lossy();
                damage.push(Damage::file(format!("keys/{file}"), fate, why));
                sound.as_deref().and_then(parse)
            }
        };
        keys.extend(key.map(|key| (version, key)));
    }
    keys
}
