//! The files that the configuration names: where they are, and that only those can read or change them who should.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::Gateway;
use super::fault::{Report, Spot};
use super::owners::{Owners, is_credential, regular};
use super::rules::Rule;
use super::section::Item;

/// The directory that holds the configuration file, where relative paths begin.
#[derive(Clone, Copy)]
pub(super) struct Base<'d>(pub(super) &'d Path);

/// The files of one configuration, judged as its gateway's.
pub(super) struct Files<'d> {
    pub(super) base: Base<'d>,
    pub(super) owners: Owners,
    secrets: SecretFiles,
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
struct SecretFiles(Vec<(Purpose, PathBuf)>);

impl Base<'_> {
    pub(super) fn resolve(&self, path: &Item<&str>, report: &mut Report<'_>) -> PathBuf {
        if path.value == "~" || path.value.starts_with("~/") {
            report.add(&path.spot, "`~` is not expanded: write the whole path");
        }
        self.0.join(path.value)
    }

    /// A path whose file must be there. One that may not be looked at, or comes with a unit that does not run, is left to whoever
    /// opens it.
    pub(super) fn existing(&self, path: &Item<&str>, report: &mut Report<'_>) -> PathBuf {
        let resolved = self.resolve(path, report);
        if let Err(error) = std::fs::metadata(&resolved)
            && error.kind() == std::io::ErrorKind::NotFound
            && (!is_credential(&resolved) || resolved.parent().is_some_and(Path::exists))
        {
            report.add(
                &path.spot,
                format!("there is no file {}: create it, or correct the path", resolved.display()),
            );
        }
        resolved
    }
}

impl<'d> Files<'d> {
    pub(super) fn of_gateway(base: Base<'d>, gateway: &Gateway) -> Self {
        Self {
            base,
            owners: Owners::of_gateway(gateway),
            secrets: SecretFiles::of_gateway(&gateway.data_dir),
        }
    }

    /// A socket that the gateway makes.
    pub(super) fn socket(&self, path: &Item<&str>, report: &mut Report<'_>) -> PathBuf {
        let socket = self.base.resolve(path, report);
        self.owners.check_socket(&socket, &path.spot, report);
        socket
    }

    /// A file that everybody may read and only the gateway's side may change.
    pub(super) fn public(&self, path: &Item<&str>, report: &mut Report<'_>) -> PathBuf {
        let file = self.base.existing(path, report);
        self.owners.check_public(&file, &path.spot, report);
        file
    }

    /// A file that only the gateway may read.
    pub(super) fn secret(&mut self, path: &Item<&str>, purpose: Purpose, report: &mut Report<'_>) -> PathBuf {
        let file = self.base.existing(path, report);
        self.owners.check_secret(&file, &path.spot, report);
        self.secrets.add(purpose, &file, &path.spot, report);
        file
    }
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
    fn of_gateway(data_dir: &Path) -> Self {
        let keys = data_dir.join("keys");
        let seal = std::fs::read_dir(&keys).into_iter().flatten().flatten().map(|entry| entry.path());
        let seal = seal
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("seal-")));
        let mut files: Vec<_> = seal.map(|path| (Purpose::Seal, path)).collect();
        files.extend([(Purpose::AuditLog, keys.join("audit.key")), (Purpose::Store, keys.join("store.key"))]);
        Self(files)
    }

    fn add(&mut self, purpose: Purpose, file: &Path, spot: &Spot, report: &mut Report<'_>) {
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
