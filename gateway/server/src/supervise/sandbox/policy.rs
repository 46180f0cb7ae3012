//! What one process keeps.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{Access, Connect, Level, RunAs, Sandbox};
use crate::supervise::program::Command;

use super::cgroup::Control;

/// Longest first line of a script that is looked at, bytes; the kernel's own limit.
const INTERPRETER_BYTES_MAX: u64 = 256;

/// What is taken from a process, and what it keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::supervise) struct Policy {
    pub(super) level: Level,
    pub(super) run_as: Option<RunAs>,
    pub(super) read: Vec<PathBuf>,
    pub(super) write: Vec<PathBuf>,
    /// Files that it may read and execute.
    pub(super) execute: Vec<PathBuf>,
    pub(super) connect: Ports,
    pub(super) bind: Ports,
    /// It has to ask for addresses, with datagrams.
    pub(super) resolves: bool,
    /// The group that it joins; one that only answers a question joins none.
    pub(in crate::supervise) control: Option<Control>,
    /// What it may connect to when it asks the gateway for it.
    pub(super) through_gateway: Reach,
}

/// How far the gateway connects for a process that does not connect by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::supervise) enum Reach {
    /// To the hosts and ports that are named, if any.
    Named,
    /// `*`
    Anywhere,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::supervise) enum Ports {
    Any,
    These(BTreeSet<u16>),
}

impl Ports {
    pub(super) fn is_none(&self) -> bool {
        matches!(self, Self::These(ports) if ports.is_empty())
    }
}

impl Policy {
    /// For a process that runs `command` with what the configuration allows and `implied`.
    pub(in crate::supervise) fn new(sandbox: &Sandbox, implied: &Access, command: &Command) -> Self {
        let Access { connect, bind, mut read, mut write, direct } = sandbox.allow.and(implied);
        // Where a program does not say, it is one that knows nothing but connect(2). At the strict level that is for the operator to allow.
        let direct = direct.unwrap_or(sandbox.level != Level::Strict);
        let anywhere = !direct && connect.contains(&Connect::Anywhere);
        let connect = if direct { connect } else { Vec::new() };
        let port = |to: &Connect| match to {
            Connect::Anywhere => None,
            Connect::To { port, .. } => Some(*port),
        };
        // Whoever wrote the command line named these files. What is no file's path is for the program alone to understand.
        let named =
            command.args.iter().map(PathBuf::from).filter(|path| path.is_absolute() && path.is_file());
        // What can be written is never executed.
        let named = named.filter(|path| !write.iter().any(|writable| path.starts_with(writable)));
        let mut execute: Vec<_> = std::iter::once(command.file.clone()).chain(named).collect();
        execute.extend(execute.clone().iter().filter_map(|file| interpreter(file)));
        write.extend(faults_file());
        read.retain(|path| !write.contains(path));
        Self {
            level: sandbox.level,
            run_as: sandbox.run_as,
            read,
            write,
            execute,
            through_gateway: if anywhere { Reach::Anywhere } else { Reach::Named },
            resolves: connect.iter().any(Connect::needs_resolving),
            connect: connect.iter().map(port).collect::<Option<_>>().map_or(Ports::Any, Ports::These),
            bind: Ports::These(bind.iter().map(std::net::SocketAddr::port).collect()),
            control: None,
        }
    }

    /// Whether it is for a process of another user than the one that starts it.
    pub(in crate::supervise) fn changes_user(&self) -> bool {
        self.run_as.is_some()
    }

    /// For asking a program about itself: no network, and nothing of the partners yet.
    pub(in crate::supervise) fn for_a_question(mut self) -> Self {
        self.connect = Ports::These(BTreeSet::new());
        self.bind = Ports::These(BTreeSet::new());
        self.resolves = false;
        self.through_gateway = Reach::Named;
        self
    }

    #[cfg(test)]
    pub(in crate::supervise) fn off() -> Self {
        let nothing = || Ports::These(BTreeSet::new());
        Self {
            level: Level::Off,
            run_as: None,
            read: Vec::new(),
            write: Vec::new(),
            execute: Vec::new(),
            connect: nothing(),
            bind: nothing(),
            resolves: false,
            control: None,
            through_gateway: Reach::Named,
        }
    }
}

/// Where the fault laboratory's adapters note what has happened; a normal build has none.
fn faults_file() -> Option<PathBuf> {
    let (_, faults) = gatepost_faults::handed_on()?;
    let file = faults.to_str()?.split(';').find_map(|part| part.strip_prefix("once="))?;
    std::fs::File::options().create(true).append(true).open(file).ok()?;
    Some(PathBuf::from(file))
}

/// What the first line of a script names.
fn interpreter(script: &Path) -> Option<PathBuf> {
    let mut start = Vec::new();
    std::fs::File::open(script).ok()?.take(INTERPRETER_BYTES_MAX).read_to_end(&mut start).ok()?;
    let line = start.strip_prefix(b"#!")?.split(|&byte| byte == b'\n').next()?.trim_ascii();
    let path = line.split(|byte| byte.is_ascii_whitespace()).next()?;
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    path.is_absolute().then(|| path.to_owned())
}
