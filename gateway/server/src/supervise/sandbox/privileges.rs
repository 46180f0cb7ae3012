//! What a process has of its parent and of its user: descriptors, limits, capabilities.

use std::io;
use std::os::fd::RawFd;

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, close, setgroups, setresgid, setresuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use crate::config::RunAs;

/// Largest file that an adapter may write, bytes.
const FILE_BYTES_MAX: u64 = 1 << 30;
const STDERR: RawFd = 2;

/// Lets nothing of the gateway through but the three standard streams.
pub(super) fn tidy() -> io::Result<()> {
    umask(Mode::from_bits_truncate(0o077));
    // Its own place in the file system is none of the gateway's.
    std::env::set_current_dir("/")?;
    let file_bytes = lowered(Resource::RLIMIT_FSIZE, FILE_BYTES_MAX)?;
    setrlimit(Resource::RLIMIT_FSIZE, file_bytes, file_bytes)?;
    close_descriptors()
}

/// Has no other capabilities ever again, whatever it becomes: what is started may gain one only within this bound.
pub(in crate::supervise) fn bound(most: CapabilitySet) -> io::Result<()> {
    // Only root may, and only root has what it would be for: others gain nothing by an exec under no_new_privs.
    if !capabilities(None)?.effective.contains(CapabilitySet::SETPCAP) {
        return Ok(());
    }
    for capability in CapabilitySet::all().difference(most).iter() {
        match capability_is_in_bounding_set(capability) {
            Ok(true) => remove_capability_from_bounding_set(capability)?,
            // One that this kernel does not know.
            Ok(false) | Err(rustix::io::Errno::INVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Has these capabilities and no others.
pub(in crate::supervise) fn keep(capabilities: CapabilitySet) -> io::Result<()> {
    match clear_ambient_capability_set() {
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        Err(errno) => return Err(errno.into()),
    }
    let sets = CapabilitySets {
        effective: capabilities,
        permitted: capabilities,
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, sets)?)
}

fn lowered(resource: Resource, most: u64) -> io::Result<u64> {
    let (_, hard) = getrlimit(resource)?;
    Ok(hard.min(most))
}

/// The gateway opens all it has close-on-exec; this is for what it was itself started with.
pub(in crate::supervise) fn close_descriptors() -> io::Result<()> {
    let open = std::fs::read_dir("/proc/self/fd")?.map(|entry| entry.map(|entry| entry.file_name()));
    let open = open.collect::<io::Result<Vec<_>>>()?;
    for fd in open.iter().filter_map(|name| name.to_str()?.parse::<RawFd>().ok()).filter(|&fd| fd > STDERR) {
        match close(fd) {
            // The directory's own, which was closed with the listing.
            Ok(()) | Err(Errno::EBADF) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Becomes `run_as` if there is one, with at most so many processes and threads, and has no capability afterwards, nor ever again.
pub(super) fn drop_all(run_as: Option<RunAs>, processes: u64) -> io::Result<()> {
    bound(CapabilitySet::empty())?;
    if let Some(RunAs { uid, gid }) = run_as {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        setgroups(&[gid])?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
        // The limit counts all that the user runs: which is this, and nothing else, where the user is the adapter's own.
        let tasks = lowered(Resource::RLIMIT_NPROC, processes)?;
        setrlimit(Resource::RLIMIT_NPROC, tasks, tasks)?;
    }
    keep(CapabilitySet::empty())?;
    // The kernel forgets it when a process's user or capabilities change.
    set_pdeathsig(Signal::SIGKILL)?;
    Ok(())
}
