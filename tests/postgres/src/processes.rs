//! The server's processes: the first one and its children, found in `/proc`.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::until;

const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Stops the first one, so that it starts no more, and gives all.
pub(crate) fn stop(first: Pid) -> io::Result<Vec<Pid>> {
    kill(first, Signal::SIGSTOP)?;
    until(STOP_PATIENCE, "the server's first process stands still", || {
        stat(first).is_none_or(|(state, _)| matches!(state, 'T' | 'Z' | 'X'))
    })?;
    Ok(family(first))
}

/// It and its children.
pub(crate) fn family(first: Pid) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).map(Pid::from_raw);
    let children = all.filter(|process| stat(*process).is_some_and(|(_, parent)| parent == first));
    std::iter::once(first).chain(children).collect()
}

/// One that has ended meanwhile is no fault.
pub(crate) fn send(processes: &[Pid], signal: Signal) -> io::Result<()> {
    for process in processes {
        match kill(*process, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Ended, whether or not its parent has asked for it: it holds nothing any more.
pub(crate) fn gone(process: Pid) -> bool {
    stat(process).is_none_or(|(state, _)| matches!(state, 'Z' | 'X'))
}

/// A process's state and its parent.
fn stat(process: Pid) -> Option<(char, Pid)> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name before them may hold anything.
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((state, Pid::from_raw(fields.next()?.parse().ok()?)))
}
