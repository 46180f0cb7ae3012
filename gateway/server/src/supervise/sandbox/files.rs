//! Landlock: the files that a process may open, the ports that it may use, and whom it may signal. What is not named here or by
//! the policy is denied, whoever the process's user is.

use std::fs;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, PathFd,
    PathFdError, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus,
    Scope,
};

use super::{Policy, Ports};
use crate::config::Level;

/// The version that knows ports.
pub(super) const PORTS_SINCE: u8 = 4;
/// The version that knows signals and abstract sockets.
pub(super) const SCOPES_SINCE: u8 = 6;

/// Where programs and their libraries are.
const SYSTEM_TREES: [&str; 8] =
    ["/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store", "/gnu/store"];
/// What libraries read by themselves: time, certificates, chance.
const SYSTEM_FILES: [&str; 10] = [
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/ca-certificates",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust",
    "/dev/urandom",
    "/dev/random",
];
/// What libraries look hosts up in. Who is connected by the gateway has no use for it, and it tells of the neighbourhood.
const NAME_FILES: [&str; 7] = [
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/resolv.conf",
    "/run/systemd/resolve",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
];
/// What the kernel executes to load a program.
const LOADERS: [&str; 4] = [
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-aarch64.so.1",
];
const NULL_DEVICE: &str = "/dev/null";
const OWN_PROCESS: &str = "/proc/self";

/// The versions to try, newest first: what each added is a part of its own.
const VERSIONS: [(u8, ABI); 6] =
    [(6, ABI::V6), (5, ABI::V5), (4, ABI::V4), (3, ABI::V3), (2, ABI::V2), (1, ABI::V1)];

/// Rules that are not in force yet.
pub(super) struct Rules(RulesetCreated);

#[derive(Debug, thiserror::Error)]
pub(super) enum RuleError {
    #[error(transparent)]
    Path(#[from] PathFdError),
    #[error("{}: {error}", .path.display())]
    Examine { path: PathBuf, error: std::io::Error },
    #[error(transparent)]
    Ruleset(#[from] RulesetError),
    #[error("the kernel enforced only a part of the rules")]
    Partly,
}

/// The newest version, of those known here, that this kernel has whole; 0 if there is none.
pub(super) fn supported() -> u8 {
    VERSIONS
        .into_iter()
        .find(|(_, abi)| handled(*abi, AccessNet::from_all(*abi)).is_ok())
        .map_or(0, |(version, _)| version)
}

/// Everything that a version can deny, of the network's only what `net` says, and nothing of it as a mere wish.
fn handled(abi: ABI, net: BitFlags<AccessNet>) -> Result<RulesetCreated, RulesetError> {
    let mut rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    rules = rules.handle_access(AccessFs::from_all(abi))?;
    let scopes = Scope::from_all(abi);
    if !net.is_empty() {
        rules = rules.handle_access(net)?;
    }
    if !scopes.is_empty() {
        rules = rules.scope(scopes)?;
    }
    rules.create()
}

/// The rules that follow from `policy`; `None` where the kernel has no Landlock.
pub(super) fn prepare(version: u8, policy: &Policy) -> Result<Option<Rules>, RuleError> {
    let Some((_, abi)) = VERSIONS.into_iter().find(|(known, _)| *known == version) else { return Ok(None) };
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let run = AccessFs::ReadFile | AccessFs::Execute;
    // Programs of the system start others; at the strict level there is one program.
    let system = if policy.level == Level::Strict { read } else { read | AccessFs::Execute };
    let mut net = AccessNet::from_all(abi);
    if policy.connect == Ports::Any {
        net.remove(AccessNet::ConnectTcp);
    }
    let mut rules = handled(abi, net)?;
    for path in SYSTEM_TREES.map(Path::new).into_iter().filter(|path| path.exists()) {
        rules = allow(rules, path, system, abi)?;
    }
    let names = NAME_FILES.iter().filter(|_| !policy.connect.is_none());
    for path in SYSTEM_FILES.iter().chain(names).map(Path::new).filter(|path| path.exists()) {
        rules = allow(rules, path, read, abi)?;
    }
    rules = allow(rules, Path::new(NULL_DEVICE), AccessFs::ReadFile | AccessFs::WriteFile, abi)?;
    rules = allow(rules, Path::new(OWN_PROCESS), read, abi)?;
    for path in &policy.read {
        rules = allow(rules, path, read, abi)?;
    }
    for path in &policy.write {
        rules = allow(rules, path, writable(abi), abi)?;
    }
    for path in &policy.execute {
        rules = allow(rules, path, run, abi)?;
    }
    if policy.level == Level::Strict {
        for loader in LOADERS.map(Path::new).into_iter().filter(|path| path.exists()) {
            rules = allow(rules, loader, run, abi)?;
        }
    }
    if version >= PORTS_SINCE {
        rules = ports(rules, &policy.connect, AccessNet::ConnectTcp)?;
        rules = ports(rules, &policy.bind, AccessNet::BindTcp)?;
    }
    Ok(Some(Rules(rules)))
}

/// All that can be done to files, but executing them, and making those that are no files.
fn writable(abi: ABI) -> BitFlags<AccessFs> {
    let lacking = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
    AccessFs::from_all(abi) & !lacking
}

fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: impl Into<BitFlags<AccessFs>>,
    abi: ABI,
) -> Result<RulesetCreated, RuleError> {
    let examined = fs::metadata(path).map_err(|error| RuleError::Examine { path: path.to_owned(), error })?;
    let access = access.into();
    // Rights over a directory's entries mean nothing for a file, and the kernel refuses them.
    let access = if examined.is_dir() { access } else { access & AccessFs::from_file(abi) };
    Ok(rules.add_rule(PathBeneath::new(PathFd::new(path)?, access))?)
}

fn ports(mut rules: RulesetCreated, ports: &Ports, access: AccessNet) -> Result<RulesetCreated, RuleError> {
    // Without a limit there is nothing to allow. Port 0 stands for whichever is free when it is bound.
    if let Ports::These(ports) = ports {
        for port in ports {
            rules = rules.add_rule(NetPort::new(*port, access))?;
        }
    }
    Ok(rules)
}

impl Rules {
    /// Puts them in force for this thread and whatever it becomes or starts.
    pub(super) fn restrict(self) -> Result<(), RuleError> {
        match self.0.restrict_self()?.ruleset {
            RulesetStatus::FullyEnforced => Ok(()),
            RulesetStatus::PartiallyEnforced | RulesetStatus::NotEnforced => Err(RuleError::Partly),
        }
    }
}
