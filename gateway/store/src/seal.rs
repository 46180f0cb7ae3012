//! The only module that turns content into what stands in sealed columns and back, and that knows the store's key.
//!
//! A sealed value is either plain (the first byte is 0) or encrypted (1), each with a checksum of what it holds and of what it belongs to, so
//! that a flipped bit or another row's content is found without any key. Encrypted values have a data key of their own
//! (`keyring.rs`), AES-256-GCM, and a commitment to the key, so that no value opens under two. Of a large payload the column holds only
//! (2) that its sealed value stands in pieces elsewhere. `docs/encryption.md` has the layout.

mod pieces;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};
use zeroize::Zeroizing;

pub(crate) use pieces::InPieces;

use crate::keyring::{DataKey, Keyring, Locator, NoKey, SealKeys, SealVersions, WrapError, WrappedTree};
use crate::ops::StoreError;
use crate::random;

/// First byte of a sealed value whose rest is a checksum and the content itself.
const SEAL_PLAIN: u8 = 0;
/// First byte of a sealed value whose content is encrypted.
const SEAL_ENCRYPTED: u8 = 1;
/// First byte of what stands for a sealed value that stands in pieces.
const SEAL_PIECES: u8 = 2;
/// Bytes of a plain seal before the content: the kind and the checksum.
const PLAIN_BYTES: usize = 1 + CHECKSUM_BYTES;
const CHECKSUM_BYTES: usize = 8;
const LOCATOR_BYTES: usize = 8 + 4;
const COMMITMENT_BYTES: usize = 32;
/// Bytes of an encrypted seal before what is encrypted: kind, checksum, locator, nonce, commitment.
const ENCRYPTED_BYTES: usize = PLAIN_BYTES + LOCATOR_BYTES + NONCE_LEN + COMMITMENT_BYTES;
/// Bytes of GCM's tag.
const TAG_BYTES: usize = 16;
/// What keys are derived with, before what the value belongs to.
const LABEL: &[u8] = b"gatepost seal 1";
/// Length of an indexed identifier, bytes.
pub(crate) const INDEX_BYTES: usize = 16;
/// Bytes of a salt as it is stored: where its key is, and the salt masked by that.
pub(crate) const SALT_BYTES: usize = LOCATOR_BYTES + 32;

/// An identifier as it is stored and searched: it says nothing about the text, and equal texts of one domain are equal.
pub(crate) type Index = [u8; INDEX_BYTES];

#[derive(Clone)]
pub(crate) struct Vault {
    index_key: Hmac<Sha256>,
    mark: Index,
    keyring: Option<Arc<Keyring>>,
    encrypts: bool,
}

/// What a message's content is committed to under. It is stored masked by the payload's data key, and gone with that.
#[derive(Clone, Copy)]
pub(crate) struct Salt {
    stored: [u8; SALT_BYTES],
    /// As far as it is known without the key.
    clear: Option<[u8; 32]>,
}

impl PartialEq for Salt {
    fn eq(&self, other: &Self) -> bool {
        self.stored == other.stored
    }
}

impl Eq for Salt {}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt")
    }
}

impl Salt {
    pub(crate) fn from_stored(stored: [u8; SALT_BYTES]) -> Self {
        Self { stored, clear: None }
    }

    /// Where its data key is; `None` of one that is not masked.
    pub(crate) fn locator(&self) -> Option<Locator> {
        locator_at(&self.stored).filter(|locator| *locator != NOWHERE)
    }

    pub(crate) fn stored(&self) -> &[u8; SALT_BYTES] {
        &self.stored
    }
}

/// What stands in place of a locator where nothing is encrypted. No tree has that number: they are random.
const NOWHERE: Locator = Locator { tree: 0, leaf: 0 };

/// A payload, sealed, and its salt.
pub(crate) struct SealedData {
    pub(crate) salt: Salt,
    pub(crate) sealed: Vec<u8>,
}

/// What a sealed value belongs to; as the value of anything else it does not open.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Owner<'a> {
    Attributes {
        message: &'a [u8; 16],
    },
    /// The salt is the payload's: audit leaves commit to it under the salt.
    Data {
        message: &'a [u8; 16],
        salt: &'a Salt,
    },
    Detail {
        leaf: i64,
        delivery: i64,
    },
    Reply {
        delivery: i64,
    },
    State {
        adapter: &'a str,
        key: &'a str,
    },
}

impl Owner<'_> {
    fn digest(&self) -> u64 {
        match self {
            Self::Attributes { message } => xxh3_64_with_seed(*message, 1),
            Self::Data { message, salt } => xxh3_64_with_seed(&salt.stored, xxh3_64_with_seed(*message, 2)),
            Self::Detail { leaf, delivery } => {
                xxh3_64_with_seed(&[leaf.to_le_bytes(), delivery.to_le_bytes()].concat(), 3)
            }
            Self::Reply { delivery } => xxh3_64_with_seed(&delivery.to_le_bytes(), 4),
            Self::State { adapter, key } => {
                xxh3_64_with_seed(key.as_bytes(), xxh3_64_with_seed(adapter.as_bytes(), 5))
            }
        }
    }

    /// Over the kind of seal and what follows the checksum.
    fn checksum(&self, kind: u8, content: &[u8]) -> [u8; CHECKSUM_BYTES] {
        let parts = [self.digest().to_le_bytes(), xxh3_64(content).to_le_bytes()];
        xxh3_64_with_seed(parts.as_flattened(), kind.into()).to_le_bytes()
    }

    /// Feeds a key's derivation with what the value belongs to; no two values give the same bytes.
    fn feed(&self, mac: &mut Hmac<Sha256>) {
        match self {
            Self::Attributes { message } => {
                mac.update(&[1]);
                mac.update(*message);
            }
            Self::Data { message, salt } => {
                mac.update(&[2]);
                mac.update(*message);
                mac.update(&salt.stored);
            }
            Self::Detail { leaf, delivery } => {
                mac.update(&[3]);
                mac.update(&leaf.to_be_bytes());
                mac.update(&delivery.to_be_bytes());
            }
            Self::Reply { delivery } => {
                mac.update(&[4]);
                mac.update(&delivery.to_be_bytes());
            }
            Self::State { adapter, key } => {
                mac.update(&[5]);
                mac.update(&(adapter.len() as u64).to_be_bytes());
                mac.update(adapter.as_bytes());
                mac.update(key.as_bytes());
            }
        }
    }
}

/// What a data key is derived into.
#[derive(Clone, Copy)]
enum Purpose {
    Encrypt = 1,
    Commit = 2,
    Mask = 3,
}

/// A data key, ready to derive from.
struct Derivation(Hmac<Sha256>);

impl Derivation {
    fn new(key: &DataKey) -> Self {
        Self(keyed(key))
    }

    fn derive(&self, purpose: Purpose, owner: Option<Owner<'_>>) -> Zeroizing<[u8; 32]> {
        let mut mac = self.0.clone();
        mac.update(&[purpose as u8]);
        mac.update(LABEL);
        if let Some(owner) = owner {
            owner.feed(&mut mac);
        }
        Zeroizing::new(mac.finalize().into_bytes().into())
    }

    fn aead(&self, owner: Owner<'_>) -> LessSafeKey {
        let key = self.derive(Purpose::Encrypt, Some(owner));
        // Unwrap safety: the algorithm takes exactly the bytes that the type has.
        let key = UnboundKey::new(&AES_256_GCM, key.as_slice()).expect("32 bytes are a key of AES-256");
        LessSafeKey::new(key)
    }

    /// A salt under its mask, or without it.
    fn masked(&self, salt: &[u8; 32]) -> [u8; 32] {
        let mask = self.derive(Purpose::Mask, None);
        std::array::from_fn(|at| salt[at] ^ mask[at])
    }
}

fn locator_bytes(locator: Locator) -> [u8; LOCATOR_BYTES] {
    let mut bytes = [0; LOCATOR_BYTES];
    bytes[..8].copy_from_slice(&locator.tree.to_be_bytes());
    bytes[8..].copy_from_slice(&locator.leaf.to_be_bytes());
    bytes
}

fn locator_at(bytes: &[u8]) -> Option<Locator> {
    let (tree, rest) = bytes.split_first_chunk::<8>()?;
    let leaf = rest.first_chunk::<4>()?;
    Some(Locator { tree: u64::from_be_bytes(*tree), leaf: u32::from_be_bytes(*leaf) })
}

/// Where the data key of an encrypted value is, be it in pieces or not; `None` of a plain one.
pub(crate) fn locator_of(sealed: &[u8]) -> Option<Locator> {
    let (kind, rest) = sealed.split_first()?;
    let rest = Some(rest).filter(|_| matches!(*kind, SEAL_ENCRYPTED | SEAL_PIECES))?;
    locator_at(rest.get(CHECKSUM_BYTES..)?).filter(|locator| *locator != NOWHERE)
}

/// What an identifier is one of; the same text in two domains gives unrelated values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Domain {
    Lane,
    Key,
    Subject,
    Correlation,
    Idempotency,
    Fingerprint,
    LeaseRequest,
    /// Of the key itself.
    Mark,
}

impl Domain {
    const fn label(self) -> &'static [u8] {
        match self {
            Self::Lane => b"lane",
            Self::Key => b"key",
            Self::Subject => b"subject",
            Self::Correlation => b"correlation",
            Self::Idempotency => b"idempotency",
            Self::Fingerprint => b"fingerprint",
            Self::LeaseRequest => b"lease-request",
            Self::Mark => b"mark",
        }
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vault")
    }
}

impl Vault {
    /// Seals plainly, and opens nothing that is encrypted.
    pub(crate) fn new(store_key: &[u8; 32]) -> Self {
        let mut vault =
            Self { index_key: keyed(store_key), mark: [0; INDEX_BYTES], keyring: None, encrypts: false };
        vault.mark = vault.index(Domain::Mark, &[]);
        vault
    }

    /// Opens with the keys of `keyring`, and seals with them unless told not to.
    pub(crate) fn with_keyring(store_key: &[u8; 32], keyring: Keyring, encrypts: bool) -> Self {
        Self { keyring: Some(Arc::new(keyring)), encrypts, ..Self::new(store_key) }
    }

    /// Which key this is, without saying anything of it.
    pub(crate) fn key_mark(&self) -> Index {
        self.mark
    }

    /// The indexed form of `parts`, each with its length, so that no two lists of parts run together.
    pub(crate) fn index(&self, domain: Domain, parts: &[&[u8]]) -> Index {
        let mut mac = self.index_key.clone();
        mac.update(domain.label());
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        let full: [u8; 32] = mac.finalize().into_bytes().into();
        let mut index = [0; INDEX_BYTES];
        index.copy_from_slice(&full[..INDEX_BYTES]);
        index
    }

    fn sealing(&self) -> Option<&Keyring> {
        self.keyring.as_deref().filter(|_| self.encrypts)
    }

    /// The error is the operating system's: it has no randomness to give.
    pub(crate) fn seal(&self, content: &[u8], owner: Owner<'_>) -> Result<Vec<u8>, getrandom::Error> {
        match self.sealing() {
            None => Ok(plain(content, owner)),
            Some(keyring) => {
                let (locator, key) = keyring.next()?;
                encrypted(content, owner, locator, &Derivation::new(&key))
            }
        }
    }

    /// Seals a message's payload; the salt goes with it.
    pub(crate) fn seal_data(
        &self,
        content: &[u8],
        message: &[u8; 16],
        clear: [u8; 32],
    ) -> Result<SealedData, getrandom::Error> {
        let salt = |locator: [u8; LOCATOR_BYTES], masked: &[u8; 32]| {
            let mut stored = [0; SALT_BYTES];
            stored[..LOCATOR_BYTES].copy_from_slice(&locator);
            stored[LOCATOR_BYTES..].copy_from_slice(masked);
            Salt { stored, clear: Some(clear) }
        };
        match self.sealing() {
            None => {
                let salt = salt(locator_bytes(NOWHERE), &clear);
                Ok(SealedData { salt, sealed: plain(content, Owner::Data { message, salt: &salt }) })
            }
            Some(keyring) => {
                let (locator, key) = keyring.next()?;
                let key = Derivation::new(&key);
                let salt = salt(locator_bytes(locator), &key.masked(&clear));
                let sealed = encrypted(content, Owner::Data { message, salt: &salt }, locator, &key)?;
                Ok(SealedData { salt, sealed })
            }
        }
    }

    /// A message's salt as audit leaves commit with it.
    pub(crate) fn clear(&self, salt: &Salt) -> Result<[u8; 32], StoreError> {
        if let Some(clear) = salt.clear {
            return Ok(clear);
        }
        let stored = std::array::from_fn(|at| salt.stored[LOCATOR_BYTES + at]);
        match salt.locator() {
            Some(locator) => Ok(self.data_key(locator)?.masked(&stored)),
            None => Ok(stored),
        }
    }

    fn data_key(&self, locator: Locator) -> Result<Derivation, StoreError> {
        let unknown = StoreError::DataKeyUnknown { tree: locator.tree };
        let keyring = self.keyring.as_ref().ok_or(unknown.clone())?;
        keyring.at(locator).map(|key| Derivation::new(&key)).map_err(|none| match none {
            NoKey::Unknown => unknown,
            NoKey::Erased => StoreError::Erased,
        })
    }

    /// Whether a sealed value is what was written, and belongs there. Needs no key. Of one that stands in pieces this says nothing of the
    /// pieces.
    pub(crate) fn is_sound(sealed: &[u8], owner: Owner<'_>) -> bool {
        match sealed.split_at_checked(PLAIN_BYTES) {
            Some(([SEAL_PLAIN, checksum @ ..], content)) => *checksum == owner.checksum(SEAL_PLAIN, content),
            Some(([SEAL_ENCRYPTED, checksum @ ..], rest)) => {
                sealed.len() >= ENCRYPTED_BYTES + TAG_BYTES
                    && *checksum == owner.checksum(SEAL_ENCRYPTED, rest)
            }
            Some(([SEAL_PIECES, ..], _)) => InPieces::read(sealed, owner).is_some(),
            Some(_) | None => false,
        }
    }

    /// Opens a sealed value; `place` names the column and row for the error.
    pub(crate) fn open<'a>(
        &self,
        sealed: &'a [u8],
        owner: Owner<'_>,
        place: Place,
    ) -> Result<Cow<'a, [u8]>, StoreError> {
        if !Self::is_sound(sealed, owner) {
            return Err(place.corrupt());
        }
        if sealed[0] == SEAL_PLAIN {
            return Ok(Cow::Borrowed(&sealed[PLAIN_BYTES..]));
        }
        let mut sealed = sealed.to_vec();
        let length = self.decrypt(&mut sealed, owner, place)?.len();
        sealed.drain(..ENCRYPTED_BYTES);
        sealed.truncate(length);
        Ok(Cow::Owned(sealed))
    }

    /// As [`Vault::open`], without a copy of the content.
    pub(crate) fn open_owned(
        &self,
        mut sealed: Vec<u8>,
        owner: Owner<'_>,
        place: Place,
    ) -> Result<Bytes, StoreError> {
        if !Self::is_sound(&sealed, owner) {
            return Err(place.corrupt());
        }
        if sealed[0] == SEAL_PLAIN {
            return Ok(Bytes::from(sealed).slice(PLAIN_BYTES..));
        }
        let length = self.decrypt(&mut sealed, owner, place)?.len();
        Ok(Bytes::from(sealed).slice(ENCRYPTED_BYTES..ENCRYPTED_BYTES + length))
    }

    /// Decrypts a sound value where it stands.
    fn decrypt<'a>(
        &self,
        sealed: &'a mut [u8],
        owner: Owner<'_>,
        place: Place,
    ) -> Result<&'a mut [u8], StoreError> {
        // What stands in pieces is opened when they have been put together.
        let locator = locator_of(sealed).filter(|_| sealed[0] == SEAL_ENCRYPTED);
        let locator = locator.ok_or_else(|| place.corrupt())?;
        let key = self.data_key(locator)?;
        let (head, content) = sealed.split_at_mut(ENCRYPTED_BYTES);
        let (bound, committed) = head.split_at(ENCRYPTED_BYTES - COMMITMENT_BYTES);
        // Before anything is decrypted: what opens under this key opens under no other.
        let commitment = key.derive(Purpose::Commit, Some(owner));
        let nonce = bound.last_chunk::<NONCE_LEN>().copied().ok_or_else(|| place.corrupt())?;
        if !bool::from(commitment.as_slice().ct_eq(committed)) {
            return Err(place.corrupt());
        }
        let nonce = Nonce::assume_unique_for_key(nonce);
        let opened = key.aead(owner).open_in_place(nonce, Aad::from(locator_bytes(locator)), content);
        opened.map_err(|_| place.corrupt())
    }

    // === the keyring ===

    /// Whether trees have to be saved before anything that was sealed is written.
    pub(crate) fn has_unsaved(&self) -> bool {
        self.keyring.as_ref().is_some_and(|keyring| keyring.has_unsaved())
    }

    /// The trees to save, one to go on with among them.
    pub(crate) fn unsaved(&self) -> Result<Vec<WrappedTree>, StoreError> {
        let Some(keyring) = &self.keyring else { return Ok(Vec::new()) };
        if self.encrypts {
            keyring.prepare().map_err(|error| StoreError::Database(error.to_string()))?;
        }
        Ok(keyring.unsaved()?)
    }

    pub(crate) fn saved(&self, trees: &[WrappedTree]) {
        if let Some(keyring) = &self.keyring {
            keyring.saved(trees);
        }
    }

    /// Whether the keys of that tree can be computed.
    pub(crate) fn knows(&self, tree: u64) -> bool {
        self.keyring.as_ref().is_some_and(|keyring| keyring.knows(tree))
    }

    /// See [`Keyring::rewrapped`].
    pub(crate) fn rewrapped(&self, most: usize) -> Result<(Vec<WrappedTree>, u64), StoreError> {
        self.keyring.as_ref().map_or(Ok((Vec::new(), 0)), |keyring| Ok(keyring.rewrapped(most)?))
    }

    pub(crate) fn wrapped(&self, trees: &[WrappedTree]) {
        if let Some(keyring) = &self.keyring {
            keyring.wrapped(trees);
        }
    }

    /// See [`Keyring::cut`].
    pub(crate) fn cut(&self, leaves: &[Locator]) -> Result<Vec<WrappedTree>, StoreError> {
        self.keyring.as_ref().map_or(Ok(Vec::new()), |keyring| Ok(keyring.cut(leaves)?))
    }

    pub(crate) fn take_keys(&self, keys: Arc<SealKeys>) {
        if let Some(keyring) = &self.keyring {
            keyring.take_keys(keys);
        }
    }

    /// See [`Keyring::versions`].
    pub(crate) fn seal_keys(&self) -> Option<SealVersions> {
        self.keyring.as_ref().map(|keyring| keyring.versions())
    }

    /// Takes in a tree as it is stored.
    pub(crate) fn learn(&self, stored: &WrappedTree) -> Result<(), StoreError> {
        match &self.keyring {
            Some(keyring) => {
                keyring.learn(stored)?;
                // The one in use may be out of use now. The next is to be saved before anything is sealed with it.
                if self.encrypts {
                    keyring.prepare()?;
                }
                Ok(())
            }
            None => Err(StoreError::DataKeyUnknown { tree: stored.tree }),
        }
    }
}

impl From<getrandom::Error> for StoreError {
    fn from(error: getrandom::Error) -> Self {
        Self::Database(format!("the system has no randomness to give: {error}"))
    }
}

impl From<WrapError> for StoreError {
    fn from(error: WrapError) -> Self {
        Self::SealKey(error.to_string())
    }
}

fn plain(content: &[u8], owner: Owner<'_>) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(PLAIN_BYTES + content.len());
    sealed.push(SEAL_PLAIN);
    sealed.extend_from_slice(&owner.checksum(SEAL_PLAIN, content));
    sealed.extend_from_slice(content);
    sealed
}

fn encrypted(
    content: &[u8],
    owner: Owner<'_>,
    locator: Locator,
    key: &Derivation,
) -> Result<Vec<u8>, getrandom::Error> {
    let nonce: [u8; NONCE_LEN] = random::of_thread()?;
    let mut sealed = Vec::with_capacity(ENCRYPTED_BYTES + content.len() + TAG_BYTES);
    sealed.push(SEAL_ENCRYPTED);
    sealed.extend_from_slice(&[0; CHECKSUM_BYTES]);
    sealed.extend_from_slice(&locator_bytes(locator));
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(key.derive(Purpose::Commit, Some(owner)).as_slice());
    sealed.extend_from_slice(content);
    let nonce = Nonce::assume_unique_for_key(nonce);
    let aad = Aad::from(locator_bytes(locator));
    let tag = key.aead(owner).seal_in_place_separate_tag(nonce, aad, &mut sealed[ENCRYPTED_BYTES..]);
    // Unwrap safety: it fails on content longer than 2³⁹ bits only; a message has at most 64 MiB.
    sealed.extend_from_slice(tag.expect("content is shorter than GCM's limit").as_ref());
    let checksum = owner.checksum(SEAL_ENCRYPTED, &sealed[PLAIN_BYTES..]);
    sealed[1..PLAIN_BYTES].copy_from_slice(&checksum);
    Ok(sealed)
}

/// HMAC-SHA-256 of `content` under a message's salt: what a leaf says of content. Erasing the salt makes it meaningless.
pub(crate) fn commitment(salt: &[u8; 32], content: &[u8]) -> [u8; 32] {
    let mut mac = keyed(salt);
    mac.update(content);
    mac.finalize().into_bytes().into()
}

fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    // Unwrap safety: HMAC takes keys of any length (RFC 2104 §2), so this constructor cannot fail.
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

/// Where a value stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) table: &'static str,
    pub(crate) column: &'static str,
    pub(crate) row: i64,
}

impl Place {
    pub(crate) fn corrupt(&self) -> StoreError {
        StoreError::Corrupt { table: self.table, column: self.column, row: self.row.to_string() }
    }

    /// A stored number that counts something. A negative one was never stored, and zero in its place would be believed.
    pub(crate) fn count(&self, value: i64) -> Result<u64, StoreError> {
        u64::try_from(value).map_err(|_| self.corrupt())
    }
}

#[cfg(test)]
mod tests;
