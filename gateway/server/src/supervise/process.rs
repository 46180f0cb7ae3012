//! A process that was started, wherever that was done: as a child of this process, or by the spawner.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::signal::unix;
use tokio::time::timeout;

use super::sandbox::{Group, Outcome, REPORT_BYTES_MAX};
use super::spawner::Remote;

/// How long a child may take until its program starts.
const REPORT_DEADLINE: Duration = Duration::from_secs(30);

/// A process that has not been reaped. Dropping it kills it with its whole group.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    pub(super) streams: Streams,
    /// The control group that it is to join.
    group: Option<Group>,
    held: Held,
}

/// The ends of its standard streams that are not its own.
#[derive(Debug, Default)]
pub(super) struct Streams {
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
}

#[derive(Debug)]
enum Held {
    Here(Here),
    Elsewhere(Remote),
}

/// A child of this process.
#[derive(Debug)]
struct Here {
    child: Child,
    pid: Pid,
    child_signals: unix::Signal,
    group: Option<Group>,
    reaped: bool,
}

impl Process {
    pub(super) fn here(mut child: Child, child_signals: unix::Signal) -> io::Result<Self> {
        let streams = Streams {
            stdin: child.stdin.take().map(OwnedFd::from),
            stdout: child.stdout.take().map(OwnedFd::from),
            stderr: child.stderr.take().map(OwnedFd::from),
        };
        let pid = child.id();
        match i32::try_from(pid) {
            Ok(number) => {
                let pid_here = Pid::from_raw(number);
                let here = Here { child, pid: pid_here, child_signals, group: None, reaped: false };
                Ok(Self { pid, streams, group: None, held: Held::Here(here) })
            }
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(io::Error::other(error))
            }
        }
    }

    pub(super) fn elsewhere(pid: u32, streams: Streams, remote: Remote) -> Self {
        Self { pid, streams, group: None, held: Held::Elsewhere(remote) }
    }

    /// Who has started it removes the group when the process is reaped.
    pub(super) fn in_group(mut self, group: Option<Group>) -> Self {
        if let Held::Here(here) = &mut self.held {
            here.group.clone_from(&group);
        }
        Self { group, ..self }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets the child become the adapter: its pid is known to those who must know it.
    pub(super) fn open_gate(&mut self) {
        if let Some(gate) = self.streams.stdin.take() {
            // One byte into an empty pipe: it cannot block, and fails only for a child that has ended.
            let _ = File::from(gate).write_all(b"\n");
        }
    }

    /// What has become of its sandbox: the first line that it writes. `None` if it ended without one.
    pub(super) async fn sandbox(&mut self) -> io::Result<Option<Outcome>> {
        let Some(stdout) = self.streams.stdout.take() else { return Ok(None) };
        let mut stdout = pipe::Receiver::from_owned_fd(stdout)?;
        let outcome = timeout(REPORT_DEADLINE, read_outcome(&mut stdout)).await;
        self.streams.stdout = Some(stdout.into_blocking_fd()?);
        let outcome = outcome.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if let (Some(group), Some(Outcome::Reached(report))) = (&mut self.group, &outcome) {
            group.joined(report.killed_before);
        }
        Ok(outcome)
    }

    /// Comes back when the process has ended. It stays a zombie, so that its pid is nobody else's, until [`Process::reap`].
    pub(super) async fn ended(&mut self) {
        match &mut self.held {
            Held::Here(here) => here.ended().await,
            Held::Elsewhere(remote) => remote.ended().await,
        }
    }

    /// Whether the kernel has killed it, or what it started, because its control group had no memory left. To be asked before
    /// [`Process::reap`].
    pub(super) fn ran_out_of_memory(&self) -> bool {
        self.group.as_ref().is_some_and(Group::ran_out_of_memory)
    }

    /// Asks the process, not what it started, to end.
    pub(super) fn terminate(&self) {
        match &self.held {
            // It fails only for one that has ended.
            Held::Here(here) => drop(kill(here.pid, Signal::SIGTERM)),
            Held::Elsewhere(remote) => remote.terminate(),
        }
    }

    /// Kills it and what it started.
    pub(super) fn kill(&self) {
        match &self.held {
            Held::Here(here) => here.kill(),
            Held::Elsewhere(remote) => remote.kill(),
        }
    }

    /// Kills what is left of it and gives its status; its pid is free afterwards. To be called after [`Process::ended`],
    /// or it waits for the kill to take effect.
    pub(super) async fn reap(self) -> io::Result<ExitStatus> {
        match self.held {
            Held::Here(mut here) => here.finish(),
            Held::Elsewhere(remote) => remote.reap().await,
        }
    }
}

impl Here {
    async fn ended(&mut self) {
        while self.lives() {
            self.child_signals.recv().await;
        }
    }

    fn lives(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        matches!(waitid(Id::Pid(self.pid), flags), Ok(WaitStatus::StillAlive) | Err(Errno::EINTR))
    }

    fn kill(&self) {
        // Both fail only for those that have ended.
        let _ = killpg(self.pid, Signal::SIGKILL);
        let _ = kill(self.pid, Signal::SIGKILL);
    }

    fn finish(&mut self) -> io::Result<ExitStatus> {
        // Before the wait: until then the group's number cannot be another's.
        self.kill();
        self.reaped = true;
        let status = self.child.wait();
        if let Some(group) = &self.group {
            group.remove();
        }
        status
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        if !self.reaped {
            // Nobody is left to tell.
            let _ = self.finish();
        }
    }
}

/// Byte by byte: what follows the line is for others.
async fn read_outcome(stdout: &mut pipe::Receiver) -> io::Result<Option<Outcome>> {
    let mut line = Vec::new();
    for _ in 0..REPORT_BYTES_MAX {
        match stdout.read_u8().await {
            Ok(b'\n') => match Outcome::read(&line) {
                Some(outcome) => return Ok(Some(outcome)),
                // Only a test's stand-in says something before.
                None => line.clear(),
            },
            Ok(byte) => line.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}
