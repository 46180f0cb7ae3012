//! Starting child processes and ending them. Every child is started through `gatepost adapter-exec`, in a process group of
//! its own, with nothing in its environment but what is named here.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::program::Command;
use super::sandbox::{Ground, Group, Outcome, Policy, REPORT_BYTES_MAX, mark, remove_leftovers};

/// The only variables that an adapter inherits.
const INHERITED: [&str; 3] = ["PATH", "LANG", "TZ"];
const SOCKET_VARIABLE: &str = "GATEPOST_SOCKET";
/// How long a child may take until its program starts.
const REPORT_DEADLINE: Duration = Duration::from_secs(30);

type Order = (std::process::Command, oneshot::Sender<io::Result<Child>>);

/// Starts processes from a thread of its own. The kernel sends the parent-death signal when the *thread* that started a
/// child ends, and the runtime's threads come and go. Clones share the thread; it ends with the last of them.
#[derive(Clone, Debug)]
pub(crate) struct Launcher {
    orders: mpsc::Sender<Order>,
    /// What stands before `--parent`.
    adapter_exec: Vec<OsString>,
    /// Where the children make control groups.
    ground: Arc<Ground>,
}

/// How a child is to be started.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    pub(super) name: &'a str,
    pub(super) command: &'a Command,
    /// Arguments after the configured ones.
    pub(super) extra_args: &'a [&'a str],
    pub(super) purpose: Purpose<'a>,
    pub(super) policy: &'a Policy,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose<'a> {
    /// To work for the gateway at this socket, from [`Process::open_gate`] on. It has no input.
    Work { socket: &'a Path },
    /// To answer a question about itself on standard output.
    Question,
}

impl Launcher {
    /// Starts children through the executable that this process runs, even if its file has been replaced since.
    pub(crate) fn start() -> io::Result<Self> {
        Self::through(vec!["/proc/self/exe".into(), "adapter-exec".into()])
    }

    pub(super) fn through(adapter_exec: Vec<OsString>) -> io::Result<Self> {
        let (orders, incoming) = mpsc::channel::<Order>();
        std::thread::Builder::new().name("adapter-starter".into()).spawn(move || {
            for (mut command, answer) in incoming {
                if let Err(Ok(mut unwanted)) = answer.send(command.spawn()) {
                    // Errors mean that it is gone already.
                    let _ = unwanted.kill();
                    let _ = unwanted.wait();
                }
            }
        })?;
        Ok(Self { orders, adapter_exec, ground: Arc::new(Ground::of_this_process()) })
    }

    /// What the control groups of a gateway on `data_dir` are known by. It is the only one there by now, so that what bears the
    /// mark already is left from an earlier one and removed. `None` if there can be no mark, and so no groups.
    pub(super) fn mark(&self, data_dir: &Path) -> Option<String> {
        let mark = mark(data_dir).inspect_err(
            |error| tracing::warn!(%error, "the data directory cannot be examined: adapters get no control groups"),
        );
        let mark = mark.ok()?;
        remove_leftovers(&self.ground, &mark);
        Some(mark)
    }

    /// Comes back when the child exists.
    pub(super) async fn launch(&self, launch: Launch<'_>) -> io::Result<Process> {
        let ended = || io::Error::other("the thread that starts adapters has ended");
        // Before the start, so that no end is missed.
        let child_signals = unix::signal(SignalKind::child())?;
        let (answer, answered) = oneshot::channel();
        self.orders.send((self.command(&launch)?, answer)).map_err(|_| ended())?;
        let child = answered.await.map_err(|_| ended())??;
        let group = launch.policy.control.as_ref().map(|control| Group::of(control, &self.ground));
        Process::new(child, child_signals, group)
    }

    fn command(&self, launch: &Launch<'_>) -> io::Result<std::process::Command> {
        let (program, words) =
            self.adapter_exec.split_first().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut command = std::process::Command::new(program);
        command.args(words).arg("--parent").arg(std::process::id().to_string());
        command.env_clear();
        command.envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.envs(gatepost_faults::handed_on());
        let stderr = match launch.purpose {
            Purpose::Work { socket } => {
                command.arg("--gated").env(SOCKET_VARIABLE, socket);
                Stdio::piped()
            }
            Purpose::Question => Stdio::null(),
        };
        command
            .arg("--policy")
            .arg(serde_json::to_string(launch.policy)?)
            .args([launch.name, "--"])
            .arg(&launch.command.file)
            .args(&launch.command.args)
            .args(launch.extra_args);
        // A group of its own: the terminal's signals go to the gateway alone, and what the adapter starts ends with it.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr).process_group(0);
        Ok(command)
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

/// A child that has not been reaped. Dropping it kills it with its whole group.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    pid: Pid,
    child_signals: unix::Signal,
    group: Option<Group>,
    reaped: bool,
}

impl Process {
    fn new(mut child: Child, child_signals: unix::Signal, group: Option<Group>) -> io::Result<Self> {
        match i32::try_from(child.id()) {
            Ok(pid) => Ok(Self { child, pid: Pid::from_raw(pid), child_signals, group, reaped: false }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(io::Error::other(error))
            }
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets the child become the adapter: its pid is known to those who must know it.
    pub(super) fn open_gate(&mut self) {
        if let Some(mut gate) = self.child.stdin.take() {
            // One byte into an empty pipe: it cannot block, and fails only for a child that has ended.
            let _ = gate.write_all(b"\n");
        }
    }

    /// What has become of its sandbox: the first line that it writes. `None` if it ended without one.
    pub(super) async fn sandbox(&mut self) -> io::Result<Option<Outcome>> {
        let Some(stdout) = self.take_stdout() else { return Ok(None) };
        let mut stdout = pipe::Receiver::from_owned_fd(stdout)?;
        let outcome = timeout(REPORT_DEADLINE, read_outcome(&mut stdout)).await;
        self.child.stdout = Some(stdout.into_blocking_fd()?.into());
        let outcome = outcome.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if let (Some(group), Some(Outcome::Reached(report))) = (&mut self.group, &outcome) {
            group.joined(report.killed_before);
        }
        Ok(outcome)
    }

    pub(super) fn take_stdin(&mut self) -> Option<OwnedFd> {
        self.child.stdin.take().map(OwnedFd::from)
    }

    pub(super) fn take_stdout(&mut self) -> Option<OwnedFd> {
        self.child.stdout.take().map(OwnedFd::from)
    }

    pub(super) fn take_stderr(&mut self) -> Option<OwnedFd> {
        self.child.stderr.take().map(OwnedFd::from)
    }

    /// Comes back when the process has ended. It stays a zombie, so that its pid is nobody else's, until [`Process::reap`].
    pub(super) async fn ended(&mut self) {
        while self.lives() {
            self.child_signals.recv().await;
        }
    }

    fn lives(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        matches!(waitid(Id::Pid(self.pid), flags), Ok(WaitStatus::StillAlive) | Err(Errno::EINTR))
    }

    /// Whether the kernel has killed it, or what it started, because its control group had no memory left. To be asked before
    /// [`Process::reap`].
    pub(super) fn ran_out_of_memory(&self) -> bool {
        self.group.as_ref().is_some_and(Group::ran_out_of_memory)
    }

    /// Asks the process, not what it started, to end.
    pub(super) fn terminate(&self) {
        // It fails only for one that has ended.
        let _ = kill(self.pid, Signal::SIGTERM);
    }

    /// Kills it and what it started.
    pub(super) fn kill(&self) {
        // Both fail only for those that have ended.
        let _ = killpg(self.pid, Signal::SIGKILL);
        let _ = kill(self.pid, Signal::SIGKILL);
    }

    /// Kills what is left of it and gives its status; its pid is free afterwards. To be called after [`Process::ended`],
    /// or it waits for the kill to take effect.
    pub(super) fn reap(mut self) -> io::Result<ExitStatus> {
        self.finish()
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

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped {
            // Nobody is left to tell.
            let _ = self.finish();
        }
    }
}
