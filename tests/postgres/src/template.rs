//! An empty cluster's data, made once below the target directory: copying costs a tenth of making.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;

use crate::cluster::USER;
use crate::place::Place;
use crate::programs::{Programs, run, unprivileged};

/// Raised when [`make`] makes something else: templates of another form are not used.
const FORM: u32 = 1;

/// Gives the place its data.
pub(crate) fn fill(place: &Place, programs: &Programs) -> io::Result<()> {
    let templates = directory()?;
    // Whose it is shows in the name, since others could not read it.
    let name = format!("{}-{FORM}-{}", programs.version()?, geteuid());
    let template = templates.join(&name);
    if template.exists() {
        return copy(&template, &place.data());
    }
    // The first makes it, the others wait; they would only keep each other from it.
    let lock = File::create(templates.join("lock"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    if template.exists() {
        return copy(&template, &place.data());
    }
    make(place, programs)?;
    // Renamed into place, so that it is whole or not there.
    let fresh = tempfile::Builder::new().prefix("fresh-").tempdir_in(&templates)?;
    copy(&place.data(), &fresh.path().join("data"))?;
    std::fs::rename(fresh.path().join("data"), template)
}

/// Below the target directory; this process is `target/PROFILE/deps/NAME`.
fn directory() -> io::Result<PathBuf> {
    let this = std::env::current_exe()?;
    let target = this.ancestors().nth(3).ok_or(io::ErrorKind::NotFound)?;
    let templates = target.join("postgres");
    std::fs::create_dir_all(&templates)?;
    Ok(templates)
}

fn make(place: &Place, programs: &Programs) -> io::Result<()> {
    let mut initdb = unprivileged(&programs.file("initdb"));
    initdb.args(["--auth", "trust", "--username", USER, "--encoding", "UTF8", "--no-locale"]);
    initdb.args(["--data-checksums", "--no-sync", "--pgdata"]).arg(place.data()).current_dir(place.dir());
    run(&mut initdb).map(drop)
}

/// As who we are, since the server's user may not see the target directory; owners stay.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    run(Command::new("cp").args(["--archive", "--reflink=auto"]).arg(from).arg(to)).map(drop)
}
