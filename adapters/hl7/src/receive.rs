//! Receiving: a message is acknowledged after the gateway has it on stable storage, never before.
//!
//! Each connection is served in its own task, one message at a time, in the order in which they came. A message that
//! cannot be stored now is answered with a code that asks for it again, and the connection stays open.

mod batches;
mod numbered;
mod question;
mod tally;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gatepost_adapter::{AcceptError, Failure, Session};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use self::numbered::Streams;
use self::question::Question;
use self::tally::Tally;
use crate::ack::{self, ErrorCode, Trouble, Verdict};
use crate::answer;
use crate::awaited::{Awaited, From};
use crate::batch;
use crate::channel::{Channel, ChannelError};
use crate::event::{Origin, Received};
use crate::header::Message;
use crate::mllp::{self, COMMITTED, Item, NOT_COMMITTED};
use crate::owed::{self, acknowledgement, numbered_acknowledgement, stamp};
use crate::partners::Roster;
use crate::peer::Peer;
use crate::settings::{ApplicationAck, OnUnreadable, Settings};
use gatepost_adapter::listener::{self, Door};
use gatepost_adapter::tls::Acceptor;

/// Of TLS, once a partner has connected.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// A partner that does not take its acknowledgement in this time will not take it at all.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Serves partners that connect to us.
pub(crate) struct Receiver {
    settings: Arc<Settings>,
    session: Session,
    source: String,
    awaited: Arc<Awaited>,
    acceptor: Arc<Acceptor>,
    roster: Arc<Roster>,
    /// Where partners' transactions are numbered.
    streams: Option<Arc<Streams>>,
}

/// What goes back over the connection, and how it goes on after that.
struct Answer {
    frames: Vec<Bytes>,
    next: Next,
}

enum Next {
    GoOn,
    Close,
    /// The application behind the gateway answers, in its own time.
    Ask(Box<Question>),
}

/// What became of a message.
struct Stored {
    verdict: Verdict,
    trouble: Option<Trouble>,
    /// As it was handed in, if it was.
    received: Option<Received>,
    expected: Option<Expected>,
}

/// MSA-4, where transactions are numbered.
#[derive(Debug, Clone, Copy)]
struct Expected {
    /// Of an answer that says yes: the transaction's own number, or, if it had been taken before, the next one.
    accepted: i64,
    /// Of any other, also an application's to what has been taken: the number that is to come next.
    refused: i64,
}

impl Expected {
    fn of(self, verdict: Verdict) -> i64 {
        if verdict == Verdict::Accepted { self.accepted } else { self.refused }
    }
}

impl Stored {
    fn refused(trouble: Trouble) -> Self {
        Self { verdict: Verdict::Refused, trouble: Some(trouble), received: None, expected: None }
    }
}

impl Answer {
    fn go_on(frame: Option<Bytes>) -> Self {
        Self { frames: frame.into_iter().collect(), next: Next::GoOn }
    }

    fn close(frame: Option<Bytes>) -> Self {
        Self { frames: frame.into_iter().collect(), next: Next::Close }
    }
}

impl Receiver {
    pub(crate) fn new(
        settings: Arc<Settings>,
        session: Session,
        awaited: Arc<Awaited>,
    ) -> Result<Self, Failure> {
        let acceptor = Arc::new(Acceptor::new(settings.listen_tls.as_ref())?);
        let roster = Arc::new(Roster::new(&settings));
        let source = settings.source.clone().unwrap_or_else(|| format!("/adapters/{}", session.name()));
        let streams = settings.sequence_numbers.receive.then(|| Arc::new(Streams::open(&session)));
        Ok(Self { settings, session, source, awaited, acceptor, roster, streams })
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
            allow_from: self.settings.allow_from(),
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
        let stop = self.session.stop();
        let stream = tokio::select! {
            () = stop.requested() => return,
            accepted = self.acceptor.accept(stream, HANDSHAKE_DEADLINE) => match accepted {
                Ok(stream) => stream,
                Err(error) => return tracing::warn!(%peer, %error, "a partner was not let in"),
            },
        };
        // By what it proves to be, where it does.
        let name = stream.peer_names().first().map(tracing::field::display);
        tracing::info!(%peer, name, "a partner has connected");
        let mut tally = Tally::default();
        let opened = Peer::of(&stream).and_then(|peer| {
            let receiver = self.for_caller(&peer);
            Ok((Channel::new(stream, receiver.settings.limits())?, peer, receiver))
        });
        let ended = match opened {
            Ok((mut channel, caller, receiver)) => {
                let ended = receiver.serve_channel(&mut channel, &caller, &mut tally).await;
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

    /// As the partner that it is has it, where it is one of several.
    fn for_caller(&self, caller: &Peer) -> Self {
        Self {
            settings: Arc::clone(self.roster.find(caller).unwrap_or(&self.settings)),
            session: self.session.clone(),
            source: self.source.clone(),
            awaited: Arc::clone(&self.awaited),
            acceptor: Arc::clone(&self.acceptor),
            roster: Arc::clone(&self.roster),
            streams: self.streams.clone(),
        }
    }

    async fn serve_channel(
        &self,
        channel: &mut Channel,
        caller: &Peer,
        tally: &mut Tally,
    ) -> Result<Closing, ChannelError> {
        let stop = self.session.stop();
        loop {
            let item = tokio::select! {
                biased;
                // A message that is not here whole has no acknowledgement yet, so its sender will send it again.
                () = stop.requested() => return Ok(Closing::Quietly),
                item = channel.next() => item?,
            };
            let Some(item) = item else { return Ok(Closing::Quietly) };
            let Answer { frames, next } = self.answer(item, caller, tally).await;
            self.write(channel, frames).await?;
            match next {
                Next::GoOn => {}
                Next::Close => return Ok(Closing::AfterAnswer),
                Next::Ask(question) => {
                    let frames = tokio::select! {
                        // It is stored; when it is sent again, its answer is asked for again.
                        () = stop.requested() => return Ok(Closing::Quietly),
                        frames = self.ask(&question) => frames,
                    };
                    self.write(channel, frames).await?;
                }
            }
        }
    }

    async fn write(&self, channel: &mut Channel, frames: Vec<Bytes>) -> Result<(), ChannelError> {
        for answer in frames {
            gatepost_faults::point("hl7.before_ack");
            let frame = mllp::frame(&answer).map_err(|error| ChannelError::Io(io::Error::other(error)))?;
            timeout(ANSWER_DEADLINE, channel.write(frame))
                .await
                .map_err(|_| ChannelError::Io(io::ErrorKind::TimedOut.into()))??;
        }
        Ok(())
    }

    /// Stores what came and says what to answer, if anything.
    async fn answer(&self, item: Item, caller: &Peer, tally: &mut Tally) -> Answer {
        match item {
            // The partner's word on what we answered, in release 2 of MLLP; never a message.
            Item::Frame(body) if body == COMMITTED || body == NOT_COMMITTED => Answer::go_on(None),
            Item::Frame(body) if batch::is_batch(&body) => self.answer_batch(&body, caller, tally).await,
            Item::Frame(body) => match Message::parse(&body) {
                Ok(message) => self.answer_message(&body, &message, caller, tally).await,
                Err(error) => self.refuse_unreadable(&error, tally),
            },
            Item::Oversize { head, length } => {
                tally.oversize += 1;
                tracing::warn!(length, "refusing a message above max_frame_bytes; closing the connection");
                let trouble = Trouble::internal("message too large");
                let answer = Message::parse(&head)
                    .ok()
                    .and_then(|message| acknowledgement(&message, Verdict::Refused, Some(&trouble)));
                Answer::close(answer)
            }
            Item::Abandoned { length } => {
                tally.abandoned += 1;
                if let Some(messages) = tally.quiet_frames.count(Instant::now()) {
                    tracing::warn!(
                        messages,
                        length,
                        "framing error: a message was broken off by the start of another"
                    );
                }
                Answer::go_on(None)
            }
        }
    }

    /// Whoever sends this does not speak HL7, or is out of step: the next bytes would be no better.
    fn refuse_unreadable(&self, error: &dyn std::error::Error, tally: &mut Tally) -> Answer {
        tally.unreadable += 1;
        tracing::warn!(%error, "this is no message; closing the connection");
        let answer = (self.settings.on_unreadable == OnUnreadable::Answer)
            .then(|| ack::build_generic_refusal(&error.to_string(), &stamp()));
        Answer::close(answer)
    }

    async fn answer_message(
        &self,
        body: &Bytes,
        message: &Message<'_>,
        caller: &Peer,
        tally: &mut Tally,
    ) -> Answer {
        // Partners may answer what we sent over a connection of their own.
        if message.acknowledgement().is_some()
            && let Ok(answer) = answer::read(body)
            && let Some(mut taken) =
                self.awaited.offer(answer, From::Caller(caller, self.settings.partner.as_deref()))
        {
            taken.settled().await;
            tally.answers += 1;
            return self.in_release(Verdict::Accepted, acknowledgement(message, Verdict::Accepted, None));
        }
        // What answers us is numbered by nobody.
        let streams = self.streams.as_ref().filter(|_| message.acknowledgement().is_none());
        let stored = match streams {
            Some(streams) => match self.store_numbered(streams, body, message, tally).await {
                Ok(stored) => stored,
                Err(answer) => return answer,
            },
            None => self.store(body, message, tally).await,
        };
        let Stored { verdict, trouble, received, expected } = stored;
        let mut answer = self.in_release(verdict, None);
        let by_application = received.filter(|received| {
            verdict == Verdict::Accepted && received.event.data.is_some() && self.asks(message)
        });
        if by_application.is_none() || ack::is_two_phase(message) {
            let expected = expected.map(|expected| expected.of(verdict));
            let acknowledgement = numbered_acknowledgement(message, verdict, trouble.as_ref(), expected);
            answer.frames.extend(acknowledgement);
        }
        match by_application {
            Some(received) => {
                let question = Question { body: body.clone(), received, expected };
                answer.next = Next::Ask(Box::new(question));
            }
            None if self.settings.application_ack == ApplicationAck::OnCommit => {
                let code = ack::application_code_owed(message, verdict);
                let build = |code| ack::build(message, code, trouble.as_ref(), None, &stamp());
                answer.frames.extend(code.map(build));
            }
            None => {}
        }
        answer
    }

    /// The answer, behind the byte that release 2 of MLLP wants first.
    fn in_release(&self, verdict: Verdict, answer: Option<Bytes>) -> Answer {
        let byte = owed::commit_byte(&self.settings, verdict);
        Answer { frames: byte.into_iter().chain(answer).collect(), next: Next::GoOn }
    }

    /// The message as it is to be handed in; an error is why it is refused.
    fn read(&self, body: &Bytes, message: &Message<'_>, tally: &mut Tally) -> Result<Received, Trouble> {
        let origin = Origin { settings: &self.settings, source: &self.source };
        origin.event(body, message).map_err(|error| {
            tally.unreadable += 1;
            tally.tell_refusal(&error);
            Trouble::from(&error)
        })
    }

    async fn store(&self, body: &Bytes, message: &Message<'_>, tally: &mut Tally) -> Stored {
        let received = match self.read(body, message, tally) {
            Ok(received) => received,
            Err(trouble) => return Stored::refused(trouble),
        };
        let Received { event, idempotency_key } = &received;
        let accepted = match &event.data {
            Some(_) => self.session.accept(event, idempotency_key).await,
            None => self.session.accept_bytes(event, body.clone(), idempotency_key).await,
        };
        let accepted = accepted.map(|_| ());
        tally.accepted += u64::from(accepted.is_ok());
        let (verdict, trouble) = self.judge(accepted, tally);
        Stored { verdict, trouble, received: Some(received), expected: None }
    }

    /// What the gateway's answer means for whoever sent what it was asked to store.
    fn judge(&self, accepted: Result<(), AcceptError>, tally: &mut Tally) -> (Verdict, Option<Trouble>) {
        match accepted {
            Ok(()) => (Verdict::Accepted, None),
            Err(AcceptError::Refused(problem)) => {
                tally.refused += 1;
                if let Some(messages) = tally.quiet_refusals.count(Instant::now()) {
                    tracing::warn!(
                        messages,
                        code = problem.code,
                        detail = problem.detail,
                        "the gateway refuses a message"
                    );
                }
                let code = match problem.code.as_str() {
                    "type_not_allowed" | "no_route" => ErrorCode::UnsupportedMessageType,
                    "idempotency_mismatch" => ErrorCode::DuplicateKey,
                    _ => ErrorCode::Internal,
                };
                (Verdict::Refused, Some(Trouble { code, field: None, text: problem.title }))
            }
            Err(error) => {
                tally.postponed += 1;
                if let Some(messages) = tally.quiet_postponed.count(Instant::now()) {
                    tracing::warn!(messages, %error, "asking the partner to send a message again");
                }
                (Verdict::TryLater, Some(Trouble::internal("not stored; send again later")))
            }
        }
    }
}

/// How a connection ends when nothing has failed.
enum Closing {
    /// By the peer, or because the adapter stops.
    Quietly,
    /// By us, and the peer should get our last words.
    AfterAnswer,
}
