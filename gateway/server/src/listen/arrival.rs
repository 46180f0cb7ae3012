//! From accept to knowing the peer: a place in the quota, the handshake, the identity. Whoever is nobody here is turned away unread.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::watch::{self, Receiver},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    ExpectedPid, Refusal, RefusalCode, Serves, answer,
    connection::{Admitted, Brought, Standing},
    credentials::Credentials,
    peer::{ConnectionId, Peer},
    quota::{Late, Maker, PeerKey, PrincipalSlot, Quota, Slot},
    serve::{Server, stopped},
    tls::{self, Chain, Claim, Generation},
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
    Tcp { stream: TcpStream, remote: SocketAddr, tls: Receiver<Arc<Generation>> },
}

impl Origin {
    pub(super) fn unix(stream: UnixStream, child: Option<ExpectedPid>) -> Self {
        let credentials = Credentials::of(&stream);
        Self::Unix { stream, credentials, child }
    }

    fn maker(&self) -> Maker {
        match self {
            Self::Unix { credentials: Ok(credentials), .. } => Maker::Process(credentials.pid),
            Self::Unix { credentials: Err(_), .. } | Self::Tcp { .. } => Maker::Peer(self.key()),
        }
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

impl Arrival {
    /// Takes a place for the connection, or turns it away.
    pub(super) fn admit(
        server: Arc<Server>,
        serves: Serves,
        connection: ConnectionId,
        origin: Origin,
        quota: &Arc<Quota>,
    ) -> Result<Self, TurnedAway> {
        let peer = origin.key();
        match quota.take(peer) {
            Ok(slot) => Ok(Self { server, serves, connection, origin, slot }),
            Err(code) => {
                let late = quota.late(peer, Instant::now());
                Err(TurnedAway::new(&server, serves, origin, code, late))
            }
        }
    }

    /// The whole life of the connection.
    pub(super) async fn attend(self, stop: watch::Receiver<bool>) {
        let Self { server, serves, connection, origin, slot } = self;
        let maker = origin.maker();
        let brought = match origin {
            Origin::Unix { mut stream, credentials, child } => {
                // Who it is, is known before it waits: its number must not become another's in that time.
                let recognised =
                    recognise_process(&server, serves, connection, &stream, credentials, child).await;
                wait_for_turn(&slot, maker, &stop).await;
                match recognised {
                    Ok(admitted) => admitted.serve(stream, stop).await,
                    Err(refusal) => {
                        report(&server, &refusal);
                        refuse(&mut stream, refusal.code).await;
                        Brought::Nobody
                    }
                }
            }
            Origin::Tcp { stream, remote, tls } => {
                // A handshake costs more than most requests.
                wait_for_turn(&slot, maker, &stop).await;
                match shake_hands(stream, &tls, server.limits.handshake).await {
                    Ok(mut stream) => {
                        match recognise_certificate(&server, serves, connection, &stream, tls) {
                            Ok(admitted) => admitted.serve(stream, stop).await,
                            Err(refusal) => {
                                let code = refusal.code;
                                report(&server, &Refusal { remote: Some(remote), ..*refusal });
                                refuse(&mut stream, code).await;
                                Brought::Nobody
                            }
                        }
                    }
                    Err(Failed { code, claimed, why }) => {
                        let refusal = Refusal::new(serves, code);
                        report(&server, &Refusal { claimed, why, remote: Some(remote), ..refusal });
                        Brought::Nothing
                    }
                }
            }
        };
        if brought == Brought::Nothing {
            slot.was_in_vain(maker, Instant::now());
        }
        drop(slot);
    }
}

/// Who connects over and over is listened to later.
async fn wait_for_turn(slot: &Slot, maker: Maker, stop: &watch::Receiver<bool>) {
    let wait = slot.wait(maker, Instant::now());
    if !wait.is_zero() {
        let mut stop = stop.clone();
        tokio::select! {
            () = sleep(wait) => {}
            () = stopped(&mut stop) => {}
        }
    }
}

fn report(server: &Server, refusal: &Refusal) {
    let Refusal { serves, code, why, remote, .. } = refusal;
    let remote = remote.map(tracing::field::display);
    // Not louder: anybody can bring this about as often as they like. The audit log has it, coalesced.
    tracing::debug!(
        serves = serves.as_str(),
        code = code.as_str(),
        why,
        remote,
        "a connection was turned away"
    );
    server.counters.count_refused(refusal.code);
    server.refusals.refused(refusal);
}

/// Likewise of an adapter's other socket.
pub(super) fn report_of_adapter(server: &Server, adapter: &Arc<str>, code: RefusalCode) {
    report(server, &Refusal::new(Serves::OneAdapter(Arc::clone(adapter)), code));
}

/// A connection for which there is no place. It is told, and closed, when this is dropped; the answer is a courtesy that may get lost:
/// nothing is waited for.
pub(super) struct TurnedAway {
    stream: Option<std::os::unix::net::UnixStream>,
    _tcp: Option<TcpStream>,
    code: RefusalCode,
    late: Option<Late>,
}

impl TurnedAway {
    fn new(server: &Server, serves: Serves, origin: Origin, code: RefusalCode, late: Option<Late>) -> Self {
        let (stream, tcp, facts, remote) = match origin {
            Origin::Unix { stream, credentials, .. } => {
                (stream.into_std().ok(), None, credentials.ok().map(Credentials::bare_facts), None)
            }
            Origin::Tcp { stream, remote, .. } => (None, Some(stream), None, Some(remote)),
        };
        report(server, &Refusal { facts, remote, ..Refusal::new(serves, code) });
        Self { stream, _tcp: tcp, code, late }
    }

    /// Whether it is to be told later, by [`TurnedAway::tell`].
    pub(super) fn is_late(&self) -> bool {
        self.late.is_some()
    }

    pub(super) async fn tell(self, mut stop: watch::Receiver<bool>) {
        if let Some(late) = &self.late {
            tokio::select! {
                () = sleep(late.wait) => {}
                () = stopped(&mut stop) => {}
            }
        }
    }
}

impl Drop for TurnedAway {
    fn drop(&mut self) {
        if let Some(mut stream) = self.stream.take() {
            let _ = io::Write::write(&mut stream, answer::refusal(self.code));
        }
    }
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
) -> Result<Admitted, Refusal> {
    let credentials = credentials.map_err(|code| Refusal::new(serves.clone(), code))?;
    let refused =
        |code| Refusal { facts: Some(credentials.bare_facts()), ..Refusal::new(serves.clone(), code) };
    // The child's number first, then whether the peer lives: a peer that is still alive after its number was the unreaped child's is
    // the child, for two live processes never share a number.
    let child = match child {
        None => None,
        Some(child) => {
            let pid = credentials.pid;
            Some((expect_child(child, pid).await.map_err(refused)?, pid))
        }
    };
    let wanted = serves.configured().map(|kind| server.gate.wanted(kind)).unwrap_or_default();
    let facts = credentials.facts(stream, wanted).map_err(refused)?;
    let known = match serves.configured() {
        Some(kind) => server.gate.may_match(kind, &facts),
        None => child.is_some(),
    };
    if !known {
        // Without the right to see what others run, a selector with `exe` matches nobody, which is hard to guess.
        let unseen = wanted.exe && facts.exe.is_none();
        let why = unseen.then(|| "its program cannot be seen, or is not the file at its path".to_owned());
        return Err(Refusal { facts: Some(facts), why, ..refused(RefusalCode::UnknownPeer) });
    }
    let place = place(server, &serves, &facts).map_err(refused)?;
    let peer = Peer { serves, facts: Arc::new(facts), connection, pid: Some(credentials.pid) };
    Ok(Admitted { server: server.clone(), peer, child, _place: place, certificate: None })
}

/// A place among the connections of the principal that this peer is, if those are limited.
fn place(server: &Server, serves: &Serves, facts: &PeerFacts) -> Result<Option<PrincipalSlot>, RefusalCode> {
    let limited = server.gate.connections(serves, facts);
    limited.map(|(name, max)| server.principals.take(name, max)).transpose()
}

async fn expect_child(mut child: ExpectedPid, pid: u32) -> Result<ExpectedPid, RefusalCode> {
    let expected = match timeout(CHILD_UNKNOWN_MAX, child.wait_for(Option::is_some)).await {
        Ok(Ok(expected)) => *expected,
        Ok(Err(_)) | Err(_) => None,
    };
    if expected == Some(pid) { Ok(child) } else { Err(RefusalCode::NotTheAdapter) }
}

/// Why there was no handshake.
struct Failed {
    code: RefusalCode,
    claimed: Option<String>,
    why: Option<String>,
}

async fn shake_hands(
    stream: TcpStream,
    tls: &Receiver<Arc<Generation>>,
    limit: Duration,
) -> Result<TlsStream<TcpStream>, Failed> {
    // Only latency is at stake.
    let _ = stream.set_nodelay(true);
    let config = tls.borrow().config.clone();
    let handshake = timeout(limit, TlsAcceptor::from(config).accept(stream));
    match Claim::of(handshake).await {
        (Ok(Ok(stream)), _) => Ok(stream),
        (Ok(Err(error)), claimed) => {
            Err(Failed { code: tls::reason(&error), claimed, why: Some(error.to_string()) })
        }
        (Err(_), _) => Err(Failed { code: RefusalCode::TlsTimeout, claimed: None, why: None }),
    }
}

fn recognise_certificate(
    server: &Arc<Server>,
    serves: Serves,
    connection: ConnectionId,
    stream: &TlsStream<TcpStream>,
    in_force: Receiver<Arc<Generation>>,
) -> Result<Admitted, Box<Refusal>> {
    let (_, session) = stream.get_ref();
    let certificates: Vec<_> =
        session.peer_certificates().unwrap_or_default().iter().map(|one| one.clone().into_owned()).collect();
    let identity = match certificates.first() {
        Some(certificate) => tls::identity(certificate, SystemTime::now()),
        None => return Err(Box::new(Refusal::new(serves, RefusalCode::CertificateMissing))),
    };
    let identity = identity.map_err(|nameless| {
        let refusal = Refusal::new(serves.clone(), nameless.code);
        Box::new(Refusal { why: Some(nameless.why.to_owned()), ..refusal })
    })?;
    let facts = PeerFacts { spiffe: Some(identity.uri), ..PeerFacts::default() };
    if !serves.configured().is_some_and(|kind| server.gate.may_match(kind, &facts)) {
        let refusal = Refusal::new(serves, RefusalCode::UnknownPeer);
        return Err(Box::new(Refusal { facts: Some(facts), ..refusal }));
    }
    let place = match place(server, &serves, &facts) {
        Ok(place) => place,
        Err(code) => return Err(Box::new(Refusal { facts: Some(facts), ..Refusal::new(serves, code) })),
    };
    let peer = Peer { serves, facts: Arc::new(facts), connection, pid: None };
    let certificate = Standing { valid_for: identity.valid_for, chain: Chain { certificates, in_force } };
    Ok(Admitted { server: server.clone(), peer, child: None, _place: place, certificate: Some(certificate) })
}
