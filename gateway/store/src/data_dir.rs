//! The data directory: its layout, its lock, its keys. It is created 0700 with keys 0600; data without its keys is refused.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gatepost_audit::{SignerKey, VerifierKey};
use zeroize::Zeroizing;

use crate::keyring::SealKeys;
use crate::keyring::source::{FIRST_VERSION, GivenKeys, KeyFiles, SealKeySource, SealKeysFrom, version_of};

const STORE_KEY: &str = "store.key";
const AUDIT_KEY: &str = "audit.key";
/// What people call the seal key, of whatever version.
const ANY_SEAL_KEY: &str = "seal-N.key";
/// Bytes set aside so that settling goes on when the disk is full.
pub(crate) const RESERVE_BYTES: u64 = 8 * 1024 * 1024;

#[derive(Clone, Debug)]
pub(crate) struct DataDir {
    root: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{0} is in use by another gateway")]
    InUse(PathBuf),
    #[error("{data} is there but its key {key} is not: restore the key, or move the data away to start anew")]
    KeyMissing { data: PathBuf, key: PathBuf },
    #[error(
        "{dir} belongs to the gateway `{owner}`, and the configuration says `{name}`: its log goes by that name for good"
    )]
    AnotherGateways { dir: PathBuf, owner: String, name: String },
    #[error(
        "{data} is there but no version of its seal key, {key}: what is stored cannot be opened without it; restore the newest, or \
         move the data away to start anew"
    )]
    SealKeysGone { data: PathBuf, key: PathBuf },
    #[error("there is no {0} and no later version of it: what it sealed cannot be read without it")]
    SealKeyMissing(PathBuf),
    #[error(
        "{0} is not there, and this gateway does not make the keys that it is given: put it there, and start again"
    )]
    SealKeyGiven(PathBuf),
    #[error("{0} is not a key of this gateway")]
    KeyMalformed(PathBuf),
}

/// Keys of a data directory.
pub(crate) struct Keys {
    /// Wraps data keys; at least one.
    pub(crate) seal: Arc<SealKeys>,
    /// Keys HMACs of indexed identifiers.
    pub(crate) store: [u8; 32],
    pub(crate) signer: SignerKey,
    /// Where the seal keys are kept.
    pub(crate) source: Arc<dyn SealKeySource>,
}

impl DataDir {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.root.join("gatepost.db")
    }

    /// The database once everything in it has been moved to another.
    pub(crate) fn moved(&self) -> PathBuf {
        self.root.join("gatepost.db.moved")
    }

    pub(crate) fn wal(&self) -> PathBuf {
        self.root.join("gatepost.db-wal")
    }

    /// Which node the newest start was, among those that share a database.
    pub(crate) fn node(&self) -> PathBuf {
        self.root.join("node")
    }

    pub(crate) fn audit(&self) -> PathBuf {
        self.root.join("audit")
    }

    pub(crate) fn reserve(&self) -> PathBuf {
        self.root.join("reserve")
    }

    fn keys_dir(&self) -> PathBuf {
        self.root.join("keys")
    }

    pub(crate) fn key_files(&self) -> Result<Vec<PathBuf>, DataDirError> {
        key_files(&self.keys_dir())
    }

    pub(crate) fn store_key(&self) -> PathBuf {
        self.keys_dir().join(STORE_KEY)
    }

    pub(crate) fn audit_key(&self) -> PathBuf {
        self.keys_dir().join(AUDIT_KEY)
    }

    /// Makes the directories that are not there. Until there is a database, every start makes their names durable, the whole way
    /// up: the start that made them may have been killed before it could.
    pub(crate) fn create(&self) -> Result<(), DataDirError> {
        for dir in [self.root.clone(), self.keys_dir(), self.audit()] {
            if !dir.is_dir() {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(at(&dir))?;
            }
        }
        if self.database().exists() {
            return Ok(());
        }
        sync_dir(&self.root)?;
        let root = fs::canonicalize(&self.root).map_err(at(&self.root))?;
        for above in root.ancestors().skip(1) {
            match sync_dir(above) {
                // What this user may not read it has not made either.
                Err(DataDirError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {}
                synced => synced?,
            }
        }
        Ok(())
    }

    /// Makes the database's file, so that it and what SQLite puts beside it are nobody else's to read.
    pub(crate) fn create_database(&self) -> Result<(), DataDirError> {
        let path = self.database();
        let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path);
        file.map(drop).map_err(at(&path))
    }

    /// Gives the database, closed well, the name under which no gateway opens it.
    pub(crate) fn move_database(&self) -> Result<(), DataDirError> {
        // Its last connection has emptied the WAL: what is left beside the file holds nothing.
        let (path, moved) = (self.database(), self.moved());
        for beside in [self.wal(), self.root.join("gatepost.db-shm")] {
            match fs::remove_file(&beside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&beside)(error)),
                _ => {}
            }
        }
        fs::rename(&path, &moved).map_err(at(&path))?;
        gatepost_faults::point("copy.renamed");
        sync_dir(&self.root)
    }

    /// Takes the lock that keeps a second gateway away; it is held as long as the file is.
    pub(crate) fn lock(&self) -> Result<File, DataDirError> {
        let path = self.root.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(at(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => Err(DataDirError::InUse(self.root.clone())),
            Err(fs::TryLockError::Error(source)) => Err(DataDirError::Io { path, source }),
        }
    }

    /// Loads the keys, or makes them where there is no data yet.
    pub(crate) fn keys(&self, origin: &str, seal_keys: &SealKeysFrom) -> Result<Keys, DataDirError> {
        let source = self.seal_key_source(seal_keys);
        let data = [self.database(), self.node(), self.moved()].into_iter().find(|data| data.exists());
        let (store_key, audit_key) = (self.store_key(), self.audit_key());
        let mut created = false;
        if source.load()?.is_empty() {
            if let Some(data) = data {
                let key = source.place(FIRST_VERSION).with_file_name(ANY_SEAL_KEY);
                return Err(DataDirError::SealKeysGone { data, key });
            }
            created = true;
        }
        for key in [&store_key, &audit_key] {
            if key.exists() {
                continue;
            }
            if let Some(data) = data {
                return Err(DataDirError::KeyMissing { data, key: key.clone() });
            }
            created = true;
        }
        if created {
            self.make_keys(origin, &*source)?;
        }
        let store = read_key(&store_key)?;
        let signer = fs::read_to_string(&audit_key).map_err(at(&audit_key))?;
        let signer = SignerKey::parse(signer.trim()).map_err(|_| DataDirError::KeyMalformed(audit_key))?;
        if signer.name() != origin {
            let (dir, owner) = (self.root.clone(), signer.name().to_owned());
            return Err(DataDirError::AnotherGateways { dir, owner, name: origin.to_owned() });
        }
        self.keep_vkey(&signer.verifier())?;
        Ok(Keys { store, signer, seal: source.keys()?, source })
    }

    /// Keys of a new directory: those given, others made.
    pub(crate) fn put_keys(
        &self,
        store: Option<&[u8; 32]>,
        seal: &BTreeMap<u32, [u8; 32]>,
        signer: Option<&SignerKey>,
        origin: &str,
    ) -> Result<Keys, DataDirError> {
        if let Some(store) = store {
            write_secret(&self.store_key(), &hex(store))?;
        }
        for (version, key) in seal {
            write_secret(&self.seal_key(*version), &hex(key))?;
        }
        if let Some(signer) = signer {
            write_secret(&self.audit_key(), &signer.encode())?;
        }
        self.keys(origin, &SealKeysFrom::DataDir)
    }

    pub(crate) fn seal_key_source(&self, from: &SealKeysFrom) -> Arc<dyn SealKeySource> {
        match from {
            SealKeysFrom::DataDir => Arc::new(KeyFiles(self.keys_dir())),
            SealKeysFrom::Directory(dir) => Arc::new(KeyFiles(dir.clone())),
            SealKeysFrom::Credentials(dir) => Arc::new(GivenKeys(dir.clone())),
        }
    }

    pub(crate) fn seal_key(&self, version: u32) -> PathBuf {
        self.keys_dir().join(format!("seal-{version}.key"))
    }

    fn make_keys(&self, origin: &str, seal_keys: &dyn SealKeySource) -> Result<(), DataDirError> {
        let random = |path: &Path| -> Result<[u8; 32], DataDirError> {
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).map_err(|error| DataDirError::Io {
                path: path.to_path_buf(),
                source: std::io::Error::other(error.to_string()),
            })?;
            Ok(seed)
        };
        let (store_key, audit_key) = (self.store_key(), self.audit_key());
        // First: a key that is given may not be there.
        if seal_keys.load()?.is_empty() {
            seal_keys.create(FIRST_VERSION)?;
        }
        if !store_key.exists() {
            write_secret(&store_key, &hex(&random(&store_key)?))?;
        }
        if !audit_key.exists() {
            let signer = SignerKey::from_seed(origin, &random(&audit_key)?)
                .map_err(|_| DataDirError::KeyMalformed(audit_key.clone()))?;
            write_secret(&audit_key, &signer.encode())?;
        }
        Ok(())
    }

    /// The public key beside the log, for whoever verifies it. Written where it is not as it should be: a first start may have
    /// been killed before it came to that.
    fn keep_vkey(&self, key: &VerifierKey) -> Result<(), DataDirError> {
        let (path, text) = (self.audit().join(gatepost_audit::VKEY), format!("{key}\n"));
        if fs::read(&path).is_ok_and(|found| found == text.as_bytes()) {
            return Ok(());
        }
        gatepost_audit::write_file_durable(&self.audit(), gatepost_audit::VKEY, text.as_bytes())
            .map_err(at(&path))
    }

    /// Sets the reserve aside if it is not there. Without space for it there is nothing to set aside, which is no error.
    pub(crate) fn keep_reserve(&self) -> io::Result<()> {
        let path = self.reserve();
        if path.metadata().is_ok_and(|metadata| metadata.len() == RESERVE_BYTES) {
            return Ok(());
        }
        let write = || -> io::Result<()> {
            let mut file =
                OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path)?;
            let block = vec![0; 1024 * 1024];
            for _ in 0..RESERVE_BYTES / (1024 * 1024) {
                file.write_all(&block)?;
            }
            file.sync_all()
        };
        write().inspect_err(|_| drop(fs::remove_file(&path)))
    }

    pub(crate) fn release_reserve(&self) -> io::Result<()> {
        match fs::remove_file(self.reserve()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => sync_dir(&self.root).map_err(|error| io::Error::other(error.to_string())),
        }
    }
}

/// The keys in a directory: those that there is one of, whether it is there or not, and every version of the seal key.
pub(crate) fn key_files(dir: &Path) -> Result<Vec<PathBuf>, DataDirError> {
    let mut files = vec![dir.join(STORE_KEY), dir.join(AUDIT_KEY)];
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let path = entry.map_err(at(dir))?.path();
        if version_of(&path).is_some() {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

pub(crate) fn read_key(path: &Path) -> Result<[u8; 32], DataDirError> {
    let text = Zeroizing::new(fs::read_to_string(path).map_err(at(path))?);
    from_hex(text.trim()).ok_or_else(|| DataDirError::KeyMalformed(path.to_path_buf()))
}

/// Writes a file that is whole or not there, whenever the machine stops.
pub(crate) fn write_secret(path: &Path, text: &str) -> Result<(), DataDirError> {
    let temporary = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().map_err(at(path))
}

pub(crate) fn sync_dir(path: &Path) -> Result<(), DataDirError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(at(path))
}

pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_path_buf();
    move |source| DataDirError::Io { path, source }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}
