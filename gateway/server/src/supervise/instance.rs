//! Which gateway runs on a data directory: `gatepost.pid`, locked as long as it does. The lock, not the number, says that it
//! runs: a number left behind may belong to any process by now.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

const PID_FILE: &str = "gatepost.pid";
/// A number and its end of line.
const PID_BYTES_MAX: u64 = 16;

/// The right to be the gateway on a data directory. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Instance {
    _locked: File,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum AlreadyRunning {
    #[error("another gateway runs on {}", .0.display())]
    Other(PathBuf),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

impl Instance {
    pub(crate) fn acquire(data_dir: &Path) -> Result<Self, AlreadyRunning> {
        let path = data_dir.join(PID_FILE);
        let failed = |source| AlreadyRunning::Io { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(AlreadyRunning::Other(data_dir.to_owned())),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
        Ok(Self { _locked: file })
    }
}

/// The gateway that runs on `data_dir`, if one does.
pub(crate) fn running_instance(data_dir: &Path) -> io::Result<Option<Pid>> {
    let file = match File::open(data_dir.join(PID_FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        // Nobody holds it.
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            file.take(PID_BYTES_MAX).read_to_string(&mut text)?;
            // Without a number it has taken the lock just now and is not ready for anything.
            Ok(text.trim().parse().ok().filter(|&pid: &i32| pid > 0).map(Pid::from_raw))
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_has_one_gateway_and_a_pid_left_behind_is_nobodys() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(running_instance(directory.path()).unwrap(), None);
        let instance = Instance::acquire(directory.path()).unwrap();
        assert!(matches!(Instance::acquire(directory.path()), Err(AlreadyRunning::Other(_))));
        let own = Pid::this();
        assert_eq!(running_instance(directory.path()).unwrap(), Some(own));
        drop(instance);
        assert!(directory.path().join(PID_FILE).exists());
        assert_eq!(running_instance(directory.path()).unwrap(), None);
        Instance::acquire(directory.path()).unwrap();
    }
}
