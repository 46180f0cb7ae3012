//! The sockets of supervised adapters: one directory and one socket for each, and only the process that the supervisor started is let in.

use std::{
    ffi::OsStr,
    fs, io,
    os::fd::OwnedFd,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown},
    os::unix::net::UnixListener as StdUnixListener,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::unistd::{getegid, geteuid};
use tokio::{net::UnixListener, sync::watch};

use super::{
    Serves,
    serve::Listener,
    unix::{self, BoundUnix, SocketFile, UnixBindError},
};
use crate::config::{RunAs, UnixListen};

/// Nobody but the gateway's user gets near an adapter's socket.
const DIRECTORY_MODE: u32 = 0o700;
/// Others pass through on the way to the directory that is theirs.
const PASSAGE_MODE: u32 = 0o711;
const SOCKET_MODE: u32 = 0o600;
const SOCKET_NAME: &str = "gateway.sock";

/// The process that may connect now: set when the child has started, `None` before it is reaped. Connections of a process that is
/// no longer the expected one are cut.
pub(crate) type ExpectedPid = watch::Receiver<Option<u32>>;

/// Binds `directory/name/gateway.sock`. The directory is made if it is missing; `name` is the adapter's.
pub(crate) async fn bind_adapter_socket(
    directory: &Path,
    name: &str,
    run_as: Option<RunAs>,
    child: ExpectedPid,
) -> Result<Listener, UnixBindError> {
    let bound = bind(directory, name, run_as).await?;
    Ok(Listener::unix(bound, Serves::OneAdapter(Arc::from(name)), Some(child)))
}

/// Takes a socket that somebody else has bound for the adapter, and will remove.
pub(crate) fn adopt_adapter_socket(
    listener: OwnedFd,
    path: PathBuf,
    name: &str,
    child: ExpectedPid,
) -> io::Result<Listener> {
    let listener = StdUnixListener::from(listener);
    listener.set_nonblocking(true)?;
    let bound = BoundUnix { listener: UnixListener::from_std(listener)?, file: SocketFile::of_another(path) };
    Ok(Listener::unix(bound, Serves::OneAdapter(Arc::from(name)), Some(child)))
}

/// A socket for an adapter of another user, made by root for a gateway that is not root. It is removed, with its directory, by
/// [`AdapterSocket::remove`], or else when it is made again.
#[derive(Debug)]
pub(crate) struct AdapterSocket(SocketFile);

impl AdapterSocket {
    /// Also gives what listens.
    pub(crate) async fn bind(
        directory: &Path,
        name: &str,
        run_as: RunAs,
    ) -> Result<(Self, OwnedFd), UnixBindError> {
        let BoundUnix { listener, file } = bind(directory, name, Some(run_as)).await?;
        let path = file.path().to_owned();
        let made = Self(file);
        let listener = listener.into_std();
        let step = "hand over the socket";
        let listener = listener.map_err(|source| UnixBindError::Io { path, step, source })?;
        Ok((made, listener.into()))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Nobody else keeps anything in the directories; what is not empty stays.
    pub(crate) fn remove(self) {
        let made: Vec<_> = self.path().ancestors().skip(1).take(2).map(Path::to_owned).collect();
        if let Some(own) = made.first() {
            // Root without its capabilities has no more rights in another's directory than anybody else.
            let _ = give_to(own, geteuid().as_raw(), getegid().as_raw());
        }
        drop(self);
        let _ = made.iter().map(fs::remove_dir).collect::<Result<Vec<_>, _>>();
    }
}

async fn bind(directory: &Path, name: &str, run_as: Option<RunAs>) -> Result<BoundUnix, UnixBindError> {
    let own = directory.join(name);
    if Path::new(name).file_name() != Some(OsStr::new(name)) {
        let why = "the adapter's name is not a file name";
        return Err(UnixBindError::UnsafeDirectory { directory: own, why });
    }
    if run_as.is_some() {
        unix::make_directory(directory, PASSAGE_MODE, None)?;
    }
    unix::make_directory(&own, DIRECTORY_MODE, None)?;
    if run_as.is_some() {
        // What is made in it is made by its name: meanwhile nobody else may change what the name stands for.
        give_to(&own, geteuid().as_raw(), getegid().as_raw())?;
    }
    check_private(&own)?;
    let listen = UnixListen { path: own.join(SOCKET_NAME), mode: SOCKET_MODE, group: None };
    if run_as.is_some() {
        take_back(&listen.path)?;
    }
    let bound = unix::bind_in_checked(&own, &listen).await?;
    if let Some(RunAs { uid, gid }) = run_as {
        give_to(&listen.path, uid, gid)?;
        give_to(&own, uid, gid)?;
    }
    Ok(bound)
}

/// A socket of another user's that who bound it had no time to remove is ours, as its directory is by now, and will be found dead.
/// Anything else there stays whose it is, and is in the way.
fn take_back(socket: &Path) -> Result<(), UnixBindError> {
    match fs::symlink_metadata(socket) {
        Ok(found) if found.file_type().is_socket() && found.nlink() == 1 => {
            give_to(socket, geteuid().as_raw(), getegid().as_raw())
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

fn give_to(path: &Path, uid: u32, gid: u32) -> Result<(), UnixBindError> {
    lchown(path, Some(uid), Some(gid)).map_err(|source| UnixBindError::Io {
        path: path.to_owned(),
        step: "give it to the adapter's user (run_as needs a gateway that was started as root)",
        source,
    })
}

fn check_private(directory: &Path) -> Result<(), UnixBindError> {
    let unsafe_because = |why| UnixBindError::UnsafeDirectory { directory: directory.to_owned(), why };
    let found = fs::symlink_metadata(directory).map_err(|source| UnixBindError::Io {
        path: directory.to_owned(),
        step: "examine the socket's directory",
        source,
    })?;
    if !found.is_dir() {
        return Err(unsafe_because("it is not a directory"));
    }
    if found.uid() != geteuid().as_raw() {
        return Err(unsafe_because("it belongs to another user; it must belong to the gateway's user"));
    }
    if found.permissions().mode() & 0o077 != 0 {
        return Err(unsafe_because("others have rights on it; take them away (chmod 0700)"));
    }
    Ok(())
}
