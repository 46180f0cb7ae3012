//! What the file system says about files that the gateway relies on: who owns them, who may read or change them.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::Gateway;
use super::fault::{Report, Spot};
use super::paths::is_credential;
use super::rules::Rule;

const STICKY: u32 = 0o1000;
const WRITABLE_BY_ALL: u32 = 0o002;
const WRITABLE_BY_OTHERS: u32 = 0o022;
const OPEN_TO_OTHERS: u32 = 0o077;

/// Who may change what the gateway relies on: root, and the user that the gateway runs as.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owners {
    gateway: u32,
}

/// What a secret is for. No two of them may be one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Tls,
    AuditLog,
    Store,
    Seal,
    Database,
}

/// The files of one configuration that hold secrets, to find those that serve two purposes.
#[derive(Default)]
pub(super) struct SecretFiles(Vec<(Purpose, PathBuf)>);

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
fn regular(file: &Path) -> Option<Metadata> {
    fs::metadata(file).ok().filter(Metadata::is_file)
}

impl Purpose {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "TLS",
            Self::AuditLog => "the audit log",
            Self::Store => "the store",
            Self::Seal => "the stored messages",
            Self::Database => "the database",
        }
    }
}

impl SecretFiles {
    /// With the keys that the gateway makes for itself.
    pub(super) fn of_gateway(data_dir: &Path) -> Self {
        let keys = data_dir.join("keys");
        let seal = std::fs::read_dir(&keys).into_iter().flatten().flatten().map(|entry| entry.path());
        let seal = seal
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("seal-")));
        let mut files: Vec<_> = seal.map(|path| (Purpose::Seal, path)).collect();
        files.extend([(Purpose::AuditLog, keys.join("audit.key")), (Purpose::Store, keys.join("store.key"))]);
        Self(files)
    }

    pub(super) fn add(&mut self, purpose: Purpose, file: &Path, spot: &Spot, report: &mut Report<'_>) {
        let other = self.0.iter().find(|(other, path)| *other != purpose && same_file(path, file));
        if let Some((other, _)) = other {
            let why = format!(
                "the secret of {} is the one of {} too: who learns one must not have the other; make another file",
                purpose.as_str(),
                other.as_str(),
            );
            report.refuse(Rule::OneKeyTwoPurposes, spot, why);
        }
        self.0.push((purpose, file.to_owned()));
    }
}

/// By whatever name: links of both kinds are followed.
fn same_file(one: &Path, other: &Path) -> bool {
    let at = |path: &Path| regular(path).map(|found| (found.dev(), found.ino()));
    at(one).is_some_and(|one| at(other) == Some(one))
}
