//! Files of a backup: written once, and known by their digest; and directories that are there as a whole or not at all.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{BackupError, at};

/// Read at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// What a file held when it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Recorded {
    pub(super) bytes: u64,
    /// Hexadecimal.
    pub(super) sha256: String,
}

/// Counts and hashes what passes.
#[derive(Default)]
struct Meter {
    bytes: u64,
    hash: Sha256,
}

impl Meter {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.hash.update(bytes);
    }

    fn recorded(self) -> Recorded {
        let sha256 = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Recorded { bytes: self.bytes, sha256 }
    }
}

/// A new file that only its owner may read, hashed while it is written.
pub(super) struct Sink {
    path: PathBuf,
    file: File,
    meter: Meter,
}

impl Sink {
    pub(super) fn create(path: &Path) -> Result<Self, BackupError> {
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(at(parent))?;
        }
        let file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(at(path))?;
        Ok(Self { path: path.to_path_buf(), file, meter: Meter::default() })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        self.meter.add(bytes);
        self.file.write_all(bytes).map_err(at(&self.path))
    }

    /// It is durable once its file system has been synced as a whole: file by file that would keep a gateway on the same disk waiting.
    pub(super) fn finish(self) -> Recorded {
        self.meter.recorded()
    }
}

pub(super) fn write_new(path: &Path, bytes: &[u8]) -> Result<Recorded, BackupError> {
    let mut sink = Sink::create(path)?;
    sink.write(bytes)?;
    Ok(sink.finish())
}

/// A file that is hashed while it is read.
pub(super) struct Reading {
    path: PathBuf,
    file: File,
    chunk: Vec<u8>,
    meter: Meter,
}

impl Reading {
    pub(super) fn open(path: &Path) -> Result<Self, BackupError> {
        let file = File::open(path).map_err(at(path))?;
        Ok(Self { path: path.to_path_buf(), file, chunk: vec![0; CHUNK_BYTES], meter: Meter::default() })
    }

    /// The next bytes; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, BackupError> {
        let read = loop {
            match self.file.read(&mut self.chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read.map_err(at(&self.path))?,
            }
        };
        let chunk = &self.chunk[..read];
        self.meter.add(chunk);
        Ok((read > 0).then_some(chunk))
    }

    /// What has been read so far.
    pub(super) fn recorded(self) -> Recorded {
        self.meter.recorded()
    }
}

pub(super) fn copy(from: &Path, to: &Path) -> Result<Recorded, BackupError> {
    let (mut reading, mut sink) = (Reading::open(from)?, Sink::create(to)?);
    while let Some(chunk) = reading.next()? {
        sink.write(chunk)?;
    }
    Ok(sink.finish())
}

pub(super) fn read_digest(path: &Path, mut passed: impl FnMut(u64)) -> Result<Recorded, BackupError> {
    let mut reading = Reading::open(path)?;
    while let Some(chunk) = reading.next()? {
        passed(chunk.len() as u64);
    }
    Ok(reading.recorded())
}

/// What has been written into a backup so far.
pub(super) struct Contents<'b> {
    dir: &'b Path,
    pub(super) files: BTreeMap<String, Recorded>,
}

impl<'b> Contents<'b> {
    pub(super) fn new(dir: &'b Path) -> Self {
        Self { dir, files: BTreeMap::new() }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(super) fn add(&mut self, name: &str, recorded: Recorded) {
        self.files.insert(name.to_owned(), recorded);
    }

    pub(super) fn copy(&mut self, from: &Path, name: &str) -> Result<(), BackupError> {
        let recorded = copy(from, &self.path(name))?;
        self.add(name, recorded);
        Ok(())
    }
}

/// Whether a name that a manifest gives stays below its directory.
pub(super) fn is_inside(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

/// A directory in the making. It is this process's as long as it is held, and goes with it, unless it is put in place; what a
/// killed process has left is removed by the next one that makes the same.
pub(super) struct Building {
    path: PathBuf,
    parent: PathBuf,
    /// Carries the lock.
    _held: File,
    stays: bool,
}

impl Building {
    pub(super) fn begin(parent: &Path, name: &str) -> Result<Self, BackupError> {
        let path = parent.join(name);
        let make = || DirBuilder::new().mode(0o700).create(&path);
        match make() {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let _left = Self::hold(&path)?;
                fs::remove_dir_all(&path).map_err(at(&path))?;
                make().map_err(at(&path))?;
            }
            Err(error) => return Err(at(&path)(error)),
        }
        let held = Self::hold(&path)?;
        Ok(Self { path, parent: parent.to_path_buf(), _held: held, stays: false })
    }

    /// Where `target`, which is not there yet or is empty, will stand.
    pub(super) fn beside(target: &Path) -> Result<Self, BackupError> {
        match fs::read_dir(target) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(BackupError::Taken(target.to_path_buf()));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(BackupError::Taken(target.to_path_buf()));
            }
            Err(error) => return Err(at(target)(error)),
        }
        let (parent, name) = place_of(target)?;
        Self::begin(&parent, &format!(".{name}.unfinished"))
    }

    fn hold(path: &Path) -> Result<File, BackupError> {
        let dir = File::open(path).map_err(at(path))?;
        match dir.try_lock() {
            Ok(()) => Ok(dir),
            Err(fs::TryLockError::WouldBlock) => Err(BackupError::Busy(path.to_path_buf())),
            Err(fs::TryLockError::Error(source)) => Err(at(path)(source)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes everything in it durable and gives it its name.
    pub(super) fn put_at(mut self, target: &Path) -> Result<(), BackupError> {
        sync_all(&self.path)?;
        gatepost_faults::point("backup.complete");
        fs::rename(&self.path, target).map_err(at(target))?;
        self.stays = true;
        sync_dir(&self.parent)
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if !self.stays {
            // What cannot be removed is removed by the next one.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The directory in which something stands, and its name there.
pub(super) fn place_of(path: &Path) -> Result<(PathBuf, String), BackupError> {
    let nowhere = || BackupError::Nowhere(path.to_path_buf());
    let path = std::path::absolute(path).map_err(at(path))?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(nowhere()) };
    if !parent.is_dir() {
        return Err(nowhere());
    }
    Ok((parent.to_path_buf(), name.to_string_lossy().into_owned()))
}

/// Names and contents of everything below a directory's file system.
pub(super) fn sync_all(dir: &Path) -> Result<(), BackupError> {
    let file = File::open(dir).map_err(at(dir))?;
    nix::unistd::syncfs(&file).map_err(|error| at(dir)(error.into()))
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), BackupError> {
    File::open(dir).and_then(|file| file.sync_all()).map_err(at(dir))
}
