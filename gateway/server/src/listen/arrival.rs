//! From accept to knowing the peer: a place in the quota, the handshake, the identity. Whoever is nobody here is turned away unread.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::watch,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    ExpectedPid, Refusal, RefusalCode, Serves, answer,
    connection::Admitted,
    credentials::Credentials,
    peer::{ConnectionId, Peer},
    quota::{PeerKey, Quota, Slot},
    serve::Server,
    tls,
};
use crate::config::PeerFacts;

/// How long a refused peer may take to accept its answer, and how long it is left to read it: closing at once would let its own unread
/// bytes throw the answer away.
const REFUSAL_WRITE_MAX: Duration = Duration::from_secs(1);
const REFUSAL_LINGER: Duration = Duration::from_millis(200);
/// A child may connect before the supervisor has written its number down.
const CHILD_UNKNOWN_MAX: Duration = Duration::from_secs(1);

/// How a connection reached us.
pub(super) enum Origin {
    Unix { stream: UnixStream, credentials: Result<Credentials, RefusalCode>, child: Option<ExpectedPid> },
    Tcp { stream: TcpStream, remote: SocketAddr, tls: Arc<ServerConfig> },
}

impl Origin {
    pub(super) fn unix(stream: UnixStream, child: Option<ExpectedPid>) -> Self {
        let credentials = Credentials::of(&stream);
        Self::Unix { stream, credentials, child }
    }

    fn key(&self) -> PeerKey {
        match self {
            Self::Unix { credentials: Ok(credentials), .. } => PeerKey::User(credentials.uid),
            Self::Unix { credentials: Err(_), .. } => PeerKey::Nobody,
            Self::Tcp { remote, .. } => PeerKey::of_address(remote.ip()),
        }
    }
}

/// An accepted connection that has a place.
pub(super) struct Arrival {
    server: Arc<Server>,
    serves: Serves,
    connection: ConnectionId,
    origin: Origin,
    slot: Slot,
}

/// Why a connection is not served, with what was known of its peer.
struct Refused {
    code: RefusalCode,
    facts: Option<PeerFacts>,
}

impl Arrival {
    /// Takes a place for the connection, or closes it.
    pub(super) fn admit(
        server: Arc<Server>,
        serves: Serves,
        connection: ConnectionId,
        origin: Origin,
        quota: &Arc<Quota>,
    ) -> Option<Self> {
        match quota.take(origin.key()) {
            Ok(slot) => Some(Self { server, serves, connection, origin, slot }),
            Err(code) => {
                turn_away(&server, &serves, origin, code);
                None
            }
        }
    }

    /// The whole life of the connection.
    pub(super) async fn attend(self, stop: watch::Receiver<bool>) {
        let Self { server, serves, connection, origin, slot } = self;
        match origin {
            Origin::Unix { mut stream, credentials, child } => {
                match recognise_process(&server, serves.clone(), connection, &stream, credentials, child)
                    .await
                {
                    Ok(admitted) => admitted.serve(stream, stop).await,
                    Err(Refused { code, facts }) => {
                        report(&server, Refusal { serves, code, facts, remote: None });
                        refuse(&mut stream, code).await;
                    }
                }
            }
            Origin::Tcp { stream, remote, tls } => match shake_hands(stream, tls, server.limits.handshake)
                .await
            {
                Ok(mut stream) => match recognise_certificate(&server, serves.clone(), connection, &stream) {
                    Ok(admitted) => admitted.serve(stream, stop).await,
                    Err(Refused { code, facts }) => {
                        report(&server, Refusal { serves, code, facts, remote: Some(remote) });
                        refuse(&mut stream, code).await;
                    }
                },
                Err(code) => report(&server, Refusal { serves, code, facts: None, remote: Some(remote) }),
            },
        }
        drop(slot);
    }
}

fn report(server: &Server, refusal: Refusal) {
    server.counters.count_refused(refusal.code);
    server.refusals.refused(&refusal);
}

/// Closes a connection for which there is no place. The answer is a courtesy that may get lost: nothing is waited for.
fn turn_away(server: &Server, serves: &Serves, origin: Origin, code: RefusalCode) {
    let (facts, remote) = match origin {
        Origin::Unix { stream, credentials, .. } => {
            if let Ok(stream) = stream.into_std() {
                let _ = io::Write::write(&mut &stream, answer::refusal(code));
            }
            (credentials.ok().map(Credentials::bare_facts), None)
        }
        Origin::Tcp { remote, .. } => (None, Some(remote)),
    };
    report(server, Refusal { serves: serves.clone(), code, facts, remote });
}

/// Sends the fixed answer without having read anything.
async fn refuse<S: AsyncWrite + Unpin>(stream: &mut S, code: RefusalCode) {
    let answered = timeout(REFUSAL_WRITE_MAX, async {
        stream.write_all(answer::refusal(code)).await?;
        stream.shutdown().await
    });
    // A peer that is gone needs no answer.
    if matches!(answered.await, Ok(Ok(()))) {
        sleep(REFUSAL_LINGER).await;
    }
}

async fn recognise_process(
    server: &Arc<Server>,
    serves: Serves,
    connection: ConnectionId,
    stream: &UnixStream,
    credentials: Result<Credentials, RefusalCode>,
    child: Option<ExpectedPid>,
) -> Result<Admitted, Refused> {
    let credentials = credentials.map_err(|code| Refused { code, facts: None })?;
    let refused = |code| Refused { code, facts: Some(credentials.bare_facts()) };
    // The child's number first, then whether the peer lives: a peer that is still alive after its number was the unreaped child's is
    // the child, for two live processes never share a number.
    let child = match child {
        None => None,
        Some(child) => {
            let pid = credentials.pid;
            Some((expect_child(child, pid).await.map_err(refused)?, pid))
        }
    };
    let facts = credentials.facts(stream).map_err(refused)?;
    let known = match serves.configured() {
        Some(kind) => server.gate.may_match(kind, &facts),
        None => child.is_some(),
    };
    if !known {
        return Err(Refused { code: RefusalCode::UnknownPeer, facts: Some(facts) });
    }
    let peer = Peer { serves, facts: Arc::new(facts), connection, pid: Some(credentials.pid) };
    Ok(Admitted { server: server.clone(), peer, child, valid_for: None })
}

async fn expect_child(mut child: ExpectedPid, pid: u32) -> Result<ExpectedPid, RefusalCode> {
    let expected = match timeout(CHILD_UNKNOWN_MAX, child.wait_for(Option::is_some)).await {
        Ok(Ok(expected)) => *expected,
        Ok(Err(_)) | Err(_) => None,
    };
    if expected == Some(pid) { Ok(child) } else { Err(RefusalCode::NotTheAdapter) }
}

async fn shake_hands(
    stream: TcpStream,
    tls: Arc<ServerConfig>,
    limit: Duration,
) -> Result<TlsStream<TcpStream>, RefusalCode> {
    // Only latency is at stake.
    let _ = stream.set_nodelay(true);
    match timeout(limit, TlsAcceptor::from(tls).accept(stream)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            Err(RefusalCode::TlsFailed)
        }
        Err(_) => Err(RefusalCode::TlsTimeout),
    }
}

fn recognise_certificate(
    server: &Arc<Server>,
    serves: Serves,
    connection: ConnectionId,
    stream: &TlsStream<TcpStream>,
) -> Result<Admitted, Refused> {
    let (_, session) = stream.get_ref();
    let identity = session
        .peer_certificates()
        .and_then(<[_]>::first)
        .and_then(|certificate| tls::identity(certificate, SystemTime::now()))
        .ok_or(Refused { code: RefusalCode::CertificateName, facts: None })?;
    let facts = PeerFacts { spiffe: Some(identity.uri), ..PeerFacts::default() };
    if !serves.configured().is_some_and(|kind| server.gate.may_match(kind, &facts)) {
        return Err(Refused { code: RefusalCode::UnknownPeer, facts: Some(facts) });
    }
    let peer = Peer { serves, facts: Arc::new(facts), connection, pid: None };
    Ok(Admitted { server: server.clone(), peer, child: None, valid_for: Some(identity.valid_for) })
}
