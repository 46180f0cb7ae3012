//! PostgreSQL's programs, and who runs them.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{User, geteuid};

/// Where Debian has them, by version.
const DEBIAN: &str = "/usr/lib/postgresql";
const NEEDED: [&str; 4] = ["postgres", "initdb", "psql", "pg_basebackup"];
/// Who runs the server when we are root, which it refuses.
const UNPRIVILEGED: &str = "nobody";

/// The directory of a server's programs.
#[derive(Debug, Clone)]
pub(crate) struct Programs(PathBuf);

impl Programs {
    pub(crate) fn newest() -> io::Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut places = debian().into_iter().chain(std::env::split_paths(&path));
        let complete = places.find(|dir| NEEDED.iter().all(|program| dir.join(program).is_file()));
        complete.map(Self).ok_or_else(|| {
            let why = "PostgreSQL's server programs are missing: install postgresql-15";
            io::Error::new(io::ErrorKind::NotFound, why)
        })
    }

    pub(crate) fn file(&self, program: &str) -> PathBuf {
        self.0.join(program)
    }

    /// As in `15.18`.
    pub(crate) fn version(&self) -> io::Result<String> {
        let said = run(Command::new(self.file("postgres")).arg("--version"))?;
        let version = said.split_whitespace().nth(2);
        version.map(str::to_owned).ok_or_else(|| io::Error::other(format!("no version: {said}")))
    }
}

/// The newest first.
fn debian() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    let mut versions: Vec<u32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    versions.sort_unstable();
    versions.iter().rev().map(|version| Path::new(DEBIAN).join(version.to_string()).join("bin")).collect()
}

/// A program that runs as who runs the server.
pub(crate) fn unprivileged(program: &Path) -> Command {
    if !geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", UNPRIVILEGED, "--regid", "nogroup", "--clear-groups", "--"]).arg(program);
    command
}

/// Whose the server's files must be; `None` if they are ours.
pub(crate) fn owner() -> io::Result<Option<User>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let user = User::from_name(UNPRIVILEGED)?;
    user.map(Some).ok_or_else(|| io::Error::other(format!("there is no user {UNPRIVILEGED}")))
}

/// Runs a program to its end and gives what it printed.
pub(crate) fn run(command: &mut Command) -> io::Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return String::from_utf8(output.stdout).map_err(io::Error::other);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{} {}: {said}", command.get_program().display(), output.status)))
}
