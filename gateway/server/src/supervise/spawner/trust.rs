//! The spawner does as root what the configuration says. So the configuration must be root's alone: nobody else may be able to change it,
//! or a directory on the way to it, or put another in its place.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

const ROOT: u32 = 0;
const STICKY: u32 = 0o1000;
const WRITABLE_BY_OTHERS: u32 = 0o022;

#[derive(Debug, thiserror::Error)]
pub(super) enum Untrusted {
    #[error(
        "{}: {what}, and [gateway] user means that root starts what it says: chown it to root and chmod go-w it", .path.display()
    )]
    Open { path: PathBuf, what: &'static str },
    #[error("{}: cannot be examined ({source})", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The file that `path` leads to now, if it can be trusted. Whoever reads it by that name reads what root wrote.
pub(super) fn root_file(path: &Path) -> Result<PathBuf, Untrusted> {
    // Links are followed once and for all: what they lead to later is not asked.
    let real = fs::canonicalize(path).map_err(|source| Untrusted::Io { path: path.to_owned(), source })?;
    for (depth, at) in real.ancestors().enumerate() {
        let found =
            fs::symlink_metadata(at).map_err(|source| Untrusted::Io { path: at.to_owned(), source })?;
        let open = |what| Untrusted::Open { path: at.to_owned(), what };
        if depth == 0 && !found.is_file() {
            return Err(open("it is no file"));
        }
        if found.uid() != ROOT {
            return Err(open(if depth == 0 {
                "the configuration does not belong to root"
            } else {
                "this directory above the configuration does not belong to root"
            }));
        }
        // In a sticky directory of root's others can add files, but neither remove nor rename root's.
        let sticky = found.is_dir() && found.mode() & STICKY != 0;
        if found.mode() & WRITABLE_BY_OTHERS != 0 && !sticky {
            return Err(open(if depth == 0 {
                "others than root can write the configuration"
            } else {
                "others than root can write to this directory above the configuration"
            }));
        }
    }
    Ok(real)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    #[test]
    fn a_configuration_that_others_can_change_is_not_read_as_root() {
        if !nix::unistd::geteuid().is_root() {
            return crate::listen::tests::skipped("only root has files of root's");
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mode = |name: &str, mode| {
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        fs::create_dir(at("etc")).unwrap();
        fs::write(at("etc/gatepost.toml"), "").unwrap();
        mode("etc", 0o755);
        let file = at("etc/gatepost.toml");
        mode("etc/gatepost.toml", 0o640);
        let real = root_file(&file).unwrap();
        let refused = |what: &str| {
            let error = root_file(&file).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("chown it to root"), "{error}");
        };
        for open in [0o660, 0o642] {
            mode("etc/gatepost.toml", open);
            refused("others than root can write the configuration");
        }
        mode("etc/gatepost.toml", 0o640);
        for open in [0o775, 0o757] {
            mode("etc", open);
            refused("others than root can write to this directory");
        }
        mode("etc", 0o1777);
        assert!(root_file(&file).is_ok(), "nobody can take root's file out of a sticky directory");
        mode("etc", 0o755);
        chown(&file, Some(61_234), None).unwrap();
        refused("does not belong to root");
        chown(&file, Some(0), None).unwrap();
        chown(at("etc"), Some(61_234), None).unwrap();
        refused("this directory above the configuration does not belong to root");
        chown(at("etc"), Some(0), None).unwrap();
        symlink(&file, at("link")).unwrap();
        assert_eq!(root_file(&at("link")).unwrap(), real, "by its own name from then on");
        assert!(root_file(&at("etc")).is_err() && root_file(&at("none")).is_err());
    }
}
