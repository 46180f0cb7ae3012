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

use std::{
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
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
use crate::config::PeerFacts;

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

    /// All facts of the peer, which is alive at the end of the call wherever the kernel can tell.
    pub(super) fn facts(self, stream: &UnixStream) -> Result<PeerFacts, RefusalCode> {
        let pidfd = peer_pidfd(stream)?;
        let mut groups = match &pidfd {
            Some(_) => supplementary_groups(self)?,
            None => Vec::new(),
        };
        let process_group =
            i32::try_from(self.pid).ok().and_then(|pid| getpgid(Some(Pid::from_raw(pid))).ok());
        if pidfd.is_some_and(|pidfd| ended(pidfd.as_fd())) {
            return Err(RefusalCode::PeerGone);
        }
        groups.retain(has_number);
        Ok(PeerFacts { groups, process_group: process_group.map(Pid::as_raw), ..self.bare_facts() })
    }
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

fn supplementary_groups(credentials: Credentials) -> Result<Vec<u32>, RefusalCode> {
    match fs::read_to_string(format!("/proc/{}/status", credentials.pid)) {
        Ok(status) => Ok(groups_of_status(&status, credentials.uid).unwrap_or_default()),
        Err(error) if error.raw_os_error().map(Errno::from_raw).is_some_and(exhausted) => {
            Err(RefusalCode::Exhausted)
        }
        Err(_) => Ok(Vec::new()),
    }
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
        let facts = Credentials::of(&ours).unwrap().facts(&ours).unwrap();
        assert_eq!(facts.uid, Some(nix::unistd::geteuid().as_raw()));
        assert_eq!(facts.gid, Some(nix::unistd::getegid().as_raw()));
        let mut groups: Vec<u32> = nix::unistd::getgroups().unwrap().iter().map(|gid| gid.as_raw()).collect();
        groups.sort_unstable();
        assert_eq!(facts.groups, groups);
        assert_eq!(facts.process_group, Some(nix::unistd::getpgrp().as_raw()));
        assert_eq!(facts.spiffe, None);
    }
}
