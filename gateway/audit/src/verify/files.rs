//! Reading the files of a log under audit: every file that claims the same tile or bundle, not only the best one.

use super::Fault;
use crate::dir::{DirTiles, TileError};
use crate::tiles::{TILE_WIDTH, entries_path, parse_bundle, tile_path};
use crate::tree::Hash;

#[derive(Debug)]
pub(super) struct Files {
    pub(super) tiles: DirTiles,
    pub(super) partials: Partials,
}

/// Whether partial files belong to this log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Partials {
    /// The directory is the whole log.
    Expected,
    /// The newest entries come from elsewhere.
    Ignored,
}

#[derive(Debug)]
pub(super) struct BundleFile {
    pub(super) path: String,
    pub(super) width: u16,
    pub(super) bytes: Vec<u8>,
}

#[derive(Debug, Clone)]
pub(super) struct TileFile {
    pub(super) path: String,
    pub(super) hashes: Vec<Hash>,
}

impl Files {
    /// The widest file of a bundle, which must hold at least the `signed` entries of it. `None` is the end of the log.
    pub(super) fn bundle(&self, index: u64, signed: u16) -> Result<Option<BundleFile>, Fault> {
        let full = entries_path(index, None);
        let first = index * u64::from(TILE_WIDTH);
        let read = |width| self.tiles.bundle_file(index, width).map_err(|error| fault(error, first));
        if let Some(bytes) = read(None)? {
            return Ok(Some(BundleFile { path: full, width: TILE_WIDTH, bytes }));
        }
        let widest = self.partial_widths(&full, first)?.pop();
        match widest {
            Some(width) if u16::from(width) >= signed => {
                let bytes = read(Some(width))?.unwrap_or_default();
                let path = entries_path(index, Some(width));
                Ok(Some(BundleFile { path, width: u16::from(width), bytes }))
            }
            _ if signed == 0 || self.partials == Partials::Ignored => Ok(None),
            _ => Err(Fault::Missing { path: entries_path(index, u8::try_from(signed).ok()), leaf: first }),
        }
    }

    /// Narrower files of a bundle must be its beginning.
    pub(super) fn check_narrower(&self, index: u64, bundle: &BundleFile) -> Result<(), Fault> {
        let first = index * u64::from(TILE_WIDTH);
        for width in self.partial_widths(&entries_path(index, None), first)? {
            let narrower = self.tiles.bundle_file(index, Some(width)).map_err(|error| fault(error, first))?;
            let narrower = narrower.unwrap_or_default();
            let entries = parse_bundle(&narrower).map_or(0, |entries| entries.len());
            if entries != usize::from(width) || !bundle.bytes.starts_with(&narrower) {
                let path = entries_path(index, Some(width));
                return Err(Fault::BundleDiffers { path, of: bundle.path.clone() });
            }
        }
        Ok(())
    }

    /// Every file of a tile, of which one must hold at least `required` hashes.
    pub(super) fn tile(&self, level: u8, index: u64, required: u16) -> Result<Vec<TileFile>, Fault> {
        let full = tile_path(level, index, None);
        let first = first_leaf(level, index, 0);
        let partials = self.partial_widths(&full, first)?.into_iter().map(Some);
        let mut found = Vec::new();
        for width in partials.chain([None]) {
            let hashes = self.tiles.tile_file(level, index, width).map_err(|error| fault(error, first))?;
            found.extend(hashes.map(|hashes| TileFile { path: tile_path(level, index, width), hashes }));
        }
        if found.iter().all(|tile| tile.hashes.len() < usize::from(required)) && required > 0 {
            let path = tile_path(level, index, u8::try_from(required).ok());
            return Err(Fault::Missing { path, leaf: first });
        }
        Ok(found)
    }

    /// Compares every file of a tile with the hashes that the entries give.
    pub(super) fn check_tile(
        &self,
        level: u8,
        index: u64,
        hashes: &[Hash],
        required: u16,
    ) -> Result<(), Fault> {
        self.tile(level, index, required)?.iter().try_for_each(|file| compare(level, index, hashes, file))
    }

    /// How many hashes a partial tile must be seen to hold.
    pub(super) fn required_partial(&self, hashes: usize) -> u16 {
        match self.partials {
            Partials::Expected => hashes as u16,
            Partials::Ignored => 0,
        }
    }

    fn partial_widths(&self, full: &str, leaf: u64) -> Result<Vec<u8>, Fault> {
        match self.partials {
            Partials::Expected => self.tiles.partial_widths(full).map_err(|error| fault(error, leaf)),
            Partials::Ignored => Ok(Vec::new()),
        }
    }
}

/// Compares one file of a tile with as many hashes as both have.
pub(super) fn compare(level: u8, index: u64, hashes: &[Hash], file: &TileFile) -> Result<(), Fault> {
    match hashes.iter().zip(&file.hashes).position(|(ours, theirs)| ours != theirs) {
        None => Ok(()),
        Some(position) => {
            let leaf = first_leaf(level, index, position as u64);
            Err(Fault::TileChanged { path: file.path.clone(), position, leaf })
        }
    }
}

/// The first entry below a hash of a tile.
fn first_leaf(level: u8, index: u64, position: u64) -> u64 {
    let node = index * u64::from(TILE_WIDTH) + position;
    node << (TILE_WIDTH.trailing_zeros() * u32::from(level))
}

fn fault(error: TileError, leaf: u64) -> Fault {
    match error {
        TileError::Missing { path } => Fault::Missing { path, leaf },
        TileError::WrongLength { path, bytes } => Fault::TileLength { path, bytes },
        TileError::Read { path, source } => Fault::Unreadable { path, source },
    }
}
