//! Files that settings point to, and whether they have changed since they were read.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::client::locked;

/// What changes when a file is written, replaced, pointed elsewhere, or given other rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    changed: (i64, i64),
    bytes: u64,
}

impl Stamp {
    /// `None` for one that is not there.
    fn of(file: &Path) -> Option<Self> {
        let meta = std::fs::metadata(file).ok()?;
        let changed = (meta.ctime(), meta.ctime_nsec());
        Some(Self { device: meta.dev(), inode: meta.ino(), changed, bytes: meta.len() })
    }

    fn all<'a>(files: impl IntoIterator<Item = &'a Path>) -> Vec<Option<Self>> {
        files.into_iter().map(Self::of).collect()
    }
}

/// What is read from files, and read again when they have changed. Files that cannot be used leave in force what was read before.
#[derive(Debug)]
pub struct Live<T>(Mutex<Held<T>>);

#[derive(Debug)]
struct Held<T> {
    read: Arc<T>,
    /// The files as they were when they were last read.
    stamps: Vec<Option<Stamp>>,
}

impl<T> Live<T> {
    /// `files` are those that `read` reads.
    pub fn new<'a, E>(
        files: impl IntoIterator<Item = &'a Path>,
        read: impl FnOnce() -> Result<T, E>,
    ) -> Result<Self, E> {
        // Before they are read: what changes in between is read once more.
        let stamps = Stamp::all(files);
        Ok(Self(Mutex::new(Held { read: Arc::new(read()?), stamps })))
    }

    /// As it is now; the same files and the same way to read them.
    pub fn current<'a, E: fmt::Display>(
        &self,
        files: impl IntoIterator<Item = &'a Path>,
        read: impl FnOnce() -> Result<T, E>,
    ) -> Arc<T> {
        let stamps = Stamp::all(files);
        let mut held = locked(&self.0);
        if held.stamps != stamps {
            // Told once per change: a bad file is looked at again when it changes again.
            held.stamps = stamps;
            match read() {
                Ok(read) => {
                    held.read = Arc::new(read);
                    tracing::info!("files of the settings have changed and were read again");
                }
                Err(error) => {
                    tracing::warn!(%error, "files of the settings have changed and cannot be used; going on with what they held before");
                }
            }
        }
        Arc::clone(&held.read)
    }
}
