//! Where a process may make groups: below its own, in each hierarchy that the kernel has mounted. The newer kind (v2) has one
//! hierarchy, whose groups hold either processes or limited groups: the gateway moves into a group of its own at the side
//! ([`divide_group`]) and hands the limits on. The older kind (v1) has a hierarchy for each limit, and no such rule.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::{Kind, MEMBERS, write};

/// The gateway's group beside those of its adapters.
const OWN: &str = "gatepost-gateway";
const HANDED_ON: &str = "cgroup.subtree_control";
const AVAILABLE: &str = "cgroup.controllers";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// Where groups with one kind of limit are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) version: Version,
    pub(super) base: PathBuf,
}

/// Where this process may make groups, or why it cannot, for each kind.
#[derive(Clone, Debug)]
pub(in crate::supervise) struct Ground(Vec<(Kind, Result<Seat, String>)>);

impl Ground {
    pub(in crate::supervise) fn of_this_process() -> Self {
        match Hierarchies::of_this_process() {
            Ok(hierarchies) => Self::in_these(&hierarchies),
            Err(error) => {
                let why = format!("/proc does not say where control groups are: {error}");
                Self(Kind::ALL.map(|kind| (kind, Err(why.clone()))).into())
            }
        }
    }

    pub(super) fn in_these(hierarchies: &Hierarchies) -> Self {
        let seat = |kind: Kind| {
            let newer = hierarchies.newer.as_deref().map(beside);
            let lists = |base: &Path, file| is_listed(base, file, kind);
            if let Some(base) = newer.filter(|base| lists(base, HANDED_ON)) {
                return Ok(Seat { version: Version::Two, base: base.to_owned() });
            }
            let older = hierarchies.older.iter().find(|(of, _)| *of == kind);
            if let Some((_, base)) = older {
                return Ok(Seat { version: Version::One, base: base.clone() });
            }
            Err(match newer {
                Some(base) if lists(base, AVAILABLE) => {
                    format!("{} is not handed on to the gateway alone", base.display())
                }
                Some(_) | None => {
                    format!("no control group with `{}` is mounted and handed on here", kind.controller())
                }
            })
        };
        Self(Kind::ALL.map(|kind| (kind, seat(kind))).into())
    }

    pub(super) fn seat(&self, kind: Kind) -> Result<&Seat, &str> {
        let found = self.0.iter().find(|(of, _)| *of == kind);
        found.map_or(Err("unknown"), |(_, seat)| seat.as_ref().map_err(String::as_str))
    }
}

/// The directories of this process's own groups.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hierarchies {
    newer: Option<PathBuf>,
    older: Vec<(Kind, PathBuf)>,
}

/// One line of `/proc/self/mountinfo`.
struct Mount<'a> {
    /// The group that is seen at `point`.
    root: &'a str,
    point: PathBuf,
    kind: &'a str,
    options: &'a str,
}

impl Hierarchies {
    fn of_this_process() -> io::Result<Self> {
        let read = |file: &str| fs::read_to_string(Path::new("/proc/self").join(file));
        Ok(Self::of(&read("cgroup")?, &read("mountinfo")?))
    }

    /// By what the kernel says of a process.
    pub(super) fn of(memberships: &str, mounts: &str) -> Self {
        let mounts: Vec<_> = mounts.lines().filter_map(mount).collect();
        let mut own = Self::default();
        for line in memberships.lines() {
            let mut parts = line.splitn(3, ':');
            let (Some(id), Some(controllers), Some(group)) = (parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            let seen = |is_it: &dyn Fn(&Mount<'_>) -> bool| {
                mounts.iter().filter(|mount| is_it(mount)).find_map(|mount| mount.seen(group))
            };
            if id == "0" && controllers.is_empty() {
                own.newer = seen(&|mount| mount.kind == "cgroup2");
                continue;
            }
            for kind in Kind::ALL {
                let has = |list: &str| list.split(',').any(|word| word == kind.controller());
                if has(controllers)
                    && let Some(path) = seen(&|mount| mount.kind == "cgroup" && has(mount.options))
                {
                    own.older.push((kind, path));
                }
            }
        }
        own
    }
}

fn mount(line: &str) -> Option<Mount<'_>> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let mut filesystem = filesystem.split(' ');
    Some(Mount {
        root: mount.next()?,
        point: unescape(mount.next()?),
        kind: filesystem.next()?,
        options: filesystem.nth(1)?,
    })
}

impl Mount<'_> {
    /// Where a group is seen below this mount; a group outside of it, or of another namespace, is not.
    fn seen(&self, group: &str) -> Option<PathBuf> {
        let below = Path::new(group).strip_prefix(self.root).ok()?;
        let is_plain = |path: &Path| !path.components().any(|part| part.as_os_str() == "..");
        let path = self.point.join(below);
        (is_plain(below) && path.is_dir()).then_some(path)
    }
}

/// The kernel writes what would break its line as `\` and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut plain = text.to_owned();
    for (escape, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(escape, character);
    }
    PathBuf::from(plain)
}

/// Where the groups of adapters are made: in the gateway's group, or beside it once it has moved.
fn beside(own: &Path) -> &Path {
    match own.parent() {
        Some(parent) if own.ends_with(OWN) => parent,
        Some(_) | None => own,
    }
}

fn is_listed(base: &Path, file: &str, kind: Kind) -> bool {
    let listed = fs::read_to_string(base.join(file)).unwrap_or_default();
    listed.split_whitespace().any(|controller| controller == kind.controller())
}

/// Moves this process to the side in its own group of the newer kind and hands the limits on, if it is alone there and may. To be
/// called before it has started others. Without that, or where it cannot be, adapters are told that they have no limits.
pub(crate) fn divide_group() {
    let hierarchies = match Hierarchies::of_this_process() {
        Ok(hierarchies) => hierarchies,
        Err(error) => {
            tracing::debug!(%error, "/proc does not say where control groups are");
            return;
        }
    };
    if let Some(own) = &hierarchies.newer
        && let Err(error) = divide_in(own, std::process::id())
    {
        tracing::info!(group = %own.display(), %error, "the gateway's control group is not handed on to adapters");
    }
}

/// `Ok` if it is done, or is not to be done.
pub(super) fn divide_in(own: &Path, pid: u32) -> io::Result<()> {
    let base = beside(own);
    let lacks = |kind: &Kind| is_listed(base, AVAILABLE, *kind) && !is_listed(base, HANDED_ON, *kind);
    let wanted: Vec<_> = Kind::ALL.into_iter().filter(lacks).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    for file in [base.to_owned(), base.join(HANDED_ON), base.join(MEMBERS)] {
        access(&file, AccessFlags::W_OK)?;
    }
    let members = fs::read_to_string(base.join(MEMBERS))?;
    // The uppermost group may hold both; it has no kind.
    let is_top = !base.join("cgroup.type").exists();
    let moves = !is_top && base == own;
    if !is_top && members.lines().any(|member| member.trim() != pid.to_string()) {
        return Err(io::Error::other("other processes are in it, too"));
    }
    let side = base.join(OWN);
    if moves {
        match fs::create_dir(&side) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        write(&side.join(MEMBERS), "0")?;
    }
    let hand_on = |kinds: &[Kind]| {
        let words: Vec<_> = kinds.iter().map(|kind| format!("+{}", kind.controller())).collect();
        write(&base.join(HANDED_ON), &words.join(" "))
    };
    // All or none of one write count; some are better than none.
    let Err(error) = hand_on(&wanted) else { return Ok(()) };
    let some = wanted.iter().filter(|kind| hand_on(&[**kind]).is_ok()).count();
    if some == 0 && moves {
        // Back to where its service manager put it.
        write(&base.join(MEMBERS), "0")?;
        fs::remove_dir(&side)?;
    }
    if some == 0 { Err(error) } else { Ok(()) }
}
