//! Roots, inclusion proofs and consistency proofs (RFC 6962 §2.1, verified as in RFC 9162 §2.1.3 and §2.1.4).
//!
//! Building a proof reads tiles from a [`NodeSource`]; checking one needs nothing but its arguments, and looks at
//! every element of it.

use std::collections::HashMap;

use crate::tiles::TILE_WIDTH;
use crate::tree::{Hash, empty_root, node_hash, range_root};

/// Heights of the tree that one level of tiles spans: a tile is 256 hashes wide.
pub(crate) const TILE_HEIGHT: u32 = TILE_WIDTH.trailing_zeros();

/// Where the hashes of a tree come from, in tiles.
pub trait NodeSource {
    type Error;

    /// The first `width` hashes of tile `index` at `level`; more are ignored, fewer are an error.
    fn tile(&self, level: u8, index: u64, width: u16) -> Result<Vec<Hash>, Self::Error>;
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError<E> {
    #[error("reading the tree")]
    Source(#[source] E),
    #[error("tile {index} of level {level} holds {actual} hashes where {expected} are needed")]
    ShortTile { level: u8, index: u64, expected: u16, actual: usize },
    #[error("entry {index} is not in a tree of {size} entries")]
    NoSuchEntry { index: u64, size: u64 },
    #[error("a tree of {first} entries cannot be the beginning of one of {second}")]
    SizesReversed { first: u64, second: u64 },
}

/// The root of the first `size` entries.
pub fn root_at<S: NodeSource>(source: &S, size: u64) -> Result<Hash, TreeError<S::Error>> {
    match size {
        0 => Ok(empty_root()),
        _ => Reader::new(source, size).range(0, size),
    }
}

/// The hashes that lead from entry `index` to the root of the first `size` entries, lowest first.
pub fn inclusion_proof<S: NodeSource>(
    source: &S,
    index: u64,
    size: u64,
) -> Result<Vec<Hash>, TreeError<S::Error>> {
    if index >= size {
        return Err(TreeError::NoSuchEntry { index, size });
    }
    let mut proof = Vec::new();
    Reader::new(source, size).path(index, 0, size, &mut proof)?;
    Ok(proof)
}

/// The hashes that show that the first `first` of `second` entries are the tree of size `first`.
pub fn consistency_proof<S: NodeSource>(
    source: &S,
    first: u64,
    second: u64,
) -> Result<Vec<Hash>, TreeError<S::Error>> {
    if first > second {
        return Err(TreeError::SizesReversed { first, second });
    }
    let mut proof = Vec::new();
    if first > 0 && first < second {
        Reader::new(source, second).subproof(first, 0, second, &mut proof)?;
    }
    Ok(proof)
}

/// Reads nodes of the tree of one size, each tile once.
struct Reader<'a, S: NodeSource> {
    source: &'a S,
    size: u64,
    tiles: HashMap<(u8, u64), Vec<Hash>>,
}

impl<'a, S: NodeSource> Reader<'a, S> {
    fn new(source: &'a S, size: u64) -> Self {
        Self { source, size, tiles: HashMap::new() }
    }

    /// RFC 6962's `MTH(D[start:end])`. Ranges come from halving, so a range is a complete subtree exactly when its
    /// length is a power of two.
    fn range(&mut self, start: u64, end: u64) -> Result<Hash, TreeError<S::Error>> {
        let length = end - start;
        if length.is_power_of_two() {
            return self.node(length.trailing_zeros(), start / length);
        }
        let middle = start + split(length);
        let left = self.range(start, middle)?;
        let right = self.range(middle, end)?;
        Ok(node_hash(&left, &right))
    }

    /// The root of the complete subtree `index` of the given height.
    fn node(&mut self, height: u32, index: u64) -> Result<Hash, TreeError<S::Error>> {
        let level = height / TILE_HEIGHT;
        let inner = height % TILE_HEIGHT;
        let first = index << inner;
        let offset = (first % u64::from(TILE_WIDTH)) as usize;
        let hashes = self.tile(level as u8, first / u64::from(TILE_WIDTH))?;
        Ok(range_root(&hashes[offset..offset + (1 << inner)]))
    }

    fn tile(&mut self, level: u8, index: u64) -> Result<&[Hash], TreeError<S::Error>> {
        let tile = match self.tiles.entry((level, index)) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(unknown) => {
                let width = tile_width(self.size, level, index);
                let hashes = self.source.tile(level, index, width).map_err(TreeError::Source)?;
                if hashes.len() < usize::from(width) {
                    return Err(TreeError::ShortTile { level, index, expected: width, actual: hashes.len() });
                }
                unknown.insert(hashes)
            }
        };
        Ok(tile)
    }

    /// RFC 6962's `PATH(target, D[start:end])`.
    fn path(
        &mut self,
        target: u64,
        start: u64,
        end: u64,
        proof: &mut Vec<Hash>,
    ) -> Result<(), TreeError<S::Error>> {
        if end - start == 1 {
            return Ok(());
        }
        let middle = start + split(end - start);
        let sibling = if target < middle {
            self.path(target, start, middle, proof)?;
            self.range(middle, end)?
        } else {
            self.path(target, middle, end, proof)?;
            self.range(start, middle)?
        };
        proof.push(sibling);
        Ok(())
    }

    /// RFC 6962's `SUBPROOF(first - start, D[start:end], start == 0)`: along the left edge the verifier already has
    /// the old root, elsewhere it must be given.
    fn subproof(
        &mut self,
        first: u64,
        start: u64,
        end: u64,
        proof: &mut Vec<Hash>,
    ) -> Result<(), TreeError<S::Error>> {
        if first == end {
            if start > 0 {
                proof.push(self.range(start, end)?);
            }
            return Ok(());
        }
        let middle = start + split(end - start);
        let sibling = if first <= middle {
            self.subproof(first, start, middle, proof)?;
            self.range(middle, end)?
        } else {
            self.subproof(first, middle, end, proof)?;
            self.range(start, middle)?
        };
        proof.push(sibling);
        Ok(())
    }
}

/// How many hashes tile `index` of `level` holds in a tree of `size` entries.
pub(crate) fn tile_width(size: u64, level: u8, index: u64) -> u16 {
    let nodes = size.checked_shr(TILE_HEIGHT * u32::from(level)).unwrap_or(0);
    let before = index.saturating_mul(u64::from(TILE_WIDTH));
    nodes.saturating_sub(before).min(u64::from(TILE_WIDTH)) as u16
}

/// The largest power of two smaller than `length`, which is at least 2.
fn split(length: u64) -> u64 {
    1 << (length - 1).ilog2()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    #[error("the entry lies outside the tree")]
    OutsideTree,
    #[error("the older tree is larger than the newer")]
    SizesReversed,
    #[error("the proof has the wrong number of hashes")]
    WrongLength,
    #[error("the proof does not lead to the root")]
    WrongRoot,
}

/// Checks that the entry with hash `leaf` is entry `index` of the tree with `size` entries and root `root`.
pub fn verify_inclusion(
    leaf: &Hash,
    index: u64,
    size: u64,
    proof: &[Hash],
    root: &Hash,
) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::OutsideTree);
    }
    let (mut node, mut last) = (index, size - 1);
    let mut hash = *leaf;
    for sibling in proof {
        if last == 0 {
            return Err(ProofError::WrongLength);
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            skip_lonely_levels(&mut node, &mut last);
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    match last {
        0 if hash == *root => Ok(()),
        0 => Err(ProofError::WrongRoot),
        _ => Err(ProofError::WrongLength),
    }
}

/// Checks that the tree with `second` entries and root `second_root` begins with the tree of `first` entries and
/// root `first_root`.
pub fn verify_consistency(
    first: u64,
    second: u64,
    first_root: &Hash,
    second_root: &Hash,
    proof: &[Hash],
) -> Result<(), ProofError> {
    if first > second {
        return Err(ProofError::SizesReversed);
    }
    if first == 0 || first == second {
        let expected = if first == 0 { empty_root() } else { *second_root };
        return match proof {
            [] if *first_root == expected => Ok(()),
            [] => Err(ProofError::WrongRoot),
            _ => Err(ProofError::WrongLength),
        };
    }
    // The old root of a complete tree is itself the first element of the path, and is left out of the proof.
    let (start, rest) = match proof {
        _ if first.is_power_of_two() => (first_root, proof),
        [start, rest @ ..] => (start, rest),
        [] => return Err(ProofError::WrongLength),
    };
    let (mut node, mut last) = (first - 1, second - 1);
    while node & 1 == 1 {
        node >>= 1;
        last >>= 1;
    }
    let (mut old, mut new) = (*start, *start);
    for sibling in rest {
        if last == 0 {
            return Err(ProofError::WrongLength);
        }
        if node & 1 == 1 || node == last {
            old = node_hash(sibling, &old);
            new = node_hash(sibling, &new);
            skip_lonely_levels(&mut node, &mut last);
        } else {
            new = node_hash(&new, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    match last {
        0 if old == *first_root && new == *second_root => Ok(()),
        0 => Err(ProofError::WrongRoot),
        _ => Err(ProofError::WrongLength),
    }
}

/// A last node without a right neighbour moves up unhashed until it is a right child.
fn skip_lonely_levels(node: &mut u64, last: &mut u64) {
    while *node & 1 == 0 && *node != 0 {
        *node >>= 1;
        *last >>= 1;
    }
}
