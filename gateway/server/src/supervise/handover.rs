//! Files that the gateway opens for an adapter: those that it may read by name, as they are now. Landlock knows a file by what it was when the
//! adapter started, so that one which has been put in its place since, as certificates are renewed, is closed to it.
//!
//! What is opened is opened with the gateway's rights, so this module must never open anything that an adapter, this one or another, could
//! have put in a file's place: nothing that lies where one may write, nor what is reached by a link that does, and nothing of the
//! gateway's own.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;
use serde_json::{Map, Value};

use super::changeable::Changeable;
use crate::config::{Access, Level, Sandbox};

/// Symbolic links on the way to one file; as many as the kernel follows.
const LINKS_MAX: usize = 40;

/// What one adapter may have opened.
#[derive(Clone, Debug, Default)]
pub(super) struct Handover {
    readable: Vec<PathBuf>,
    /// Where any adapter may write.
    changeable: Changeable,
    /// The gateway's data, without links.
    kept: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum HandoverError {
    #[error("it may not read that")]
    NotAllowed,
    #[error("an adapter may write to where it lies, or to where a link to it lies")]
    Changeable,
    #[error("it is the gateway's own")]
    Kept,
    #[error("it is no file")]
    NoFile,
    #[error("too many links lead there")]
    Links,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Handover {
    /// For a process with what the configuration allows and `implied`, of the gateway on `data_dir`. Nothing where its files are not
    /// limited in any case: what it can write to is not known then, and it needs nobody to open what its user may read.
    ///
    /// What the program says that its `settings` imply counts as far as they name it in these words: else it would choose by itself what
    /// is opened with the gateway's rights.
    pub(super) fn new(
        sandbox: &Sandbox,
        implied: &Access,
        settings: &Map<String, Value>,
        changeable: &Changeable,
        data_dir: &Path,
    ) -> Self {
        match sandbox.level {
            Level::Strict | Level::Standard => {}
            Level::Minimal | Level::Off => return Self::default(),
        }
        let is_named = |path: &&PathBuf| settings.values().any(|value| names(value, path));
        let implied_read = implied.read.iter().filter(is_named);
        let readable = sandbox.allow.read.iter().chain(implied_read).cloned().collect();
        let kept = fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_owned());
        Self { readable, changeable: changeable.clone(), kept }
    }

    /// Whether the adapter may read what has this name, as it is spelled. What lies in a directory that it may read it can open by itself.
    pub(super) fn names(&self, path: &Path) -> bool {
        self.readable.iter().any(|readable| readable.as_os_str() == path.as_os_str())
    }

    /// Opens what stands at `path` now, which must be one of the names.
    pub(super) fn open(&self, path: &Path) -> Result<File, HandoverError> {
        if !self.names(path) {
            return Err(HandoverError::NotAllowed);
        }
        open_at(&self.resolve(path)?)
    }

    /// Where `path` leads, without links. Each step is looked at: one that lies where an adapter may write leads wherever it likes.
    fn resolve(&self, path: &Path) -> Result<PathBuf, HandoverError> {
        let mut at = PathBuf::from("/");
        let mut left = steps(path);
        let mut links = 0;
        let adapters = self.changeable.now();
        while let Some(step) = left.pop_front() {
            if step == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&step);
            if adapters.covers(&next, &fs::symlink_metadata(&at)?) {
                return Err(HandoverError::Changeable);
            }
            if next.starts_with(&self.kept) {
                return Err(HandoverError::Kept);
            }
            match fs::read_link(&next) {
                Ok(target) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(HandoverError::Links);
                    }
                    if target.is_absolute() {
                        at = PathBuf::from("/");
                    }
                    let further = std::mem::replace(&mut left, steps(&target));
                    left.extend(further);
                }
                // It is no link.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => at = next,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(at)
    }
}

/// Opens a file that has been looked for, unless another stands there by now.
fn open_at(real: &Path) -> Result<File, HandoverError> {
    let mut options = fs::OpenOptions::new();
    // A pipe without a writer would be waited for.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = options.read(true).custom_flags(flags.bits()).open(real)?;
    if !file.metadata()?.is_file() {
        return Err(HandoverError::NoFile);
    }
    // Somebody else may have exchanged a directory meanwhile.
    if fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))? != real {
        return Err(HandoverError::Changeable);
    }
    Ok(file)
}

/// Whether a value of the settings is this path, or holds it.
fn names(value: &Value, path: &Path) -> bool {
    match value {
        Value::String(text) => path.as_os_str() == text.as_str(),
        Value::Array(values) => values.iter().any(|value| names(value, path)),
        Value::Object(values) => values.values().any(|value| names(value, path)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn steps(path: &Path) -> VecDeque<OsString> {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::io::Read as _;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use serde_json::json;

    use super::*;
    use crate::config::RunAs;

    struct Host {
        _dir: tempfile::TempDir,
        root: PathBuf,
    }

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let root = fs::canonicalize(dir.path()).unwrap();
            for name in ["certs", "archive", "adapter", "disk"] {
                fs::create_dir(root.join(name)).unwrap();
            }
            // A data directory is often led to by a link.
            symlink("disk", root.join("data")).unwrap();
            fs::write(root.join("data/key"), "the gateway's").unwrap();
            Self { _dir: dir, root }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.root.join(name)
        }

        /// Of an adapter beside one with `other`.
        fn beside(&self, level: Level, other: &Sandbox) -> Handover {
            let mut sandbox = Sandbox { level, ..Sandbox::default() };
            sandbox.allow.write = vec![self.path("adapter")];
            let changeable = Changeable::default();
            changeable.expect("lab", &sandbox, &Access::default());
            changeable.expect("other", other, &Access::default());
            let read = vec![self.path("certs/cert.pem"), self.path("archive/unnamed")];
            let implied = Access { read, ..Access::default() };
            let tls = json!({"ca_files": [self.path("certs/cert.pem")], "connect": "archive/unnamed"});
            let settings = Map::from_iter([("tls".to_owned(), tls)]);
            Handover::new(&sandbox, &implied, &settings, &changeable, &self.path("data"))
        }

        fn handover(&self, level: Level) -> Handover {
            self.beside(level, &Sandbox::default())
        }

        fn read(&self, name: &str) -> Result<String, HandoverError> {
            let mut text = String::new();
            self.handover(Level::Standard).open(&self.path(name))?.read_to_string(&mut text)?;
            Ok(text)
        }
    }

    #[test]
    fn a_file_is_opened_as_it_is_now_however_it_is_renewed() {
        let host = Host::new();
        let (cert, new) = (host.path("certs/cert.pem"), host.path("certs/new"));
        fs::write(&cert, "one").unwrap();
        assert_eq!(host.read("certs/cert.pem").unwrap(), "one");
        fs::write(&new, "two").unwrap();
        fs::rename(&new, &cert).unwrap();
        assert_eq!(host.read("certs/cert.pem").unwrap(), "two");
        // As certbot does it, and as Kubernetes does.
        for (number, text) in [("1", "three"), ("2", "four")] {
            fs::write(host.path("archive").join(number), text).unwrap();
            symlink(format!("../archive/{number}"), &new).unwrap();
            fs::rename(&new, &cert).unwrap();
            assert_eq!(host.read("certs/cert.pem").unwrap(), text);
        }
        fs::remove_file(&cert).unwrap();
        symlink("..data/cert.pem", &cert).unwrap();
        for version in ["v1", "v2"] {
            fs::create_dir(host.path("certs").join(version)).unwrap();
            fs::write(host.path("certs").join(version).join("cert.pem"), version).unwrap();
            symlink(version, host.path("certs/..new")).unwrap();
            fs::rename(host.path("certs/..new"), host.path("certs/..data")).unwrap();
            assert_eq!(host.read("certs/cert.pem").unwrap(), version);
        }
        fs::remove_file(&cert).unwrap();
        let gone = host.read("certs/cert.pem").unwrap_err();
        assert!(matches!(gone, HandoverError::Io(error) if error.kind() == io::ErrorKind::NotFound));
    }

    #[test]
    fn nothing_is_opened_but_what_is_named_and_only_where_files_are_limited() {
        let host = Host::new();
        fs::write(host.path("certs/cert.pem"), "one").unwrap();
        fs::write(host.path("certs/other.pem"), "other").unwrap();
        for other in ["certs/other.pem", "certs", "certs/../certs/cert.pem", "data/key"] {
            assert!(matches!(host.read(other), Err(HandoverError::NotAllowed)), "{other}");
        }
        // The program says that its settings imply it, and they do not.
        fs::write(host.path("archive/unnamed"), "the gateway may read it").unwrap();
        assert!(matches!(host.read("archive/unnamed"), Err(HandoverError::NotAllowed)));
        for level in [Level::Minimal, Level::Off] {
            let opened = host.handover(level).open(&host.path("certs/cert.pem"));
            assert!(matches!(opened, Err(HandoverError::NotAllowed)), "{level:?}");
        }
    }

    #[test]
    fn no_link_of_an_adapters_leads_anywhere_and_none_to_the_gateways_own() {
        let host = Host::new();
        let cert = host.path("certs/cert.pem");
        let lead = |target: &Path| {
            let _ = fs::remove_file(&cert);
            symlink(target, &cert).unwrap();
            host.read("certs/cert.pem")
        };
        fs::write(host.path("archive/1"), "good").unwrap();
        fs::write(host.path("adapter/own"), "own").unwrap();
        symlink(host.path("data/key"), host.path("adapter/link")).unwrap();
        symlink(host.path("archive"), host.path("adapter/dir")).unwrap();
        for changeable in ["adapter/own", "adapter/link", "adapter/dir/1", "adapter/../archive/1"] {
            let opened = lead(&host.path(changeable));
            assert!(matches!(opened, Err(HandoverError::Changeable)), "{changeable}: {opened:?}");
        }
        for kept in ["data/key", "archive/../data/key", "disk/key"].map(|name| host.path(name)) {
            assert!(matches!(lead(&kept), Err(HandoverError::Kept)), "{}", kept.display());
        }
        assert_eq!(lead(&host.path("archive/1")).unwrap(), "good");
        assert!(matches!(lead(&host.path("archive")), Err(HandoverError::NoFile)));
        assert!(matches!(lead(&cert), Err(HandoverError::Links)));
        nix::unistd::mkfifo(&host.path("archive/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(lead(&host.path("archive/pipe")), Err(HandoverError::NoFile)));
    }

    #[test]
    fn nor_does_a_link_that_another_adapter_could_have_put_there() {
        let host = Host::new();
        let cert = host.path("certs/cert.pem");
        fs::write(host.path("archive/1"), "whatever the gateway may read").unwrap();
        symlink(host.path("archive/1"), &cert).unwrap();
        let opened = |other: &Sandbox| host.beside(Level::Standard, other).open(&cert).map(drop);
        let writes = |level, name: &str| {
            let allow = Access { write: vec![host.path(name)], ..Access::default() };
            Sandbox { level, allow, ..Sandbox::default() }
        };
        opened(&writes(Level::Standard, "data")).unwrap();
        for level in [Level::Strict, Level::Standard, Level::Minimal, Level::Off] {
            for place in ["certs", "certs/cert.pem", "archive"] {
                let opened = opened(&writes(level, place));
                assert!(matches!(opened, Err(HandoverError::Changeable)), "{level:?} {place}: {opened:?}");
            }
        }
    }

    #[test]
    fn where_files_are_not_limited_the_other_adapters_user_decides() {
        let host = Host::new();
        let (certs, cert) = (host.path("certs"), host.path("certs/cert.pem"));
        fs::write(&cert, "one").unwrap();
        let metadata = fs::metadata(&certs).unwrap();
        let (me, nobody) =
            (RunAs { uid: metadata.uid(), gid: metadata.gid() }, RunAs { uid: 65534, gid: 65534 });
        let opened = |level, run_as, mode| {
            fs::set_permissions(&certs, Permissions::from_mode(mode)).unwrap();
            let other = Sandbox { level, run_as, ..Sandbox::default() };
            host.beside(Level::Standard, &other).open(&cert).is_ok()
        };
        for level in [Level::Minimal, Level::Off] {
            // The directories above it are this user's too.
            assert!(!opened(level, Some(me), 0o755), "{level:?}: it is its directory");
            assert!(opened(level, None, 0o777), "{level:?}: it can read what the gateway can");
        }
        for level in [Level::Strict, Level::Standard] {
            assert!(opened(level, Some(me), 0o777), "{level:?}: it may write nowhere");
        }
        // Above it stands what everybody may write to, as a rule.
        let adapters = Changeable::default();
        let other = Sandbox { level: Level::Minimal, run_as: Some(nobody), ..Sandbox::default() };
        adapters.expect("other", &other, &Access::default());
        for (mode, is_changeable) in [(0o755, false), (0o775, true), (0o757, true), (0o1777, true)] {
            fs::set_permissions(&certs, Permissions::from_mode(mode)).unwrap();
            let covers = adapters.now().covers(&cert, &fs::metadata(&certs).unwrap());
            assert_eq!(covers, is_changeable, "{mode:o}");
        }
    }

    #[test]
    fn what_adapters_may_write_is_known_from_before_they_start_until_they_are_gone() {
        let (host, adapters) = (Host::new(), Changeable::default());
        let writes = |name: &str| {
            let allow = Access { write: vec![host.path(name)], ..Access::default() };
            Sandbox { allow, ..Sandbox::default() }
        };
        let found = |name: &str| {
            let path = host.path(name).join("x");
            adapters.now().covers(&path, &fs::metadata(&host.root).unwrap())
        };
        let all = || ["certs", "archive", "adapter"].map(found);
        adapters.expect("a", &writes("certs"), &Access::default());
        adapters.expect("b", &Sandbox::default(), &writes("archive").allow);
        assert_eq!(all(), [true, true, false]);
        // Reloaded: the process that is to end may write still.
        adapters.expect("a", &writes("adapter"), &Access::default());
        assert_eq!(all(), [true, true, true]);
        adapters.is_only("a", &writes("adapter"), &Access::default());
        assert_eq!(all(), [false, true, true]);
        adapters.keep(|name| name == "a");
        assert_eq!(all(), [false, false, true]);
    }

    #[test]
    fn what_is_exchanged_between_the_look_and_the_opening_is_not_opened() {
        let host = Host::new();
        let (cert, version) = (host.path("certs/cert.pem"), host.path("certs/v1"));
        fs::create_dir(&version).unwrap();
        fs::write(version.join("cert.pem"), "one").unwrap();
        symlink("v1/cert.pem", &cert).unwrap();
        let looked_for = host.handover(Level::Standard).resolve(&cert).unwrap();
        assert!(open_at(&looked_for).is_ok());
        fs::rename(&version, host.path("certs/v0")).unwrap();
        symlink(host.path("data"), &version).unwrap();
        fs::write(host.path("data/cert.pem"), "the gateway's").unwrap();
        assert!(matches!(open_at(&looked_for), Err(HandoverError::Changeable)), "by a directory");
        fs::remove_file(&version).unwrap();
        fs::create_dir(&version).unwrap();
        symlink(host.path("data/key"), version.join("cert.pem")).unwrap();
        assert!(matches!(open_at(&looked_for), Err(HandoverError::Io(_))), "by a link");
    }
}
