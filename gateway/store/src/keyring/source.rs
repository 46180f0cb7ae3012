//! Where seal keys come from. One trait, so that a hardware module or a key server can be another one.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::{SealKey, SealKeys};
use crate::data_dir::{DataDirError, at, hex, read_key, sync_dir, write_secret};

/// What a key is called that is being destroyed, in place of `key`.
const DESTROYED: &str = "destroyed";
/// Version of the first seal key.
pub(crate) const FIRST_VERSION: u32 = 1;

/// Where seal keys come from, by the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SealKeysFrom {
    /// `keys/` in the data directory.
    #[default]
    DataDir,
    /// Another directory, on another disk as a rule.
    Directory(PathBuf),
    /// A directory of credentials that systemd has put there for this service: nothing is written to it.
    Credentials(PathBuf),
}

/// Keeps the versions of the seal key.
pub(crate) trait SealKeySource: Send + Sync {
    /// Every version that is there.
    fn load(&self) -> Result<BTreeMap<u32, Zeroizing<[u8; 32]>>, DataDirError>;
    /// The numbers of those that are there, whether they can be read or not.
    fn versions(&self) -> Vec<u32>;
    /// Makes another version, durably.
    fn create(&self, version: u32) -> Result<(), DataDirError>;
    /// Destroys a version for good.
    fn destroy(&self, version: u32) -> Result<(), DataDirError>;
    /// Ends what a destruction that was interrupted has begun.
    fn sweep(&self) -> Result<(), DataDirError>;
    /// What the key of a version is called, for people.
    fn place(&self, version: u32) -> PathBuf;

    /// The versions, ready for use; an error if there is none.
    fn keys(&self) -> Result<Arc<SealKeys>, DataDirError> {
        let versions = self.load()?.into_iter().map(|(version, key)| (version, SealKey::new(*key)));
        let keys = SealKeys::new(versions);
        keys.map(Arc::new).map_err(|_| DataDirError::SealKeyMissing(self.place(FIRST_VERSION)))
    }
}

/// Files `seal-N.key` in a directory of ours.
pub(crate) struct KeyFiles(pub(crate) PathBuf);

/// Files `seal-N.key` that somebody else puts there before the start.
pub(crate) struct GivenKeys(pub(crate) PathBuf);

/// The version of a seal key, by its file's name; `None` of any other file.
pub(crate) fn version_of(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?.strip_prefix("seal-")?.strip_suffix(".key")?;
    name.parse().ok().filter(|version| *version >= FIRST_VERSION)
}

fn load(dir: &Path) -> Result<BTreeMap<u32, Zeroizing<[u8; 32]>>, DataDirError> {
    let mut keys = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let path = entry.map_err(at(dir))?.path();
        if let Some(version) = version_of(&path) {
            keys.insert(version, Zeroizing::new(read_key(&path)?));
        }
    }
    Ok(keys)
}

fn versions(dir: &Path) -> Vec<u32> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| version_of(&entry.path())).collect()
}

fn file(dir: &Path, version: u32) -> PathBuf {
    dir.join(format!("seal-{version}.key"))
}

/// A name that is gone leaves what stands in a file's blocks as it is.
fn overwrite(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    file.write_all(&vec![b'0'; length])?;
    file.sync_all()
}

impl SealKeySource for KeyFiles {
    fn load(&self) -> Result<BTreeMap<u32, Zeroizing<[u8; 32]>>, DataDirError> {
        load(&self.0)
    }

    fn versions(&self) -> Vec<u32> {
        versions(&self.0)
    }

    fn create(&self, version: u32) -> Result<(), DataDirError> {
        let path = self.place(version);
        if path.exists() {
            return Ok(());
        }
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(key.as_mut_slice())
            .map_err(|error| at(&path)(io::Error::other(error.to_string())))?;
        write_secret(&path, &hex(&*key))
    }

    /// First it loses its name, so that a start after a kill does not take half a key for one; what is left then, [`sweep`] ends.
    ///
    /// [`sweep`]: SealKeySource::sweep
    fn destroy(&self, version: u32) -> Result<(), DataDirError> {
        let path = self.place(version);
        fs::rename(&path, path.with_extension(DESTROYED)).map_err(at(&path))?;
        sync_dir(&self.0)?;
        gatepost_faults::point("seal_key.unnamed");
        self.sweep()
    }

    fn sweep(&self) -> Result<(), DataDirError> {
        let mut any = false;
        for entry in fs::read_dir(&self.0).map_err(at(&self.0))? {
            let path = entry.map_err(at(&self.0))?.path();
            if path.extension().is_some_and(|extension| extension == DESTROYED) {
                overwrite(&path).and_then(|()| fs::remove_file(&path)).map_err(at(&path))?;
                any = true;
            }
        }
        if any { sync_dir(&self.0) } else { Ok(()) }
    }

    fn place(&self, version: u32) -> PathBuf {
        file(&self.0, version)
    }
}

impl SealKeySource for GivenKeys {
    /// Where nobody has put any there may be no directory either.
    fn load(&self) -> Result<BTreeMap<u32, Zeroizing<[u8; 32]>>, DataDirError> {
        if self.0.exists() { load(&self.0) } else { Ok(BTreeMap::new()) }
    }

    fn versions(&self) -> Vec<u32> {
        versions(&self.0)
    }

    fn create(&self, version: u32) -> Result<(), DataDirError> {
        Err(DataDirError::SealKeyGiven(self.place(version)))
    }

    /// Whoever gives the keys takes them away.
    fn destroy(&self, version: u32) -> Result<(), DataDirError> {
        tracing::warn!(key = %self.place(version).display(), "nothing is sealed with it any more: destroy it where it comes from");
        Ok(())
    }

    fn sweep(&self) -> Result<(), DataDirError> {
        Ok(())
    }

    fn place(&self, version: u32) -> PathBuf {
        file(&self.0, version)
    }
}
