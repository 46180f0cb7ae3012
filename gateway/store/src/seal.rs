//! The only module that turns content into what stands in sealed columns and back, and that knows the store's key.
//! Today the seal is plain: its first byte says so, eight more are a checksum of the content and of what it belongs to, so that
//! neither a flipped bit nor another row's content opens. Encryption at rest changes this module and nothing else.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::ops::StoreError;

/// First byte of a sealed value whose rest is the content itself.
const SEAL_PLAIN: u8 = 0;
/// Bytes of a seal before the content.
const SEAL_BYTES: usize = 9;
/// Length of an indexed identifier, bytes.
pub(crate) const INDEX_BYTES: usize = 16;

/// An identifier as it is stored and searched: it says nothing about the text, and equal texts of one domain are equal.
pub(crate) type Index = [u8; INDEX_BYTES];

#[derive(Clone)]
pub(crate) struct Vault {
    index_key: Hmac<Sha256>,
    mark: Index,
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
        salt: &'a [u8; 32],
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
            Self::Data { message, salt } => xxh3_64_with_seed(*salt, xxh3_64_with_seed(*message, 2)),
            Self::Detail { leaf, delivery } => {
                xxh3_64_with_seed(&[leaf.to_le_bytes(), delivery.to_le_bytes()].concat(), 3)
            }
            Self::Reply { delivery } => xxh3_64_with_seed(&delivery.to_le_bytes(), 4),
            Self::State { adapter, key } => {
                xxh3_64_with_seed(key.as_bytes(), xxh3_64_with_seed(adapter.as_bytes(), 5))
            }
        }
    }

    fn checksum(&self, content: &[u8]) -> [u8; 8] {
        let parts = [self.digest().to_le_bytes(), xxh3_64(content).to_le_bytes()];
        xxh3_64(parts.as_flattened()).to_le_bytes()
    }
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
    pub(crate) fn new(store_key: &[u8; 32]) -> Self {
        let mut vault = Self { index_key: keyed(store_key), mark: [0; INDEX_BYTES] };
        vault.mark = vault.index(Domain::Mark, &[]);
        vault
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

    pub(crate) fn seal(&self, content: &[u8], owner: Owner<'_>) -> Vec<u8> {
        let mut sealed = Vec::with_capacity(SEAL_BYTES + content.len());
        sealed.push(SEAL_PLAIN);
        sealed.extend_from_slice(&owner.checksum(content));
        sealed.extend_from_slice(content);
        sealed
    }

    /// Opens a sealed value; `place` names the column and row for the error.
    pub(crate) fn open<'a>(
        &self,
        sealed: &'a [u8],
        owner: Owner<'_>,
        place: Place,
    ) -> Result<&'a [u8], StoreError> {
        match sealed.split_at_checked(SEAL_BYTES) {
            Some(([SEAL_PLAIN, checksum @ ..], content)) if *checksum == owner.checksum(content) => {
                Ok(content)
            }
            Some(_) | None => Err(place.corrupt()),
        }
    }
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
mod tests {
    use super::*;

    #[test]
    fn indices_depend_on_key_domain_and_the_borders_of_parts() {
        let vault = Vault::new(&[1; 32]);
        let index = vault.index(Domain::Key, &[b"ab", b"c"]);
        assert_eq!(index, vault.index(Domain::Key, &[b"ab", b"c"]));
        assert_ne!(index, vault.index(Domain::Key, &[b"a", b"bc"]));
        assert_ne!(index, vault.index(Domain::Subject, &[b"ab", b"c"]));
        assert_ne!(index, Vault::new(&[2; 32]).index(Domain::Key, &[b"ab", b"c"]));
    }

    #[test]
    fn a_seal_opens_and_a_foreign_one_is_corrupt() {
        let vault = Vault::new(&[1; 32]);
        let place = Place { table: "message", column: "data", row: 7 };
        let owner = Owner::Reply { delivery: 7 };
        let sealed = vault.seal(b"xyz", owner);
        assert_eq!(vault.open(&sealed, owner, place).unwrap(), b"xyz");
        assert!(vault.open(&[9, 1], owner, place).is_err());
        assert!(vault.open(&[], owner, place).is_err());
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(vault.open(&flipped, owner, place).is_err(), "bit {bit}");
        }
        assert!(vault.open(&sealed[..sealed.len() - 1], owner, place).is_err());
    }

    #[test]
    fn a_value_opens_where_it_belongs_and_nowhere_else() {
        let vault = Vault::new(&[1; 32]);
        let place = Place { table: "message", column: "data", row: 7 };
        let owners = [
            Owner::Attributes { message: &[1; 16] },
            Owner::Attributes { message: &[2; 16] },
            Owner::Data { message: &[1; 16], salt: &[1; 32] },
            Owner::Data { message: &[1; 16], salt: &[2; 32] },
            Owner::Data { message: &[2; 16], salt: &[1; 32] },
            Owner::Detail { leaf: 1, delivery: 2 },
            Owner::Detail { leaf: 2, delivery: 1 },
            Owner::Reply { delivery: 1 },
            Owner::Reply { delivery: 2 },
            Owner::State { adapter: "a", key: "bc" },
            Owner::State { adapter: "ab", key: "c" },
        ];
        for (number, owner) in owners.iter().enumerate() {
            let sealed = vault.seal(b"x", *owner);
            for (other, opener) in owners.iter().enumerate() {
                assert_eq!(vault.open(&sealed, *opener, place).is_ok(), number == other, "{opener:?}");
            }
        }
    }
}
