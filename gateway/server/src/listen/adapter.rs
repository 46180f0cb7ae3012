//! The sockets of supervised adapters: one directory and one socket for each, and only the process that the supervisor started is let in.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, lchown},
    path::Path,
    sync::Arc,
};

use nix::unistd::{getegid, geteuid};
use tokio::{net::UnixStream, sync::watch};

use super::{
    RefusalCode, Server, Serves, arrival,
    credentials::Credentials,
    serve::Listener,
    unix::{self, BoundUnix, UnixBindError},
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
pub(crate) async fn bind_adapter_socket(
    directory: &Path,
    name: &str,
    run_as: Option<RunAs>,
    child: ExpectedPid,
) -> Result<AdapterSockets, UnixBindError> {
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
    let bound = unix::bind_in_checked(&own, &listen).await?;
    let listen_egress = UnixListen { path: own.join(EGRESS_NAME), ..listen.clone() };
    let bound_egress = unix::bind_in_checked(&own, &listen_egress).await?;
    if let Some(RunAs { uid, gid }) = run_as {
        give_to(&listen.path, uid, gid)?;
        give_to(&listen_egress.path, uid, gid)?;
        give_to(&own, uid, gid)?;
    }
    let adapter: Arc<str> = Arc::from(name);
    let egress = EgressSocket { adapter: Arc::clone(&adapter), bound: bound_egress, child: child.clone() };
    Ok(AdapterSockets { gateway: Listener::unix(bound, Serves::OneAdapter(adapter), Some(child)), egress })
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
