//! What the file system says about files that the gateway relies on: who owns them, who may read or change them.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::unistd::geteuid;

use super::Gateway;
use super::fault::{Report, Spot};
use super::rules::Rule;

const STICKY: u32 = 0o1000;
const WRITABLE_BY_ALL: u32 = 0o002;
const WRITABLE_BY_OTHERS: u32 = 0o022;
const OPEN_TO_OTHERS: u32 = 0o077;
/// Where systemd puts a unit's credentials, in a directory that is there while the unit runs. It may give them to the unit's user by
/// an access list, whose mask shows as permissions of the group; the directory lets nobody else in.
const CREDENTIALS: &str = "/run/credentials/";

/// Who may change what the gateway relies on: root, and the user that the gateway runs as.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owners {
    gateway: u32,
}

impl Owners {
    pub(crate) fn of_this_process() -> Self {
        Self { gateway: geteuid().as_raw() }
    }

    /// Root may check the file of a gateway that runs as somebody else, who owns its data.
    pub(super) fn of_gateway(gateway: &Gateway) -> Self {
        let us = geteuid();
        match (gateway.user, fs::metadata(&gateway.data_dir)) {
            (Some(user), _) if us.is_root() => Self { gateway: user.uid },
            (None, Ok(found)) if us.is_root() => Self { gateway: found.uid() },
            _ => Self { gateway: us.as_raw() },
        }
    }

    fn trust(self, found: &Metadata) -> bool {
        found.uid() == 0 || found.uid() == self.gateway
    }

    /// Why a socket does not belong in `directory`: whoever may write to it may replace the socket by their own, and collect
    /// what was meant for us.
    pub(crate) fn directory_fault(self, directory: &Path) -> io::Result<Option<&'static str>> {
        // Symbolic links on the way (`/var/run`) are followed first; what they lead to is judged.
        let real = fs::canonicalize(directory)?;
        for (depth, above) in real.ancestors().enumerate() {
            let found = fs::symlink_metadata(above)?;
            if depth == 0 && !found.is_dir() {
                return Ok(Some("it is not a directory"));
            }
            if depth == 0 && !self.trust(&found) {
                return Ok(Some(
                    "it belongs to another user; it must belong to root or to the gateway's user",
                ));
            }
            // Above the socket's own directory a group may write: home directories often are like that.
            let forbidden = if depth == 0 { WRITABLE_BY_OTHERS } else { WRITABLE_BY_ALL };
            // In a sticky directory of a trusted owner others can add files, but neither remove nor rename ours.
            if found.mode() & forbidden != 0 && !(found.mode() & STICKY != 0 && self.trust(&found)) {
                return Ok(Some(match depth {
                    0 => {
                        "its group or everybody may write to it; take that away (chmod go-w) or choose another directory"
                    }
                    _ => "everybody may write to a directory above it; choose another place",
                }));
            }
        }
        Ok(None)
    }

    /// The directory that a socket is put into. One that is not there will be made.
    pub(super) fn check_socket(self, socket: &Path, spot: &Spot, report: &mut Report<'_>) {
        let Some(directory) = socket.parent() else { return };
        // What cannot be looked at is left to whoever binds.
        if let Ok(Some(why)) = self.directory_fault(directory) {
            report.refuse(Rule::SocketDirectory, spot, format!("directory {}: {why}", directory.display()));
        }
    }

    /// A file that only the gateway may read.
    pub(super) fn check_secret(self, file: &Path, spot: &Spot, report: &mut Report<'_>) {
        if is_credential(file) {
            return;
        }
        if fs::symlink_metadata(file).is_ok_and(|found| found.is_symlink()) {
            report.refuse(
                Rule::OpenKeyFile,
                spot,
                "a symbolic link, which can be led elsewhere: name the file itself",
            );
        }
        let Some(found) = regular(file) else { return };
        if found.mode() & OPEN_TO_OTHERS != 0 {
            let mode = found.mode() & 0o777;
            let why = format!(
                "holds a secret and is open to others (mode {mode:04o}): chmod 0600 {}",
                file.display()
            );
            report.refuse(Rule::OpenKeyFile, spot, why);
        } else if !self.trust(&found) {
            report.refuse(Rule::OpenKeyFile, spot, foreign(file));
        }
    }

    /// A file that everybody may read and only the gateway's side may change.
    pub(super) fn check_public(self, file: &Path, spot: &Spot, report: &mut Report<'_>) {
        let Some(found) = regular(file).filter(|_| !is_credential(file)) else { return };
        if found.mode() & WRITABLE_BY_OTHERS != 0 {
            let why =
                format!("others can write it, and so decide whom it lets in: chmod go-w {}", file.display());
            report.refuse(Rule::OpenKeyFile, spot, why);
        } else if !self.trust(&found) {
            report.refuse(Rule::OpenKeyFile, spot, foreign(file));
        }
    }

    /// The program of a supervised adapter.
    pub(super) fn check_program(self, file: &Path, spot: &Spot, report: &mut Report<'_>) {
        let Some(found) = regular(file) else { return };
        let directory = file.parent().and_then(|directory| fs::metadata(directory).ok());
        let replaceable = directory
            .is_some_and(|found| found.mode() & WRITABLE_BY_OTHERS != 0 && found.mode() & STICKY == 0);
        if found.mode() & WRITABLE_BY_OTHERS != 0 || replaceable || !self.trust(&found) {
            let why = format!(
                "{} can be changed by others than root and the gateway's user: chown it to root, and chmod go-w it and its directory",
                file.display()
            );
            report.warn(Rule::WritableProgram, spot, why);
        }
    }
}

fn foreign(file: &Path) -> String {
    format!("{} belongs to another user: it must belong to root or to the gateway's user", file.display())
}

/// Devices and what cannot be looked at are left to whoever opens them.
pub(super) fn regular(file: &Path) -> Option<Metadata> {
    fs::metadata(file).ok().filter(Metadata::is_file)
}

/// Whether systemd hands over what is at `path`.
pub(crate) fn is_credential(path: &Path) -> bool {
    path.starts_with(CREDENTIALS)
}
