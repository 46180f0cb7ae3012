//! One adapter's process from its first start to its last end. The task of this module is the only one that starts, watches
//! and ends it.
//!
//! **Invariant:** what a process had leased is settled in the store (`session_end`) before the next process can start, and its
//! pid opens no socket any more before it is reaped.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use gatepost_audit::leaf::Event;
use gatepost_core::principal::Actor;
use gatepost_core::queue::TripReason;
use gatepost_store::{AdapterRole, AuditNote, SessionEnd, Store, StoreError};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::chain;
use super::changeable::Changeable;
use super::egress::Rules;
use super::exit::{Cause, Exit};
use super::handover::Handover;
use super::launch::{Launch, Launcher, Purpose};
use super::output::Output;
use super::process::Process;
use super::program::SearchPath;
use super::restarts::{Life, Restarts};
use super::sandbox::{Control, Outcome, Policy, Report, Unreachable};
use super::shared::{Phase, Shared, Spec, Wish};
use super::socket::{Socket, Sockets};
use crate::config::{Connect, Nodes};

/// How long a process may take to finish what it has begun.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// How long a killed process may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
/// A session that lasts this long ends a crash loop.
const STEADY_AFTER: Duration = Duration::from_secs(10);
/// Between two looks whether the adapter may still be run here.
const ROLE_LOOK: Duration = Duration::from_millis(100);
/// Between two looks whether it may be.
const ROLE_PAUSE: Duration = Duration::from_millis(300);
/// Between two tries at the store.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// Deadlines that tests shorten.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    pub(super) drain: Duration,
    pub(super) steady: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { drain: DRAIN_DEADLINE, steady: STEADY_AFTER }
    }
}

/// What all adapters' tasks use.
pub(super) struct World {
    pub(super) store: Store,
    pub(super) launcher: Launcher,
    pub(super) search: SearchPath,
    pub(super) sockets: Sockets,
    pub(super) changeable: Changeable,
    /// Who the gateway is in the audit log.
    pub(super) gateway: Actor,
    /// What control groups are known by.
    pub(super) mark: Option<String>,
    pub(super) data_dir: PathBuf,
    pub(super) deadlines: Deadlines,
    /// The digest of the configuration in force.
    pub(super) config: Mutex<String>,
}

impl World {
    pub(super) fn follow(&self, digest: &str) {
        digest.clone_into(&mut self.config.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn config(&self) -> String {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

pub(super) struct Supervision {
    world: Arc<World>,
    shared: Arc<Shared>,
    wishes: watch::Receiver<Wish>,
    /// The wish that is fulfilled at present.
    wish: Wish,
    socket: Option<Socket>,
    restarts: Restarts,
    /// That no other node runs it; for who runs on each node there is none.
    role: Option<AdapterRole>,
}

/// A process at work.
struct Worker {
    process: Process,
    output: Output,
    sessions: watch::Receiver<u64>,
}

/// Why a process is no longer watched.
enum Watched {
    Ended,
    /// Something else is wanted.
    Unwanted,
    /// Another node may run it at any moment.
    Dismissed,
}

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Program(#[from] super::program::NotFound),
    #[error("its socket: {}", chain(.0))]
    Socket(#[from] super::socket::SocketError),
    #[error("cannot be started: {0}")]
    Launch(#[from] std::io::Error),
    #[error("{0}")]
    Sandbox(Box<Unreachable>),
    #[error("its process ended before its program was started")]
    Silent,
}

impl Supervision {
    pub(super) fn new(world: Arc<World>, shared: Arc<Shared>, mut wishes: watch::Receiver<Wish>) -> Self {
        let wish = wishes.borrow_and_update().clone();
        Self { world, shared, wishes, wish, socket: None, restarts: Restarts::default(), role: None }
    }

    /// Runs until its end is wished. `before` is the task that had the name before.
    pub(super) async fn run(mut self, before: Option<JoinHandle<()>>) {
        if let Some(before) = before {
            // Its panic has been told where it happened.
            let _ = before.await;
        }
        while !self.wish.end {
            let pause = self.live().await;
            self.wait(pause).await;
        }
        self.shared.status().phase = Phase::Stopping;
        if let Some(socket) = self.socket.take() {
            socket.close().await;
        }
        self.give_up_role().await;
    }

    fn name(&self) -> &str {
        &self.wish.spec.name
    }

    /// One life of the process; gives the pause before the next.
    async fn live(&mut self) -> Duration {
        if !self.has_role().await {
            return ROLE_PAUSE;
        }
        let started = Instant::now();
        let mut worker = match self.start().await {
            Ok(worker) => worker,
            Err(error) => return self.died(started, Exit::NotStarted(error.to_string())).await,
        };
        match self.watch(&mut worker).await {
            Watched::Ended => {
                let exit = self.bury(worker).await;
                self.died(started, exit).await
            }
            Watched::Unwanted => {
                self.drain(worker).await;
                Duration::ZERO
            }
            Watched::Dismissed => {
                self.dismiss(worker).await;
                ROLE_PAUSE
            }
        }
    }

    /// Whether this node is the one to run it; takes that upon itself if nobody else has.
    async fn has_role(&mut self) -> bool {
        if self.wish.spec.nodes == Nodes::Each || self.role_stands() {
            return true;
        }
        self.role = match self.world.store.adapter_claim(self.name().to_owned()).await {
            Ok(role) => role,
            Err(error) => {
                tracing::warn!(adapter = %self.name(), %error, "cannot see whether another node runs the adapter");
                None
            }
        };
        if self.role.is_none() {
            self.shared.status().phase = Phase::Elsewhere;
        }
        self.role.is_some()
    }

    fn role_stands(&self) -> bool {
        self.role.is_some_and(|role| self.world.store.health().role_stands(role))
    }

    async fn give_up_role(&mut self) {
        if self.role.take().is_some()
            && let Err(error) = self.world.store.adapter_yield(self.name().to_owned()).await
        {
            // The others wait until this node's lease is over.
            tracing::warn!(adapter = %self.name(), %error, "cannot tell the other nodes that the adapter is not run here");
        }
    }

    /// Ends the process at once: what it had leased is another node's now, which has ended its session.
    async fn dismiss(&mut self, mut worker: Worker) {
        tracing::error!(adapter = %self.name(), "this node has lost its right to run the adapter: its process is killed");
        worker.process.kill();
        worker.process.ended().await;
        drop(self.bury(worker).await);
        self.role = None;
        self.shared.status().phase = Phase::Elsewhere;
    }

    async fn start(&mut self) -> Result<Worker, StartError> {
        self.shared.status().phase = Phase::Starting;
        let command = self.world.search.resolve(&self.wish.spec.run)?;
        let run_as = self.wish.spec.sandbox.run_as;
        let config = &self.world.config();
        let socket = match self.socket.take() {
            Some(socket) if socket.is_for(run_as) && !socket.is_broken() => socket,
            before => {
                if let Some(before) = before {
                    before.close().await;
                }
                self.world.sockets.open(self.name(), run_as, config).await?
            }
        };
        let socket = self.socket.insert(socket);
        let sessions = self.shared.sessions();
        let purpose = Purpose::Work { socket: socket.path() };
        let Spec { name, sandbox, implied, settings, .. } = &self.wish.spec;
        let mut policy = Policy::new(sandbox, implied, &command);
        policy.control =
            self.world.mark.as_ref().and_then(|mark| Control::new(name, mark, sandbox.resources));
        self.world.changeable.is_only(name, sandbox, implied);
        let launch = Launch { name, config, command: &command, purpose, policy: &policy };
        let mut process = self.world.launcher.launch(launch).await?;
        socket.allow(Rules {
            connect: sandbox.allow.and(implied).connect,
            files: Handover::new(sandbox, implied, settings, &self.world.changeable, &self.world.data_dir),
        });
        socket.admit(Some(process.pid()));
        {
            let mut status = self.shared.status();
            status.pid = Some(process.pid());
            if status.started_at.replace(SystemTime::now()).is_some() {
                status.restarts += 1;
            }
        }
        process.open_gate();
        if sandbox.allow.connect.contains(&Connect::Anywhere) {
            tracing::warn!(adapter = %name, "allow.connect holds \"*\": the adapter may connect to any host (rule A18)");
        }
        let report = match process.sandbox().await {
            Ok(Some(Outcome::Reached(report))) => report,
            not_reached => {
                socket.admit(None);
                self.shared.status().pid = None;
                return Err(match not_reached {
                    Ok(Some(Outcome::Unreachable(why))) => StartError::Sandbox(Box::new(why)),
                    Ok(_) => StartError::Silent,
                    Err(error) => StartError::Launch(error),
                });
            }
        };
        let output =
            Output::follow(self.name(), process.streams.stdout.take(), process.streams.stderr.take())?;
        tracing::info!(adapter = %self.name(), pid = process.pid(), program = %command.file.display(), "adapter started");
        self.tell_sandbox(report).await;
        self.note(Event::AdapterStarted, None).await;
        Ok(Worker { process, output, sessions })
    }

    /// To whom it may concern: the log, `gatepost status` and the audit log.
    async fn tell_sandbox(&self, report: Report) {
        let missing = report.missing.join("; ");
        tracing::info!(
            adapter = %self.name(),
            level = report.level.as_str(),
            uid = report.uid,
            landlock = report.landlock,
            seccomp = report.seccomp,
            memory_bytes = report.limits.memory_bytes,
            processes = report.limits.processes,
            cpu_percent = report.limits.cpu_percent,
            missing,
            "sandboxed"
        );
        for unmet in &report.unmet {
            tracing::warn!(adapter = %self.name(), "{unmet}");
        }
        let code = report.code();
        self.shared.status().sandbox = Some(report);
        self.note(Event::AdapterSandboxed, Some(code)).await;
    }

    async fn watch(&mut self, worker: &mut Worker) -> Watched {
        let mut steady_at = None;
        loop {
            let steady = async {
                match steady_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = worker.process.ended() => return Watched::Ended,
                () = role_is_over(&self.world.store, self.role) => return Watched::Dismissed,
                () = wish_differs(&mut self.wishes, &self.wish) => return Watched::Unwanted,
                Ok(()) = worker.sessions.changed() => steady_at = Some(Instant::now() + self.world.deadlines.steady),
                () = steady => {
                    steady_at = None;
                    self.end_crash_loop().await;
                }
            }
        }
    }

    /// Asks the process to finish, and ends it if it does not.
    async fn drain(&mut self, mut worker: Worker) {
        self.shared.status().phase = Phase::Stopping;
        worker.process.terminate();
        if timeout(self.world.deadlines.drain, worker.process.ended()).await.is_err() {
            tracing::warn!(adapter = %self.name(), "the adapter did not stop in time and is killed");
            worker.process.kill();
            if timeout(KILL_DEADLINE, worker.process.ended()).await.is_err() {
                tracing::error!(adapter = %self.name(), pid = worker.process.pid(), "the adapter does not die; waiting for it");
                worker.process.ended().await;
            }
        }
        let exit = self.bury(worker).await;
        tracing::info!(adapter = %self.name(), "adapter stopped: {exit}");
        self.end_session(SessionEnd::Stopped).await;
        self.note(Event::AdapterExited, Some("stopped".to_owned())).await;
    }

    /// Closes the socket to a process that has ended, then gives its pid free.
    async fn bury(&mut self, worker: Worker) -> Exit {
        if let Some(socket) = &self.socket {
            socket.admit(None);
        }
        let ran_out = worker.process.ran_out_of_memory();
        let status = worker.process.reap().await;
        let worked = {
            let mut shared = self.shared.status();
            shared.pid = None;
            shared.epoch.take().is_some()
        };
        let last_line = worker.output.rest().await;
        match status {
            Ok(status) => Exit::Ended { status, cause: Cause::of(status, ran_out), last_line, worked },
            Err(error) => Exit::NotStarted(format!("its end cannot be told: {error}")),
        }
    }

    /// The process ended by itself, or could not be started.
    async fn died(&mut self, started: Instant, exit: Exit) -> Duration {
        let life = Life { started, ended: Instant::now(), worked: exit.worked() };
        let verdict = self.restarts.exited(life);
        {
            let mut status = self.shared.status();
            status.phase = Phase::BackingOff;
            status.last_error = Some(exit.to_string());
        }
        tracing::warn!(adapter = %self.name(), again_after = ?verdict.pause, "adapter exited: {exit}");
        self.end_session(SessionEnd::Crashed).await;
        self.note(Event::AdapterExited, Some(exit.code())).await;
        if verdict.looping {
            self.trip(exit.trip_reason()).await;
        }
        verdict.pause
    }

    /// Waits for the pause to pass or for another wish, which is then the one to fulfil.
    async fn wait(&mut self, pause: Duration) {
        tokio::select! {
            biased;
            () = wish_differs(&mut self.wishes, &self.wish) => {
                self.wish = self.wishes.borrow_and_update().clone();
                self.wish.end |= self.wishes.has_changed().is_err();
                self.restarts.forget();
            }
            () = sleep(pause) => {}
        }
    }

    /// Tells the store that the session is over. It does not give up: a process must not start before its predecessor's
    /// leases are settled.
    async fn end_session(&mut self, end: SessionEnd) {
        loop {
            if self.wish.spec.nodes == Nodes::One && !self.role_stands() {
                // Whoever has it now has ended it.
                return;
            }
            match self.world.store.session_end(self.name().to_owned(), end).await {
                Ok(()) | Err(StoreError::Stopping) => return,
                Err(error) => {
                    tracing::error!(adapter = %self.name(), %error, "cannot end the adapter's session; trying again")
                }
            }
            tokio::select! {
                () = sleep(STORE_PAUSE) => {}
                // When the gateway stops, its next start ends the session.
                () = end_wished(&mut self.wishes) => return,
            }
        }
    }

    async fn trip(&mut self, reason: TripReason) {
        let was_tripped = std::mem::replace(&mut self.shared.status().tripped, true);
        if !was_tripped {
            tracing::error!(
                adapter = %self.name(),
                reason = reason.as_str(),
                "the adapter exits again and again; its destination is held back until it stays"
            );
        }
        if let Err(error) = self.world.store.queue_trip(self.name().to_owned(), Some(reason)).await {
            tracing::error!(adapter = %self.name(), %error, "cannot hold the destination back");
        }
    }

    /// The process stays: its destination goes on, unless its partner is what is in trouble.
    async fn end_crash_loop(&mut self) {
        let name = self.name().to_owned();
        let ours = match self.world.store.read().queue(&name).await {
            Ok(row) => {
                row.and_then(|row| row.stats.tripped).is_some_and(|reason| reason != TripReason::Unreachable)
            }
            Err(error) => {
                tracing::error!(adapter = %name, %error, "cannot see whether the destination is held back");
                false
            }
        };
        if ours && let Err(error) = self.world.store.queue_trip(name.clone(), None).await {
            tracing::error!(adapter = %name, %error, "cannot let the destination go on");
            return;
        }
        if std::mem::take(&mut self.shared.status().tripped) {
            tracing::info!(adapter = %name, "the adapter stays; its destination goes on");
        }
    }

    /// The process's story in the audit log. It has happened whether or not the log can take it.
    async fn note(&self, event: Event, code: Option<String>) {
        let mut note = AuditNote::new(event, self.world.gateway.clone());
        note.target = Some(self.name().to_owned());
        note.code = code;
        if let Err(error) = self.world.store.audit_note(vec![note]).await {
            tracing::error!(adapter = %self.name(), %error, "cannot write `{event}` into the audit log");
        }
    }
}

/// Comes back when another node may take the role; never without one.
async fn role_is_over(store: &Store, role: Option<AdapterRole>) {
    let Some(role) = role else { return std::future::pending().await };
    while store.health().role_stands(role) {
        sleep(ROLE_LOOK).await;
    }
}

/// Comes back when something else is wished than `wish`. That its supervisor is gone counts as a wish to end.
async fn wish_differs(wishes: &mut watch::Receiver<Wish>, wish: &Wish) {
    let _ = wishes.wait_for(|wished| wished != wish).await;
}

async fn end_wished(wishes: &mut watch::Receiver<Wish>) {
    let _ = wishes.wait_for(|wished| wished.end).await;
}
