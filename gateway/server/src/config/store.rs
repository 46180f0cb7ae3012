//! `[store]` and `[encryption]`: where the messages are, and the keys that open them.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use gatepost_store::{Encryption, Engines, OpenError, SealKeysFrom, check_address};

use super::fault::Report;
use super::files::{Base, Files, Purpose};
use super::rules::Rule;
use super::section::{Item, Section};
use super::{Config, Store};

/// What stands in place of a directory for keys that systemd gives.
pub(crate) const CREDENTIALS: &str = "credentials";
/// … of the service as the package installs it.
const SERVICE_CREDENTIALS: &str = "/run/credentials/gatepost.service";
/// Longest file that is read as a database's address.
const URL_BYTES_MAX: u64 = 1 << 16;

/// `[store]`
pub(super) fn read(root: &Section<'_>, files: &mut Files<'_>, report: &mut Report<'_>) -> Store {
    let postgres = root.table("store").and_then(|store| store.table("postgres"));
    let Some(postgres) = postgres else { return Store::Sqlite };
    let Some(path) = postgres.text("url_file") else { return Store::Sqlite };
    let engines = match postgres.truth("experimental") {
        Some(true) => Engines::Alike,
        Some(false) | None => Engines::Postgres,
    };
    let url_file = files.secret(&path, Purpose::Database, report);
    check_url(&url_file, &path, report);
    Store::Postgres { url_file, engines }
}

/// What can be said of the address without asking the server. A file that may not be read is left to whoever opens it.
fn check_url(file: &Path, path: &Item<&str>, report: &mut Report<'_>) {
    if !std::fs::metadata(file).is_ok_and(|found| found.is_file() && found.len() <= URL_BYTES_MAX) {
        return;
    }
    let Ok(url) = std::fs::read_to_string(file) else { return };
    match check_address(url.trim()) {
        Err(error @ OpenError::Unverified { .. }) => {
            report.refuse(Rule::UnverifiedDatabase, &path.spot, error.to_string());
        }
        Err(error) => report.add(&path.spot, error.to_string()),
        Ok(()) => {}
    }
}

/// `[encryption]`
pub(super) fn encryption(root: &Section<'_>) -> Encryption {
    match root.table("encryption").and_then(|encryption| encryption.truth("at_rest")) {
        Some(false) => Encryption::Off,
        Some(true) | None => Encryption::On,
    }
}

/// Where the seal keys are.
pub(super) fn seal_keys(root: &Section<'_>, base: Base<'_>, report: &mut Report<'_>) -> SealKeysFrom {
    let Some(named) = root.table("encryption").and_then(|encryption| encryption.text("keys")) else {
        return SealKeysFrom::DataDir;
    };
    if named.value != CREDENTIALS {
        return SealKeysFrom::Directory(base.existing(&named, report));
    }
    SealKeysFrom::Credentials(credentials())
}

/// A copy of the disk that has the messages has their key too.
pub(super) fn warn_of_keys(root: &Section<'_>, config: &Config, report: &mut Report<'_>) {
    let data_dir = &config.gateway.data_dir;
    let keys = match &config.seal_keys {
        SealKeysFrom::DataDir => data_dir.join("keys"),
        SealKeysFrom::Directory(keys) => keys.clone(),
        SealKeysFrom::Credentials(_) => return,
    };
    let device = |path: &Path| std::fs::metadata(path).ok().map(|found| found.dev());
    if config.encryption == Encryption::On && device(data_dir).is_some() && device(data_dir) == device(&keys)
    {
        let named = root.table("encryption").and_then(|encryption| encryption.text("keys"));
        let data_dir = || root.table("gateway").and_then(|gateway| gateway.text("data_dir"));
        let spot = named.or_else(data_dir).map_or_else(|| root.spot.clone(), |named| named.spot);
        let why = format!(
            "the seal keys in {} lie on the disk of the messages that they open: [encryption] keys = … can name another place",
            keys.display()
        );
        report.warn(Rule::KeyBesideData, &spot, why);
    }
}

/// Where systemd has put the credentials of the service, or would.
pub(crate) fn credentials() -> PathBuf {
    std::env::var_os("CREDENTIALS_DIRECTORY").map_or_else(|| SERVICE_CREDENTIALS.into(), PathBuf::from)
}
