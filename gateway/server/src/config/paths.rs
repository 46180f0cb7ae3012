//! Paths in the file: relative ones begin at the file's directory.

use std::path::{Path, PathBuf};

use super::fault::Report;
use super::section::Item;

/// Where systemd puts a unit's credentials, in a directory that is there while the unit runs. It may give them to the unit's user by
/// an access list, whose mask shows as permissions of the group; the directory lets nobody else in.
const CREDENTIALS: &str = "/run/credentials/";

/// Whether systemd hands over what is at `path`.
pub(crate) fn is_credential(path: &Path) -> bool {
    path.starts_with(CREDENTIALS)
}

/// The directory that holds the configuration file.
pub(super) struct Base<'d>(pub(super) &'d Path);

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
