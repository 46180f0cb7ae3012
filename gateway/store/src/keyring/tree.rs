//! A tree of keys. From the key of a branch follow those of everything below it, and nothing of what is beside or above.

use std::collections::BTreeMap;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::DataKey;

/// Branches below each branch, as bits.
const FAN_OUT_BITS: u32 = 4;
const FAN_OUT: u32 = 1 << FAN_OUT_BITS;
/// Steps from the top to a leaf.
const DEPTH: u8 = 5;
/// Leaves of a tree.
pub(super) const LEAVES: u32 = 1 << (FAN_OUT_BITS * DEPTH as u32);
/// Bytes of a branch as it is stored: depth, number, key.
const NODE_BYTES: usize = 1 + 4 + 32;

/// A branch, by its depth (0 is the top) and its number among those of that depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Node {
    depth: u8,
    number: u32,
}

/// What is left of a tree: keys of branches of which none is below another.
pub(super) struct Tree {
    branches: BTreeMap<Node, DataKey>,
}

/// A branch and its key.
pub(super) struct Branch {
    node: Node,
    key: DataKey,
}

impl Node {
    const TOP: Self = Self { depth: 0, number: 0 };

    /// The branch of that depth that a leaf is below.
    const fn above(leaf: u32, depth: u8) -> Self {
        Self { depth, number: leaf >> (FAN_OUT_BITS * (DEPTH - depth) as u32) }
    }
}

/// The key of a branch's `number`th branch: HMAC-SHA-256 of that one byte.
fn below(key: &[u8; 32], number: u32) -> DataKey {
    // Unwrap safety: HMAC takes keys of any length (RFC 2104 §2), so this constructor cannot fail.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(&[(number % FAN_OUT) as u8]);
    Zeroizing::new(mac.finalize().into_bytes().into())
}

impl Tree {
    pub(super) fn random() -> Result<Self, getrandom::Error> {
        let mut top = Zeroizing::new([0; 32]);
        getrandom::fill(top.as_mut_slice())?;
        Ok(Self { branches: BTreeMap::from([(Node::TOP, top)]) })
    }

    /// The branch that is left above a leaf, or none if that has been cut out.
    pub(super) fn branch_of(&self, leaf: u32) -> Option<Branch> {
        if leaf >= LEAVES {
            return None;
        }
        (0..=DEPTH).find_map(|depth| {
            let node = Node::above(leaf, depth);
            Some(Branch { node, key: self.branches.get(&node)?.clone() })
        })
    }

    /// Cuts a leaf out; whether it was there.
    pub(super) fn cut(&mut self, leaf: u32) -> bool {
        let Some(Branch { node, mut key }) = self.branch_of(leaf) else { return false };
        self.branches.remove(&node);
        for depth in node.depth + 1..=DEPTH {
            let on_the_way = Node::above(leaf, depth);
            for number in 0..FAN_OUT {
                let beside = Node { depth, number: (on_the_way.number & !(FAN_OUT - 1)) + number };
                if beside != on_the_way {
                    self.branches.insert(beside, below(&key, number));
                }
            }
            key = below(&key, on_the_way.number);
        }
        true
    }

    pub(super) fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(self.branches.len() * NODE_BYTES));
        for (node, key) in &self.branches {
            bytes.push(node.depth);
            bytes.extend_from_slice(&node.number.to_be_bytes());
            bytes.extend_from_slice(key.as_slice());
        }
        bytes
    }

    /// `None`: that is no tree.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (nodes, rest) = bytes.as_chunks::<NODE_BYTES>();
        let mut branches = BTreeMap::new();
        for node in nodes {
            let (depth, rest) = node.split_first()?;
            let (number, key) = rest.split_first_chunk::<4>()?;
            let node = Node { depth: *depth, number: u32::from_be_bytes(*number) };
            let fits = node.depth <= DEPTH && node.number < 1 << (FAN_OUT_BITS * u32::from(node.depth));
            branches.insert(Some(node).filter(|_| fits)?, Zeroizing::new(key.try_into().ok()?));
        }
        rest.is_empty().then_some(Self { branches })
    }
}

impl Branch {
    /// The key of a leaf below it.
    pub(super) fn leaf(&self, leaf: u32) -> DataKey {
        self.down(leaf, DEPTH)
    }

    /// The branch just above a leaf below it; the leaf's key if that is all there is.
    pub(super) fn twig(self, leaf: u32) -> Result<Self, DataKey> {
        if self.node.depth == DEPTH {
            return Err(self.key);
        }
        let node = Node::above(leaf, DEPTH - 1);
        Ok(Self { node, key: self.down(leaf, DEPTH - 1) })
    }

    fn down(&self, leaf: u32, to: u8) -> DataKey {
        let from = self.key.clone();
        (self.node.depth + 1..=to).fold(from, |key, depth| below(&key, Node::above(leaf, depth).number))
    }
}

/// The number of the branch just above a leaf.
pub(super) const fn twig_of(leaf: u32) -> u32 {
    Node::above(leaf, DEPTH - 1).number
}

/// Walks over the leaves of a whole tree, one after the other, for about one HMAC each.
pub(super) struct Path {
    tree: u64,
    next: u32,
    /// The keys from the top to the branch above the next leaf.
    keys: [DataKey; DEPTH as usize],
}

impl Path {
    /// `None`: something has been cut out of the tree.
    pub(super) fn begin(id: u64, tree: &Tree) -> Option<Self> {
        let top = tree.branches.get(&Node::TOP)?;
        let mut path = Self { tree: id, next: 0, keys: std::array::from_fn(|_| top.clone()) };
        path.descend(1);
        Some(path)
    }

    pub(super) fn tree(&self) -> u64 {
        self.tree
    }

    /// `None` once all have been given.
    pub(super) fn next(&mut self) -> Option<(u32, DataKey)> {
        let leaf = Some(self.next).filter(|leaf| *leaf < LEAVES)?;
        let given = below(&self.keys[usize::from(DEPTH) - 1], leaf);
        self.next += 1;
        // As far up as another branch begins.
        let changed = self.next.trailing_zeros() / FAN_OUT_BITS;
        if changed > 0 && self.next < LEAVES {
            self.descend(u32::from(DEPTH).saturating_sub(changed).max(1) as u8);
        }
        Some((leaf, given))
    }

    /// Computes the keys on the way to the next leaf from that depth on.
    fn descend(&mut self, from: u8) {
        for depth in from..DEPTH {
            let number = Node::above(self.next, depth).number;
            self.keys[usize::from(depth)] = below(&self.keys[usize::from(depth) - 1], number);
        }
    }

    #[cfg(test)]
    pub(super) fn skip_to(&mut self, leaf: u32) {
        self.next = leaf;
        self.descend(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        Tree { branches: BTreeMap::from([(Node::TOP, Zeroizing::new([7; 32]))]) }
    }

    fn key(tree: &Tree, leaf: u32) -> Option<[u8; 32]> {
        tree.branch_of(leaf).map(|branch| *branch.leaf(leaf))
    }

    #[test]
    fn walking_gives_what_looking_up_gives() {
        let tree = tree();
        for from in [0, 15, 16, 255, 256, 4095, 65_535, LEAVES - 300] {
            let mut path = Path::begin(1, &tree).unwrap();
            path.skip_to(from);
            for leaf in from..(from + 600).min(LEAVES) {
                let (given, drawn) = path.next().unwrap();
                assert_eq!((given, Some(*drawn)), (leaf, key(&tree, leaf)));
            }
        }
        let mut path = Path::begin(1, &tree).unwrap();
        path.skip_to(LEAVES - 1);
        assert!(path.next().is_some() && path.next().is_none());
        assert_eq!(key(&tree, LEAVES), None);
    }

    #[test]
    fn a_leaf_that_was_cut_out_is_gone_and_no_other_is() {
        let whole = tree();
        let mut cut = tree();
        let gone = [0, 1, 17, 4096, 777_777, LEAVES - 1];
        for leaf in gone {
            assert!(cut.cut(leaf));
            assert!(!cut.cut(leaf), "twice");
        }
        let reread = Tree::from_bytes(&cut.to_bytes()).unwrap();
        for leaf in (0..LEAVES).step_by(1013).chain(gone).chain([2, 16, 18, 4095, 4097, 777_776, 777_778]) {
            let expected = key(&whole, leaf).filter(|_| !gone.contains(&leaf));
            assert_eq!(key(&reread, leaf), expected, "{leaf}");
        }
        // None of what is left leads to it.
        let erased = gone.map(|leaf| key(&whole, leaf).unwrap());
        assert!(reread.branches.values().all(|left| !erased.contains(left)));
        assert!(!reread.branches.contains_key(&Node::TOP));
    }

    #[test]
    fn what_is_no_tree_is_none() {
        let bytes = tree().to_bytes();
        assert!(Tree::from_bytes(&bytes[..NODE_BYTES - 1]).is_none());
        let mut deep = bytes.to_vec();
        deep[0] = DEPTH + 1;
        assert!(Tree::from_bytes(&deep).is_none());
        let mut wide = bytes.to_vec();
        wide[4] = 1;
        assert!(Tree::from_bytes(&wide).is_none());
        assert!(Tree::from_bytes(&[]).unwrap().branch_of(0).is_none());
    }
}
