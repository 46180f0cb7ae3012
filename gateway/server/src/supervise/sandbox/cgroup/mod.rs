//! Control groups: what an adapter's processes may use up together. `gatepost adapter-exec` makes a group for itself below the
//! gateway's own, puts the limits on it and joins it while it still may ([`join`]); whoever reaps the adapter asks the group why it
//! died, and removes it ([`Group`]). Where the kernel keeps groups is [`Ground`]'s to find.
//!
//! There is no fall-back for memory where there is no group. RLIMIT_DATA counts, for each process, what may be written to and not
//! what is used: stacks of threads in full, and what allocators and the runtimes of Go and Java set aside. A bound that fits those
//! holds nothing back, a tighter one kills sane programs, and both multiply with each fork. So it is said that there is no limit.
//!
//! This module must never change or remove a group that does not bear its gateway's mark.

mod ground;
mod group;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Resources;

pub(in crate::supervise) use ground::Ground;
use ground::Version;
pub(crate) use ground::divide_group;
pub(in crate::supervise) use group::{Group, remove_leftovers};

/// Span in which an adapter gets its share of processor time, microseconds: the kernel's own default.
const CPU_PERIOD_US: u64 = 100_000;
/// What the group of an adapter begins with.
const PREFIX: &str = "adapter-";
/// Longest name of an adapter, and longest mark.
const WORD_BYTES_MAX: usize = 64;
/// Where a group lists its processes. Whoever writes 0 there joins it.
const MEMBERS: &str = "cgroup.procs";

/// What a group can limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Memory,
    Processes,
    Cpus,
}

/// The group that a process is to join, and its limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::supervise) struct Control {
    name: Name,
    pub(super) resources: Resources,
}

/// `adapter-NAME.MARK`. The mark tells apart the groups of gateways that were started in one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
struct Name(String);

/// What is in force, and what is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Joined {
    pub(super) kinds: BTreeSet<Kind>,
    pub(super) missing: Vec<(Kind, String)>,
    /// What is in force, but less than it could be.
    pub(super) notes: Vec<&'static str>,
    /// Whom the kernel had killed in the group for memory before this process joined it.
    pub(super) killed_before: u64,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Memory, Self::Processes, Self::Cpus];

    /// In texts for people.
    pub(super) fn limit(self) -> &'static str {
        match self {
            Self::Memory => "memory limit",
            Self::Processes => "limit of processes",
            Self::Cpus => "limit of processors",
        }
    }

    /// In `allow`.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Processes => "processes",
            Self::Cpus => "cpus",
        }
    }

    /// The kernel's word.
    fn controller(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Processes => "pids",
            Self::Cpus => "cpu",
        }
    }

    pub(super) fn is_asked(self, resources: &Resources) -> bool {
        match self {
            Self::Memory => resources.memory.is_asked(),
            Self::Processes => resources.processes.is_asked(),
            Self::Cpus => resources.cpus.is_some(),
        }
    }

    fn is_wanted(self, resources: &Resources) -> bool {
        self != Self::Cpus || resources.cpus.is_some()
    }
}

/// What tells a gateway from others on this host: its data directory, on which it is alone.
pub(in crate::supervise) fn mark(data_dir: &Path) -> io::Result<String> {
    let metadata = fs::metadata(data_dir)?;
    Ok(format!("{:x}-{:x}", metadata.dev(), metadata.ino()))
}

impl Control {
    /// `None` for what cannot be a group's name.
    pub(in crate::supervise) fn new(adapter: &str, mark: &str, resources: Resources) -> Option<Self> {
        Some(Self { name: Name::try_from(format!("{PREFIX}{adapter}.{mark}")).ok()?, resources })
    }
}

impl TryFrom<String> for Name {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let is_word = |word: &str| {
            (1..=WORD_BYTES_MAX).contains(&word.len())
                && word.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
        };
        match name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.')) {
            Some((adapter, mark)) if is_word(adapter) && is_word(mark) => Ok(Self(name)),
            Some(_) | None => Err("not the name of an adapter's group"),
        }
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

/// Puts this process, and whatever it becomes and starts, into a group of its own with these limits. What cannot be is told.
pub(super) fn join(control: &Control, ground: &Ground) -> Joined {
    let Control { name, resources } = control;
    let mut joined = Joined::default();
    // With the kernel's older groups each kind has one of its own.
    let mut groups: Vec<(PathBuf, Vec<Kind>)> = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| kind.is_wanted(resources)) {
        let seat = match ground.seat(kind) {
            Ok(seat) => seat,
            Err(why) => {
                joined.missing.push((kind, why.to_owned()));
                continue;
            }
        };
        let group = seat.base.join(&name.0);
        let known = groups.iter().position(|(known, _)| *known == group);
        let made = if known.is_some() { Ok(()) } else { make(&group) };
        match made.and_then(|()| limit(kind, seat.version, &group, resources)) {
            Ok(note) => joined.notes.extend(note),
            Err(error) => {
                joined.missing.push((kind, format!("{}: {error}", group.display())));
                continue;
            }
        }
        match known {
            Some(known) => groups[known].1.push(kind),
            None => groups.push((group, vec![kind])),
        }
    }
    // Where a predecessor's group could not be made anew. Read here, before there is a program that could use up anything.
    joined.killed_before = Group::of(control, ground).killed();
    for (group, kinds) in groups {
        match write(&group.join(MEMBERS), "0") {
            Ok(()) => joined.kinds.extend(kinds),
            Err(error) => {
                let why = format!("{}: {error}", group.display());
                joined.missing.extend(kinds.into_iter().map(|kind| (kind, why.clone())));
            }
        }
    }
    joined
}

/// A group that is there already is a predecessor's. What that has used up and how it died is not this one's affair, so it is made
/// anew; if something lives in there, its limits hold for both.
fn make(group: &Path) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            match fs::remove_dir(group).and_then(|()| fs::create_dir(group)) {
                Err(_) if group.is_dir() => {}
                made => made?,
            }
        }
        made => made?,
    }
    // Whoever reaps the adapter reads why it died, whatever its user and this process's umask are.
    fs::set_permissions(group, fs::Permissions::from_mode(0o755))
}

/// Puts a limit on a group; says what is weak about it.
fn limit(
    kind: Kind,
    version: Version,
    group: &Path,
    resources: &Resources,
) -> io::Result<Option<&'static str>> {
    let set = |file: &str, value: &str| write(&group.join(file), value);
    // What older kernels and those without swap do not have.
    let set_if_there = |file: &str, value: &str| {
        let is_there = group.join(file).exists();
        if is_there { set(file, value).map(|()| true) } else { Ok(false) }
    };
    let memory = resources.memory.value().to_string();
    let counts_swap = match (kind, version) {
        (Kind::Memory, Version::Two) => {
            set("memory.max", &memory)?;
            // Half of an adapter is of no use.
            set_if_there("memory.oom.group", "1")?;
            set_if_there("memory.swap.max", "0")?
        }
        (Kind::Memory, Version::One) => {
            // Of the two the second may never be the smaller one.
            set_if_there("memory.memsw.limit_in_bytes", "-1")?;
            set("memory.limit_in_bytes", &memory)?;
            set_if_there("memory.memsw.limit_in_bytes", &memory)?
        }
        (Kind::Processes, _) => {
            set("pids.max", &resources.processes.value().to_string())?;
            true
        }
        (Kind::Cpus, version) => {
            let percent = resources.cpus.map_or(0, |cpus| u64::from(cpus.percent()));
            let quota_us = CPU_PERIOD_US / 100 * percent;
            match version {
                Version::Two => set("cpu.max", &format!("{quota_us} {CPU_PERIOD_US}"))?,
                Version::One => {
                    set("cpu.cfs_period_us", &CPU_PERIOD_US.to_string())?;
                    set("cpu.cfs_quota_us", &quota_us.to_string())?;
                }
            }
            true
        }
    };
    Ok((!counts_swap).then_some("its memory limit does not count what is swapped out"))
}

fn write(file: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).truncate(true).open(file)?.write_all(value.as_bytes())
}
