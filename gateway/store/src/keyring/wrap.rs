//! Trees as they are stored: encrypted with a seal key, of which there is a newest version for what is written and older ones for
//! what was.

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::WrappedTree;
use super::tree::Tree;

/// First byte of a wrapped tree: AES-256-GCM under a seal key.
const WRAP_AES_256_GCM: u8 = 1;
const LABEL: &[u8] = b"gatepost tree 1";

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WrapError {
    #[error("there is no seal key {version}, and data keys are wrapped with it")]
    KeyMissing { version: u32 },
    #[error(
        "the data keys of tree {tree:016x} are damaged, or wrapped with another key than the seal key that is there"
    )]
    Damaged { tree: u64 },
    #[error("there is no seal key")]
    NoKey,
}

/// One version of the key that wraps trees.
pub(crate) struct SealKey {
    key: LessSafeKey,
}

/// All versions that are there.
pub(crate) struct SealKeys {
    versions: BTreeMap<u32, SealKey>,
    newest: u32,
}

impl fmt::Debug for SealKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.versions.keys()).finish()
    }
}

impl SealKey {
    pub(crate) fn new(bytes: [u8; 32]) -> Self {
        let bytes = Zeroizing::new(bytes);
        // Unwrap safety: the algorithm takes exactly the bytes that the type has.
        let key = UnboundKey::new(&AES_256_GCM, bytes.as_slice()).expect("32 bytes are a key of AES-256");
        Self { key: LessSafeKey::new(key) }
    }
}

impl SealKeys {
    pub(crate) fn new(versions: impl IntoIterator<Item = (u32, SealKey)>) -> Result<Self, WrapError> {
        let versions: BTreeMap<u32, SealKey> = versions.into_iter().collect();
        let newest = versions.keys().next_back().copied().ok_or(WrapError::NoKey)?;
        Ok(Self { versions, newest })
    }

    pub(super) fn newest(&self) -> u32 {
        self.newest
    }

    pub(super) fn wrap(&self, version: u32, id: u64, tree: &Tree) -> Result<WrappedTree, WrapError> {
        let key = self.versions.get(&version).ok_or(WrapError::KeyMissing { version })?;
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| WrapError::NoKey)?;
        let mut wrapped = tree.to_bytes();
        let sealed = key.key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(belongs_to(id, version)),
            &mut *wrapped,
        );
        sealed.map_err(|_| WrapError::Damaged { tree: id })?;
        let mut body = Vec::with_capacity(1 + NONCE_LEN + wrapped.len());
        body.push(WRAP_AES_256_GCM);
        body.extend_from_slice(&nonce);
        body.extend_from_slice(&wrapped);
        Ok(WrappedTree { tree: id, key: version, body })
    }

    pub(super) fn unwrap(&self, stored: &WrappedTree) -> Result<Tree, WrapError> {
        let WrappedTree { tree: id, key: version, body } = stored;
        let key = self.versions.get(version).ok_or(WrapError::KeyMissing { version: *version })?;
        let opened = || {
            let (suite, rest) = body.split_first()?;
            let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
            let mut bytes = Zeroizing::new(sealed.to_vec());
            let nonce = Some(Nonce::assume_unique_for_key(*nonce)).filter(|_| *suite == WRAP_AES_256_GCM)?;
            let aad = Aad::from(belongs_to(*id, *version));
            let plain = key.key.open_in_place(nonce, aad, &mut bytes).ok()?;
            Tree::from_bytes(plain)
        };
        opened().ok_or(WrapError::Damaged { tree: *id })
    }
}

fn belongs_to(tree: u64, version: u32) -> Vec<u8> {
    [LABEL, &tree.to_be_bytes(), &version.to_be_bytes()].concat()
}
