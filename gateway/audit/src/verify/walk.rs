//! One pass over the entries, keeping the right edge of the tree and the open deliveries.

use super::files::{Files, TileFile};
use super::semantics::Semantics;
use super::{Fault, Report, Tail};
use crate::checkpoint::Checkpoint;
use crate::edge::{FullTile, TileEdge, WithEdge};
use crate::leaf::Leaf;
use crate::merkle::{NodeSource, inclusion_proof, verify_inclusion};
use crate::tiles::TILE_WIDTH;
use crate::tree::{Hash, leaf_hash};

#[derive(Debug)]
pub(super) struct Walk {
    pub(super) files: Files,
    checkpoint: Checkpoint,
    since: Option<Since>,
    edge: TileEdge,
    full: Vec<FullTile>,
    semantics: Semantics,
    bundle: Bundle,
    dispute: Option<Dispute>,
}

/// An entry and its hash in a tile disagree.
#[derive(Debug, Clone)]
struct Dispute {
    leaf: u64,
    /// Of the entry, and its hash.
    path: String,
    ours: Hash,
    /// Of the tile, and the hash in it.
    tile: String,
    theirs: Hash,
}

/// An older checkpoint, and whether the entries lead to its root: known once the walk has come that far.
#[derive(Debug)]
struct Since {
    checkpoint: Checkpoint,
    holds: Option<bool>,
}

/// What the entries that come now are compared with.
#[derive(Debug, Default)]
struct Bundle {
    first: u64,
    path: String,
    /// Every file that claims their hashes.
    tiles: Vec<TileFile>,
}

impl Walk {
    /// Starts before the first entry, which for an empty log is also its end.
    pub(super) fn start(
        files: Files,
        checkpoint: Checkpoint,
        since: Option<Checkpoint>,
    ) -> Result<Self, Fault> {
        let since = since.map(|checkpoint| Since { checkpoint, holds: None });
        let mut walk = Self {
            files,
            checkpoint,
            since,
            edge: TileEdge::new(),
            full: Vec::new(),
            semantics: Semantics::default(),
            bundle: Bundle::default(),
            dispute: None,
        };
        walk.check_roots()?;
        Ok(walk)
    }

    /// Entries read so far.
    pub(super) fn entries(&self) -> u64 {
        self.edge.size()
    }

    /// Entries that the checkpoint covers.
    pub(super) fn size(&self) -> u64 {
        self.checkpoint.size
    }

    /// How many entries of a bundle the checkpoint covers.
    pub(super) fn signed_in_bundle(&self, index: u64) -> u16 {
        let first = index * u64::from(TILE_WIDTH);
        self.size().saturating_sub(first).min(u64::from(TILE_WIDTH)) as u16
    }

    /// The next entries stand in this bundle file.
    pub(super) fn open_bundle(&mut self, index: u64, path: &str) -> Result<(), Fault> {
        let tiles = self.files.tile(0, index, self.signed_in_bundle(index))?;
        self.bundle = Bundle { first: index * u64::from(TILE_WIDTH), path: path.to_owned(), tiles };
        Ok(())
    }

    /// The next entries stand in no file, so there is nothing but the root to compare them with.
    pub(super) fn open_tail(&mut self) {
        self.bundle = Bundle::default();
    }

    /// Takes the next entry. After a fault the walk is where it was before.
    pub(super) fn entry(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let index = self.entries();
        let hash = leaf_hash(bytes);
        let position = (index - self.bundle.first) as usize;
        let differs = |tile: &&TileFile| tile.hashes.get(position).is_some_and(|theirs| *theirs != hash);
        if let Some(tile) = self.bundle.tiles.iter().find(differs) {
            let dispute = Dispute {
                leaf: index,
                path: self.bundle.path.clone(),
                ours: hash,
                tile: tile.path.clone(),
                theirs: tile.hashes[position],
            };
            let fault = self.who_was_changed(&dispute, &self.files.tiles);
            self.dispute = Some(dispute);
            return Err(fault);
        }
        let leaf = Leaf::parse(bytes).map_err(|source| Fault::Leaf { leaf: index, source })?;
        self.semantics.apply(index, &leaf).map_err(|source| Fault::Semantic { leaf: index, source })?;
        self.edge.push(hash, &mut self.full);
        for tile in std::mem::take(&mut self.full) {
            // Level 0 was compared entry by entry.
            if tile.level > 0 {
                let required = if self.entries() <= self.size() { TILE_WIDTH } else { 0 };
                self.files.check_tile(tile.level, tile.index, &tile.hashes, required)?;
            }
        }
        self.check_roots()
    }

    /// The signed root tells which of the two was changed, if the rest of the tree is there to prove it.
    fn who_was_changed<S: NodeSource>(&self, dispute: &Dispute, tree: &S) -> Fault {
        let Dispute { leaf, path, ours, tile, theirs } = dispute.clone();
        let signed = |hash: &Hash| {
            inclusion_proof(tree, leaf, self.size()).is_ok_and(|proof| {
                verify_inclusion(hash, leaf, self.size(), &proof, &self.checkpoint.root).is_ok()
            })
        };
        if signed(&theirs) {
            Fault::LeafChanged { leaf, path, tile }
        } else if signed(&ours) {
            Fault::LeafHashChanged { leaf, path: tile }
        } else {
            Fault::LeafDiffers { leaf, path, tile }
        }
    }

    /// Of a log whose newest entries are in no file: with them, `fault` may be told more exactly.
    pub(super) fn told_with(&self, tail: &Tail, fault: Fault) -> Fault {
        match (&fault, &self.dispute, self.signed_edge(tail)) {
            (Fault::LeafDiffers { .. }, Some(dispute), Some(edge)) => {
                self.who_was_changed(dispute, &WithEdge { full: &self.files.tiles, edge: &edge })
            }
            _ => fault,
        }
    }

    /// The right edge of the signed tree, from full tiles and the entries after them.
    fn signed_edge(&self, tail: &Tail) -> Option<TileEdge> {
        let filed = if tail.leaves.is_empty() { self.size() } else { tail.start.min(self.size()) };
        if !filed.is_multiple_of(u64::from(TILE_WIDTH)) {
            return None;
        }
        let mut edge = TileEdge::rebuild(&self.files.tiles, filed).ok()?;
        let signed = usize::try_from(self.size() - filed).ok()?;
        for leaf in tail.leaves.get(..signed)? {
            edge.push(leaf_hash(leaf), &mut Vec::new());
        }
        Some(edge)
    }

    /// Compares what a checkpoint says about the entries so far, when one ends here.
    fn check_roots(&mut self) -> Result<(), Fault> {
        let size = self.entries();
        if let Some(since) = self.since.as_mut().filter(|since| since.checkpoint.size == size) {
            since.holds = Some(self.edge.root() == since.checkpoint.root);
        }
        if size != self.size() {
            return Ok(());
        }
        for (level, index, hashes) in self.edge.partials().filter(|(level, ..)| *level > 0) {
            let required = self.files.required_partial(hashes.len());
            self.files.check_tile(level, index, hashes, required)?;
        }
        let since = self.since.as_ref().and_then(|since| Some((since.checkpoint.size, since.holds?)));
        if self.edge.root() != self.checkpoint.root {
            return Err(Fault::Root { size, since });
        }
        match since {
            Some((since, false)) => Err(Fault::Fork { since, size }),
            _ => Ok(()),
        }
    }

    pub(super) fn finish(self) -> Report {
        Report {
            unsigned: self.entries().saturating_sub(self.size()),
            size: self.checkpoint.size,
            root: self.checkpoint.root,
            origin: self.checkpoint.origin,
            since: self.since.map(|since| since.checkpoint.size),
            deliveries_open: self.semantics.deliveries_open(),
        }
    }
}

#[cfg(test)]
impl Walk {
    pub(super) fn tile_hash(&self, position: usize) -> Hash {
        self.bundle.tiles[0].hashes[position]
    }

    pub(super) fn set_tile_hash(&mut self, position: usize, hash: Hash) {
        self.bundle.tiles[0].hashes[position] = hash;
    }
}
