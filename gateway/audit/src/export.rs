//! Writing a whole log as a tlog-tiles directory that stands on its own: entries, tiles, checkpoint and key.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::dir::{CHECKPOINT, VKEY, write_file_durable};
use crate::edge::{FullTile, TileEdge};
use crate::note::VerifierKey;
use crate::tiles::{BundleError, TILE_WIDTH, append_entry, entries_path, tile_bytes, tile_path};
use crate::tree::leaf_hash;

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("{0} is not empty: an export starts in a new or empty directory")]
    NotEmpty(PathBuf),
    #[error("cannot write {path}")]
    Write { path: String, source: io::Error },
    #[error("entry {index} cannot be exported")]
    Entry { index: u64, source: BundleError },
    #[error("the checkpoint to be exported")]
    Checkpoint(#[from] CheckpointError),
    #[error("the {entries} entries given are not the tree of {size} that the checkpoint signs")]
    OtherTree { entries: u64, size: u64 },
}

/// Takes the entries in order, from the first to the last that the checkpoint covers.
///
/// Files are not synced one by one: an export is a copy, and its reader verifies it. The checkpoint comes last and is
/// written only if it signs exactly what was given.
#[derive(Debug)]
pub struct Exporter {
    dir: PathBuf,
    edge: TileEdge,
    full: Vec<FullTile>,
    bundle: Vec<u8>,
}

impl Exporter {
    pub fn create(dir: &Path) -> Result<Self, ExportError> {
        let failed = |source| ExportError::Write { path: dir.display().to_string(), source };
        fs::create_dir_all(dir).map_err(failed)?;
        if fs::read_dir(dir).map_err(failed)?.next().is_some() {
            return Err(ExportError::NotEmpty(dir.to_path_buf()));
        }
        Ok(Self { dir: dir.to_path_buf(), edge: TileEdge::new(), full: Vec::new(), bundle: Vec::new() })
    }

    pub fn push(&mut self, leaf: &[u8]) -> Result<(), ExportError> {
        let index = self.edge.size();
        append_entry(&mut self.bundle, (index % u64::from(TILE_WIDTH)) as usize, leaf)
            .map_err(|source| ExportError::Entry { index, source })?;
        self.edge.push(leaf_hash(leaf), &mut self.full);
        for tile in std::mem::take(&mut self.full) {
            self.write(&tile.path(), &tile.bytes())?;
            if tile.level == 0 {
                let bundle = std::mem::take(&mut self.bundle);
                self.write(&entries_path(tile.index, None), &bundle)?;
            }
        }
        Ok(())
    }

    /// Writes what is partial, the key and the checkpoint.
    pub fn finish(self, signed: &str, key: &VerifierKey) -> Result<Checkpoint, ExportError> {
        let checkpoint = Checkpoint::open(signed.as_bytes(), std::slice::from_ref(key))?;
        if (checkpoint.size, checkpoint.root) != (self.edge.size(), self.edge.root()) {
            return Err(ExportError::OtherTree { entries: self.edge.size(), size: checkpoint.size });
        }
        for (level, index, hashes) in self.edge.partials() {
            // A partial tile has at most 255 hashes.
            let width = hashes.len() as u8;
            self.write(&tile_path(level, index, Some(width)), &tile_bytes(hashes))?;
            if level == 0 {
                self.write(&entries_path(index, Some(width)), &self.bundle)?;
            }
        }
        self.write(VKEY, format!("{key}\n").as_bytes())?;
        write_file_durable(&self.dir, CHECKPOINT, signed.as_bytes())
            .map_err(|source| ExportError::Write { path: CHECKPOINT.to_owned(), source })?;
        Ok(checkpoint)
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<(), ExportError> {
        let file = self.dir.join(path);
        let parent = file.parent().unwrap_or(&self.dir);
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&file, bytes))
            .map_err(|source| ExportError::Write { path: path.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::note::SignerKey;
    use crate::tiles::ENTRY_BYTES_MAX;
    use crate::tree::empty_root;

    fn checkpoint(size: u64) -> String {
        let origin = "log".to_owned();
        Checkpoint { origin, size, root: empty_root() }.sign(&key()).unwrap()
    }

    fn key() -> SignerKey {
        SignerKey::from_seed("log", &[1; 32]).unwrap()
    }

    #[test]
    fn an_export_needs_an_empty_directory_and_the_tree_that_was_signed() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("a/b");
        let mut exporter = Exporter::create(&log).unwrap();
        exporter.push(b"entry").unwrap();
        let other = exporter.finish(&checkpoint(0), &key().verifier());
        assert!(matches!(other, Err(ExportError::OtherTree { entries: 1, size: 0 })));
        assert!(!log.join(CHECKPOINT).exists());
        let exporter = Exporter::create(&log).unwrap();
        let same_size = exporter.finish(&checkpoint(1), &key().verifier());
        assert!(matches!(same_size, Err(ExportError::OtherTree { entries: 0, size: 1 })));
        let exporter = Exporter::create(&log).unwrap();
        assert_eq!(exporter.finish(&checkpoint(0), &key().verifier()).unwrap().size, 0);
        assert!(matches!(Exporter::create(&log), Err(ExportError::NotEmpty(_))));
        let mut exporter = Exporter::create(&dir.path().join("c")).unwrap();
        let long = exporter.push(&vec![0; ENTRY_BYTES_MAX + 1]);
        assert!(matches!(long, Err(ExportError::Entry { index: 0, .. })));
    }
}
