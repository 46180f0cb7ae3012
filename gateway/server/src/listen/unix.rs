//! Unix sockets in the file system: made so that nobody can connect before owner and mode are right, never taken over from somebody
//! else, removed at the end if still ours. Abstract sockets have no owner and no mode, so there are none.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, Metadata, Permissions},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown},
    os::unix::net::UnixListener as StdUnixListener,
    path::{Path, PathBuf},
};

use nix::unistd::geteuid;
use tokio::net::{UnixListener, UnixSocket, UnixStream};

use crate::config::{Owners, UnixListen};

/// Mode of a directory that is made for a socket.
const DIRECTORY_MODE: u32 = 0o750;
/// Connections that the kernel holds until they are accepted.
const BACKLOG: u32 = 1024;
/// What fits into a socket address, without its closing zero.
const PATH_BYTES_MAX: usize = 107;
/// Length of the name under which a socket is prepared; it must fit into an address, too.
const PREPARED_NAME_BYTES: usize = 12;
/// Who may write to a socket may connect to it.
const WRITABLE: u32 = 0o222;

#[derive(Debug, thiserror::Error)]
pub(crate) enum UnixBindError {
    #[error("socket {path}: a socket's path must be absolute (abstract sockets are not supported)")]
    NotAbsolute { path: PathBuf },
    #[error("socket {path}: the path is longer than the kernel takes; shorten it by {excess} bytes")]
    TooLong { path: PathBuf, excess: usize },
    #[error("directory {directory} of a socket: {why}")]
    UnsafeDirectory { directory: PathBuf, why: &'static str },
    #[error(
        "socket {path}: there is already {what}; the gateway replaces only its own dead sockets. Remove it or choose another path"
    )]
    Foreign { path: PathBuf, what: &'static str },
    #[error("socket {path}: another process answers there; stop it or choose another path")]
    InUse { path: PathBuf },
    #[error("socket {path} is passed to this process, but {why}")]
    Passed { path: PathBuf, why: String },
    #[error("socket {path}: cannot {step}")]
    Io { path: PathBuf, step: &'static str, source: io::Error },
}

/// A bound socket and the file by which clients find it.
#[derive(Debug)]
pub(super) struct BoundUnix {
    pub(super) listener: UnixListener,
    pub(super) file: SocketFile,
}

/// The name of a socket in the file system; removed when dropped, unless it has become another file's.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    removal: Removal,
}

#[derive(Debug, PartialEq, Eq)]
enum Removal {
    AtTheEnd,
    /// Whoever made it listens on when we are gone.
    Never,
}

impl SocketFile {
    /// One that its maker removes.
    pub(super) fn of_another(path: PathBuf) -> Self {
        Self { path, device: 0, inode: 0, removal: Removal::Never }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Between the look and the removal only the directory's owner could put another file there, and the owner is root or us.
        let ours = |found: &Metadata| found.dev() == self.device && found.ino() == self.inode;
        if self.removal == Removal::AtTheEnd
            && fs::symlink_metadata(&self.path).is_ok_and(|found| ours(&found))
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a socket could not be removed");
        }
    }
}

/// Binds and listens as configured.
pub(super) async fn bind(listen: &UnixListen) -> Result<BoundUnix, UnixBindError> {
    let path = &listen.path;
    check_path(path)?;
    let directory = path.parent().ok_or_else(|| UnixBindError::NotAbsolute { path: path.clone() })?;
    make_directory(directory, DIRECTORY_MODE, listen.group)?;
    check_directory(directory)?;
    bind_in_checked(directory, listen).await
}

/// Binds in a directory that the caller has checked.
pub(super) async fn bind_in_checked(
    directory: &Path,
    listen: &UnixListen,
) -> Result<BoundUnix, UnixBindError> {
    let path = &listen.path;
    check_path(path)?;
    // Two gateways that start at once on one path could both find the same dead socket, and the later one remove the earlier one's new
    // socket. The lock on the data directory keeps two gateways of one configuration apart.
    clear_stale(path).await?;
    let prepared = PreparedName(directory.join(prepared_name(path)?));
    let listener = listen_prepared(&prepared.0, listen)?;
    // A link, not a rename: it fails if somebody else was quicker, where a rename would take their socket's name away.
    fs::hard_link(&prepared.0, path).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => UnixBindError::InUse { path: path.clone() },
        _ => failed(path, "give the socket its name")(error),
    })?;
    let found = fs::symlink_metadata(path).map_err(failed(path, "read the socket's attributes"))?;
    let file = SocketFile {
        path: path.clone(),
        device: found.dev(),
        inode: found.ino(),
        removal: Removal::AtTheEnd,
    };
    Ok(BoundUnix { listener, file })
}

/// Takes a socket that somebody else has bound for us, if it lets nobody in whom one of our own would not.
pub(super) fn adopt(listen: &UnixListen, passed: StdUnixListener) -> Result<BoundUnix, UnixBindError> {
    let path = &listen.path;
    let directory = path.parent().ok_or_else(|| UnixBindError::NotAbsolute { path: path.clone() })?;
    check_directory(directory)?;
    let found = fs::symlink_metadata(path).map_err(failed(path, "read the socket's attributes"))?;
    let refused = |why: String| UnixBindError::Passed { path: path.clone(), why };
    let writers = found.mode() & WRITABLE;
    if !found.file_type().is_socket() {
        return Err(refused("what has its name is no socket".to_owned()));
    }
    if found.uid() != 0 && found.uid() != geteuid().as_raw() {
        return Err(refused("it belongs to another user; let root or the gateway's user own it".to_owned()));
    }
    if writers & !listen.mode != 0 {
        let (has, may) = (found.mode() & 0o777, listen.mode);
        return Err(refused(format!(
            "its mode is {has:04o}, the configuration's {may:04o}: make them equal"
        )));
    }
    if let Some(group) = listen.group.filter(|group| *group != found.gid() && writers & 0o020 != 0) {
        let has = found.gid();
        return Err(refused(format!("its group is {has}, the configuration's {group}: make them equal")));
    }
    if listen.group.is_none() && writers & 0o020 != 0 {
        return Err(refused("it lets a group in: name that as `group` in the configuration".to_owned()));
    }
    let listener = UnixListener::from_std(passed).map_err(failed(path, "take over the socket"))?;
    let file =
        SocketFile { path: path.clone(), device: found.dev(), inode: found.ino(), removal: Removal::Never };
    Ok(BoundUnix { listener, file })
}

/// Binds under a temporary name, where nobody looks. Until the mode is set the socket does not listen, so every connection is refused.
fn listen_prepared(prepared: &Path, listen: &UnixListen) -> Result<UnixListener, UnixBindError> {
    let path = &listen.path;
    let socket = UnixSocket::new_stream().map_err(failed(path, "make a socket"))?;
    socket.bind(prepared).map_err(failed(path, "bind the socket"))?;
    if let Some(group) = listen.group {
        chown(prepared, None, Some(group)).map_err(failed(path, "give the socket to its group"))?;
    }
    fs::set_permissions(prepared, Permissions::from_mode(listen.mode))
        .map_err(failed(path, "set the socket's mode"))?;
    socket.listen(BACKLOG).map_err(failed(path, "listen on the socket"))
}

/// The temporary name goes, whether the socket got its real one or not.
struct PreparedName(PathBuf);

impl Drop for PreparedName {
    fn drop(&mut self) {
        // A failure leaves a dead file, no danger.
        let _ = fs::remove_file(&self.0);
    }
}

fn failed(path: &Path, step: &'static str) -> impl FnOnce(io::Error) -> UnixBindError {
    move |source| UnixBindError::Io { path: path.to_owned(), step, source }
}

fn check_path(path: &Path) -> Result<(), UnixBindError> {
    if !path.is_absolute() || path.file_name().is_none() {
        return Err(UnixBindError::NotAbsolute { path: path.to_owned() });
    }
    let name = path.file_name().map_or(0, |name| name.len());
    let bytes = path.as_os_str().len() + PREPARED_NAME_BYTES.saturating_sub(name);
    match bytes.checked_sub(PATH_BYTES_MAX) {
        None | Some(0) => Ok(()),
        Some(excess) => Err(UnixBindError::TooLong { path: path.to_owned(), excess }),
    }
}

/// Random, so that a file left over from a crash is not in the way.
fn prepared_name(path: &Path) -> Result<OsString, UnixBindError> {
    let random =
        getrandom::u32().map_err(|error| failed(path, "draw a random name")(io::Error::other(error)))?;
    Ok(OsString::from(format!(".gp-{random:08x}")))
}

/// Makes `directory` with `mode` if it is missing; a directory made for a group's socket lets that group in.
pub(super) fn make_directory(directory: &Path, mode: u32, group: Option<u32>) -> Result<(), UnixBindError> {
    if directory.exists() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(directory)
        .map_err(failed(directory, "make the socket's directory"))?;
    if let Some(group) = group {
        chown(directory, None, Some(group))
            .map_err(failed(directory, "give the socket's directory to its group"))?;
    }
    // The process's umask may have taken bits away.
    fs::set_permissions(directory, Permissions::from_mode(mode))
        .map_err(failed(directory, "set the mode of the socket's directory"))
}

/// Whoever may write to a directory may replace the socket in it by their own and collect what was meant for us.
fn check_directory(directory: &Path) -> Result<(), UnixBindError> {
    let examined = Owners::of_this_process().directory_fault(directory);
    match examined.map_err(failed(directory, "examine the socket's directory"))? {
        Some(why) => Err(UnixBindError::UnsafeDirectory { directory: directory.to_owned(), why }),
        None => Ok(()),
    }
}

/// Removes a dead socket of ours from `path`; anything else there is an error.
async fn clear_stale(path: &Path) -> Result<(), UnixBindError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(path, "examine what is there")(error)),
    };
    let foreign = |what| Err(UnixBindError::Foreign { path: path.to_owned(), what });
    if !found.file_type().is_socket() {
        return foreign("a file that is not a socket");
    }
    if found.uid() != geteuid().as_raw() {
        return foreign("a socket of another user");
    }
    match UnixStream::connect(path).await {
        // Nobody listens. Whatever else happens (also a full backlog), somebody does.
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Ok(_) | Err(_) => return Err(UnixBindError::InUse { path: path.to_owned() }),
    }
    fs::remove_file(path).map_err(failed(path, "remove the dead socket"))
}
