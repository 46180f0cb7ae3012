//! The groups of one adapter, as whoever reaps its process knows them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::ground::{Ground, Seat, Version};
use super::{Control, Kind, MEMBERS, PREFIX, write};

/// Between two tries to remove a group whose processes are on their way out.
const REMOVE_PAUSE: Duration = Duration::from_millis(5);
const REMOVE_TRIES_MAX: u32 = 40;

/// One group, or with the kernel's older ones a group for each kind of limit.
#[derive(Clone, Debug)]
pub(in crate::supervise) struct Group {
    paths: Vec<(PathBuf, Version)>,
    /// Where the kernel counts whom it has killed for memory.
    counter: Option<PathBuf>,
    killed_before: u64,
}

impl Group {
    pub(in crate::supervise) fn of(control: &Control, ground: &Ground) -> Self {
        let path = |seat: &Seat| (seat.base.join(&control.name.0), seat.version);
        let paths = Kind::ALL.into_iter().filter_map(|kind| ground.seat(kind).ok()).map(path);
        let counter = ground.seat(Kind::Memory).ok().map(path).map(|(group, version)| match version {
            Version::Two => group.join("memory.events"),
            Version::One => group.join("memory.oom_control"),
        });
        Self { paths: paths.collect(), counter, killed_before: 0 }
    }

    /// The process has joined it, and the kernel had killed so many in there before.
    pub(in crate::supervise) fn joined(&mut self, killed_before: u64) {
        self.killed_before = killed_before;
    }

    /// Whether the kernel has killed something in it since then, because there was no memory left.
    pub(in crate::supervise) fn ran_out_of_memory(&self) -> bool {
        self.killed() > self.killed_before
    }

    pub(super) fn killed(&self) -> u64 {
        let count = |counter: &PathBuf| {
            let events = fs::read_to_string(counter).ok()?;
            events.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
        };
        // Kernels before 4.13 do not count.
        self.counter.as_ref().and_then(count).unwrap_or(0)
    }

    /// Its processes have been killed.
    pub(in crate::supervise) fn remove(&self) {
        for (path, version) in &self.paths {
            if let Err(error) = remove(path, *version) {
                // The next process of this adapter takes it over, or the next start removes it.
                tracing::debug!(group = %path.display(), %error, "an adapter's control group stays");
            }
        }
    }
}

/// Removes what a gateway that was killed has left: nobody else may have groups with this mark.
pub(in crate::supervise) fn remove_leftovers(ground: &Ground, mark: &str) {
    let is_leftover = |name: &str| {
        name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.')).is_some_and(|(_, of)| of == mark)
    };
    for seat in Kind::ALL.into_iter().filter_map(|kind| ground.seat(kind).ok()) {
        for entry in fs::read_dir(&seat.base).into_iter().flatten().flatten() {
            if !entry.file_name().to_str().is_some_and(is_leftover) {
                continue;
            }
            match remove(&entry.path(), seat.version) {
                Ok(()) => {
                    tracing::info!(group = %entry.path().display(), "removed a control group of an earlier gateway")
                }
                Err(error) => tracing::warn!(
                    group = %entry.path().display(),
                    %error,
                    "a control group of an earlier gateway cannot be removed: see which processes it lists"
                ),
            }
        }
    }
}

/// The kernel removes no group in which something lives. What an adapter started does not die with its gateway as itself does.
fn remove(group: &Path, version: Version) -> io::Result<()> {
    let mut tries = 0;
    loop {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < REMOVE_TRIES_MAX => {
                // Kernels before 5.14 do not have it, nor do older groups.
                let is_done = version == Version::Two && write(&group.join("cgroup.kill"), "1").is_ok();
                if !is_done {
                    kill_members(group);
                }
            }
            removed => return removed,
        }
        tries += 1;
        sleep(REMOVE_PAUSE);
    }
}

/// One by one: what they have started meanwhile is killed at the next try.
fn kill_members(group: &Path) {
    for member in members(group) {
        // The handle is held while the list is read again, so that a number that has become another's is not taken for a member's.
        let Some(handle) = Pid::from_raw(member).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        else {
            continue;
        };
        if members(group).contains(&member) {
            // It fails only for one that has ended.
            let _ = pidfd_send_signal(&handle, Signal::KILL);
        }
    }
}

fn members(group: &Path) -> Vec<i32> {
    let listed = fs::read_to_string(group.join(MEMBERS)).unwrap_or_default();
    listed.lines().filter_map(|pid| pid.trim().parse().ok()).collect()
}
