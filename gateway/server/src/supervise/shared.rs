//! What one adapter's task and everybody else know of each other: its state one way, what is wanted of it the other.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use gatepost_api::lists::AdapterItem;
use gatepost_core::Timestamp;
use tokio::sync::watch;

use crate::config::{Access, Adapter, AdapterProcess, Nodes, Run, Sandbox};
use crate::http::EXTERNAL;

use super::sandbox::Report;
use gatepost_core::policy::{Level, OnDoubt};

/// What a process must be started anew for when it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spec {
    pub(super) name: String,
    pub(super) run: Run,
    /// The rest goes into the session's answer, which a process reads once.
    pub(super) settings: serde_json::Map<String, serde_json::Value>,
    on_doubt: OnDoubt,
    confirm: Option<Level>,
    window: u32,
    max_in_flight: u32,
    pub(super) nodes: Nodes,
    pub(super) sandbox: Sandbox,
    /// What its program says that its settings imply.
    pub(super) implied: Access,
}

impl Spec {
    /// `None` for an adapter that somebody else starts.
    pub(super) fn of(adapter: &Adapter, implied: Access) -> Option<Self> {
        let AdapterProcess::Supervised(run) = &adapter.process else { return None };
        Some(Self {
            name: adapter.name.clone(),
            run: run.clone(),
            settings: adapter.settings.clone(),
            on_doubt: adapter.policy.on_doubt,
            confirm: adapter.policy.confirm,
            window: adapter.policy.window,
            max_in_flight: adapter.policy.max_in_flight,
            nodes: adapter.nodes,
            sandbox: adapter.sandbox.clone(),
            implied,
        })
    }
}

/// What is wanted of an adapter's task. Only the newest wish counts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wish {
    pub(super) spec: Spec,
    /// Another number asks for a restart.
    pub(super) restart: u64,
    pub(super) end: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// It has no session yet.
    #[default]
    Starting,
    Running,
    BackingOff,
    /// Another node runs it.
    Elsewhere,
    Stopping,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Status {
    pub(super) phase: Phase,
    /// Its destination was tripped because it keeps exiting.
    pub(super) tripped: bool,
    pub(super) pid: Option<u32>,
    pub(super) version: Option<String>,
    pub(super) restarts: u64,
    pub(super) epoch: Option<u64>,
    pub(super) last_error: Option<String>,
    pub(super) started_at: Option<SystemTime>,
    pub(super) sandbox: Option<Report>,
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    status: Mutex<Status>,
    /// Counts sessions opened.
    sessions: watch::Sender<u64>,
}

impl Shared {
    pub(super) fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process of this adapter has opened its session.
    pub(super) fn session_opened(&self, epoch: u64, version: Option<&str>) {
        let mut status = self.status();
        status.epoch = Some(epoch);
        status.version = version.map(str::to_owned);
        if status.phase == Phase::Starting {
            status.phase = Phase::Running;
        }
        drop(status);
        self.sessions.send_modify(|count| *count += 1);
    }

    /// Tells of sessions opened from now on.
    pub(super) fn sessions(&self) -> watch::Receiver<u64> {
        self.sessions.subscribe()
    }

    pub(super) fn item(&self, name: &str) -> AdapterItem {
        let status = self.status().clone();
        let state = match status {
            Status { phase: Phase::Stopping, .. } => "stopping",
            Status { tripped: true, .. } => "tripped",
            Status { phase: Phase::Starting, .. } => "starting",
            Status { phase: Phase::Running, .. } => "running",
            Status { phase: Phase::BackingOff, .. } => "backing_off",
            Status { phase: Phase::Elsewhere, .. } => "elsewhere",
        };
        AdapterItem {
            name: name.to_owned(),
            state: state.to_owned(),
            pid: status.pid,
            version: status.version,
            restarts: status.restarts,
            session_epoch: status.epoch,
            last_error: status.last_error,
            started_at: status.started_at.map(rfc3339),
            sandbox: status.sandbox.as_ref().map(Report::item),
        }
    }

    /// The same for an adapter that somebody else starts.
    pub(super) fn external_item(&self, name: &str) -> AdapterItem {
        AdapterItem { state: EXTERNAL.to_owned(), ..self.item(name) }
    }
}

pub(super) fn rfc3339(at: SystemTime) -> String {
    let micros = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros());
    Timestamp::from_micros(i64::try_from(micros).unwrap_or(i64::MAX)).to_rfc3339()
}
