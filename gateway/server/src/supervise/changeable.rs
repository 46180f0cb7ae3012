//! What adapters could put something in the place of: known for all of them at once, since what one has put there would be opened for
//! another.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::{Access, Level, RunAs, Sandbox};

/// Whoever is in a file's group or anybody may write, which is also how a list of further users shows.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Where the gateway's adapters may write. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Changeable(Arc<Mutex<BTreeMap<String, Reach>>>);

/// How far one adapter reaches, or all of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Reach {
    /// Without links.
    writable: Vec<PathBuf>,
    /// Whose files are not limited in any case, so that they write wherever their user may. Who runs as the gateway's user is not among
    /// them: that one can read by itself whatever the gateway can be made to open.
    users: Vec<RunAs>,
}

impl Changeable {
    /// Before an adapter may be started so. What a process of its name may write until then, it may still.
    pub(super) fn expect(&self, name: &str, sandbox: &Sandbox, implied: &Access) {
        self.of_all().entry(name.to_owned()).or_default().extend(Reach::of(sandbox, implied));
    }

    /// When the process of its name that was before is gone.
    pub(super) fn is_only(&self, name: &str, sandbox: &Sandbox, implied: &Access) {
        self.of_all().insert(name.to_owned(), Reach::of(sandbox, implied));
    }

    /// Forgets the others.
    pub(super) fn keep(&self, stays: impl Fn(&str) -> bool) {
        self.of_all().retain(|name, _| stays(name));
    }

    /// What any of them may change now.
    pub(super) fn now(&self) -> Reach {
        let mut all = Reach::default();
        self.of_all().values().cloned().for_each(|reach| all.extend(reach));
        all
    }

    fn of_all(&self) -> MutexGuard<'_, BTreeMap<String, Reach>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reach {
    fn of(sandbox: &Sandbox, implied: &Access) -> Self {
        let Sandbox { level, run_as, allow, .. } = sandbox;
        let users = match level {
            Level::Strict | Level::Standard => None,
            Level::Minimal | Level::Off => *run_as,
        };
        let real = |path: &PathBuf| fs::canonicalize(path).unwrap_or_else(|_| path.clone());
        Self {
            writable: allow.write.iter().chain(&implied.write).map(real).collect(),
            users: users.into_iter().collect(),
        }
    }

    fn extend(&mut self, more: Self) {
        self.writable.extend(more.writable);
        self.users.extend(more.users);
        self.writable.sort_unstable();
        self.writable.dedup();
        self.users.sort_unstable_by_key(|user| (user.uid, user.gid));
        self.users.dedup();
    }

    /// Whether one of them could exchange what lies at `path`, in the directory of which that is what the system says. Both without links.
    pub(super) fn covers(&self, path: &Path, dir: &Metadata) -> bool {
        let is_theirs = |user: &RunAs| user.uid == dir.uid();
        self.writable.iter().any(|writable| path.starts_with(writable))
            || !self.users.is_empty() && dir.mode() & WRITABLE_BY_OTHERS != 0
            || self.users.iter().any(is_theirs)
    }
}
