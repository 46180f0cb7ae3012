//! A cluster's directory, and the keeper that removes it.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use crate::programs::{owner, unprivileged};

/// Waits until its standard input ends, which it does however the tests' process ends; then kills what still works in the directory,
/// and removes that with what the server has outside it, a segment of shared memory.
///
/// A signal at the parent's death would not do: it comes when the thread ends that started the server, and each test is a thread.
/// Nor would dropping: a cluster in a static is never dropped, and a killed process drops nothing.
const KEEPER: &str = r#"
read -r line
found=yes
while [ "$found" ]; do
    found=
    for cwd in $(find /proc/[0-9]*/cwd -maxdepth 0 \( -lname "$1" -o -lname "$1/*" \) 2>/dev/null); do
        pid=${cwd#/proc/}
        kill -KILL "${pid%/cwd}" && found=yes
    done
    [ -z "$found" ] || sleep 0.02
done
segment=$(sed -n 7p "$1/data/postmaster.pid")
[ -z "$segment" ] || ipcrm --shmem-id "${segment##* }"
rm -rf "$1"
"#;

#[derive(Debug)]
pub(crate) struct Place {
    dir: PathBuf,
    keeper: Child,
}

impl Place {
    pub(crate) fn new() -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("gp-pg-").tempdir()?;
        give(dir.path())?;
        let keeper = unprivileged(Path::new("sh"))
            .args(["-c", KEEPER, "keeper"])
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // An interrupt from the terminal must not reach it before its work is done.
            .process_group(0)
            .current_dir("/")
            .spawn()?;
        Ok(Self { dir: dir.keep(), keeper })
    }

    /// Where the socket is.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Writes a file of the data directory, at once: the server may read it at any time.
    pub(crate) fn write(&self, name: &str, text: &str) -> io::Result<()> {
        self.write_as(name, text, 0o644)
    }

    /// As [`write`](Self::write), for the server alone.
    pub(crate) fn write_secret(&self, name: &str, text: &str) -> io::Result<()> {
        self.write_as(name, text, 0o600)
    }

    fn write_as(&self, name: &str, text: &str, mode: u32) -> io::Result<()> {
        let fresh = self.dir.join(name);
        std::fs::write(&fresh, text)?;
        std::fs::set_permissions(&fresh, Permissions::from_mode(mode))?;
        give(&fresh)?;
        std::fs::rename(fresh, self.data().join(name))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Closes its standard input first.
        let _ = self.keeper.wait();
    }
}

/// Makes it the server's.
fn give(path: &Path) -> io::Result<()> {
    match owner()? {
        Some(user) => chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())),
        None => Ok(()),
    }
}
