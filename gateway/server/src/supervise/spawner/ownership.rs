//! What root's commands have made in the data directory of a gateway that is not root: it is given to the gateway's user, who could
//! otherwise not open it. The directory is that user's: nothing in it is taken for what it seems to be.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::geteuid;

use crate::config::{Config, RunAs};

const ROOT: u32 = 0;
/// The audit log's files are five deep.
const DEPTH_MAX: usize = 16;

/// Gives the gateway's user what root has left in its data directory and in `more`. Of others than root it does nothing.
pub(crate) fn give_to_gateway(config: &Config, more: Option<&Path>) -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let data_dir = &config.gateway.data_dir;
    let found = fs::metadata(data_dir).ok();
    let owner = config.gateway.user.or(found.map(|found| RunAs { uid: found.uid(), gid: found.gid() }));
    let Some(owner) = owner.filter(|owner| owner.uid != ROOT) else { return Ok(()) };
    for directory in std::iter::once(data_dir.as_path()).chain(more) {
        match pin(directory) {
            Ok(pinned) => give(&pinned, owner, DEPTH_MAX)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What is there now, whatever its name may come to mean; a link is itself.
fn pin(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

fn by_number(pinned: &File) -> PathBuf {
    format!("/proc/self/fd/{}", pinned.as_raw_fd()).into()
}

fn give(pinned: &File, owner: RunAs, depth: usize) -> io::Result<()> {
    let found = pinned.metadata()?;
    let path = by_number(pinned);
    if found.is_dir() && depth > 0 {
        for entry in fs::read_dir(&path)? {
            match pin(&entry?.path()) {
                Ok(entry) => give(&entry, owner, depth - 1)?,
                // Gone by now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    // A file of root's with a second name may be one of the system's.
    let ours = found.is_dir() || (found.is_file() && found.nlink() == 1);
    if ours && found.uid() == ROOT { chown(path, Some(owner.uid), Some(owner.gid)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_root_made_is_given_and_what_only_seems_to_be_there_is_not() {
        if !geteuid().is_root() {
            return crate::listen::tests::skipped("only root can give files away");
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("data/audit/tile")).unwrap();
        for file in ["data/gatepost.db", "data/audit/tile/0", "system", "other"] {
            fs::write(at(file), "").unwrap();
        }
        symlink(at("other"), at("data/link")).unwrap();
        fs::hard_link(at("system"), at("data/second-name")).unwrap();
        chown(at("data"), Some(61_234), Some(61_235)).unwrap();
        let text = format!(
            "[gateway]\ndata_dir = \"{}\"\n[[listen]]\nserves = \"apps\"\nunix = \"/run/gatepost/a.sock\"",
            at("data").display()
        );
        let config = Config::parse(&text, &at("gatepost.toml")).unwrap();
        give_to_gateway(&config, None).unwrap();
        let owner =
            |name: &str| fs::symlink_metadata(at(name)).map(|found| (found.uid(), found.gid())).unwrap();
        for given in ["data", "data/audit", "data/audit/tile", "data/audit/tile/0", "data/gatepost.db"] {
            assert_eq!(owner(given), (61_234, 61_235), "{given}");
        }
        for kept in ["system", "other", "data/second-name", "data/link"] {
            assert_eq!(owner(kept), (0, 0), "{kept}");
        }
    }
}
