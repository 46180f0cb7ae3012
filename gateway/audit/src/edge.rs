//! The growing right edge of the tree: the tiles that are not yet full, one per level.
//!
//! The store pushes each leaf's hash and writes the tiles that become full; the verifier pushes the same hashes and
//! compares. Memory is at most eight tiles, whatever the size of the log.

use crate::merkle::{NodeSource, TILE_HEIGHT, TreeError, tile_width};
use crate::tiles::{TILE_WIDTH, tile_bytes, tile_path};
use crate::tree::{Hash, empty_root, node_hash, range_root};

/// A tile that has received its last hash and will never change again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullTile {
    pub level: u8,
    pub index: u64,
    pub hashes: Vec<Hash>,
}

impl FullTile {
    /// Its path below the log's directory.
    pub fn path(&self) -> String {
        tile_path(self.level, self.index, None)
    }

    pub fn bytes(&self) -> Vec<u8> {
        tile_bytes(&self.hashes)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TileEdge {
    size: u64,
    /// By level: the hashes of the tile that is being filled.
    levels: Vec<Vec<Hash>>,
}

impl TileEdge {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes up the edge of a tree of `size` entries.
    ///
    /// Only full tiles are read above level 0, so a source need not keep partial ones.
    pub fn rebuild<S: NodeSource>(source: &S, size: u64) -> Result<Self, TreeError<S::Error>> {
        let mut levels = Vec::new();
        let mut level = 0u8;
        while let Some(nodes) = size.checked_shr(TILE_HEIGHT * u32::from(level)).filter(|&nodes| nodes > 0) {
            let first = nodes - nodes % u64::from(TILE_WIDTH);
            let hashes = if level == 0 {
                let width = (nodes - first) as u16;
                read(source, 0, first / u64::from(TILE_WIDTH), width)?
            } else {
                (first..nodes)
                    .map(|child| read(source, level - 1, child, TILE_WIDTH).map(|tile| range_root(&tile)))
                    .collect::<Result<_, _>>()?
            };
            levels.push(hashes);
            level += 1;
        }
        Ok(Self { size, levels })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends the hash of the next leaf; tiles that it fills are added to `full`, lowest level first.
    ///
    /// Write them before the bundle of the same entries: where a full bundle is, readers expect its tiles.
    pub fn push(&mut self, leaf: Hash, full: &mut Vec<FullTile>) {
        let mut node = leaf;
        self.size += 1;
        for level in 0u8.. {
            if self.levels.len() == usize::from(level) {
                self.levels.push(Vec::with_capacity(usize::from(TILE_WIDTH)));
            }
            let tile = &mut self.levels[usize::from(level)];
            tile.push(node);
            if tile.len() < usize::from(TILE_WIDTH) {
                return;
            }
            let hashes = std::mem::replace(tile, Vec::with_capacity(usize::from(TILE_WIDTH)));
            node = range_root(&hashes);
            let index = (self.size >> (TILE_HEIGHT * (u32::from(level) + 1))) - 1;
            full.push(FullTile { level, index, hashes });
        }
    }

    /// The tile of `level` that is being filled: its index and its hashes so far, possibly none.
    pub fn partial(&self, level: u8) -> (u64, &[Hash]) {
        let index = self.size.checked_shr(TILE_HEIGHT * (u32::from(level) + 1)).unwrap_or(0);
        (index, self.levels.get(usize::from(level)).map_or(&[], Vec::as_slice))
    }

    /// The partial tiles that a tree of this size publishes: level, index, hashes.
    pub fn partials(&self) -> impl Iterator<Item = (u8, u64, &[Hash])> {
        (0u8..).zip(&self.levels).filter(|(_, hashes)| !hashes.is_empty()).map(|(level, hashes)| {
            let (index, _) = self.partial(level);
            (level, index, hashes.as_slice())
        })
    }

    pub fn root(&self) -> Hash {
        let mut root: Option<Hash> = None;
        for hashes in &self.levels {
            // From the right: a width of binary 101 is a complete subtree of 4 nodes followed by one of 1.
            let mut end = hashes.len();
            while end > 0 {
                let start = end & (end - 1);
                let subtree = range_root(&hashes[start..end]);
                root = Some(root.map_or(subtree, |right| node_hash(&subtree, &right)));
                end = start;
            }
        }
        root.unwrap_or_else(empty_root)
    }
}

fn read<S: NodeSource>(
    source: &S,
    level: u8,
    index: u64,
    width: u16,
) -> Result<Vec<Hash>, TreeError<S::Error>> {
    if width == 0 {
        return Ok(Vec::new());
    }
    let mut hashes = source.tile(level, index, width).map_err(TreeError::Source)?;
    if hashes.len() < usize::from(width) {
        return Err(TreeError::ShortTile { level, index, expected: width, actual: hashes.len() });
    }
    hashes.truncate(usize::from(width));
    Ok(hashes)
}

/// A source made of the full tiles of one source and the edge in memory.
#[derive(Debug, Clone, Copy)]
pub struct WithEdge<'a, S> {
    pub full: &'a S,
    pub edge: &'a TileEdge,
}

impl<S: NodeSource> NodeSource for WithEdge<'_, S> {
    type Error = S::Error;

    fn tile(&self, level: u8, index: u64, width: u16) -> Result<Vec<Hash>, Self::Error> {
        let (partial_index, hashes) = self.edge.partial(level);
        if index == partial_index && tile_width(self.edge.size, level, index) >= width {
            return Ok(hashes[..usize::from(width)].to_vec());
        }
        self.full.tile(level, index, width)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::merkle::root_at;
    use crate::tree::{Frontier, leaf_hash};

    #[derive(Default)]
    struct FullTiles(HashMap<(u8, u64), Vec<Hash>>);

    impl NodeSource for FullTiles {
        type Error = String;

        fn tile(&self, level: u8, index: u64, width: u16) -> Result<Vec<Hash>, String> {
            assert!(width > 0);
            self.0.get(&(level, index)).cloned().ok_or_else(|| format!("tile {level}/{index} is not full"))
        }
    }

    /// Crosses the first full level-1 tile (65,536 entries), where an off-by-one between levels would show.
    #[test]
    fn the_edge_agrees_with_the_frontier_and_can_be_rebuilt_from_full_tiles() {
        let (mut edge, mut frontier) = (TileEdge::new(), Frontier::new());
        let mut files = FullTiles::default();
        let mut full = Vec::new();
        for n in 0..70_000u32 {
            let interesting = n < 600 || n % 4_099 == 0 || (65_530..65_540).contains(&n);
            if interesting {
                assert_eq!(edge.root(), frontier.root(), "at {n}");
                let source = WithEdge { full: &files, edge: &edge };
                assert_eq!(root_at(&source, u64::from(n)).unwrap(), frontier.root(), "at {n}");
            }
            if n % 256 == 0 && interesting {
                assert_eq!(TileEdge::rebuild(&files, u64::from(n)).unwrap().root(), edge.root(), "at {n}");
            }
            let hash = leaf_hash(&n.to_be_bytes());
            edge.push(hash, &mut full);
            frontier.push(hash);
            for tile in full.drain(..) {
                assert!(files.0.insert((tile.level, tile.index), tile.hashes).is_none());
            }
        }
        assert_eq!(files.0.len(), 273 + 1);
        // The example of the tlog-tiles specification: 112, 17 and 1 hashes in the partial tiles of 70,000 entries.
        let widths: Vec<_> =
            edge.partials().map(|(level, index, hashes)| (level, index, hashes.len())).collect();
        assert_eq!(widths, [(0, 273, 112), (1, 1, 17), (2, 0, 1)]);
        let source = WithEdge { full: &files, edge: &edge };
        assert_eq!(TileEdge::rebuild(&source, 70_000).unwrap().root(), edge.root());
        assert!(matches!(TileEdge::rebuild(&files, 70_000), Err(TreeError::Source(_))));
    }
}
