//! Listeners and their accept loops. A loop ends only when it is told to stop: no connection's failure, no lack of descriptors and no
//! panic ends it. Every connection is a task that its loop owns and awaits.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::Router;
use hyper_util::service::TowerToHyperService;
use nix::errno::Errno;
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::watch,
    task::{JoinError, JoinSet},
    time::{sleep, timeout},
};
use tracing::field::display;

use super::{
    Counters, ExpectedPid, Limits, Passed, PassedError, PeerGate, RefusalSink, Serves,
    arrival::{Arrival, Origin, TurnedAway},
    credentials::exhausted,
    peer::ConnectionId,
    quota::{Principals, Quota, Total},
    tls::{ServerTls, TlsError},
    unix::{self, BoundUnix, SocketFile, UnixBindError},
};
use crate::config::{Listen, ListenAt, TcpListen};

/// Pauses after `accept` failed for want of descriptors or memory: the first and the longest.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    #[error(transparent)]
    Unix(#[from] UnixBindError),
    #[error("listener {address}")]
    Tls { address: SocketAddr, source: Box<TlsError> },
    #[error("listener {address}: cannot bind")]
    Tcp { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Passed(#[from] PassedError),
}

/// A bound socket, not served yet. Dropping it removes a Unix socket's file.
#[derive(Debug)]
pub(crate) struct Listener {
    serves: Serves,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Unix { listener: UnixListener, file: SocketFile, child: Option<ExpectedPid> },
    Tls { listener: TcpListener, tls: Arc<ServerTls> },
}

enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream, SocketAddr),
}

impl Listener {
    /// Takes what was passed for its address, or else binds it.
    pub(crate) async fn open(listen: &Listen, passed: &mut Passed) -> Result<Self, ListenError> {
        let serves = Serves::from(listen.serves);
        match &listen.at {
            ListenAt::Unix(at) => {
                let bound = match passed.unix(&at.path) {
                    Some(socket) => unix::adopt(at, socket)?,
                    None => unix::bind(at).await?,
                };
                Ok(Self::unix(bound, serves, None))
            }
            ListenAt::Tcp(TcpListen { address, tls }) => {
                let tls = ServerTls::load(tls)
                    .map_err(|source| ListenError::Tls { address: *address, source: Box::new(source) })?;
                let listener = match passed.tcp(*address) {
                    Some(socket) => TcpListener::from_std(socket),
                    None => TcpListener::bind(address).await,
                };
                let listener = listener.map_err(|source| ListenError::Tcp { address: *address, source })?;
                Ok(Self { serves, socket: Socket::Tls { listener, tls: Arc::new(tls) } })
            }
        }
    }

    #[cfg(test)]
    pub(crate) async fn bind(listen: &Listen) -> Result<Self, ListenError> {
        Self::open(listen, &mut Passed::default()).await
    }

    pub(super) fn unix(bound: BoundUnix, serves: Serves, child: Option<ExpectedPid>) -> Self {
        let BoundUnix { listener, file } = bound;
        Self { serves, socket: Socket::Unix { listener, file, child } }
    }

    /// Where a Unix socket's clients find it.
    pub(crate) fn path(&self) -> Option<&Path> {
        match &self.socket {
            Socket::Unix { file, .. } => Some(file.path()),
            Socket::Tls { .. } => None,
        }
    }

    /// A TCP listener's address, with the port that the kernel chose if none was given.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Unix { .. } => None,
            Socket::Tls { listener, .. } => listener.local_addr().ok(),
        }
    }

    /// The certificates of a TCP listener, to be reloaded while it serves.
    pub(crate) fn tls(&self) -> Option<Arc<ServerTls>> {
        match &self.socket {
            Socket::Unix { .. } => None,
            Socket::Tls { tls, .. } => Some(tls.clone()),
        }
    }

    async fn accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            Socket::Unix { listener, .. } => {
                listener.accept().await.map(|(stream, _)| Accepted::Unix(stream))
            }
            Socket::Tls { listener, .. } => {
                listener.accept().await.map(|(stream, remote)| Accepted::Tcp(stream, remote))
            }
        }
    }

    fn origin(&self, accepted: Accepted) -> Option<Origin> {
        match (accepted, &self.socket) {
            (Accepted::Unix(stream), Socket::Unix { child, .. }) => Some(Origin::unix(stream, child.clone())),
            (Accepted::Tcp(stream, remote), Socket::Tls { tls, .. }) => {
                Some(Origin::Tcp { stream, remote, tls: tls.subscribe() })
            }
            (Accepted::Unix(_), Socket::Tls { .. }) | (Accepted::Tcp(..), Socket::Unix { .. }) => None,
        }
    }
}

/// What all listeners of a gateway share.
pub(crate) struct Server {
    pub(super) app: TowerToHyperService<Router>,
    pub(super) gate: Arc<dyn PeerGate>,
    pub(super) refusals: Arc<dyn RefusalSink>,
    pub(super) limits: Limits,
    pub(super) counters: Arc<Counters>,
    pub(super) principals: Principals,
    total: Arc<Total>,
    next_connection: AtomicU64,
}

impl Server {
    pub(crate) fn new(
        app: Router,
        gate: Arc<dyn PeerGate>,
        refusals: Arc<dyn RefusalSink>,
        limits: Limits,
        counters: Arc<Counters>,
    ) -> Arc<Self> {
        let total = Total::new(&limits);
        let app = TowerToHyperService::new(app);
        let (principals, next_connection) = (Principals::default(), AtomicU64::new(1));
        Arc::new(Self { app, gate, refusals, limits, counters, principals, total, next_connection })
    }

    /// Serves all `listeners` until `stop` holds `true` (or its sender is gone) and their connections have ended.
    pub(crate) async fn serve_all(self: Arc<Self>, listeners: Vec<Listener>, stop: watch::Receiver<bool>) {
        let mut loops = JoinSet::new();
        for listener in listeners {
            loops.spawn(self.clone().serve(listener, stop.clone()));
        }
        while let Some(ended) = loops.join_next().await {
            self.note_ended(ended);
        }
    }

    /// Serves one listener, likewise. The listener's socket is gone as soon as it stops accepting. Dropping the future cuts everything.
    pub(crate) async fn serve(self: Arc<Self>, listener: Listener, stop: watch::Receiver<bool>) {
        let (serves, path, address) = (listener.serves.as_str(), listener.path(), listener.address());
        let (path, address) = (path.map(Path::display).map(display), address.map(display));
        tracing::info!(serves, path, address, "listening");
        let mut connections = JoinSet::new();
        self.accept_until_stopped(&listener, &stop, &mut connections).await;
        drop(listener);
        let drained = async {
            while let Some(ended) = connections.join_next().await {
                self.note_ended(ended);
            }
        };
        if timeout(self.limits.drain, drained).await.is_err() {
            tracing::warn!(connections = connections.len(), "connections are cut: they did not end in time");
            connections.shutdown().await;
        }
    }

    async fn accept_until_stopped(
        self: &Arc<Self>,
        listener: &Listener,
        stop: &watch::Receiver<bool>,
        connections: &mut JoinSet<()>,
    ) {
        let quota = match &listener.serves {
            Serves::OneAdapter(_) => Quota::of_one_adapter(&self.limits, &self.counters),
            Serves::Apps | Serves::Operators | Serves::Adapters => {
                Quota::shared(&self.limits, &self.total, &self.counters)
            }
        };
        let mut backoff = BACKOFF_MIN;
        let mut stopping = stop.clone();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stopped(&mut stopping) => return,
                Some(ended) = connections.join_next(), if !connections.is_empty() => {
                    self.note_ended(ended);
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(accepted) => {
                    backoff = BACKOFF_MIN;
                    self.counters.count_accepted();
                    match self.arrival(listener, accepted, &quota) {
                        Some(Ok(arrival)) => drop(connections.spawn(arrival.attend(stop.clone()))),
                        Some(Err(away)) if away.is_late() => {
                            drop(connections.spawn(away.tell(stop.clone())));
                        }
                        // Whoever knocks without end shall not keep this thread to itself.
                        Some(Err(_)) | None => tokio::task::yield_now().await,
                    }
                }
                Err(error) => {
                    self.counters.count_accept_error();
                    // Other errors belong to the one connection that failed.
                    if error.raw_os_error().map(Errno::from_raw).is_some_and(exhausted) {
                        tracing::warn!(%error, pause = ?backoff, "no more connections can be accepted for now");
                        tokio::select! {
                            () = sleep(backoff) => {}
                            () = stopped(&mut stopping) => return,
                        }
                        backoff = (backoff * 2).min(BACKOFF_MAX);
                    }
                }
            }
        }
    }

    fn arrival(
        self: &Arc<Self>,
        listener: &Listener,
        accepted: Accepted,
        quota: &Arc<Quota>,
    ) -> Option<Result<Arrival, TurnedAway>> {
        let connection = ConnectionId(self.next_connection.fetch_add(1, Ordering::Relaxed));
        let origin = listener.origin(accepted)?;
        Some(Arrival::admit(self.clone(), listener.serves.clone(), connection, origin, quota))
    }

    fn note_ended(&self, ended: Result<(), JoinError>) {
        // The panic hook has told what it was about; here it must not end more than the one connection.
        if ended.is_err_and(|error| error.is_panic()) {
            self.counters.count_panic();
            tracing::error!("a connection's task panicked; the connection is closed");
        }
    }
}

/// Returns when `stop` holds `true`. Whoever could still say so being gone counts as said.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
