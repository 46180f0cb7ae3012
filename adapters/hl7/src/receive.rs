//! Receiving: a message is acknowledged after the gateway has it on stable storage, never before.
//!
//! Each connection is served in its own task, one message at a time, in the order in which they came. A message that
//! cannot be stored now is answered with a code that asks for it again, and the connection stays open.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gatepost_adapter::{AcceptError, Failure, Session};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::ack::{self, Stamp, Verdict};
use crate::channel::{Channel, ChannelError};
use crate::event::Origin;
use crate::header::Message;
use crate::listener::{self, Door};
use crate::mllp::{self, Item};
use crate::settings::{OnUnreadable, Settings};

/// A partner that does not take its acknowledgement in this time will not take it at all.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Serves partners that connect to us.
pub(crate) struct Receiver {
    settings: Arc<Settings>,
    session: Session,
    source: String,
}

/// What goes back over the connection, and whether it goes on after that.
struct Answer {
    frame: Option<Bytes>,
    close: bool,
}

impl Answer {
    fn go_on(frame: Option<Bytes>) -> Self {
        Self { frame, close: false }
    }

    fn close(frame: Option<Bytes>) -> Self {
        Self { frame, close: true }
    }
}

impl Receiver {
    pub(crate) fn new(settings: Arc<Settings>, session: Session) -> Self {
        let source = settings.source.clone().unwrap_or_else(|| format!("/adapters/{}", session.name()));
        Self { settings, session, source }
    }

    /// Takes connections until the adapter is asked to stop; then finishes the messages that have come in whole.
    pub(crate) async fn run(self, address: &str) -> Result<(), Failure> {
        let listener = listener::bind(address)
            .await
            .map_err(|error| Failure::new(format!("cannot listen on {address}"), error))?;
        tracing::info!(address, "listening for partners");
        self.serve_listener(listener).await;
        Ok(())
    }

    pub(crate) async fn serve_listener(self, listener: TcpListener) {
        let door = Door {
            allow_from: self.settings.allow_from.clone(),
            connections_max: self.settings.max_connections,
            connections_per_source_max: self.settings.max_connections_per_source,
        };
        let stop = self.session.stop();
        let receiver = Arc::new(self);
        listener::serve(listener, &door, stop, |stream, peer| {
            let receiver = Arc::clone(&receiver);
            async move { receiver.serve(stream, peer).await }
        })
        .await;
    }

    async fn serve(&self, stream: TcpStream, peer: SocketAddr) {
        tracing::info!(%peer, "a partner has connected");
        let mut tally = Tally::default();
        let ended = match Channel::new(stream, self.settings.limits()) {
            Ok(mut channel) => {
                let ended = self.serve_channel(&mut channel, &mut tally).await;
                tally.junk_bytes = channel.junk_bytes();
                if matches!(ended, Ok(Closing::AfterAnswer)) {
                    channel.close_after_answer().await;
                }
                ended
            }
            Err(error) => Err(error.into()),
        };
        match ended {
            Ok(_) => tracing::info!(%peer, ?tally, "the connection has ended"),
            Err(error) => tracing::warn!(%peer, ?tally, %error, "the connection has ended"),
        }
    }

    async fn serve_channel(&self, channel: &mut Channel, tally: &mut Tally) -> Result<Closing, ChannelError> {
        let stop = self.session.stop();
        loop {
            let item = tokio::select! {
                biased;
                // A message that is not here whole has no acknowledgement yet, so its sender will send it again.
                () = stop.requested() => return Ok(Closing::Quietly),
                item = channel.next() => item?,
            };
            let Some(item) = item else { return Ok(Closing::Quietly) };
            let Answer { frame, close } = self.answer(item, tally).await;
            if let Some(answer) = frame {
                gatepost_faults::point("hl7.before_ack");
                let frame =
                    mllp::frame(&answer).map_err(|error| ChannelError::Io(io::Error::other(error)))?;
                timeout(ANSWER_DEADLINE, channel.write(frame))
                    .await
                    .map_err(|_| ChannelError::Io(io::ErrorKind::TimedOut.into()))??;
            }
            if close {
                return Ok(Closing::AfterAnswer);
            }
        }
    }

    /// Stores what came and says what to answer, if anything.
    async fn answer(&self, item: Item, tally: &mut Tally) -> Answer {
        match item {
            Item::Frame(body) => match Message::parse(&body) {
                Ok(message) => {
                    let (verdict, text) = self.store(&body, &message, tally).await;
                    Answer::go_on(acknowledgement(&message, verdict, text))
                }
                // Whoever sends this does not speak HL7, or is out of step: the next bytes would be no better.
                Err(error) => {
                    tally.unreadable += 1;
                    tracing::warn!(%error, "this is no message; closing the connection");
                    let text = error.to_string();
                    let answer = (self.settings.on_unreadable == OnUnreadable::Answer)
                        .then(|| ack::build_generic_refusal(&text, &stamp()));
                    Answer::close(answer)
                }
            },
            Item::Oversize { head, length } => {
                tally.oversize += 1;
                tracing::warn!(length, "refusing a message above max_frame_bytes; closing the connection");
                let text = Some("message too large".to_owned());
                let answer = Message::parse(&head)
                    .ok()
                    .and_then(|message| acknowledgement(&message, Verdict::Refused, text));
                Answer::close(answer)
            }
            Item::Abandoned { length } => {
                tally.abandoned += 1;
                tracing::warn!(length, "framing error: a message was broken off by the start of another");
                Answer::go_on(None)
            }
        }
    }

    async fn store(
        &self,
        body: &Bytes,
        message: &Message<'_>,
        tally: &mut Tally,
    ) -> (Verdict, Option<String>) {
        let origin = Origin { settings: &self.settings, source: &self.source };
        let received = match origin.event(body, message) {
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
fn acknowledgement(message: &Message<'_>, verdict: Verdict, text: Option<String>) -> Option<Bytes> {
    let code = ack::code_owed(message, verdict)?;
    Some(ack::build(message, code, text.as_deref(), &stamp()))
}

fn stamp() -> Stamp {
    Stamp::new(uuid::Uuid::now_v7(), time::OffsetDateTime::now_utc())
}

/// How a connection ends when nothing has failed.
enum Closing {
    /// By the peer, or because the adapter stops.
    Quietly,
    /// By us, and the peer should get our last words.
    AfterAnswer,
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
