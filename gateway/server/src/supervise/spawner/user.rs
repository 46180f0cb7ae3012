//! Becoming `[gateway] user`: what root has to prepare is prepared, the spawner is started, and then nothing of root is left to this
//! process, nor any way back. All of it happens before there is a second thread, because rights belong to threads.

use std::ffi::CString;
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};

use gatepost_store::SealKeysFrom;
use nix::errno::Errno;
use nix::sys::prctl::{get_pdeathsig, set_dumpable, set_no_new_privs, set_pdeathsig};
use nix::unistd::{
    AccessFlags, Gid, Uid, User, access, geteuid, getgroups, getresgid, getresuid, initgroups, setgroups,
    setresgid, setresuid,
};
use rustix::thread::{CapabilitySet, capabilities};

use super::client::Started;
use crate::config::{Config, ListenAt, RunAs, Store, TcpListen, UnixListen};
use crate::listen::Passed;
use crate::supervise::sandbox::privileges;

/// Of the directory of a socket that is made here.
const SOCKET_DIRECTORY_MODE: u32 = 0o750;
const DATA_DIRECTORY_MODE: u32 = 0o700;
/// Of what is made above them.
const PASSAGE_MODE: u32 = 0o755;

/// Who this process is, and the spawner that stays root if it was root before.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) user: RunningAs,
    pub(crate) spawner: Option<Started>,
}

/// A user, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunningAs {
    uid: u32,
    name: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    #[error(
        "[gateway] user says {wanted}, and {actual} has started it: start it as root or as that user, or take the key out"
    )]
    Another { wanted: RunningAs, actual: RunningAs },
    #[error("{0}")]
    Spawner(String),
    #[error("{}: cannot be prepared for the gateway's user ({source})", .path.display())]
    Prepare { path: PathBuf, source: io::Error },
    #[error(
        "{} does not belong to the gateway's user: with the gateway stopped, chown -R {} {}", .path.display(), .user.account(), .data_dir.display()
    )]
    Foreign { path: PathBuf, data_dir: PathBuf, user: RunningAs },
    #[error("cannot become {user}: {source}")]
    Become { user: RunningAs, source: io::Error },
    #[error("{user} cannot read {}: give it to its group (chgrp, chmod 0640), or secrets to the user itself (chown, chmod 0600)", .path.display())]
    Unreadable { path: PathBuf, user: RunningAs },
    #[error("{user} cannot make a socket in {}: give it a directory of its own there", .path.display())]
    SocketDirectory { path: PathBuf, user: RunningAs },
    #[error("{user} is not in group {group}, to which it should give the socket {}: add it (usermod -aG)", .path.display())]
    Group { path: PathBuf, user: RunningAs, group: u32 },
}

impl RunningAs {
    /// Of this process.
    pub(crate) fn now() -> Self {
        Self::of(geteuid())
    }

    fn of(uid: Uid) -> Self {
        let entry = User::from_uid(uid).ok().flatten();
        Self { uid: uid.as_raw(), name: entry.map(|entry| entry.name) }
    }
}

impl RunningAs {
    /// As commands take it.
    fn account(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.uid.to_string())
    }
}

impl fmt::Display for RunningAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => f.write_str(name),
            None => write!(f, "user {}", self.uid),
        }
    }
}

/// Becomes the configured user. To be called before there are other threads, and before anything is opened.
pub(crate) fn settle(config: &Config, passed: &Passed) -> Result<Settled, UserError> {
    let actual = RunningAs::now();
    let Some(user) = config.gateway.user.filter(|user| user.uid != actual.uid) else {
        return Ok(Settled { user: actual, spawner: None });
    };
    let wanted = RunningAs::of(user.uid.into());
    if !geteuid().is_root() {
        return Err(UserError::Another { wanted, actual });
    }
    let spawner = Started::new(user, &config.file, config.safety).map_err(UserError::Spawner)?;
    prepare_data_dir(&config.gateway.data_dir, user, &wanted)?;
    let own = sockets(config).filter(|socket| !passed.has(&socket.path));
    let own: Vec<_> = own.collect();
    for socket in &own {
        let Some(directory) = socket.path.parent() else { continue };
        let gid = socket.group.unwrap_or(user.gid);
        make_directory(directory, SOCKET_DIRECTORY_MODE, RunAs { gid, ..user })?;
    }
    become_user(user, wanted.name.as_deref())
        .map_err(|source| UserError::Become { user: wanted.clone(), source })?;
    check_access(config, &own, &wanted)?;
    Ok(Settled { user: wanted, spawner: Some(spawner) })
}

fn sockets(config: &Config) -> impl Iterator<Item = &UnixListen> {
    config.listens.iter().filter_map(|listen| match &listen.at {
        ListenAt::Unix(socket) => Some(socket),
        ListenAt::Tcp(_) => None,
    })
}

/// Made if it is missing. What root has left in it from a time before would stop the store half-way.
fn prepare_data_dir(data_dir: &Path, user: RunAs, name: &RunningAs) -> Result<(), UserError> {
    make_directory(data_dir, DATA_DIRECTORY_MODE, user)?;
    for directory in [data_dir.to_owned(), data_dir.join("keys"), data_dir.join("audit")] {
        let failed = |source| UserError::Prepare { path: directory.clone(), source };
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        let entries = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>();
        for path in std::iter::once(directory.clone()).chain(entries.map_err(failed)?) {
            // One that is gone by now is nobody's.
            if fs::symlink_metadata(&path).is_ok_and(|found| found.uid() != user.uid) {
                return Err(UserError::Foreign { path, data_dir: data_dir.to_owned(), user: name.clone() });
            }
        }
    }
    Ok(())
}

/// A directory of the user's, and those above it of root's, where they are missing.
fn make_directory(directory: &Path, mode: u32, owner: RunAs) -> Result<(), UserError> {
    let missing: Vec<_> =
        directory.ancestors().take_while(|above| fs::symlink_metadata(above).is_err()).collect();
    for path in missing.into_iter().rev() {
        let mode = if path == directory { mode } else { PASSAGE_MODE };
        let made = DirBuilder::new().mode(mode).create(path).and_then(|()| {
            // The process's umask may have taken bits away.
            fs::set_permissions(path, fs::Permissions::from_mode(mode))
        });
        let given = made.and_then(|()| match path == directory {
            true => lchown(path, Some(owner.uid), Some(owner.gid)),
            false => Ok(()),
        });
        given.map_err(|source| UserError::Prepare { path: path.to_owned(), source })?;
    }
    Ok(())
}

/// Afterwards this process is the user and nothing else, for good.
fn become_user(user: RunAs, name: Option<&str>) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let parent_death = get_pdeathsig()?;
    set_no_new_privs()?;
    privileges::bound(CapabilitySet::empty())?;
    match name.map(CString::new).transpose()? {
        Some(name) => initgroups(&name, gid)?,
        None => setgroups(&[gid])?,
    }
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    privileges::keep(CapabilitySet::empty())?;
    // Other processes of the user, such as adapters without one of their own, shall not read its memory.
    set_dumpable(false)?;
    // The kernel forgets it when a process's user changes.
    set_pdeathsig(parent_death)?;
    check_gone(uid, gid)
}

/// Looks rather than believes.
fn check_gone(uid: Uid, gid: Gid) -> io::Result<()> {
    let (users, groups, left) = (getresuid()?, getresgid()?, capabilities(None)?);
    let is_user = [users.real, users.effective, users.saved].iter().all(|id| *id == uid);
    let is_group = [groups.real, groups.effective, groups.saved].iter().all(|id| *id == gid);
    let has_root = getgroups()?.contains(&Gid::from_raw(0));
    let root = Uid::from_raw(0);
    let goes_back = setresuid(root, root, root) != Err(Errno::EPERM);
    let is_bare = left.permitted.is_empty() && left.effective.is_empty() && left.inheritable.is_empty();
    if is_user && is_group && is_bare && !has_root && !goes_back {
        Ok(())
    } else {
        Err(io::Error::other(
            "something of root is left to the process; the user must not be in root's group",
        ))
    }
}

/// What the user needs and root need not have given it: said now rather than by whoever misses it.
fn check_access(config: &Config, own: &[&UnixListen], user: &RunningAs) -> Result<(), UserError> {
    let mut needed = vec![config.file.as_path()];
    if let Store::Postgres { url_file, .. } = &config.store {
        needed.push(url_file);
    }
    if let SealKeysFrom::Directory(keys) = &config.seal_keys {
        needed.push(keys);
    }
    for listen in &config.listens {
        if let ListenAt::Tcp(TcpListen { tls, .. }) = &listen.at {
            needed.extend([tls.cert.as_path(), &tls.key, &tls.client_ca]);
            needed.extend(tls.crl.iter().map(PathBuf::as_path));
        }
    }
    let denied =
        |path: &Path| File::open(path).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
    if let Some(path) = needed.into_iter().find(|path| denied(path)) {
        return Err(UserError::Unreadable { path: path.to_owned(), user: user.clone() });
    }
    let groups = getgroups().unwrap_or_default();
    for socket in own {
        let Some(directory) = socket.path.parent() else { continue };
        if access(directory, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
            return Err(UserError::SocketDirectory { path: directory.to_owned(), user: user.clone() });
        }
        let mine = |group: u32| {
            let gid = Gid::from_raw(group);
            gid == nix::unistd::getegid() || groups.contains(&gid)
        };
        if let Some(group) = socket.group.filter(|&group| !mine(group)) {
            return Err(UserError::Group { path: socket.path.clone(), user: user.clone(), group });
        }
    }
    Ok(())
}
