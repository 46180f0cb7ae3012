//! The gateway's side: requests to the spawner, and processes that it has started.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::wire::{AdapterName, Answer, Ask, ConfigDigest, Link, Reply, Request, Task, Watch, receive_reply};
use crate::config::{RunAs, Safety};
use crate::supervise::process::{Process, Streams};

/// How long the spawner may take to read the configuration.
const READY_DEADLINE_MS: u16 = 30_000;
/// How long it may take to end what it has started, and itself.
const END_DEADLINE: Duration = Duration::from_secs(10);
const GONE: &str = "the spawner is gone, which starts the adapters of other users";

/// A spawner that has said that it is ready. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Started {
    child: Child,
    end: OwnedFd,
}

/// What can be asked of the spawner. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Spawner {
    /// No more than the adapters' tasks have to ask at a time: a few for each.
    orders: mpsc::UnboundedSender<Order>,
    lost: watch::Receiver<bool>,
}

/// Who speaks with the spawner; its owner awaits [`Conversation::end`].
#[derive(Debug)]
pub(crate) struct Conversation {
    child: Child,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Order {
    ask: Ask,
    answer: Option<oneshot::Sender<Given>>,
}

#[derive(Debug)]
struct Given {
    answer: Answer,
    beside: Vec<OwnedFd>,
}

impl Started {
    /// Starts one, as root, and waits until it has found the configuration as it must be.
    pub(super) fn new(user: RunAs, config: &Path, safety: Safety) -> Result<Self, String> {
        let failed = |error: io::Error| format!("the spawner cannot be started: {error}");
        let (end, its_end) = Link::pair().map_err(failed)?;
        let config = std::path::absolute(config).map_err(failed)?;
        let mut command = super::command(user, &config, safety == Safety::InsecureDev);
        // A group of its own: the terminal's signals go to the gateway alone, which ends it when all else has ended.
        command.stdin(Stdio::from(its_end)).stdout(Stdio::null()).process_group(0);
        let child = command.spawn().map_err(failed)?;
        // Its end of the socket is in there, and would keep the socket open.
        drop(command);
        let started = Self { child, end };
        match started.first_answer() {
            Ok(Some(Answer::Ready)) => Ok(started),
            Ok(Some(Answer::Refused { why })) => Err(why),
            Ok(_) => Err("the spawner ended before it was ready".to_owned()),
            Err(error) => Err(failed(error)),
        }
    }

    fn first_answer(&self) -> io::Result<Option<Answer>> {
        let mut ends = [PollFd::new(self.end.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ends, PollTimeout::from(READY_DEADLINE_MS))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(receive_reply(self.end.as_fd())?.map(|(reply, _)| reply.answer))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// To be called in a runtime.
    pub(crate) fn converse(self) -> io::Result<(Spawner, Conversation)> {
        let link = Link::new(self.end)?;
        let (orders, ordered) = mpsc::unbounded_channel();
        let (losing, lost) = watch::channel(false);
        let (stop, mut stopping) = watch::channel(false);
        let task = tokio::spawn(async move {
            tokio::select! {
                _ = stopping.wait_for(|&stop| stop) => {}
                () = converse(&link, ordered) => {}
            }
            // Before anybody is told: whoever is told may wait for its end.
            drop(link);
            losing.send_replace(true);
        });
        Ok((Spawner { orders, lost }, Conversation { child: self.child, stop, task }))
    }
}

/// Until the spawner is gone, or nothing more is to be asked.
async fn converse(link: &Link, mut orders: mpsc::UnboundedReceiver<Order>) {
    let mut waiting = HashMap::<u64, oneshot::Sender<Given>>::new();
    let mut next = 0;
    loop {
        tokio::select! {
            got = link.reply() => match got {
                // To no request: it ends.
                Ok(Some((Reply { id: 0, answer: Answer::Refused { why } }, _))) => {
                    tracing::error!("the spawner ends: {why}");
                }
                Ok(Some((Reply { id, answer }, beside))) => {
                    let asker = waiting.remove(&id);
                    let unwanted = match asker {
                        Some(asker) => asker.send(Given { answer, beside }).err().map(|given| given.answer),
                        None => None,
                    };
                    if let Some(Answer::Started { process, .. }) = unwanted {
                        next += 1;
                        tell(link, next, Ask::Reap { process }).await;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(%error, "the spawner's answer cannot be received");
                    return;
                }
            },
            order = orders.recv() => {
                let Some(Order { ask, answer }) = order else { return };
                next += 1;
                if let Some(asker) = answer {
                    waiting.insert(next, asker);
                }
                tell(link, next, ask).await;
            }
        }
    }
}

async fn tell(link: &Link, id: u64, ask: Ask) {
    // That it is gone shows when an answer is awaited.
    if let Err(error) = link.send(&Request { id, ask }, &[]).await {
        tracing::debug!(%error, "the spawner could not be asked");
    }
}

impl Conversation {
    /// Ends the spawner and waits until it is gone.
    pub(crate) async fn end(mut self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the conversation with the spawner did not end well");
        }
        let ended = async {
            let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
            let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
            Watch::new(pidfd_open(pid, PidfdFlags::empty())?)?.ended().await;
            self.child.wait()
        };
        match timeout(END_DEADLINE, ended).await {
            Ok(Ok(status)) if status.success() => {}
            Ok(Ok(status)) => tracing::error!("the spawner ended: {status}"),
            Ok(Err(error)) => tracing::error!(%error, "the spawner's end cannot be awaited"),
            Err(_) => tracing::error!("the spawner did not end in time"),
        }
    }
}

impl Spawner {
    /// Comes back when there is none any more.
    pub(crate) async fn lost(&self) {
        // An error means that the task is gone, and the conversation with it.
        let _ = self.lost.clone().wait_for(|&lost| lost).await;
    }

    /// The adapter's sockets, which listen: for the gateway, with its path, and for the way out.
    pub(in crate::supervise) async fn listen(
        &self,
        adapter: &str,
        config: &str,
    ) -> io::Result<([OwnedFd; 2], PathBuf)> {
        let (adapter, config) = named(adapter, config)?;
        let Given { answer, beside } = self.ask(Ask::Listen { adapter, config }).await?;
        match (answer, <[OwnedFd; 2]>::try_from(beside)) {
            (Answer::Listening { path }, Ok(listeners)) => Ok((listeners, path)),
            (answer, _) => Err(unexpected(answer)),
        }
    }

    /// Its socket goes away.
    pub(in crate::supervise) async fn unlisten(&self, adapter: &str) {
        if let Ok(adapter) = AdapterName::try_from(adapter.to_owned()) {
            // Without a spawner it stays until the next one.
            let _ = self.ask(Ask::Unlisten { adapter }).await;
        }
    }

    pub(in crate::supervise) async fn start(
        &self,
        adapter: &str,
        config: &str,
        task: Task,
    ) -> io::Result<Process> {
        let (adapter, config) = named(adapter, config)?;
        let Given { answer, beside } = self.ask(Ask::Start { adapter, config, task }).await?;
        let Answer::Started { process, pid } = answer else { return Err(unexpected(answer)) };
        let mut beside = beside.into_iter();
        let pidfd = beside.next().ok_or(io::ErrorKind::InvalidData)?;
        let streams = Streams { stdin: beside.next(), stdout: beside.next(), stderr: beside.next() };
        let remote =
            Remote { spawner: self.clone(), number: process, pidfd: Watch::new(pidfd)?, reaped: false };
        Ok(Process::elsewhere(pid, streams, remote))
    }

    /// Removes the control groups that an earlier gateway has left.
    pub(in crate::supervise) async fn sweep(&self) {
        match self.ask(Ask::Sweep).await.map(|given| given.answer) {
            Ok(Answer::Done) => {}
            Ok(answer) => {
                tracing::warn!(error = %unexpected(answer), "an earlier gateway's control groups stay")
            }
            // Who asks next is told, too.
            Err(error) => tracing::debug!(%error, "the spawner could not be asked"),
        }
    }

    async fn ask(&self, ask: Ask) -> io::Result<Given> {
        let (answer, answered) = oneshot::channel();
        self.order(Order { ask, answer: Some(answer) })?;
        answered.await.map_err(|_| io::Error::other(GONE))
    }

    fn order(&self, order: Order) -> io::Result<()> {
        self.orders.send(order).map_err(|_| io::Error::other(GONE))
    }
}

fn named(adapter: &str, config: &str) -> io::Result<(AdapterName, ConfigDigest)> {
    let adapter = AdapterName::try_from(adapter.to_owned()).map_err(io::Error::other)?;
    let config = ConfigDigest::try_from(config.to_owned()).map_err(io::Error::other)?;
    Ok((adapter, config))
}

fn unexpected(answer: Answer) -> io::Error {
    match answer {
        Answer::Refused { why } => io::Error::other(why),
        _ => io::ErrorKind::InvalidData.into(),
    }
}

/// A process that the spawner has started. Dropping it has it killed with its whole group.
#[derive(Debug)]
pub(in crate::supervise) struct Remote {
    spawner: Spawner,
    number: u64,
    /// The process itself, to see its end: it is no child of ours.
    pidfd: Watch,
    reaped: bool,
}

impl Remote {
    pub(in crate::supervise) async fn ended(&mut self) {
        self.pidfd.ended().await;
    }

    pub(in crate::supervise) fn terminate(&self) {
        self.tell(Ask::Terminate { process: self.number });
    }

    pub(in crate::supervise) fn kill(&self) {
        self.tell(Ask::Kill { process: self.number });
    }

    pub(in crate::supervise) async fn reap(mut self) -> io::Result<ExitStatus> {
        self.reaped = true;
        let Given { answer, .. } = self.spawner.ask(Ask::Reap { process: self.number }).await?;
        match answer {
            Answer::Ended { status } => Ok(ExitStatus::from_raw(status)),
            answer => Err(unexpected(answer)),
        }
    }

    /// It fails only without a spawner, and then the process has ended with it.
    fn tell(&self, ask: Ask) {
        let _ = self.spawner.order(Order { ask, answer: None });
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if !self.reaped {
            self.tell(Ask::Reap { process: self.number });
        }
    }
}
