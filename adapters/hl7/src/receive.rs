//! Receiving: a message is acknowledged after the gateway has it on stable storage, never before.
//!
//! Each connection is served in its own task, one message at a time, in the order in which they came. A message that
//! cannot be stored now is answered with a code that asks for it again, and the connection stays open.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gatepost_adapter::{AcceptError, Failure, Session};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::ack::{self, Stamp, Verdict};
use crate::channel::{Channel, ChannelError};
use crate::event::Origin;
use crate::header::Message;
use crate::mllp::{self, Item};
use crate::settings::Settings;

/// The process that had the port before may need a moment to let go of it.
const BIND_TRIES: u32 = 20;
const BIND_PAUSE: Duration = Duration::from_millis(500);
/// After accepting failed, which means that file descriptors or memory have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// A partner that does not take its acknowledgement in this time will not take it at all.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// Turned-away connections are told about this often, with their number.
const TELL_EVERY: Duration = Duration::from_secs(60);

pub(crate) struct Receiver {
    settings: Arc<Settings>,
    session: Session,
    source: String,
}

impl Receiver {
    pub(crate) fn new(settings: Arc<Settings>, session: Session) -> Self {
        let source = settings.source.clone().unwrap_or_else(|| format!("/adapters/{}", session.name()));
        Self { settings, session, source }
    }

    /// Takes connections until the adapter is asked to stop; then finishes the messages that have come in whole.
    pub(crate) async fn run(self, address: &str) -> Result<(), Failure> {
        let listener = bind(address)
            .await
            .map_err(|error| Failure::new(format!("cannot listen on {address}"), error))?;
        tracing::info!(address, "listening for partners");
        self.serve_listener(listener).await;
        Ok(())
    }

    pub(crate) async fn serve_listener(self, listener: TcpListener) {
        let stop = self.session.stop();
        let places = Arc::new(Semaphore::new(self.settings.max_connections));
        let receiver = Arc::new(self);
        let mut connections = JoinSet::new();
        let mut turned_away = TurnedAway::default();
        loop {
            let (stream, peer) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
                // Finished connections are let go of as they end. One that panicked has taken down only itself.
                Some(_) = connections.join_next() => continue,
                () = stop.requested() => break,
            };
            if !receiver.admits(peer.ip()) {
                turned_away.count(peer, "its address is not in allow_from");
                continue;
            }
            match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => {
                    let receiver = Arc::clone(&receiver);
                    connections.spawn(async move {
                        receiver.serve(stream, peer).await;
                        drop(place);
                    });
                }
                Err(_) => turned_away.count(peer, "there are max_connections already"),
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    fn admits(&self, peer: IpAddr) -> bool {
        self.settings.allow_from.iter().any(|network| network.contains(peer))
    }

    async fn serve(&self, stream: TcpStream, peer: SocketAddr) {
        tracing::info!(%peer, "a partner has connected");
        let mut tally = Tally::default();
        let ended =
            match Channel::new(stream, self.settings.max_frame_bytes, self.settings.idle_frame_timeout()) {
                Ok(mut channel) => {
                    let ended = self.serve_channel(&mut channel, &mut tally).await;
                    tally.junk_bytes = channel.junk_bytes();
                    ended
                }
                Err(error) => Err(error.into()),
            };
        match ended {
            Ok(()) => tracing::info!(%peer, ?tally, "the connection has ended"),
            Err(error) => tracing::warn!(%peer, ?tally, %error, "the connection has ended"),
        }
    }

    async fn serve_channel(&self, channel: &mut Channel, tally: &mut Tally) -> Result<(), ChannelError> {
        let stop = self.session.stop();
        loop {
            let item = tokio::select! {
                biased;
                // A message that is not here whole has no acknowledgement yet, so its sender will send it again.
                () = stop.requested() => return Ok(()),
                item = channel.next() => item?,
            };
            let Some(item) = item else { return Ok(()) };
            if let Some(answer) = self.answer(item, tally).await {
                gatepost_faults::point("hl7.before_ack");
                let frame =
                    mllp::frame(&answer).map_err(|error| ChannelError::Io(io::Error::other(error)))?;
                timeout(ANSWER_DEADLINE, channel.write(frame))
                    .await
                    .map_err(|_| ChannelError::Io(io::ErrorKind::TimedOut.into()))??;
            }
        }
    }

    /// Stores what came and says what to answer, if anything.
    async fn answer(&self, item: Item, tally: &mut Tally) -> Option<Bytes> {
        match item {
            Item::Frame(body) => {
                let (verdict, text) = self.store(&body, tally).await;
                acknowledgement(&body, verdict, text)
            }
            Item::Oversize { head, length } => {
                tally.oversize += 1;
                tracing::warn!(length, "refusing a message above max_frame_bytes");
                acknowledgement(&head, Verdict::Refused, Some("message too large".to_owned()))
            }
            Item::Abandoned { length } => {
                tally.abandoned += 1;
                tracing::warn!(length, "framing error: a message was broken off by the start of another");
                None
            }
        }
    }

    async fn store(&self, body: &Bytes, tally: &mut Tally) -> (Verdict, Option<String>) {
        let origin = Origin { settings: &self.settings, source: &self.source };
        let received = match Message::parse(body).and_then(|message| origin.event(body, &message)) {
            Ok(received) => received,
            Err(error) => {
                tally.unreadable += 1;
                tracing::warn!(%error, "refusing a message");
                return (Verdict::Refused, Some(error.to_string()));
            }
        };
        match self.session.accept(&received.event, &received.idempotency_key).await {
            Ok(_) => {
                tally.accepted += 1;
                (Verdict::Accepted, None)
            }
            Err(AcceptError::Refused(problem)) => {
                tally.refused += 1;
                tracing::warn!(code = problem.code, detail = problem.detail, "the gateway refuses a message");
                (Verdict::Refused, Some(problem.title))
            }
            Err(error) => {
                tally.postponed += 1;
                tracing::warn!(%error, "asking the partner to send a message again");
                (Verdict::TryLater, Some("not stored; send again later".to_owned()))
            }
        }
    }
}

/// `None` where the sender wants no answer.
fn acknowledgement(body: &[u8], verdict: Verdict, text: Option<String>) -> Option<Bytes> {
    let stamp = Stamp::new(uuid::Uuid::now_v7(), time::OffsetDateTime::now_utc());
    match Message::parse(body) {
        Ok(message) => {
            let code = ack::code_owed(&message, verdict)?;
            Some(ack::build(&message, code, text.as_deref(), &stamp))
        }
        Err(error) => Some(ack::build_generic_refusal(&error.to_string(), &stamp)),
    }
}

async fn bind(address: &str) -> io::Result<TcpListener> {
    let mut tries = 1;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < BIND_TRIES => {
                if tries == 1 {
                    tracing::warn!(address, "the address is in use; trying again");
                }
                tries += 1;
                sleep(BIND_PAUSE).await;
            }
            bound => return bound,
        }
    }
}

/// What came over one connection, told when it ends.
#[derive(Debug, Default)]
struct Tally {
    accepted: u64,
    postponed: u64,
    refused: u64,
    unreadable: u64,
    oversize: u64,
    abandoned: u64,
    junk_bytes: u64,
}

/// Connections that were closed at once. Told, but not one by one: whoever knocks must not fill the log.
#[derive(Default)]
struct TurnedAway {
    untold: u64,
    told_at: Option<Instant>,
}

impl TurnedAway {
    fn count(&mut self, peer: SocketAddr, reason: &str) {
        self.untold += 1;
        if self.told_at.is_none_or(|told_at| told_at.elapsed() >= TELL_EVERY) {
            tracing::warn!(%peer, connections = self.untold, reason, "turned a connection away");
            self.told_at = Some(Instant::now());
            self.untold = 0;
        }
    }
}
