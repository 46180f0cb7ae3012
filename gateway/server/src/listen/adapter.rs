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
use tokio::{
    net::{UnixListener, UnixStream},
    sync::watch,
};

use super::{
    RefusalCode, Server, Serves, arrival,
    credentials::Credentials,
    serve::Listener,
    unix::{self, BoundUnix, SocketFile, UnixBindError},
};
use crate::config::{RunAs, UnixListen, Wanted};

/// Nobody but the gateway's user gets near an adapter's socket.
const DIRECTORY_MODE: u32 = 0o700;
/// Others pass through on the way to the directory that is theirs.
const PASSAGE_MODE: u32 = 0o711;
const SOCKET_MODE: u32 = 0o600;
const SOCKET_NAME: &str = "gateway.sock";
/// Where it asks to be connected to partners.
const EGRESS_NAME: &str = "egress";

/// The process that may connect now: set when the child has started, `None` before it is reaped. Connections of a process that is
/// no longer the expected one are cut.
pub(crate) type ExpectedPid = watch::Receiver<Option<u32>>;

/// What an adapter finds in its directory.
#[derive(Debug)]
pub(crate) struct AdapterSockets {
    pub(crate) gateway: Listener,
    pub(crate) egress: EgressSocket,
}

/// The socket by which one adapter asks for connections, open to the same process as its other one.
#[derive(Debug)]
pub(crate) struct EgressSocket {
    adapter: Arc<str>,
    bound: BoundUnix,
    child: ExpectedPid,
}

impl EgressSocket {
    pub(crate) fn adapter(&self) -> &str {
        &self.adapter
    }

    /// The next connection, of whomever.
    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.bound.listener.accept().await?.0)
    }

    /// Whether it was the adapter's process that connected, and still is; else that is told as for its other socket. The child is
    /// known before it runs, so there is nothing to wait for.
    pub(crate) fn is_from_the_adapter(&self, server: &Server, stream: &UnixStream) -> bool {
        let expected = *self.child.borrow();
        let is_child = Credentials::of(stream).and_then(|credentials| match expected {
            Some(pid) if pid == credentials.pid => credentials.facts(stream, Wanted::default()),
            Some(_) | None => Err(RefusalCode::NotTheAdapter),
        });
        is_child.map_err(|code| self.count_refusal(server, code)).is_ok()
    }

    /// The adapter was refused something.
    pub(crate) fn count_refusal(&self, server: &Server, code: RefusalCode) {
        arrival::report_of_adapter(server, &self.adapter, code);
    }
}

/// Binds `directory/name/gateway.sock` and, beside it, `egress`. The directory is made if it is missing; `name` is the adapter's.
pub(crate) async fn bind_adapter_sockets(
    directory: &Path,
    name: &str,
    run_as: Option<RunAs>,
    child: ExpectedPid,
) -> Result<AdapterSockets, UnixBindError> {
    Ok(AdapterSockets::of(bind(directory, name, run_as).await?, name, child))
}

/// Takes sockets that somebody else has bound for the adapter, and will remove.
pub(crate) fn adopt_adapter_sockets(
    listeners: [OwnedFd; 2],
    path: PathBuf,
    name: &str,
    child: ExpectedPid,
) -> io::Result<AdapterSockets> {
    let adopt = |listener: OwnedFd, path: PathBuf| {
        let listener = StdUnixListener::from(listener);
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        io::Result::Ok(BoundUnix { listener, file: SocketFile::of_another(path) })
    };
    let [gateway, egress] = listeners;
    let egress = adopt(egress, path.with_file_name(EGRESS_NAME))?;
    Ok(AdapterSockets::of(Bound { gateway: adopt(gateway, path)?, egress }, name, child))
}

impl AdapterSockets {
    fn of(bound: Bound, name: &str, child: ExpectedPid) -> Self {
        let adapter: Arc<str> = Arc::from(name);
        let egress =
            EgressSocket { adapter: Arc::clone(&adapter), bound: bound.egress, child: child.clone() };
        let gateway = Listener::unix(bound.gateway, Serves::OneAdapter(adapter), Some(child));
        Self { gateway, egress }
    }
}

/// The sockets for an adapter of another user, made by root for a gateway that is not root. They are removed, with their directory,
/// by [`HandedOver::remove`], or else when they are made again.
#[derive(Debug)]
pub(crate) struct HandedOver {
    gateway: SocketFile,
    egress: SocketFile,
}

impl HandedOver {
    /// Also gives what listens: for the gateway, and for the way out.
    pub(crate) async fn bind(
        directory: &Path,
        name: &str,
        run_as: RunAs,
    ) -> Result<(Self, [OwnedFd; 2]), UnixBindError> {
        let Bound { gateway, egress } = bind(directory, name, Some(run_as)).await?;
        let made = Self { gateway: gateway.file, egress: egress.file };
        let step = "hand over the socket";
        let give = |listener: UnixListener, file: &SocketFile| {
            let given = listener.into_std().map(OwnedFd::from);
            given.map_err(|source| UnixBindError::Io { path: file.path().to_owned(), step, source })
        };
        let listeners = [give(gateway.listener, &made.gateway)?, give(egress.listener, &made.egress)?];
        Ok((made, listeners))
    }

    pub(crate) fn path(&self) -> &Path {
        self.gateway.path()
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

/// Both sockets of an adapter.
struct Bound {
    gateway: BoundUnix,
    egress: BoundUnix,
}

async fn bind(directory: &Path, name: &str, run_as: Option<RunAs>) -> Result<Bound, UnixBindError> {
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
    let listen_egress = UnixListen { path: own.join(EGRESS_NAME), ..listen.clone() };
    if run_as.is_some() {
        take_back(&listen.path)?;
        take_back(&listen_egress.path)?;
    }
    let gateway = unix::bind_in_checked(&own, &listen).await?;
    let egress = unix::bind_in_checked(&own, &listen_egress).await?;
    if let Some(RunAs { uid, gid }) = run_as {
        give_to(&listen.path, uid, gid)?;
        give_to(&listen_egress.path, uid, gid)?;
        give_to(&own, uid, gid)?;
    }
    Ok(Bound { gateway, egress })
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
