//! Starting child processes. Every child is started through `gatepost adapter-exec`, in a process group of its own, with nothing in
//! its environment but what is named here. A gateway that is not root has those of other users started by its spawner.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, mpsc};

use tokio::signal::unix::{self, SignalKind};
use tokio::sync::oneshot;

use super::process::Process;
use super::program::{Command, INHERITED};
use super::sandbox::{Ground, Group, Policy, mark, remove_leftovers};
use super::spawner::{Spawner, Task};

const SOCKET_VARIABLE: &str = "GATEPOST_SOCKET";

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
    /// Who starts what is another user's.
    spawner: Option<Spawner>,
}

/// How a child is to be started.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    pub(super) name: &'a str,
    /// The digest of the configuration that says so.
    pub(super) config: &'a str,
    pub(super) command: &'a Command,
    pub(super) purpose: Purpose<'a>,
    pub(super) policy: &'a Policy,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose<'a> {
    /// To work for the gateway at this socket, from [`Process::open_gate`] on. It has no input.
    Work { socket: &'a Path },
    /// To answer a question about itself on standard output.
    Question(Question),
}

/// What a program is asked with one option after its configured arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Manifest,
    Access,
    Check,
}

impl Question {
    pub(super) const fn option(self) -> &'static str {
        match self {
            Self::Manifest => "--manifest",
            Self::Access => "--access",
            Self::Check => "--check",
        }
    }
}

impl Purpose<'_> {
    pub(super) const fn task(self) -> Task {
        match self {
            Self::Work { .. } => Task::Work,
            Self::Question(Question::Manifest) => Task::Manifest,
            Self::Question(Question::Access) => Task::Access,
            Self::Question(Question::Check) => Task::Check,
        }
    }
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
        Ok(Self { orders, adapter_exec, ground: Arc::new(Ground::of_this_process()), spawner: None })
    }

    /// The same, with a spawner for what is another user's.
    pub(crate) fn with(self, spawner: Option<Spawner>) -> Self {
        Self { spawner, ..self }
    }

    /// Whether it can start another user's process although this one is not root.
    pub(super) fn changes_users(&self) -> bool {
        self.spawner.is_some()
    }

    /// What the control groups of a gateway on `data_dir` are known by. It is the only one there by now, so that what bears the
    /// mark already is left from an earlier one and removed. `None` if there can be no mark, and so no groups.
    pub(super) async fn mark(&self, data_dir: &Path) -> Option<String> {
        let mark = mark(data_dir).inspect_err(
            |error| tracing::warn!(%error, "the data directory cannot be examined: adapters get no control groups"),
        );
        let mark = mark.ok()?;
        match &self.spawner {
            // Some are root's.
            Some(spawner) => spawner.sweep().await,
            None => remove_leftovers(&self.ground, &mark),
        }
        Some(mark)
    }

    /// Comes back when the child exists.
    pub(super) async fn launch(&self, launch: Launch<'_>) -> io::Result<Process> {
        let group = launch.policy.control.as_ref().map(|control| Group::of(control, &self.ground));
        if let Some(spawner) = self.spawner.as_ref().filter(|_| launch.policy.changes_user()) {
            let process = spawner.start(launch.name, launch.config, launch.purpose.task()).await?;
            return Ok(process.in_group(group));
        }
        let ended = || io::Error::other("the thread that starts adapters has ended");
        // Before the start, so that no end is missed.
        let child_signals = unix::signal(SignalKind::child())?;
        let (answer, answered) = oneshot::channel();
        self.orders.send((self.command(&launch)?, answer)).map_err(|_| ended())?;
        let child = answered.await.map_err(|_| ended())??;
        Ok(Process::here(child, child_signals)?.in_group(group))
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
            Purpose::Question(_) => Stdio::null(),
        };
        let option = match launch.purpose {
            Purpose::Work { .. } => None,
            Purpose::Question(question) => Some(question.option()),
        };
        command
            .arg("--policy")
            .arg(serde_json::to_string(launch.policy)?)
            .args([launch.name, "--"])
            .arg(&launch.command.file)
            .args(&launch.command.args)
            .args(option);
        // A group of its own: the terminal's signals go to the gateway alone, and what the adapter starts ends with it.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr).process_group(0);
        Ok(command)
    }
}
