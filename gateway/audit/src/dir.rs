//! A log as a directory: reading its tiles, and writing its files so that a crash leaves either the old or the new.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Component, Path, PathBuf};

use crate::merkle::NodeSource;
use crate::note::NOTE_BYTES_MAX;
use crate::tiles::{BUNDLE_BYTES_MAX, TILE_BYTES_MAX, TILE_WIDTH, TilePath, parse_tile, tile_path};
use crate::tree::Hash;

/// The newest signed checkpoint.
pub const CHECKPOINT: &str = "checkpoint";
/// The checkpoint before it.
pub const CHECKPOINT_PREVIOUS: &str = "checkpoint.prev";
/// The log's verifier key.
pub const VKEY: &str = "vkey";

/// The tiles below a directory.
#[derive(Debug, Clone)]
pub struct DirTiles {
    dir: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum TileError {
    #[error("{path} is missing")]
    Missing { path: String },
    #[error("{path} has {bytes} bytes, which is not its width in hashes")]
    WrongLength { path: String, bytes: usize },
    #[error("cannot read {path}")]
    Read { path: String, source: io::Error },
}

impl DirTiles {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A tile file as it is, checked only for its length. `width` as in its path.
    pub(crate) fn tile_file(
        &self,
        level: u8,
        index: u64,
        width: Option<u8>,
    ) -> Result<Option<Vec<Hash>>, TileError> {
        let Some(bytes) = self.file(&TilePath::Tile { level, index, width })? else { return Ok(None) };
        let expected = width.map_or(TILE_WIDTH, u16::from);
        match parse_tile(&bytes).filter(|hashes| hashes.len() == usize::from(expected)) {
            Some(hashes) => Ok(Some(hashes)),
            None => Err(TileError::WrongLength { path: tile_path(level, index, width), bytes: bytes.len() }),
        }
    }

    /// The bytes of a tile or bundle file as they are; `None` when there is no such file.
    pub fn file(&self, path: &TilePath) -> Result<Option<Vec<u8>>, TileError> {
        let bytes_max = match path {
            TilePath::Tile { .. } => TILE_BYTES_MAX,
            TilePath::Entries { .. } => BUNDLE_BYTES_MAX,
        };
        let path = path.to_string();
        match read_bounded(&self.dir.join(&path), bytes_max) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(TileError::Read { path, source }),
        }
    }

    /// A bundle file as it is.
    pub fn bundle_file(&self, index: u64, width: Option<u8>) -> Result<Option<Vec<u8>>, TileError> {
        self.file(&TilePath::Entries { index, width })
    }

    /// The widths of the partial files beside a full path (`tile/0/001`, `tile/entries/001`), narrowest first.
    pub(crate) fn partial_widths(&self, full: &str) -> Result<Vec<u8>, TileError> {
        let path = format!("{full}.p");
        let unreadable = |source| TileError::Read { path: path.clone(), source };
        let listing = match fs::read_dir(self.dir.join(&path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            listing => listing.map_err(unreadable)?,
        };
        let mut widths = Vec::new();
        for entry in listing {
            let name = entry.map_err(unreadable)?.file_name();
            // Other names, such as temporary files, belong to no tile.
            let width =
                name.to_str().and_then(|name| name.parse::<u8>().ok().filter(|w| w.to_string() == name));
            widths.extend(width.filter(|&width| width > 0));
        }
        widths.sort_unstable();
        Ok(widths)
    }
}

impl NodeSource for DirTiles {
    type Error = TileError;

    /// Takes the file of exactly this width, else the full tile, else the narrowest partial one that suffices: a
    /// partial tile may be deleted once a wider one exists.
    fn tile(&self, level: u8, index: u64, width: u16) -> Result<Vec<Hash>, TileError> {
        let exact = u8::try_from(width).ok();
        if let Some(hashes) = self.tile_file(level, index, exact)? {
            return Ok(hashes);
        }
        let missing = || TileError::Missing { path: tile_path(level, index, exact) };
        if exact.is_none() {
            return Err(missing());
        }
        let mut hashes = match self.tile_file(level, index, None)? {
            Some(full) => full,
            None => {
                let widths = self.partial_widths(&tile_path(level, index, None))?;
                let wider = widths.into_iter().find(|&wider| u16::from(wider) > width).ok_or_else(missing)?;
                self.tile_file(level, index, Some(wider))?.ok_or_else(missing)?
            }
        };
        hashes.truncate(usize::from(width));
        Ok(hashes)
    }
}

/// Reads a regular file of at most `bytes_max` bytes; a pipe or device in its place is refused, not waited for.
pub(crate) fn read_bounded(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {bytes_max} bytes")));
    }
    Ok(bytes)
}

/// Writes `dir/path` so that after a crash it holds either its old or its new content, and is durable on return.
pub fn write_file_durable(dir: &Path, path: &str, bytes: &[u8]) -> io::Result<()> {
    let target = Target::prepare(dir, path)?;
    target.write_temporary(bytes)?;
    target.replace()
}

/// The signed checkpoint as it is; `None` when the log has none yet.
pub fn read_checkpoint(dir: &Path) -> io::Result<Option<Vec<u8>>> {
    match read_bounded(&dir.join(CHECKPOINT), NOTE_BYTES_MAX) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces the checkpoint durably and keeps the one before as [`CHECKPOINT_PREVIOUS`]. There is a whole checkpoint
/// at every moment. Its leaves must be durable before.
pub fn write_checkpoint(dir: &Path, signed: &str) -> io::Result<()> {
    let target = Target::prepare(dir, CHECKPOINT)?;
    target.write_temporary(signed.as_bytes())?;
    gatepost_faults::point("audit.checkpoint_written");
    keep_previous(dir)?;
    gatepost_faults::point("audit.previous_kept");
    target.replace()
}

/// A second name for the old checkpoint costs no fsync of its own: its content is durable since it was written, and
/// the directory is synced with the new one. File systems without hard links get a copy.
fn keep_previous(dir: &Path) -> io::Result<()> {
    let (current, link) = (dir.join(CHECKPOINT), dir.join(".checkpoint.prev.tmp"));
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match fs::hard_link(&current, &link) {
        Ok(()) => fs::rename(&link, dir.join(CHECKPOINT_PREVIOUS)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(_) => write_file_durable(dir, CHECKPOINT_PREVIOUS, &fs::read(&current)?),
    }
}

struct Target {
    parent: PathBuf,
    file: PathBuf,
    temporary: PathBuf,
}

impl Target {
    fn prepare(dir: &Path, path: &str) -> io::Result<Self> {
        let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        let (true, Some(name)) = (inside, Path::new(path).file_name()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path leaves the log's directory"));
        };
        let file = dir.join(path);
        let parent = file.parent().unwrap_or(dir).to_path_buf();
        create_dirs_durable(dir, Path::new(path).parent().unwrap_or(Path::new("")))?;
        let temporary = parent.join(format!(".{}.tmp", name.display()));
        Ok(Self { parent, file, temporary })
    }

    fn write_temporary(&self, bytes: &[u8]) -> io::Result<()> {
        let mut file = File::create(&self.temporary)?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    fn replace(&self) -> io::Result<()> {
        fs::rename(&self.temporary, &self.file)?;
        gatepost_faults::point("audit.checkpoint_renamed");
        sync_dir(&self.parent)
    }
}

/// A new directory is durable only when its parent is synced.
fn create_dirs_durable(dir: &Path, below: &Path) -> io::Result<()> {
    let mut parent = dir.to_path_buf();
    for part in below.components() {
        let child = parent.join(part);
        match fs::create_dir(&child) {
            Ok(()) => sync_dir(&parent)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        parent = child;
    }
    Ok(())
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_durable_write_replaces_and_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        write_file_durable(dir.path(), "tile/0/x001/000", b"one").unwrap();
        write_file_durable(dir.path(), "tile/0/x001/000", b"two").unwrap();
        let parent = dir.path().join("tile/0/x001");
        assert_eq!(fs::read(parent.join("000")).unwrap(), b"two");
        assert_eq!(fs::read_dir(parent).unwrap().count(), 1);
    }

    #[test]
    fn a_path_cannot_leave_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../escape", "/tmp/escape", "tile/../../escape", "", "."] {
            let error = write_file_durable(&dir.path().join("log"), path, b"").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}");
        }
    }

    #[test]
    fn the_checkpoint_before_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).ok();
        assert_eq!(read_checkpoint(dir.path()).unwrap(), None);
        write_checkpoint(dir.path(), "first").unwrap();
        assert_eq!(read_checkpoint(dir.path()).unwrap().unwrap(), b"first");
        assert_eq!((read(CHECKPOINT), read(CHECKPOINT_PREVIOUS)), (Some("first".into()), None));
        // What a crash between the two renames leaves behind must not stop the next write.
        fs::write(dir.path().join(".checkpoint.prev.tmp"), "torn").unwrap();
        fs::write(dir.path().join(".checkpoint.tmp"), "torn").unwrap();
        for (new, old) in [("second", "first"), ("third", "second")] {
            write_checkpoint(dir.path(), new).unwrap();
            assert_eq!((read(CHECKPOINT), read(CHECKPOINT_PREVIOUS)), (Some(new.into()), Some(old.into())));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_tile_is_read_from_the_narrowest_file_that_suffices() {
        let dir = tempfile::tempdir().unwrap();
        let tiles = DirTiles::new(dir.path());
        let bytes: Vec<u8> = (0..=255u8).flat_map(|n| [n; 32]).collect();
        let write =
            |path: &str, hashes: usize| write_file_durable(dir.path(), path, &bytes[..hashes * 32]).unwrap();
        assert!(matches!(tiles.tile(0, 0, 3), Err(TileError::Missing { path }) if path == "tile/0/000.p/3"));
        write("tile/0/000.p/9", 9);
        write("tile/0/000.p/2", 2);
        assert_eq!(tiles.tile(0, 0, 3).unwrap().len(), 3);
        assert!(matches!(tiles.tile(0, 0, 10), Err(TileError::Missing { .. })));
        write("tile/0/000", 256);
        assert_eq!(tiles.tile(0, 0, 10).unwrap()[9], Hash::from([9; 32]));
        assert_eq!(tiles.tile(0, 0, 256).unwrap().len(), 256);
        write("tile/0/001.p/4", 5);
        assert!(matches!(tiles.tile(0, 1, 4), Err(TileError::WrongLength { bytes: 160, .. })));
    }
}
