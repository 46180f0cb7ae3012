//! What the kernel says about the process at the other end of a Unix socket.
//!
//! User, group and process come from `SO_PEERCRED`: fixed at `connect`, whatever the peer does later. Supplementary groups should come
//! from `SO_PEERGROUPS`, which no crate offers without `unsafe`; they are read from `/proc` instead, under three guards:
//!
//! 1. The pidfd of `SO_PEERPIDFD` (Linux 6.5) is held meanwhile and found alive *afterwards*: what was read belongs to the process that
//!    connected, not to a later one with its number.
//! 2. Every user id of the process must still be the one that connected. A peer cannot borrow groups by executing a set-user-id program.
//! 3. Where any of this is impossible (older kernel, `/proc` mounted with `hidepid`), the peer has its primary group and no others: a rule
//!    `group = …` may then miss a rightful peer, never match a wrong one.
//!
//! The program and the control group, where a selector asks for them, are read under the same pidfd, and are unknown without it. Two
//! things they do not prove. The process may have connected as one program and executed another before it was looked at: `exe` tells
//! apart what one user runs, it is no wall between processes of one user, who could trace each other anyway. And a process may have made
//! itself a file system in which its own program has the wanted path: so the file that runs must be the one at that path *here*.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::PathBuf,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        UnixCredentials, getsockopt,
        sockopt::{PeerCredentials, PeerPidfd},
    },
    unistd::{Pid, getpgid},
};
use tokio::net::UnixStream;

use super::RefusalCode;
use crate::config::{DELETED, PeerFacts, Wanted};

/// What the kernel shows for users and groups that have no number in our namespace (`/proc/sys/kernel/overflowuid`; never changed in
/// practice, and "nobody" is no identity either way).
const OVERFLOW_ID: u32 = 65_534;
/// "No user": what an unset credential reads as.
const NO_ID: u32 = u32::MAX;

/// User and process of a peer, before anything costly is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) uid: u32,
    gid: u32,
    pub(super) pid: u32,
}

impl Credentials {
    pub(super) fn of(stream: &UnixStream) -> Result<Self, RefusalCode> {
        // Not tokio's `peer_cred`: it turns a process that cannot be seen from here (0) into an absent one, silently.
        let credentials = getsockopt(stream, PeerCredentials).map_err(|_| RefusalCode::NoCredentials)?;
        Self::checked(&credentials)
    }

    fn checked(credentials: &UnixCredentials) -> Result<Self, RefusalCode> {
        let pid = u32::try_from(credentials.pid()).unwrap_or(0);
        match (credentials.uid(), pid) {
            (OVERFLOW_ID | NO_ID, _) => Err(RefusalCode::UnmappedUser),
            (_, 0) => Err(RefusalCode::UnseenProcess),
            (uid, pid) => Ok(Self { uid, gid: credentials.gid(), pid }),
        }
    }

    /// The facts that need no look at the process, for refusals.
    pub(super) fn bare_facts(self) -> PeerFacts {
        // Groups without a number here are no groups: anybody can have those in a namespace of their own.
        PeerFacts { uid: Some(self.uid), gid: Some(self.gid).filter(has_number), ..PeerFacts::default() }
    }

    /// All facts of the peer, which is alive at the end of the call wherever the kernel can tell; of its process, what is `wanted`.
    pub(super) fn facts(self, stream: &UnixStream, wanted: Wanted) -> Result<PeerFacts, RefusalCode> {
        let pidfd = peer_pidfd(stream)?;
        let (mut groups, mut exe, mut cgroup) = (Vec::new(), None, None);
        if pidfd.is_some() {
            groups = supplementary_groups(self)?;
            exe = if wanted.exe { executable(self.pid)? } else { None };
            cgroup = if wanted.cgroup { control_group(self.pid)? } else { None };
        }
        let process_group =
            i32::try_from(self.pid).ok().and_then(|pid| getpgid(Some(Pid::from_raw(pid))).ok());
        if pidfd.is_some_and(|pidfd| ended(pidfd.as_fd())) {
            return Err(RefusalCode::PeerGone);
        }
        groups.retain(has_number);
        let process_group = process_group.map(Pid::as_raw);
        Ok(PeerFacts { groups, exe, cgroup, process_group, ..self.bare_facts() })
    }
}

/// Whether this kernel gives out pidfds of peers, without which nothing can be said about a peer's process.
pub(crate) fn processes_are_provable() -> bool {
    std::os::unix::net::UnixStream::pair().is_ok_and(|(one, _other)| getsockopt(&one, PeerPidfd).is_ok())
}

fn has_number(group: &u32) -> bool {
    !matches!(*group, OVERFLOW_ID | NO_ID)
}

/// The peer's pidfd, or `None` from a kernel that has none.
fn peer_pidfd(stream: &UnixStream) -> Result<Option<OwnedFd>, RefusalCode> {
    match getsockopt(stream, PeerPidfd) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(Errno::ENOPROTOOPT) => Ok(None),
        // Kernels before 6.16 have no pidfd for a process that was reaped already.
        Err(Errno::ESRCH | Errno::EINVAL | Errno::ENODATA) => Err(RefusalCode::PeerGone),
        Err(errno) if exhausted(errno) => Err(RefusalCode::Exhausted),
        Err(_) => Err(RefusalCode::NoCredentials),
    }
}

/// Whether the gateway lacks descriptors or memory. That says nothing about the peer, who may come again.
pub(super) fn exhausted(errno: Errno) -> bool {
    matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
}

/// Whether the process has exited; a pidfd is readable from then on. Doubt counts as ended.
fn ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(pidfd, PollFlags::POLLIN)];
    !matches!(poll(&mut polled, PollTimeout::ZERO), Ok(0))
}

/// What is read of a process that may end any time: `None` if it is gone or may not be seen.
fn seen<T>(read: io::Result<T>) -> Result<Option<T>, RefusalCode> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.raw_os_error().map(Errno::from_raw).is_some_and(exhausted) => {
            Err(RefusalCode::Exhausted)
        }
        Err(_) => Ok(None),
    }
}

/// The path of the program that the process runs, if that is the file which has this path here.
pub(super) fn executable(pid: u32) -> Result<Option<PathBuf>, RefusalCode> {
    let link = format!("/proc/{pid}/exe");
    let Some(path) = seen(fs::read_link(&link))? else { return Ok(None) };
    if !path.is_absolute() || path.as_os_str().as_bytes().ends_with(DELETED.as_bytes()) {
        return Ok(None);
    }
    let (runs, here) = (seen(fs::metadata(link))?, seen(fs::symlink_metadata(&path))?);
    let file = |found: fs::Metadata| (found.dev(), found.ino());
    Ok(if runs.is_some() && runs.map(file) == here.map(file) { Some(path) } else { None })
}

fn control_group(pid: u32) -> Result<Option<String>, RefusalCode> {
    let hierarchies = seen(fs::read_to_string(format!("/proc/{pid}/cgroup")))?;
    Ok(hierarchies.and_then(|hierarchies| group_of_hierarchies(&hierarchies)))
}

/// The path in the unified hierarchy; in systemd's own where there is none. One that leads out of our namespace is none.
fn group_of_hierarchies(hierarchies: &str) -> Option<String> {
    let path = |start: &str| hierarchies.lines().find_map(|line| line.strip_prefix(start));
    let systemd =
        || hierarchies.lines().find_map(|line| line.split_once(':')?.1.strip_prefix("name=systemd:"));
    let path = path("0::").or_else(systemd)?;
    // The kernel says so of a group that was removed while the process lives in it.
    let sound =
        path.starts_with('/') && !path.ends_with(DELETED) && !path.split('/').any(|part| part == "..");
    sound.then(|| path.to_owned())
}

fn supplementary_groups(credentials: Credentials) -> Result<Vec<u32>, RefusalCode> {
    let status = seen(fs::read_to_string(format!("/proc/{}/status", credentials.pid)))?;
    Ok(status.and_then(|status| groups_of_status(&status, credentials.uid)).unwrap_or_default())
}

/// The `Groups:` line of `/proc/PID/status`, or `None` if the four ids of its `Uid:` line are not all `uid`.
fn groups_of_status(status: &str, uid: u32) -> Option<Vec<u32>> {
    let ids = |field: &str| -> Option<Vec<u32>> {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        line.split_ascii_whitespace().map(|id| id.parse().ok()).collect()
    };
    let uids = ids("Uid:")?;
    if uids.len() != 4 || uids.iter().any(|id| *id != uid) {
        return None;
    }
    ids("Groups:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(uid: u32, gid: u32, pid: i32) -> UnixCredentials {
        UnixCredentials::from(nix::libc::ucred { pid, uid, gid })
    }

    #[test]
    fn overflow_users_and_unseen_processes_are_nobody() {
        for (uid, pid, expected) in [
            (1000, 42, None),
            (0, 42, None),
            (OVERFLOW_ID, 42, Some(RefusalCode::UnmappedUser)),
            (NO_ID, 42, Some(RefusalCode::UnmappedUser)),
            (1000, 0, Some(RefusalCode::UnseenProcess)),
            (1000, -1, Some(RefusalCode::UnseenProcess)),
        ] {
            assert_eq!(
                Credentials::checked(&credentials(uid, 7, pid)).err(),
                expected,
                "uid {uid}, pid {pid}"
            );
        }
    }

    #[test]
    fn groups_count_only_while_every_user_id_is_the_one_that_connected() {
        let status = |uids: &str| format!("Name:\tx\nUid:\t{uids}\nGid:\t1\t1\t1\t1\nGroups:\t4 24 1000 \n");
        assert_eq!(groups_of_status(&status("1000\t1000\t1000\t1000"), 1000), Some(vec![4, 24, 1000]));
        assert_eq!(groups_of_status(&status("1000\t0\t0\t0"), 1000), None, "a set-user-id program");
        assert_eq!(groups_of_status(&status("1001\t1001\t1001\t1001"), 1000), None, "another process");
        assert_eq!(groups_of_status("Uid:\t1\t1\t1\t1\nGroups:\t4 x\n", 1), None);
        assert_eq!(groups_of_status("", 1), None);
    }

    #[tokio::test]
    async fn this_process_is_seen_as_itself() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let facts = Credentials::of(&ours).unwrap().facts(&ours, Wanted { exe: true, cgroup: true }).unwrap();
        assert_eq!(facts.uid, Some(nix::unistd::geteuid().as_raw()));
        assert_eq!(facts.gid, Some(nix::unistd::getegid().as_raw()));
        let mut groups: Vec<u32> = nix::unistd::getgroups().unwrap().iter().map(|gid| gid.as_raw()).collect();
        groups.sort_unstable();
        assert_eq!(facts.groups, groups);
        assert_eq!(facts.process_group, Some(nix::unistd::getpgrp().as_raw()));
        assert_eq!(facts.spiffe, None);
        assert_eq!(facts.exe, Some(std::env::current_exe().unwrap()));
        assert!(facts.cgroup.unwrap().starts_with('/'));
        let facts = Credentials::of(&ours).unwrap().facts(&ours, Wanted::default()).unwrap();
        assert_eq!((facts.exe, facts.cgroup), (None, None), "nobody asked");
    }

    #[test]
    fn a_control_group_is_one_path_and_never_a_foreign_one() {
        let group = |text: &str| group_of_hierarchies(text);
        let hybrid = "9:name=systemd:/a\n8:pids:/b\n0::/system.slice/ehr.service\n";
        assert_eq!(group(hybrid).as_deref(), Some("/system.slice/ehr.service"));
        let old = "9:name=systemd:/system.slice/ehr.service\n8:pids:/b\n";
        assert_eq!(group(old).as_deref(), Some("/system.slice/ehr.service"));
        for text in ["", "0::\n", "0::/../../ehr\n", "0::/gone (deleted)\n", "8:pids:/b\n"] {
            assert_eq!(group(text), None, "{text}");
        }
    }
}
