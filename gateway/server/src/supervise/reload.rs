//! Putting a changed configuration in force: everything is checked first, then all of it is swapped; a bad file changes
//! nothing. What became of the newest try stands in `config-status.json` in the data directory, for `gatepost reload`.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use gatepost_audit::leaf::Event;
use gatepost_core::principal::{Actor, ActorKind};
use gatepost_store::{AuditNote, QueueKind, QueueSetup, Sessions, Store, StoreError};
use nix::sys::signal::{Signal, kill};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep};

use super::instance::{AlreadyRunning, Instance, running_instance};
use super::launch::Launcher;
use super::manifest::validate_adapters;
use super::{Supervisor, chain, shared};
use crate::config::{AdapterProcess, Config, ListenAt, LoadError, Nodes, TlsFiles, UNROUTED};
use crate::listen::{ServerTls, processes_are_provable};

const STATUS_FILE: &str = "config-status.json";
/// Faults written into the status.
const FAULTS_MAX: usize = 200;
/// How long `gatepost reload` waits for the gateway's answer: it asks every adapter's program.
const ANSWER_DEADLINE: Duration = Duration::from_secs(120);
const ANSWER_POLL: Duration = Duration::from_millis(50);

/// What became of the newest try to put a configuration in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConfigStatus {
    /// The gateway that wrote it.
    pub(crate) pid: u32,
    /// The file that it reads.
    pub(crate) file: PathBuf,
    /// Rises with each try; 1 is the gateway's start.
    pub(crate) attempt: u64,
    /// Rises with each success.
    pub(crate) generation: u64,
    /// SHA-256 of the file that was tried, hex; absent if it could not be read.
    pub(crate) digest: Option<String>,
    /// RFC 3339, UTC.
    pub(crate) at: String,
    /// What is wrong with the file.
    pub(crate) faults: Vec<String>,
    /// The keys that only a restart can change, if the file is otherwise correct.
    #[serde(default)]
    pub(crate) needs_restart: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ReloadError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("{} faults", .0.len())]
    Faults(Vec<String>),
    /// The file is correct, and nothing of it is in force.
    #[error("only a restart can change {}", .0.join(", "))]
    NeedsRestart(Vec<&'static str>),
    #[error("the store does not take the configuration's queues: {0}")]
    Store(#[from] StoreError),
}

/// What a configuration is in force in.
pub(crate) struct Parts {
    pub(crate) config: Arc<ArcSwap<Config>>,
    pub(crate) store: Store,
    pub(crate) supervisor: Supervisor,
    pub(crate) launcher: Launcher,
    /// The certificates of the TCP listeners, by the address that the configuration gives them.
    pub(crate) tls: Vec<(SocketAddr, Arc<ServerTls>)>,
    /// Who the gateway is in the audit log.
    pub(crate) gateway: Actor,
}

/// Reloads when told to, one at a time.
pub(crate) struct Reloader {
    parts: Parts,
    file: PathBuf,
    data_dir: PathBuf,
    status: Mutex<ConfigStatus>,
    _instance: Instance,
}

/// SIGHUP, which asks for a reload.
pub(crate) struct Hangups(unix::Signal);

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("cannot listen for SIGHUP: {0}")]
    Signal(#[source] io::Error),
    #[error(transparent)]
    AlreadyRunning(#[from] AlreadyRunning),
    #[error("cannot write {STATUS_FILE}: {0}")]
    Status(#[source] io::Error),
}

impl Reloader {
    /// From now on this process can be told to reload: it takes SIGHUP before it writes down its pid.
    pub(crate) fn start(parts: Parts) -> Result<(Self, Hangups), StartError> {
        let hangups = unix::signal(SignalKind::hangup()).map_err(StartError::Signal)?;
        let config = parts.config.load_full();
        let status = ConfigStatus {
            pid: std::process::id(),
            file: std::path::absolute(&config.file).map_err(StartError::Status)?,
            attempt: 1,
            generation: 1,
            digest: Some(config.digest.clone()),
            at: shared::rfc3339(SystemTime::now()),
            faults: Vec::new(),
            needs_restart: Vec::new(),
        };
        let data_dir = config.gateway.data_dir.clone();
        let instance = Instance::acquire(&data_dir)?;
        status.write(&data_dir).map_err(StartError::Status)?;
        let file = config.file.clone();
        Ok((
            Self { parts, file, data_dir, status: Mutex::new(status), _instance: instance },
            Hangups(hangups),
        ))
    }

    /// Reloads at each SIGHUP until `stop` holds `true`. A reload that has begun is finished.
    pub(crate) async fn run(&self, mut hangups: Hangups, mut stop: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                _ = stop.wait_for(|&stop| stop) => return,
                Some(()) = hangups.0.recv() => {}
            }
            // Logged and written down where it happens; there is nobody else to tell.
            let _ = self.reload().await;
        }
    }

    /// Reads the file again and puts it in force, or changes nothing and says why.
    pub(crate) async fn reload(&self) -> Result<ConfigStatus, ReloadError> {
        let mut status = self.status.lock().await;
        status.attempt += 1;
        status.digest = digest_of(&self.file).ok();
        (status.faults, status.needs_restart) = (Vec::new(), Vec::new());
        let outcome = self.try_reload().await;
        match &outcome {
            Ok(config) => {
                status.generation += 1;
                status.digest = Some(config.digest.clone());
                tracing::info!(digest = %config.digest, generation = status.generation, "configuration reloaded");
            }
            Err(ReloadError::NeedsRestart(keys)) => {
                status.needs_restart = keys.iter().map(|key| (*key).to_owned()).collect();
                tracing::warn!(
                    keys = keys.join(", "),
                    "configuration not reloaded: only a restart can change these keys; the one before stays in force"
                );
            }
            Err(error) => {
                status.faults = error.faults();
                tracing::error!(
                    faults = status.faults.len(),
                    "configuration not reloaded; the one before stays in force"
                );
                for fault in &status.faults {
                    tracing::error!("configuration: {fault}");
                }
            }
        }
        status.at = shared::rfc3339(SystemTime::now());
        if let Err(error) = status.write(&self.data_dir) {
            tracing::error!(%error, "cannot write {STATUS_FILE}");
        }
        outcome.map(|_| status.clone())
    }

    async fn try_reload(&self) -> Result<Arc<Config>, ReloadError> {
        let old = self.parts.config.load_full();
        let new = Arc::new(self.load().await?);
        let mut faults = self.tls_faults(&new);
        faults.extend(new.unprovable(processes_are_provable()));
        let manifests = validate_adapters(&new, &self.parts.launcher).await.unwrap_or_else(|adapters| {
            faults.extend(adapters.iter().map(ToString::to_string));
            BTreeMap::new()
        });
        if !faults.is_empty() {
            return Err(ReloadError::Faults(faults));
        }
        let keys = old.needs_restart(&new);
        if !keys.is_empty() {
            return Err(ReloadError::NeedsRestart(keys));
        }
        gatepost_faults::point("reload.validated");
        // The last step that can fail. New queues are there before a route can lead to them.
        self.parts.store.queues_configure(queue_setups(&new)).await?;
        gatepost_faults::point("reload.half_way");
        self.parts.config.store(Arc::clone(&new));
        gatepost_faults::point("reload.swapped");
        self.take_certificates(&new);
        self.parts.supervisor.learn(manifests);
        self.parts.supervisor.apply(&new);
        self.note(&new).await;
        Ok(new)
    }

    async fn load(&self) -> Result<Config, ReloadError> {
        let (file, safety) = (self.file.clone(), self.parts.config.load().safety);
        match tokio::task::spawn_blocking(move || Config::load_as(Some(&file), safety)).await {
            Ok(loaded) => Ok(loaded?),
            Err(error) => Err(ReloadError::Faults(vec![format!("reading the file failed: {error}")])),
        }
    }

    /// The listeners that have certificates, with the files that `config` names for them.
    fn tls<'a>(&'a self, config: &'a Config) -> impl Iterator<Item = (&'a ServerTls, &'a TlsFiles)> {
        self.parts.tls.iter().filter_map(|(address, tls)| {
            let files = config.listens.iter().find_map(|listen| match &listen.at {
                ListenAt::Tcp(tcp) if tcp.address == *address => Some(&tcp.tls),
                ListenAt::Tcp(_) | ListenAt::Unix(_) => None,
            });
            Some((tls.as_ref(), files?))
        })
    }

    fn tls_faults(&self, config: &Config) -> Vec<String> {
        self.tls(config)
            .filter_map(|(_, files)| ServerTls::load(files).err())
            .map(|error| chain(&error))
            .collect()
    }

    fn take_certificates(&self, config: &Config) {
        for (tls, _) in self.tls(config) {
            // They could be read a moment ago. If they changed since, the ones in force are still whole.
            if let Err(error) = tls.reload() {
                tracing::error!(error = %chain(&error), "certificates not reloaded; reload again");
            }
        }
    }

    async fn note(&self, config: &Config) {
        let mut note = AuditNote::new(Event::ConfigChanged, self.parts.gateway.clone());
        note.target = Some(config.digest.clone());
        if let Err(error) = self.parts.store.audit_note(vec![note]).await {
            tracing::error!(%error, "cannot write the change of configuration into the audit log");
        }
    }
}

impl ReloadError {
    /// One line each.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = match self {
            Self::Load(LoadError::Invalid(faults)) => faults.iter().map(ToString::to_string).collect(),
            Self::Load(error) => vec![error.to_string()],
            Self::Faults(faults) => faults.clone(),
            Self::NeedsRestart(_) | Self::Store(_) => vec![self.to_string()],
        };
        faults.truncate(FAULTS_MAX);
        faults
    }
}

/// The configuration's queues and senders, as the store wants them.
pub(crate) fn queue_setups(config: &Config) -> Vec<QueueSetup> {
    let kind = |name: &str| match config.adapters.get(name).map(|adapter| &adapter.process) {
        Some(AdapterProcess::Supervised(_)) => QueueKind::Adapter,
        Some(AdapterProcess::External(_)) => QueueKind::ExternalAdapter,
        None if name == UNROUTED => QueueKind::Builtin,
        None => QueueKind::Inbox,
    };
    let sessions = |name: &str| match config.adapters.get(name).map(|adapter| adapter.nodes) {
        Some(Nodes::Each) => Sessions::OfNode,
        Some(Nodes::One) | None => Sessions::One,
    };
    let apps = config.apps.values().map(|app| (Actor::new(ActorKind::App, &app.name), app.limits));
    let adapters = config
        .adapters
        .values()
        .map(|adapter| (Actor::new(ActorKind::Adapter, &adapter.name), adapter.limits));
    let senders = apps.chain(adapters).map(|(sender, limits)| QueueSetup::sender(&sender, limits.backlog));
    config
        .queues()
        .map(|(name, policy)| QueueSetup {
            name: name.to_owned(),
            kind: kind(name),
            sessions: sessions(name),
            policy,
        })
        .chain(senders)
        .collect()
}

impl ConfigStatus {
    pub(crate) fn in_force(&self) -> bool {
        self.faults.is_empty() && self.needs_restart.is_empty()
    }

    pub(crate) fn read(data_dir: &Path) -> io::Result<Self> {
        let text = std::fs::read(data_dir.join(STATUS_FILE))?;
        serde_json::from_slice(&text).map_err(io::Error::from)
    }

    /// Readers see the old one or the new one. It need not survive a power cut: the next start writes it anew.
    fn write(&self, data_dir: &Path) -> io::Result<()> {
        let temporary = data_dir.join(format!("{STATUS_FILE}.new"));
        std::fs::write(&temporary, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(temporary, data_dir.join(STATUS_FILE))
    }
}

fn digest_of(file: &Path) -> io::Result<String> {
    let digest = Sha256::digest(std::fs::read(file)?);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("no gateway runs on {}", .0.display())]
    NotRunning(PathBuf),
    #[error("cannot tell the gateway (process {pid}) to reload: {source}")]
    Signal { pid: i32, source: nix::Error },
    #[error("the gateway did not answer within {} s; see its log", ANSWER_DEADLINE.as_secs())]
    NoAnswer,
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Tells the gateway that runs with `config` to put it in force and waits for its answer. The caller has checked the file:
/// the answer is about a file with the same digest.
pub(crate) async fn request_reload(config: &Config) -> Result<ConfigStatus, RequestError> {
    let data_dir = &config.gateway.data_dir;
    let io_error = |source| RequestError::Io { path: data_dir.clone(), source };
    let pid = running_instance(data_dir)
        .map_err(io_error)?
        .ok_or_else(|| RequestError::NotRunning(data_dir.clone()))?;
    let before = ConfigStatus::read(data_dir).map_err(io_error)?;
    same_file(&config.file, &before.file)?;
    kill(pid, Signal::SIGHUP).map_err(|source| RequestError::Signal { pid: pid.as_raw(), source })?;
    let deadline = Instant::now() + ANSWER_DEADLINE;
    while Instant::now() < deadline {
        let status = ConfigStatus::read(data_dir).map_err(io_error)?;
        // Another's reload of an earlier file may end first.
        if status.attempt != before.attempt && status.digest.as_deref() == Some(config.digest.as_str()) {
            return Ok(status);
        }
        sleep(ANSWER_POLL).await;
    }
    Err(RequestError::NoAnswer)
}

/// The gateway reads its own file, whatever this command was given.
fn same_file(ours: &Path, theirs: &Path) -> Result<(), RequestError> {
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    if real(ours) == real(theirs) {
        return Ok(());
    }
    let why = format!("the gateway runs with {}; name that file with -c", theirs.display());
    Err(RequestError::Io { path: ours.to_owned(), source: io::Error::other(why) })
}
