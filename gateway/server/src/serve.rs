//! The composition root: what a running gateway consists of, in which order it starts, and in which order it ends.
//!
//! Start: what root has started becomes another user if it shall (`crate::supervise`), adapters' programs are asked, the store is opened, sockets are bound, adapters are started, and only then is anything
//! served. Stop: listeners take nothing new and long polls end; adapters drain through their sockets, which are served meanwhile;
//! what requests have begun is finished; the last leaf is written; the store signs and closes.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use gatepost_audit::leaf::Event;
use gatepost_core::principal::{Actor, ActorKind};
use gatepost_store::{AuditNote, Database, Store, StoreTask};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use crate::config::{self, Config, PeerFacts, Wanted};
use crate::http::{self, AppState};
use crate::listen::{
    Counters, Limits, ListenError, Listener, Passed, PeerGate, Server, Serves, keep_current,
    processes_are_provable,
};
use crate::notify::{State, notify};
use crate::supervise::{
    Hangups, Launcher, Manifest, Means, Parts, Reloader, Settled, Sockets, Spawned, Spawner, Supervisor,
    UserError, divide_group, queue_setups, settle, validate_adapters,
};

/// Connections of all listeners together, as a multiple of one listener's.
const CONNECTIONS_TOTAL_FACTOR: usize = 4;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("the runtime: {0}")]
    Runtime(#[source] std::io::Error),
    #[error("{}", adapter_faults(.0))]
    Adapters(Vec<config::Fault>),
    #[error("{0}")]
    Unprovable(String),
    #[error(transparent)]
    Store(#[from] gatepost_store::OpenError),
    #[error("cannot read {path}, which holds the database's address: {source}")]
    UrlFile { path: PathBuf, source: std::io::Error },
    #[error("the store does not take the configuration's queues: {0}")]
    Queues(#[from] gatepost_store::StoreError),
    #[error("{}", with_causes(.0))]
    Listen(#[from] ListenError),
    #[error("{0}")]
    Reload(String),
    #[error(
        "the store's writer ended by a fault of this program, which the log says above; what was accepted is stored. Start it again"
    )]
    WriterEnded,
    #[error(transparent)]
    User(#[from] UserError),
    #[error(
        "the spawner ended, the process that stays root to start adapters of other users, and they ended with it; the log above may say why. Start the gateway again"
    )]
    SpawnerEnded,
}

fn adapter_faults(faults: &[config::Fault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Runs a gateway until it is told to stop.
pub(crate) fn run(config: Config) -> Result<(), ServeError> {
    // Before there are threads: it changes the environment.
    let passed = Passed::take().map_err(ListenError::from)?;
    start_logging();
    log_panics_by_place();
    raise_descriptor_limit();
    // Before anything is started: whatever is must be where this process is by then.
    divide_group();
    // Still before there are threads: what of root is given up is a thread's.
    let settled = settle(&config, &passed)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(worker_threads()).enable_all().build();
    runtime.map_err(ServeError::Runtime)?.block_on(serve(config, passed, settled))
}

/// One processor is left to the store's writer: threads that take turns with it on one would make everybody wait for that.
fn worker_threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    processors.saturating_sub(1).max(1)
}

/// Lines for people on a terminal, JSON for everybody else; `GATEPOST_LOG` chooses what.
fn start_logging() {
    let filter = EnvFilter::try_from_env("GATEPOST_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second subscriber is refused, which only tests can bring about.
    let started = if std::io::stderr().is_terminal() {
        log.with_target(false).try_init()
    } else {
        log.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
    };
    drop(started);
}

/// A panic's message may quote what it was working on; only its place goes into the log.
fn log_panics_by_place() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "panic");
    }));
}

/// Every connection takes a descriptor or two; what the system allows at most is taken.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Lets in whom the configuration knows; it may change while the gateway runs.
struct ConfiguredPeers {
    config: Arc<ArcSwap<Config>>,
    supervisor: Supervisor,
}

impl PeerGate for ConfiguredPeers {
    fn may_match(&self, serves: config::Serves, facts: &PeerFacts) -> bool {
        // An adapter of an operator's user is no operator: it has a socket of its own, and no other.
        !facts.process_group.is_some_and(|group| self.supervisor.has_process(group))
            && self.config.load().recognises(serves, facts)
    }

    fn connections(&self, serves: &Serves, facts: &PeerFacts) -> Option<(String, usize)> {
        let config = self.config.load();
        match serves {
            Serves::OneAdapter(name) => {
                let most = config.adapters.get(name.as_ref())?.limits.connections?;
                Some((format!("{} {name}", serves.as_str()), most))
            }
            _ => config.connections(serves.configured()?, facts),
        }
    }

    fn wanted(&self, serves: config::Serves) -> Wanted {
        self.config.load().wanted(serves)
    }
}

async fn serve(config: Config, passed: Passed, settled: Settled) -> Result<(), ServeError> {
    let Settled { user, spawner } = settled;
    tracing::info!(%user, spawner = spawner.as_ref().map(Spawned::pid), "runs as {user}");
    let spawned = spawner.map(Spawned::converse).transpose().map_err(ServeError::Runtime)?;
    let (spawner, conversation) = spawned.unzip();
    let served = serve_as(config, passed, spawner).await;
    // Whatever has happened, nothing of it stays.
    if let Some(conversation) = conversation {
        conversation.end().await;
    }
    if served.is_ok() {
        tracing::info!("stopped");
    }
    served
}

/// As the user who shall do it.
async fn serve_as(config: Config, passed: Passed, spawner: Option<Spawner>) -> Result<(), ServeError> {
    // Taken before anything starts, so that a signal during the start is not lost.
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Runtime)?;
    for warning in &config.warnings {
        tracing::warn!(rule = warning.rule.map(config::Rule::id), "{warning}");
    }
    if let Some(why) = config.unprovable(processes_are_provable()) {
        return Err(ServeError::Unprovable(why));
    }
    let launcher = Launcher::start().map_err(ServeError::Runtime)?.with(spawner.clone());
    let manifests = validate_adapters(&config, &launcher).await.map_err(ServeError::Adapters)?;
    let (store, task) = open_store(&config).await?;
    let served = Gateway::start(config, store.clone(), launcher, manifests, passed, spawner.clone()).await;
    let (gateway, reloader, hangups) = match served {
        Ok(served) => served,
        Err(error) => {
            drop(store);
            task.stop().await;
            return Err(error);
        }
    };
    let name = gateway.config.load().gateway.name.clone();
    tracing::info!(gateway = %name, pid = std::process::id(), "ready");
    notify(State::Ready);
    let stopping = gateway.stop.subscribe();
    let reloading = reloader.run(hangups, stopping);
    tokio::pin!(reloading);
    let (mut reloader_ended, mut ended) = (false, Ok(()));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = &mut reloading => reloader_ended = true,
        // A gateway that cannot write must not stand there as if it could: whoever started it starts it again.
        () = store.writer_ended() => ended = Err(ServeError::WriterEnded),
        // Nor one whose adapters have ended and cannot be started again.
        () = spawner_lost(spawner.as_ref()) => ended = Err(ServeError::SpawnerEnded),
    }
    tracing::info!("stopping");
    notify(State::Stopping);
    gateway.stop.send_replace(true);
    // A reload that has begun is finished before what it changes is taken down.
    if !reloader_ended {
        reloading.await;
    }
    gateway.stop().await;
    note(&store, &name, Event::GatewayStopped).await;
    drop(store);
    task.stop().await;
    ended
}

/// Never comes back where none is needed.
async fn spawner_lost(spawner: Option<&Spawner>) {
    match spawner {
        Some(spawner) => spawner.lost().await,
        None => std::future::pending().await,
    }
}

async fn open_store(config: &Config) -> Result<(Store, StoreTask), ServeError> {
    let gateway = &config.gateway;
    let options = gatepost_store::Options {
        data_dir: gateway.data_dir.clone(),
        database: database(config)?,
        origin: gateway.name.clone(),
        dedup_window: gateway.dedup_window,
        payload_retention: gateway.retention,
        encryption: config.encryption,
        seal_keys: config.seal_keys.clone(),
        keys_in_memory: gatepost_store::KEYS_IN_MEMORY,
        adopt: None,
    };
    let (store, task) = gatepost_store::open(options).await?;
    if task.created {
        tracing::info!(data_dir = %gateway.data_dir.display(), "created the data directory and its keys");
    }
    if let Err(error) = store.queues_configure(queue_setups(config)).await {
        drop(store);
        task.stop().await;
        return Err(error.into());
    }
    Ok((store, task))
}

/// Where the messages are; an address that holds a password is read only now.
pub(crate) fn database(config: &Config) -> Result<Database, ServeError> {
    let config::Store::Postgres { url_file, engines } = &config.store else { return Ok(Database::Sqlite) };
    let url = std::fs::read_to_string(url_file)
        .map_err(|source| ServeError::UrlFile { path: url_file.clone(), source })?;
    Ok(Database::Postgres {
        url: url.trim().to_owned(),
        node: config.gateway.node.clone(),
        engines: *engines,
    })
}

async fn note(store: &Store, name: &str, event: Event) {
    let gateway = Actor::new(ActorKind::Gateway, name);
    if let Err(error) = store.audit_note(vec![AuditNote::new(event, gateway)]).await {
        tracing::error!(%error, "cannot write into the audit log");
    }
}

/// A listener proves or believes something else from now on.
async fn note_certificates(store: &Store, gateway: &Actor, listener: std::net::SocketAddr) {
    let mut note = AuditNote::new(Event::ConfigChanged, gateway.clone());
    note.code = Some("certificates".to_owned());
    note.target = Some(format!("tls {listener}"));
    if let Err(error) = store.audit_note(vec![note]).await {
        tracing::error!(%error, "cannot write the change of certificates into the audit log");
    }
}

/// Everything that runs, and who can end it.
struct Gateway {
    config: Arc<ArcSwap<Config>>,
    state: AppState,
    supervisor: Supervisor,
    stop: watch::Sender<bool>,
    /// Ends the audit trail once nothing can be refused any more.
    stop_trail: watch::Sender<bool>,
    listening: tokio::task::JoinHandle<()>,
    /// Looks whether the listeners' certificates have changed.
    watching: tokio::task::JoinHandle<()>,
    /// Looks whether tokens were made or revoked.
    following: tokio::task::JoinHandle<()>,
    /// Removes what is past its retention beside the store.
    forgetting: tokio::task::JoinHandle<()>,
    trail: tokio::task::JoinHandle<()>,
}

impl Gateway {
    async fn start(
        config: Config,
        store: Store,
        launcher: Launcher,
        manifests: BTreeMap<String, Manifest>,
        mut passed: Passed,
        spawner: Option<Spawner>,
    ) -> Result<(Self, Reloader, Hangups), ServeError> {
        let gateway = Actor::new(ActorKind::Gateway, config.gateway.name.clone());
        let means = Means { store: store.clone(), launcher: launcher.clone(), gateway: gateway.clone() };
        let supervisor = Supervisor::new(means);
        let config = Arc::new(ArcSwap::from_pointee(config));
        let now = config.load_full();
        let (stop, stopping) = watch::channel(false);
        let counters = Arc::new(Counters::default());
        let state = AppState::new(
            store.clone(),
            Arc::clone(&config),
            Arc::new(supervisor.clone()),
            Arc::clone(&counters),
            stopping.clone(),
        );
        let server = Server::new(
            http::router(state.clone()),
            Arc::new(ConfiguredPeers { config: Arc::clone(&config), supervisor: supervisor.clone() }),
            Arc::new(state.trail.clone()),
            limits(&now),
            counters,
        );
        let mut listeners = Vec::with_capacity(now.listens.len());
        for listen in &now.listens {
            listeners.push(Listener::open(listen, &mut passed).await?);
        }
        passed.all_taken().map_err(ListenError::from)?;
        let tls = listeners.iter().zip(&now.listens).filter_map(|(listener, listen)| match &listen.at {
            config::ListenAt::Tcp(tcp) => Some((tcp.address, listener.tls()?)),
            config::ListenAt::Unix(_) => None,
        });
        let tls: Vec<_> = tls.collect();
        let parts = Parts {
            config: Arc::clone(&config),
            store: store.clone(),
            supervisor: supervisor.clone(),
            launcher,
            tls: tls.clone(),
            gateway: gateway.clone(),
        };
        let (reloader, hangups) =
            Reloader::start(parts).map_err(|error| ServeError::Reload(error.to_string()))?;
        let sockets = Sockets::new(&now.gateway.data_dir, Arc::clone(&server), spawner);
        supervisor.learn(manifests);
        supervisor.begin(sockets, &now).await;
        let (stop_trail, trail_stopping) = watch::channel(false);
        let trail = tokio::spawn(state.trail.clone().run(trail_stopping));
        let follow = http::follow_tokens(state.clone(), gateway.clone(), stopping.clone());
        let following = tokio::spawn(follow);
        let forgetting = tokio::spawn(http::forget_calls(state.clone(), stopping.clone()));
        let taken = async move |listener| note_certificates(&store, &gateway, listener).await;
        let watching = tokio::spawn(keep_current(tls, taken, stopping.clone()));
        let listening = tokio::spawn(server.serve_all(listeners, stopping));
        let gateway = Self {
            config,
            state,
            supervisor,
            stop,
            stop_trail,
            listening,
            watching,
            following,
            forgetting,
            trail,
        };
        Ok((gateway, reloader, hangups))
    }

    async fn stop(self) {
        self.supervisor.stop().await;
        if let Err(error) = self.listening.await {
            tracing::error!(%error, "the listeners did not end well");
        }
        let tasks =
            [("certificates", self.watching), ("tokens", self.following), ("retention", self.forgetting)];
        for (what, task) in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, what, "a task in the background did not end well");
            }
        }
        self.state.tasks.drained().await;
        self.stop_trail.send_replace(true);
        if let Err(error) = self.trail.await {
            tracing::error!(%error, "the audit trail did not end well");
        }
        self.state.tasks.drained().await;
    }
}

fn limits(config: &Config) -> Limits {
    let defaults = Limits::default();
    let per_listener = usize::try_from(config.gateway.max_connections).unwrap_or(usize::MAX);
    Limits {
        connections_per_listener: per_listener,
        // One peer never fills a listener.
        connections_per_peer: defaults.connections_per_peer.min((per_listener / 2).max(1)),
        connections_total: per_listener.saturating_mul(CONNECTIONS_TOTAL_FACTOR),
        ..defaults
    }
}
