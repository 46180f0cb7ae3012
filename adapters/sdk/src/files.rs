//! Files that settings point to, and whether they have changed since they were read.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// What changes when a file is written, replaced, pointed elsewhere, or given other rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    changed: (i64, i64),
    bytes: u64,
}

impl Stamp {
    /// `None` for one that is not there.
    pub fn of(file: &Path) -> Option<Self> {
        let meta = std::fs::metadata(file).ok()?;
        let changed = (meta.ctime(), meta.ctime_nsec());
        Some(Self { device: meta.dev(), inode: meta.ino(), changed, bytes: meta.len() })
    }

    pub fn all<'a>(files: impl IntoIterator<Item = &'a Path>) -> Vec<Option<Self>> {
        files.into_iter().map(Self::of).collect()
    }
}
