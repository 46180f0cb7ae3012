//! What everybody may see of the audit log: its newest checkpoint, and the hashes of the tree that it signs.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use gatepost_audit::{DirTiles, Hash, NodeSource, TileEdge, TileError};

/// Level and index.
pub(crate) type TileId = (u8, u64);

/// What everybody may see of the tree.
#[derive(Default)]
pub(crate) struct Published {
    state: RwLock<Signed>,
    /// Full tiles whose files are not written yet.
    unfiled: RwLock<HashMap<TileId, Arc<Vec<Hash>>>>,
}

/// The newest checkpoint and the edge of its tree.
#[derive(Clone, Default)]
pub(crate) struct Signed {
    pub(crate) size: u64,
    pub(crate) text: Arc<str>,
    pub(crate) edge: Arc<TileEdge>,
}

impl Published {
    pub(crate) fn signed(&self) -> Signed {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn publish(&self, signed: Signed) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = signed;
    }

    pub(crate) fn add_unfiled(&self, tile: TileId, hashes: Arc<Vec<Hash>>) {
        self.unfiled.write().unwrap_or_else(PoisonError::into_inner).insert(tile, hashes);
    }

    /// The files of these tiles are there, durably.
    pub(crate) fn are_filed(&self, tiles: impl Iterator<Item = TileId>) {
        let mut unfiled = self.unfiled.write().unwrap_or_else(PoisonError::into_inner);
        for tile in tiles {
            unfiled.remove(&tile);
        }
    }

    fn unfiled(&self, level: u8, index: u64) -> Option<Arc<Vec<Hash>>> {
        self.unfiled.read().unwrap_or_else(PoisonError::into_inner).get(&(level, index)).cloned()
    }
}

/// The hashes of a tree: files, tiles on their way there, and the edge.
pub(crate) struct TreeView<'a> {
    pub(crate) files: &'a DirTiles,
    pub(crate) published: &'a Published,
    pub(crate) signed: &'a Signed,
}

impl NodeSource for TreeView<'_> {
    type Error = TileError;

    fn tile(&self, level: u8, index: u64, width: u16) -> Result<Vec<Hash>, TileError> {
        if let Some(tile) = self.published.unfiled(level, index) {
            return Ok(tile[..usize::from(width).min(tile.len())].to_vec());
        }
        let (edge_index, hashes) = self.signed.edge.partial(level);
        if index == edge_index && hashes.len() >= usize::from(width) {
            return Ok(hashes[..usize::from(width)].to_vec());
        }
        self.files.tile(level, index, width)
    }
}
