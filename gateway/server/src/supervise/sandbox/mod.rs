//! What is taken from an adapter's process before its program starts. The gateway decides it ([`Policy`], from the configuration
//! and from what the program says that its settings imply) and gives it to `gatepost adapter-exec`, which does it to itself
//! ([`confine`]) and says on its first line of standard output what was reached ([`Outcome`]).
//!
//! This module must never weaken in silence: a part that a level requires is there or the program does not start, and a part
//! that it does not require and that is missing is named.

mod calls;
mod cgroup;
mod files;
mod policy;
pub(super) mod privileges;

use std::fmt;

use gatepost_api::lists::SandboxItem;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::config::{Level, Resources};

use cgroup::Kind;
pub(crate) use cgroup::divide_group;
pub(super) use cgroup::{Control, Ground, Group, mark, remove_leftovers};
pub(super) use policy::{Policy, Ports, Reach};

/// What the line begins with.
const REPORT_PREFIX: &str = "gatepost adapter-exec: ";
/// Longest report, bytes.
pub(super) const REPORT_BYTES_MAX: usize = 16 * 1024;

/// Whose user the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Owner {
    /// One that the gateway, started as root, gave it.
    Own,
    /// The gateway's, which is not root.
    Shared,
    /// Root without its capabilities: still the owner of root's files.
    Root,
}

/// What was reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) level: Level,
    pub(super) uid: u32,
    pub(super) owner: Owner,
    /// The version of Landlock that is in force; 0 is none.
    pub(super) landlock: u8,
    pub(super) seccomp: bool,
    pub(super) limits: Limits,
    /// What is not there and what follows from that.
    pub(super) missing: Vec<String>,
    /// What the configuration asks for by name and what is not there.
    pub(super) unmet: Vec<String>,
    /// Whom the kernel had killed for memory in its control group before.
    pub(super) killed_before: u64,
}

/// What it may use up, as far as that is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Limits {
    pub(super) memory_bytes: Option<u64>,
    pub(super) processes: Option<u64>,
    pub(super) cpu_percent: Option<u32>,
}

/// Why the level cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unreachable {
    pub(super) level: Level,
    /// The part that is missing.
    pub(super) part: String,
    pub(super) why: String,
    pub(super) advice: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    Reached(Report),
    Unreachable(Unreachable),
}

impl Outcome {
    pub(super) fn line(&self) -> String {
        // Unwrap safety: texts and numbers are always JSON; an empty line would say that nothing was reached.
        format!("{REPORT_PREFIX}{}\n", serde_json::to_string(self).unwrap_or_default())
    }

    /// `None` if the line is not one.
    pub(super) fn read(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line.strip_prefix(REPORT_PREFIX.as_bytes())?).ok()
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { level, part, why, advice } = self;
        write!(
            f,
            "sandbox = \"{}\" cannot be reached here: {part} is missing ({why}); {advice}",
            level.as_str()
        )
    }
}

impl Report {
    /// As the audit log says it.
    pub(super) fn code(&self) -> String {
        let owner = match self.owner {
            Owner::Own => "own",
            Owner::Shared => "shared",
            Owner::Root => "root",
        };
        let calls = if self.seccomp { "_seccomp" } else { "" };
        // An entry has no room for more than letters.
        let letter = |is_limited: bool, letter| if is_limited { letter } else { "" };
        let Limits { memory_bytes, processes, cpu_percent } = &self.limits;
        let limits = [
            letter(memory_bytes.is_some(), "m"),
            letter(processes.is_some(), "p"),
            letter(cpu_percent.is_some(), "c"),
        ];
        let limits = limits.concat();
        let separator = if limits.is_empty() { "" } else { "_" };
        format!("{}_landlock{}{calls}_{owner}{separator}{limits}", self.level.as_str(), self.landlock)
    }

    pub(super) fn item(&self) -> SandboxItem {
        SandboxItem {
            level: self.level.as_str().to_owned(),
            uid: self.uid,
            own_uid: self.owner == Owner::Own,
            landlock_abi: self.landlock,
            seccomp: self.seccomp,
            memory_bytes: self.limits.memory_bytes,
            processes: self.limits.processes,
            cpu_percent: self.limits.cpu_percent,
            missing: self.missing.clone(),
            unmet: self.unmet.clone(),
        }
    }
}

/// Takes from this process what `policy` says, and from whatever it becomes.
pub(super) fn confine(policy: &Policy) -> Result<Report, Unreachable> {
    let missing_part = |part: &str, why: String, advice: &str| Unreachable {
        level: policy.level,
        part: part.to_owned(),
        why,
        advice: advice.to_owned(),
    };
    let owner = match policy.run_as {
        Some(_) => Owner::Own,
        None if geteuid().is_root() => Owner::Root,
        None => Owner::Shared,
    };
    let mut report = Report {
        level: policy.level,
        uid: policy.run_as.map_or(geteuid().as_raw(), |user| user.uid),
        owner,
        landlock: 0,
        seccomp: false,
        limits: Limits::default(),
        missing: Vec::new(),
        unmet: Vec::new(),
        killed_before: 0,
    };
    if policy.level == Level::Off {
        report.missing.push("the sandbox is off: the adapter can do all that the gateway can".to_owned());
        return Ok(report);
    }
    if policy.level == Level::Strict && owner == Owner::Root {
        let advice = "add run_as = \"USER\" with a user that does nothing else, or start the gateway as another user than root";
        return Err(missing_part("a user of its own", "the gateway runs as root".to_owned(), advice));
    }
    // While it may still write where groups are made.
    let resources = policy.control.as_ref().map_or_else(Resources::default, |control| control.resources);
    if let Some(control) = &policy.control {
        limit(control, policy, &mut report)?;
    }
    privileges::tidy().map_err(|error| {
        missing_part("a process without an inheritance", error.to_string(), "see whether /proc is mounted")
    })?;
    // Made before the user changes: the kernel keeps the user's own rights beside these.
    let found = files::supported();
    let least = match policy.level {
        Level::Strict => files::PORTS_SINCE,
        Level::Standard => 1,
        Level::Minimal | Level::Off => 0,
    };
    if found < least {
        let why = match found {
            0 => "this kernel has no Landlock, or it is switched off".to_owned(),
            found => format!("this kernel has version {found} of it"),
        };
        let advice = match policy.level {
            Level::Strict => {
                "use a kernel from 6.7 on with `landlock` in its list of security modules, or sandbox = \"standard\""
            }
            _ => {
                "use a kernel with `landlock` in its list of security modules (lsm=landlock,…), or sandbox = \"minimal\""
            }
        };
        return Err(missing_part(&format!("Landlock from version {least} on"), why, advice));
    }
    let rules = files::prepare(found, policy).map_err(|error| {
        missing_part(
            "a path that it may reach",
            error.to_string(),
            "see that each path of `allow` and of the settings exists and may be opened",
        )
    })?;
    privileges::drop_all(policy.run_as, resources.processes.value()).map_err(|error| {
        let advice =
            "a user of its own (run_as) needs a gateway that was started as root, with all capabilities";
        missing_part("the loss of privileges", error.to_string(), advice)
    })?;
    if let Some(rules) = rules {
        rules.restrict().map_err(|error| {
            missing_part(
                "Landlock",
                error.to_string(),
                "use sandbox = \"minimal\" if this kernel cannot do it",
            )
        })?;
        report.landlock = found;
    }
    let limits_missing = std::mem::replace(&mut report.missing, missing(found, owner, policy));
    report.missing.extend(limits_missing);
    calls::refuse(policy).map_err(|error| {
        missing_part(
            "seccomp",
            error,
            "use a kernel with CONFIG_SECCOMP_FILTER, and let whatever runs gatepost permit filters",
        )
    })?;
    report.seccomp = true;
    Ok(report)
}

/// What this kernel and this configuration leave open, for people.
fn missing(landlock: u8, owner: Owner, policy: &Policy) -> Vec<String> {
    let mut missing = Vec::new();
    let mut note = |applies: bool, text: &str| {
        if applies {
            missing.push(text.to_owned());
        }
    };
    note(landlock == 0, "no Landlock: it can open each file that its user can");
    note(
        landlock < files::PORTS_SINCE && !(policy.connect.is_none() && policy.bind.is_none()),
        "no Landlock for ports: it can connect and listen anywhere",
    );
    note(landlock < files::SCOPES_SINCE, "no Landlock for signals: it can signal each process of its user");
    note(
        policy.connect == Ports::Any || policy.through_gateway == Reach::Anywhere,
        "`*` in allow.connect: it can connect to any host (rule A18)",
    );
    note(
        matches!(&policy.connect, Ports::These(ports) if !ports.is_empty()),
        "it connects by itself (allow.direct): its ports are enforced, its hosts are not",
    );
    note(owner == Owner::Root, "no user of its own: it runs as root without capabilities (see run_as)");
    note(owner == Owner::Shared, "no user of its own: it runs as the gateway's user");
    missing
}

/// Limits what it may use up, as far as that can be.
fn limit(control: &Control, policy: &Policy, report: &mut Report) -> Result<(), Unreachable> {
    let resources = &control.resources;
    let mut joined = cgroup::join(control, &Ground::of_this_process());
    if policy.run_as.is_some() {
        // The kernel counts a user's, too.
        joined.missing.retain(|(kind, _)| *kind != Kind::Processes);
        joined.kinds.insert(Kind::Processes);
    }
    for (kind, why) in joined.missing {
        let (key, limit) = (kind.key(), kind.limit());
        report.missing.push(format!("no {limit} of its own: {why}"));
        if !kind.is_asked(resources) {
            continue;
        }
        if policy.level == Level::Strict {
            return Err(Unreachable {
                level: policy.level,
                part: format!("the {limit}"),
                why,
                advice: format!(
                    "hand a control group on to the gateway (for systemd Delegate=memory pids cpu), or remove `{key}` from `allow`"
                ),
            });
        }
        report.unmet.push(format!("allow.{key} is not in force: {why}"));
    }
    report.killed_before = joined.killed_before;
    report.missing.extend(joined.notes.into_iter().map(str::to_owned));
    let is_in_force = |kind| joined.kinds.contains(&kind);
    report.limits = Limits {
        memory_bytes: is_in_force(Kind::Memory).then(|| resources.memory.value()),
        processes: is_in_force(Kind::Processes).then(|| resources.processes.value()),
        cpu_percent: resources.cpus.filter(|_| is_in_force(Kind::Cpus)).map(|cpus| cpus.percent()),
    };
    Ok(())
}
