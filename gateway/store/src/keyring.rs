//! Data keys: one for every sealed value, none of them stored. They are the leaves of trees, each of which has 2²⁰; what is stored is
//! the top of a tree, wrapped with a seal key that lives in a file beside the database and never in it. To erase a value its leaf is
//! cut out of its tree: what remains are the tops of the branches beside it, from which its key cannot be computed (a puncturable
//! pseudo-random function after Goldreich, Goldwasser and Micali, "How to Construct Random Functions", 1986).
//!
//! `docs/encryption.md` describes the format; a foreign program in the tests opens a stored message by it.

pub(crate) mod source;
mod tree;
mod wrap;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zeroize::Zeroizing;

use tree::{Branch, LEAVES, Path, Tree};
pub(crate) use wrap::{SealKey, SealKeys, WrapError};

/// Branches that are kept warm: of about 4,000 values.
const WARM_TWIGS: usize = 256;

/// A data key.
pub(crate) type DataKey = Zeroizing<[u8; 32]>;

/// Which tree a data key comes from, and which leaf of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Locator {
    pub(crate) tree: u64,
    pub(crate) leaf: u32,
}

/// A tree as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WrappedTree {
    pub(crate) tree: u64,
    /// Version of the seal key that it is wrapped with.
    pub(crate) key: u32,
    pub(crate) body: Vec<u8>,
}

/// Versions of the seal key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SealVersions {
    /// The oldest that a tree is wrapped with.
    pub(crate) oldest: u32,
    /// The newest that a tree is wrapped with, and that wraps. Until a rotation wraps something with a newer one nothing else does:
    /// other nodes may not have that.
    pub(crate) current: u32,
    /// The newest that there is.
    pub(crate) newest: u32,
}

/// Why there is no data key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoKey {
    /// The tree is not known here (yet).
    Unknown,
    /// It has been erased.
    Erased,
}

/// The trees of a store.
pub(crate) struct Keyring {
    inner: Mutex<Inner>,
    /// … or there is no tree yet.
    has_unsaved: AtomicBool,
}

struct Inner {
    keys: Arc<SealKeys>,
    trees: HashMap<u64, Tree>,
    /// Version of the seal key that each tree in the database is wrapped with.
    wrapped: HashMap<u64, u32>,
    active: Option<Path>,
    /// Takes its place when it is used up; made, and saved, long before that.
    spare: Option<u64>,
    /// Made here and not in the database yet.
    unsaved: Vec<u64>,
    /// Branches just above leaves that were asked for lately, each at the place that its number says.
    warm: Vec<Option<(Twig, Branch)>>,
    /// Grows with every tree that is taken in: what was computed from the trees before may lead to what is cut out since.
    learnt: u64,
}

/// Tree, and number of the branch just above some leaves.
type Twig = (u64, u32);

/// Where a leaf's branch is kept warm.
struct Warm {
    twig: Twig,
    place: usize,
}

impl Warm {
    fn of(locator: Locator) -> Self {
        let number = tree::twig_of(locator.leaf);
        Self { twig: (locator.tree, number), place: number as usize % WARM_TWIGS }
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keyring")
    }
}

impl Keyring {
    pub(crate) fn new(keys: Arc<SealKeys>) -> Self {
        let inner = Inner {
            keys,
            trees: HashMap::new(),
            wrapped: HashMap::new(),
            active: None,
            spare: None,
            unsaved: Vec::new(),
            warm: (0..WARM_TWIGS).map(|_| None).collect(),
            learnt: 0,
        };
        Self { inner: Mutex::new(inner), has_unsaved: AtomicBool::new(true) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here is left half done by a panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A data key that nothing was sealed with, and where to find it again. The error is the operating system's: it has no
    /// randomness to give.
    pub(crate) fn next(&self) -> Result<(Locator, DataKey), getrandom::Error> {
        let mut inner = self.lock();
        loop {
            let inner = &mut *inner;
            if let Some(path) = &mut inner.active
                && let Some((leaf, key)) = path.next()
            {
                let tree = path.tree();
                if leaf == LEAVES / 2 && inner.spare.is_none() {
                    inner.spare = Some(inner.plant()?);
                    self.has_unsaved.store(true, Ordering::Release);
                }
                return Ok((Locator { tree, leaf }, key));
            }
            let id = match inner.spare.take() {
                Some(id) => id,
                None => {
                    self.has_unsaved.store(true, Ordering::Release);
                    inner.plant()?
                }
            };
            inner.active = inner.trees.get(&id).and_then(|tree| Path::begin(id, tree));
        }
    }

    /// The data key at `locator`.
    pub(crate) fn at(&self, locator: Locator) -> Result<DataKey, NoKey> {
        let warm = Warm::of(locator);
        let (branch, learnt) = {
            let inner = self.lock();
            if let Some((_, twig)) = inner.warm[warm.place].as_ref().filter(|(of, _)| *of == warm.twig) {
                return Ok(twig.leaf(locator.leaf));
            }
            let tree = inner.trees.get(&locator.tree).ok_or(NoKey::Unknown)?;
            (tree.branch_of(locator.leaf).ok_or(NoKey::Erased)?, inner.learnt)
        };
        // Down to just above the leaf, whose neighbours are asked for next as a rule. A twig of which something is cut out is not whole.
        match branch.twig(locator.leaf) {
            Ok(twig) => {
                let key = twig.leaf(locator.leaf);
                self.keep_warm(&warm, twig, learnt);
                Ok(key)
            }
            Err(leaf) => Ok(leaf),
        }
    }

    /// Unless a tree has been taken in since `learnt`, which the twig may then be at odds with.
    fn keep_warm(&self, warm: &Warm, twig: Branch, learnt: u64) {
        let mut inner = self.lock();
        if inner.learnt == learnt {
            inner.warm[warm.place] = Some((warm.twig, twig));
        }
    }

    /// Whether something has to be written before anything that was sealed is.
    pub(crate) fn has_unsaved(&self) -> bool {
        self.has_unsaved.load(Ordering::Acquire)
    }

    /// Makes sure that there is a tree to go on with, so that it can be saved before it is needed.
    pub(crate) fn prepare(&self) -> Result<(), getrandom::Error> {
        let mut inner = self.lock();
        if inner.active.is_none() && inner.spare.is_none() {
            inner.spare = Some(inner.plant()?);
            self.has_unsaved.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// The trees that are to be saved, wrapped.
    pub(crate) fn unsaved(&self) -> Result<Vec<WrappedTree>, WrapError> {
        let inner = self.lock();
        inner.unsaved.iter().map(|id| inner.wrapped(*id)).collect()
    }

    /// These stand in the database now.
    pub(crate) fn saved(&self, trees: &[WrappedTree]) {
        let mut inner = self.lock();
        inner.unsaved.retain(|id| trees.iter().all(|saved| saved.tree != *id));
        inner.wrapped.extend(trees.iter().map(|saved| (saved.tree, saved.key)));
        self.has_unsaved.store(!inner.unsaved.is_empty(), Ordering::Release);
    }

    pub(crate) fn knows(&self, tree: u64) -> bool {
        self.lock().trees.contains_key(&tree)
    }

    /// Takes in a tree as it is stored.
    pub(crate) fn learn(&self, stored: &WrappedTree) -> Result<(), WrapError> {
        let mut inner = self.lock();
        let tree = inner.keys.unwrap(stored)?;
        inner.wrapped.insert(stored.tree, stored.key);
        if inner.trees.get(&stored.tree).is_some_and(|known| known.to_bytes() == tree.to_bytes()) {
            return Ok(());
        }
        inner.trees.insert(stored.tree, tree);
        // They may lead to what has been cut out meanwhile.
        inner.warm.iter_mut().for_each(|warm| *warm = None);
        inner.learnt += 1;
        // Its way down may lead through what has been cut out meanwhile.
        if inner.active.as_ref().is_some_and(|path| path.tree() == stored.tree) {
            inner.active = None;
        }
        if inner.spare == Some(stored.tree) {
            inner.spare = None;
        }
        Ok(())
    }

    // === another seal key ===

    /// These are the seal keys from now on, and the newest wraps.
    pub(crate) fn take_keys(&self, keys: Arc<SealKeys>) {
        self.lock().keys = keys;
    }

    pub(crate) fn versions(&self) -> SealVersions {
        let inner = self.lock();
        let newest = inner.keys.newest();
        let oldest = inner.wrapped.values().min().copied().unwrap_or(newest);
        SealVersions { oldest, current: inner.current(), newest }
    }

    /// At most so many of the trees that are wrapped with an older key than the newest, wrapped with that; and how many are left.
    pub(crate) fn rewrapped(&self, most: usize) -> Result<(Vec<WrappedTree>, u64), WrapError> {
        let inner = self.lock();
        let newest = inner.keys.newest();
        let older = inner.wrapped.iter().filter(|(_, key)| **key < newest).map(|(id, _)| *id);
        let mut older: Vec<u64> = older.collect();
        older.sort_unstable();
        let left = older.len().saturating_sub(most) as u64;
        older.truncate(most);
        let wrap = |id: &u64| {
            let tree = inner.trees.get(id).ok_or(WrapError::Damaged { tree: *id })?;
            inner.keys.wrap(newest, *id, tree)
        };
        Ok((older.iter().map(wrap).collect::<Result<_, _>>()?, left))
    }

    /// These are wrapped so in the database now.
    pub(crate) fn wrapped(&self, trees: &[WrappedTree]) {
        self.lock().wrapped.extend(trees.iter().map(|tree| (tree.tree, tree.key)));
    }

    /// The trees without these leaves, wrapped, for the database first: see [`Keyring::learn`].
    pub(crate) fn cut(&self, leaves: &[Locator]) -> Result<Vec<WrappedTree>, WrapError> {
        let inner = self.lock();
        let mut by_tree: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for Locator { tree, leaf } in leaves {
            by_tree.entry(*tree).or_default().push(*leaf);
        }
        let cut = |(id, leaves): (u64, Vec<u32>)| {
            let tree = inner.trees.get(&id).ok_or(WrapError::Damaged { tree: id })?;
            let mut tree = Tree::from_bytes(&tree.to_bytes()).ok_or(WrapError::Damaged { tree: id })?;
            for leaf in leaves {
                tree.cut(leaf);
            }
            inner.keys.wrap(inner.current(), id, &tree)
        };
        by_tree.into_iter().map(cut).collect()
    }
}

impl Inner {
    fn plant(&mut self) -> Result<u64, getrandom::Error> {
        let mut id = [0; 8];
        getrandom::fill(&mut id)?;
        // As the databases number rows: not negative.
        let id = u64::from_be_bytes(id) >> 1;
        self.trees.insert(id, Tree::random()?);
        self.unsaved.push(id);
        Ok(id)
    }

    fn wrapped(&self, id: u64) -> Result<WrappedTree, WrapError> {
        let tree = self.trees.get(&id).ok_or(WrapError::Damaged { tree: id })?;
        self.keys.wrap(self.current(), id, tree)
    }

    fn current(&self) -> u32 {
        self.wrapped.values().max().copied().unwrap_or_else(|| self.keys.newest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(versions: &[u32]) -> Arc<SealKeys> {
        let keys =
            SealKeys::new(versions.iter().map(|version| (*version, SealKey::new([*version as u8; 32]))));
        Arc::new(keys.unwrap())
    }

    #[test]
    fn every_key_is_another_one_and_is_found_again() {
        let ring = Keyring::new(keys(&[1]));
        let drawn: Vec<_> = (0..1000).map(|_| ring.next().unwrap()).collect();
        let mut distinct: Vec<_> = drawn.iter().map(|(_, key)| **key).collect();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), drawn.len());
        for (locator, key) in &drawn {
            assert_eq!(ring.at(*locator).as_ref(), Ok(key));
        }
    }

    #[test]
    fn what_was_saved_opens_elsewhere_and_under_no_other_key() {
        let ring = Keyring::new(keys(&[1, 2]));
        let (locator, key) = ring.next().unwrap();
        assert!(ring.has_unsaved());
        let saved = ring.unsaved().unwrap();
        ring.saved(&saved);
        assert!(!ring.has_unsaved() && ring.unsaved().unwrap().is_empty());
        assert_eq!(saved[0].key, 2, "wrapped with the newest");

        let other = Keyring::new(keys(&[1, 2]));
        assert_eq!(other.at(locator), Err(NoKey::Unknown));
        other.learn(&saved[0]).unwrap();
        assert_eq!(other.at(locator), Ok(key));

        let without = Keyring::new(keys(&[1]));
        assert_eq!(without.learn(&saved[0]), Err(WrapError::KeyMissing { version: 2 }));
        let foreign = SealKeys::new([(2, SealKey::new([9; 32]))]).unwrap();
        assert_eq!(
            Keyring::new(Arc::new(foreign)).learn(&saved[0]),
            Err(WrapError::Damaged { tree: saved[0].tree })
        );
    }

    #[test]
    fn what_was_being_computed_while_it_was_erased_is_not_kept() {
        let ring = Keyring::new(keys(&[1]));
        let (locator, key) = ring.next().unwrap();
        ring.saved(&ring.unsaved().unwrap());
        let warm = Warm::of(locator);
        let (twig, learnt) = {
            let inner = ring.lock();
            let branch = inner.trees[&locator.tree].branch_of(locator.leaf).unwrap();
            (branch.twig(locator.leaf).unwrap(), inner.learnt)
        };
        assert_eq!(twig.leaf(locator.leaf), key);
        ring.learn(&ring.cut(&[locator]).unwrap()[0]).unwrap();
        ring.keep_warm(&warm, twig, learnt);
        assert_eq!(ring.at(locator), Err(NoKey::Erased));
    }

    #[test]
    fn a_new_tree_is_ready_to_be_saved_long_before_it_is_used() {
        let ring = Keyring::new(keys(&[1]));
        let first = ring.next().unwrap().0.tree;
        ring.saved(&ring.unsaved().unwrap());
        ring.lock().active.as_mut().unwrap().skip_to(LEAVES / 2);
        ring.next().unwrap();
        let spare = ring.unsaved().unwrap();
        assert_eq!(spare.len(), 1);
        ring.saved(&spare);
        ring.lock().active.as_mut().unwrap().skip_to(LEAVES - 1);
        assert_eq!(ring.next().unwrap().0, Locator { tree: first, leaf: LEAVES - 1 });
        assert_eq!(ring.next().unwrap().0, Locator { tree: spare[0].tree, leaf: 0 });
        assert!(!ring.has_unsaved());
    }
}
