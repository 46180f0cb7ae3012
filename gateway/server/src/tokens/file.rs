//! `tokens.json`: who writes it holds a lock beside it and replaces it as a whole, so that a reader sees the one before or the one after.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};

use gatepost_core::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Created, LIVE_MAX, now};

pub(super) const FILE: &str = "tokens.json";
const LOCK: &str = "tokens.lock";
const MODE: u32 = 0o600;
const MODE_FORBIDDEN: u32 = 0o077;
/// Some thousands of tokens; a larger file is something else.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum TokensError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: others than its owner have rights on it; take them away (chmod 0600)")]
    Exposed { path: PathBuf },
    /// Its text is not repeated.
    #[error(
        "{path} is not a file that `gatepost token` wrote (line {line}); put it right, or remove it, which revokes every token"
    )]
    Broken { path: PathBuf, line: usize },
    #[error("there is no data directory {path} yet: start the gateway once")]
    NoDataDir { path: PathBuf },
    #[error("{app} has {LIVE_MAX} live tokens, the most there may be: revoke one of {}", .ids.join(", "))]
    TooMany { app: String, ids: Vec<String> },
    #[error("there is no token {0}")]
    NotFound(String),
    #[error("the system gives no random bytes")]
    Random,
}

/// SHA-256, hex in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digest(pub(super) [u8; 32]);

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Digest")
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let hex: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&hex)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let hex = String::deserialize(deserializer)?;
        let mut bytes = [0; 32];
        let digits = hex.len() == 64 && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
        for (at, byte) in bytes.iter_mut().enumerate() {
            let pair = hex.get(2 * at..2 * at + 2).filter(|_| digits);
            let parsed = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok());
            *byte = parsed.ok_or_else(|| serde::de::Error::custom("not a SHA-256"))?;
        }
        Ok(Self(bytes))
    }
}

/// One token, as the file knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) app: String,
    pub(super) sha256: Digest,
    /// Of the selector that the app had when it was made.
    pub(crate) binding: Digest,
    /// RFC 3339, UTC.
    pub(crate) created: String,
    /// RFC 3339, UTC. There is no token without one.
    pub(crate) expires: String,
}

impl Entry {
    /// A date that cannot be read is over.
    pub(crate) fn has_expired(&self, now: Timestamp) -> bool {
        Timestamp::parse_rfc3339(&self.expires).is_none_or(|expires| expires <= now)
    }

    pub(crate) fn is_bound_to(&self, selector: &crate::config::Selector) -> bool {
        self.binding.0 == selector.binding()
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    tokens: Vec<Entry>,
}

/// By what a changed file is noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Print(u64, u64, u64, (i64, i64), (i64, i64));

impl Print {
    /// `None` for a file that is not there.
    pub(super) fn of(file: &Path) -> Option<Self> {
        let found = fs::metadata(file).ok()?;
        let (content, rights) = ((found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec()));
        Some(Self(found.dev(), found.ino(), found.size(), content, rights))
    }
}

/// The tokens of the file; none if it is not there.
pub(super) fn read(path: &Path) -> Result<Vec<Entry>, TokensError> {
    let failed = |source| TokensError::Io { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    if file.metadata().map_err(failed)?.mode() & MODE_FORBIDDEN != 0 {
        return Err(TokensError::Exposed { path: path.to_owned() });
    }
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut text).map_err(failed)?;
    let contents: Contents = serde_json::from_slice(&text)
        .map_err(|error| TokensError::Broken { path: path.to_owned(), line: error.line() })?;
    Ok(contents.tokens)
}

/// The file, to be changed: nobody else changes it meanwhile.
pub(crate) struct Ledger {
    data_dir: PathBuf,
    pub(crate) entries: Vec<Entry>,
    _lock: File,
}

impl Ledger {
    pub(crate) fn open(data_dir: &Path) -> Result<Self, TokensError> {
        if !data_dir.is_dir() {
            return Err(TokensError::NoDataDir { path: data_dir.to_owned() });
        }
        let lock = data_dir.join(LOCK);
        let failed = |source| TokensError::Io { path: lock.clone(), source };
        let locked = OpenOptions::new().create(true).truncate(false).write(true).mode(MODE).open(&lock);
        let locked = locked.map_err(failed)?;
        give_to_owner(&locked, data_dir).map_err(failed)?;
        locked.lock().map_err(failed)?;
        let entries = read(&data_dir.join(FILE))?;
        Ok(Self { data_dir: data_dir.to_owned(), entries, _lock: locked })
    }

    /// Adds a token, unless its app has as many as it may. What has expired goes.
    pub(crate) fn add(&mut self, created: &Created) -> Result<(), TokensError> {
        let Entry { app, binding, .. } = &created.entry;
        self.entries.retain(|entry| !entry.has_expired(now()));
        let live = self.entries.iter().filter(|entry| entry.app == *app && entry.binding == *binding);
        let ids: Vec<String> = live.map(|entry| entry.id.clone()).collect();
        if ids.len() >= LIVE_MAX {
            return Err(TokensError::TooMany { app: app.clone(), ids });
        }
        self.entries.push(created.entry.clone());
        self.write()
    }

    pub(crate) fn revoke(&mut self, id: &str) -> Result<Entry, TokensError> {
        let at = self.entries.iter().position(|entry| entry.id == id);
        let entry = self.entries.remove(at.ok_or_else(|| TokensError::NotFound(id.to_owned()))?);
        self.write()?;
        Ok(entry)
    }

    fn write(&self) -> Result<(), TokensError> {
        let path = self.data_dir.join(FILE);
        let failed = |source| TokensError::Io { path: path.clone(), source };
        let temporary = self.data_dir.join(format!("{FILE}.new"));
        // One that an interrupted command left behind may have other rights.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let mut file =
            OpenOptions::new().create_new(true).write(true).mode(MODE).open(&temporary).map_err(failed)?;
        give_to_owner(&file, &self.data_dir).map_err(failed)?;
        let contents = Contents { tokens: self.entries.clone() };
        let text = serde_json::to_vec_pretty(&contents).map_err(io::Error::from).map_err(failed)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&temporary, &path).map_err(failed)?;
        // A revocation that a power cut takes back would be none.
        File::open(&self.data_dir).and_then(|directory| directory.sync_all()).map_err(failed)
    }
}

/// Root makes tokens for a gateway that runs as somebody else, who must read the file.
fn give_to_owner(file: &File, data_dir: &Path) -> io::Result<()> {
    let (ours, owner) = (file.metadata()?, fs::metadata(data_dir)?);
    if (ours.uid(), ours.gid()) == (owner.uid(), owner.gid()) {
        return Ok(());
    }
    fchown(file, Some(owner.uid()), Some(owner.gid()))
}
