//! The two keys of a data directory: what everything was sealed and what the log was signed with.

use std::fs;

use gatepost_audit::{SignerKey, VerifierKey};
use rusqlite::types::Value;

use super::damage::{Damage, Fate};
use super::mend::mended;
use crate::data_dir::{DataDir, from_hex};
use crate::seal::Vault;

/// Those of a data directory that are what they were.
pub(super) struct Keys {
    pub(super) store: Option<[u8; 32]>,
    pub(super) signer: Option<SignerKey>,
    /// The public half of the log's key, as it stands beside the log.
    pub(super) vkey: Option<VerifierKey>,
}

/// The keys, where they are what they were. The store's row knows its key, and the log's key its own public half.
pub(super) fn read(data: &DataDir, store: Option<&[Value]>, damage: &mut Vec<Damage>) -> Keys {
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
    Keys { store: store_key, signer, vkey }
}
