//! Sending: one message in flight on one connection, and no outcome without the acknowledgement that names it.
//!
//! A message that asks for no acknowledgement is delivered when it has been written, if the destination settles for that.
//! Once bytes may have left, only the partner's answer to exactly this message settles it, over this connection or another
//! one. Anything else closes the connection first, so that a late answer cannot be taken for the next message's, and leaves
//! the delivery in doubt.

mod numbering;
mod prepared;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use gatepost_adapter::tls::Connector;
use gatepost_adapter::{DataError, Delivery, Evidence, Level, Outcome, Scope, SettleError, Worker};
use tokio::time::{sleep, timeout};

use self::prepared::{Prepared, prepare};
use crate::answer::{self, Answer};
use crate::awaited::{Awaited, Ticket};
use crate::channel::ChannelError;
use crate::gauge::Gauge;
use crate::header::{AckCode, numbered};
use crate::line::{Heard, Line};
use crate::mllp;
use crate::numbers::{Given, Numbers};
use crate::owed;
use crate::sequence::outgoing::Judged;
use crate::settings::Settings;

/// How long a message for one of several partners waits in hand while that one owes as many answers as it may; then it goes back.
const PLACE_PATIENCE: Duration = Duration::from_secs(2);

/// One connection to the partner, made when it is first needed.
pub(crate) struct Link {
    connector: Arc<Connector>,
    settings: Arc<Settings>,
    awaited: Arc<Awaited>,
    /// What the destination counts as delivered.
    confirm: Level,
    /// Where transactions are numbered.
    numbers: Option<Arc<Numbers>>,
    line: Option<Line>,
    open: Gauge,
}

impl Link {
    pub(crate) fn new(
        connector: Arc<Connector>,
        settings: Arc<Settings>,
        awaited: Arc<Awaited>,
        confirm: Level,
        numbers: Option<Arc<Numbers>>,
    ) -> Self {
        Self { connector, settings, awaited, confirm, numbers, line: None, open: Gauge::default() }
    }

    /// Its connection counts as open there.
    pub(crate) fn counted_by(self, open: Gauge) -> Self {
        Self { open, ..self }
    }

    /// A place among the messages whose answer is owed. What the partner says meanwhile is read: it may be what frees a place. An
    /// error is the outcome of the attempt: the adapter is asked to stop before there is one, or, of several partners, this one owes so
    /// much that its messages should not take up room that others can use.
    async fn ticket(&mut self, control_id: &[u8], delivery: &Delivery) -> Result<Ticket, Outcome> {
        let awaited = Arc::clone(&self.awaited);
        let (stop, settings) = (awaited.stop(), Arc::clone(&self.settings));
        let partner = settings.partner.as_deref();
        tokio::select! {
            biased;
            ticket = awaited.expect(control_id, delivery, partner) => ticket.ok_or(Outcome::Release),
            () = stop.requested() => Err(Outcome::Release),
            () = sleep(PLACE_PATIENCE), if partner.is_some() => {
                let owed = awaited.owed_max();
                Err(Outcome::destination_down(format!("it owes {owed} acknowledgements, which is as many as it may")))
            }
            () = self.idle() => Err(Outcome::Release),
        }
    }

    /// The kept connection if the partner still has it, else a new one. An error is the outcome of the attempt: the
    /// partner cannot be reached, and that is not the message's fault.
    async fn line(&mut self) -> Result<Line, Outcome> {
        if let Some(mut line) = self.line.take() {
            match line.clear(&self.awaited, &self.settings).await {
                Ok(()) => return Ok(line),
                Err(error) => {
                    tracing::info!(%error, "the partner has closed the connection; making a new one")
                }
            }
        }
        let stream = self.connector.connect(self.settings.connect_timeout()).await;
        let stream = stream.map_err(|error| Outcome::destination_down(error.to_string()))?;
        let line = Line::new(stream, self.settings.link_limits()).map_err(|error| {
            Outcome::destination_down(format!("cannot use the connection: {}", error.kind()))
        })?;
        Ok(line.counted_by(&self.open))
    }

    /// What came of it on the wire. Where somebody is to be told that an answer has been taken, or a number goes with it, it is settled
    /// here.
    async fn conclude(&mut self, exchanged: Exchanged, mut line: Line, attempt: Attempt<'_>) -> Outcome {
        let (answer, owed) = match exchanged {
            Exchanged::Unanswered => {
                self.line = Some(line);
                return Outcome::Delivered { evidence: answer::sent(), reply: None };
            }
            Exchanged::Committed => {
                self.line = Some(line);
                return Outcome::Delivered { evidence: answer::committed(), reply: None };
            }
            Exchanged::NotCommitted => {
                self.line = Some(line);
                return attempt.not_committed().await;
            }
            Exchanged::Answered(answer) => {
                let owed = owed::for_answer(&self.settings, &answer.body);
                (answer, owed)
            }
            Exchanged::AnsweredElsewhere(answer) => (answer, Vec::new()),
        };
        let judged = attempt.judge(&answer);
        let meaning = self.meaning(&answer, judged);
        let is_watched = attempt.given.is_some() || attempt.ticket.is_watched() || !owed.is_empty();
        let away = match meaning {
            Meaning::Outcome(outcome) if !is_watched => {
                self.line = Some(line);
                return outcome;
            }
            meaning => {
                let meaning = match meaning {
                    Meaning::Outcome(outcome) => Meaning::Outcome(self.settings.scoped(outcome)),
                    other => other,
                };
                let (within, away) = (self.settings.application_ack_timeout(), meaning.away());
                if let Err(error) = attempt.settle(meaning, judged, within).await {
                    // The partner is told nothing, and the connection closed, since the gateway may not have its answer.
                    tracing::warn!(%error, "answered by the partner, but the lease is over");
                    return Outcome::LeaseLost;
                }
                away
            }
        };
        match line.pay(owed).await {
            Ok(()) => self.line = Some(line),
            Err(error) => tracing::info!(%error, "the partner does not take its acknowledgement"),
        }
        Outcome::Settled { away }
    }

    fn meaning(&self, answer: &Answer, judged: Option<Judged>) -> Meaning {
        let evidence = |level| {
            let evidence = answer::evidence(level, answer);
            match answer.expected {
                Some(expected) => evidence.with("expected_sequence_number", expected),
                None => evidence,
            }
        };
        match judged {
            Some(Judged::OutOfStep(expected)) => Meaning::Outcome(Outcome::destination_down(format!(
                "the partner refuses its sequence number and expects {expected}"
            ))),
            // Refused, since it has it.
            Some(Judged::AcceptedBefore) if self.confirm < Level::Business => {
                let evidence = evidence(Level::Transport).with("accepted", "before");
                Meaning::Outcome(Outcome::Delivered { evidence, reply: None })
            }
            Some(Judged::AcceptedBefore) => Meaning::Sent(evidence(Level::Transport)),
            Some(Judged::Accepted | Judged::Refused) | None => {
                if answer.code == AckCode::Ca && self.confirm == Level::Business {
                    Meaning::Sent(evidence(Level::Transport))
                } else {
                    Meaning::Outcome(answer::outcome(&self.settings.on_ack, self.confirm, answer))
                }
            }
        }
    }
}

/// What an answer comes to.
enum Meaning {
    Outcome(Outcome),
    /// The partner has it, and its application's word is to come.
    Sent(Evidence),
}

impl Meaning {
    /// Why the partner takes nothing now, if that is what it means.
    fn away(&self) -> Option<String> {
        match self {
            Self::Outcome(Outcome::Retry { scope: Scope::Destination | Scope::Lane, reason, .. }) => {
                Some(reason.clone())
            }
            Self::Outcome(_) | Self::Sent(_) => None,
        }
    }
}

/// One message that has left.
struct Attempt<'a> {
    delivery: &'a Delivery,
    ticket: Ticket,
    given: Option<Given>,
}

impl Attempt<'_> {
    fn judge(&self, answer: &Answer) -> Option<Judged> {
        self.given.as_ref().map(|given| given.judge(answer.code, answer.expected))
    }

    async fn settle(
        self,
        meaning: Meaning,
        judged: Option<Judged>,
        within: Duration,
    ) -> Result<(), SettleError> {
        let numbered = self.given.zip(judged);
        let state = numbered.as_ref().map(|(given, judged)| given.state_after(*judged));
        let state = state.unwrap_or_default();
        let settled = match meaning {
            Meaning::Outcome(outcome) => self.ticket.settle(self.delivery, outcome, state).await,
            Meaning::Sent(evidence) => self.ticket.sent(self.delivery, evidence, within, state).await,
        };
        if let Some((given, judged)) = numbered {
            match &settled {
                Ok(()) => given.settled(judged),
                Err(_) => given.unsettled(),
            }
        }
        settled
    }

    /// The partner says by its byte that it has not stored it.
    async fn not_committed(self) -> Outcome {
        if self.given.is_none() {
            return answer::not_committed();
        }
        let meaning = Meaning::Outcome(answer::not_committed());
        match self.settle(meaning, Some(Judged::Refused), Duration::ZERO).await {
            Ok(()) => Outcome::Settled { away: None },
            Err(_) => Outcome::LeaseLost,
        }
    }
}

impl Worker for Link {
    async fn deliver(&mut self, delivery: &Delivery) -> Outcome {
        let body = match delivery.data(self.settings.max_frame_bytes).await {
            Ok(body) => body,
            Err(error) => return no_data(&error),
        };
        let prepared =
            match prepare(&body, self.confirm, self.settings.commit_bytes(), self.numbers.is_some()) {
                Ok(prepared) => prepared,
                Err(reason) => return Outcome::reject(reason),
            };
        // Before a byte leaves: the answer may come over another connection, faster than this task goes on.
        let mut ticket = match self.ticket(prepared.control_id, delivery).await {
            Ok(ticket) => ticket,
            Err(outcome) => return outcome,
        };
        let mut line = match self.line().await {
            Ok(line) => line,
            Err(outcome) => return outcome,
        };
        ticket.goes_to(&line.peer);
        let numbers = self.numbers.clone().filter(|_| prepared.is_transaction);
        let given = match numbers {
            None => match delivery.begin().await {
                Ok(()) => None,
                Err(_) => {
                    self.line = Some(line);
                    return Outcome::LeaseLost;
                }
            },
            Some(numbers) => match self.number(&numbers, &mut line, &body, delivery).await {
                Ok(given) => Some(given),
                Err(outcome) => return outcome,
            },
        };
        let number = given.as_ref().map(Given::number);
        let (head, rest) = match number.map(|number| numbered(&body, number)).transpose() {
            Ok(parts) => parts.unwrap_or_else(|| (Bytes::new(), body.clone())),
            Err(error) => return Outcome::reject(error.to_string()),
        };
        let frame = mllp::framed_in_parts(head, rest);
        let exchanging = exchange(&mut line, frame, prepared, &mut ticket, &self.awaited, &self.settings);
        match timeout(self.settings.ack_timeout(), exchanging).await {
            Ok(Ok(exchanged)) => self.conclude(exchanged, line, Attempt { delivery, ticket, given }).await,
            // In both cases the connection is dropped here, and with it every late answer.
            Ok(Err(error)) => Outcome::in_doubt(format!("no acknowledgement: {error}")),
            Err(_) => {
                Outcome::in_doubt(format!("no acknowledgement within {} ms", self.settings.ack_timeout_ms))
            }
        }
    }

    /// Application acknowledgements come when they come, and a partner that closes is noticed at once.
    async fn idle(&mut self) {
        while let Some(line) = &mut self.line {
            let heard = match self.settings.idle_disconnect() {
                Some(longest) => {
                    timeout(longest, line.hear()).await.unwrap_or(Err(ChannelError::Silent(longest)))
                }
                None => line.hear().await,
            };
            match heard {
                Ok(Heard::Answer(answer)) => line.pass_on(answer, &self.awaited, &self.settings),
                Ok(Heard::Committed(_) | Heard::Nothing) => {}
                Err(_) => self.line = None,
            }
        }
        std::future::pending().await
    }
}

/// What a delivery comes to whose payload cannot be had.
pub(crate) fn no_data(error: &DataError) -> Outcome {
    match error {
        DataError::Call(call) if call.retryable() => {
            tracing::warn!(%error, "giving the delivery back");
            Outcome::Release
        }
        _ => Outcome::reject(error.to_string()),
    }
}

/// How it went on the wire.
enum Exchanged {
    /// The message wants no answer.
    Unanswered,
    /// The same, and the partner has stored it.
    Committed,
    /// The partner could not store it.
    NotCommitted,
    Answered(Answer),
    /// Over another connection.
    AnsweredElsewhere(Answer),
}

async fn exchange(
    line: &mut Line,
    frame: impl Buf,
    prepared: Prepared<'_>,
    ticket: &mut Ticket,
    awaited: &Awaited,
    settings: &Settings,
) -> Result<Exchanged, ChannelError> {
    let Prepared { control_id, wants_answer, commit_bytes, .. } = prepared;
    line.channel().write(frame).await?;
    if !wants_answer && !commit_bytes {
        return Ok(Exchanged::Unanswered);
    }
    loop {
        let heard = tokio::select! {
            answer = ticket.answer() => return Ok(Exchanged::AnsweredElsewhere(answer)),
            heard = line.hear() => heard?,
        };
        match heard {
            Heard::Committed(false) if commit_bytes => return Ok(Exchanged::NotCommitted),
            Heard::Committed(true) if commit_bytes && !wants_answer => return Ok(Exchanged::Committed),
            Heard::Answer(answer) if answer.control_id == control_id && ticket.is_meant_by(&answer) => {
                return Ok(Exchanged::Answered(answer));
            }
            // One that could be to this message or to an earlier one with the same id settles neither.
            Heard::Answer(answer) if answer.control_id == control_id => {}
            Heard::Answer(answer) => line.pass_on(answer, awaited, settings),
            Heard::Committed(_) | Heard::Nothing => {}
        }
    }
}
