//! RFC 6962 hashing, and the compact form of a growing tree.
//!
//! Nothing here reads or writes; a tree of any size is at most 64 hashes.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest as _, Sha256};

/// Prefix that tells a leaf from an inner node, so that one can never be passed off as the other.
const LEAF_PREFIX: u8 = 0x00;
const NODE_PREFIX: u8 = 0x01;

/// A SHA-256 hash in the tree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash([u8; Self::BYTES]);

impl Hash {
    pub const BYTES: usize = 32;

    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    pub fn to_base64(self) -> String {
        BASE64_STANDARD.encode(self.0)
    }

    /// Reads the padded standard base64 of exactly one hash; any other spelling of the same bytes is refused.
    pub fn from_base64(text: &str) -> Option<Self> {
        let bytes = BASE64_STANDARD.decode(text).ok()?;
        Self::try_from(bytes.as_slice()).ok()
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl AsRef<[u8]> for Hash {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<[u8; Self::BYTES]> for Hash {
    fn from(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }
}

impl From<Hash> for [u8; Hash::BYTES] {
    fn from(hash: Hash) -> Self {
        hash.0
    }
}

impl TryFrom<&[u8]> for Hash {
    type Error = std::array::TryFromSliceError;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        <[u8; Self::BYTES]>::try_from(bytes).map(Self)
    }
}

/// The hash of one entry's bytes.
pub fn leaf_hash(leaf: &[u8]) -> Hash {
    Hash(Sha256::new().chain_update([LEAF_PREFIX]).chain_update(leaf).finalize().into())
}

/// The hash of a node over its two children.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut input = [NODE_PREFIX; 1 + 2 * Hash::BYTES];
    input[1..=Hash::BYTES].copy_from_slice(&left.0);
    input[1 + Hash::BYTES..].copy_from_slice(&right.0);
    Hash(Sha256::digest(input).into())
}

/// The root of the tree without entries.
pub fn empty_root() -> Hash {
    Hash(Sha256::digest([]).into())
}

/// The root over neighbouring nodes of one height, in order.
///
/// Pairing level by level and carrying an odd last node up gives the same shape as RFC 6962's split at the largest
/// power of two, without recursion.
pub fn range_root(nodes: &[Hash]) -> Hash {
    match nodes {
        [] => empty_root(),
        [only] => *only,
        _ => {
            let mut row: Vec<Hash> = pair_up(nodes);
            while row.len() > 1 {
                row = pair_up(&row);
            }
            row[0]
        }
    }
}

fn pair_up(row: &[Hash]) -> Vec<Hash> {
    row.chunks(2)
        .map(|pair| match pair {
            [left, right] => node_hash(left, right),
            odd => odd[0],
        })
        .collect()
}

/// The tree over `0..size` as the roots of its complete subtrees, largest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    hashes: Vec<Hash>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a tree of {size} entries has {expected} subtree roots, not {actual}")]
pub struct FrontierError {
    pub size: u64,
    pub expected: usize,
    pub actual: usize,
}

impl Frontier {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes up a frontier that was stored as [`size`](Self::size) and [`hashes`](Self::hashes).
    pub fn from_parts(size: u64, hashes: Vec<Hash>) -> Result<Self, FrontierError> {
        let expected = size.count_ones() as usize;
        if hashes.len() != expected {
            return Err(FrontierError { size, expected, actual: hashes.len() });
        }
        Ok(Self { size, hashes })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    /// Appends the hash of the next leaf.
    pub fn push(&mut self, leaf: Hash) {
        let mut node = leaf;
        let mut height = self.size;
        while height & 1 == 1
            && let Some(left) = self.hashes.pop()
        {
            node = node_hash(&left, &node);
            height >>= 1;
        }
        self.hashes.push(node);
        self.size += 1;
    }

    pub fn root(&self) -> Hash {
        let mut from_right = self.hashes.iter().rev();
        match from_right.next() {
            None => empty_root(),
            Some(last) => from_right.fold(*last, |right, left| node_hash(left, &right)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The entries and roots of RFC 6962's reference implementation, which every other one repeats.
    const CLASSIC_LEAVES: [&[u8]; 8] = [
        b"",
        b"\x00",
        b"\x10",
        b"\x20\x21",
        b"\x30\x31",
        b"\x40\x41\x42\x43",
        b"\x50\x51\x52\x53\x54\x55\x56\x57",
        b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
    ];
    const CLASSIC_ROOTS: [&str; 9] = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];

    #[test]
    fn the_classic_eight_leaves_have_their_known_roots() {
        let mut frontier = Frontier::new();
        let mut leaves = Vec::new();
        assert_eq!(frontier.root().to_string(), CLASSIC_ROOTS[0]);
        assert_eq!(empty_root().to_string(), CLASSIC_ROOTS[0]);
        for (index, leaf) in CLASSIC_LEAVES.iter().enumerate() {
            frontier.push(leaf_hash(leaf));
            leaves.push(leaf_hash(leaf));
            assert_eq!(frontier.root().to_string(), CLASSIC_ROOTS[index + 1]);
            assert_eq!(range_root(&leaves), frontier.root());
        }
    }

    #[test]
    fn a_frontier_survives_storage_and_refuses_a_wrong_count() {
        let mut frontier = Frontier::new();
        for n in 0..300u32 {
            frontier.push(leaf_hash(&n.to_be_bytes()));
            let stored = Frontier::from_parts(frontier.size(), frontier.hashes().to_vec()).unwrap();
            assert_eq!(stored, frontier);
        }
        let mut short = frontier.hashes().to_vec();
        short.pop();
        assert_eq!(
            Frontier::from_parts(300, short),
            Err(FrontierError { size: 300, expected: 4, actual: 3 })
        );
    }

    #[test]
    fn base64_of_a_hash_has_one_spelling() {
        let text = empty_root().to_base64();
        assert_eq!(text, "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
        assert_eq!(Hash::from_base64(&text), Some(empty_root()));
        for bad in ["47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFV=", text.trim_end_matches('='), "", "47DE"] {
            assert_eq!(Hash::from_base64(bad), None, "{bad}");
        }
    }
}
