//! Transactions that partners number: each is stored together with its number, and answered with the one that is expected next.
//!
//! A stream is who sends what to whom (MSH-3 to MSH-6), where there are several partners of the one that it comes from: nobody else's
//! messages are to move its numbers. Of each, one transaction at a time is looked at, whatever connection it comes over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use gatepost_adapter::{
    AcceptError, CallError, Data, REPLY_BYTES_MAX, Session, SettleError, Settlement, StateChanges, digest,
};

use super::{Answer, Expected, Receiver, Stored, Tally};
use crate::ack::{ErrorCode, Trouble, Verdict};
use crate::event::Origin;
use crate::header::Message;
use crate::owed::numbered_acknowledgement;
use crate::sequence::incoming::{Incoming, Step};

const PREFIX: &str = "sequence/in/";
/// Streams that are kept. Their names are the partners', who must not let adapter state grow by inventing them.
const STREAMS_MAX: usize = 1000;

/// The numbers of all streams; each is locked while one of its transactions is looked at.
pub(super) struct Streams(Mutex<HashMap<String, Arc<tokio::sync::Mutex<Stream>>>>);

enum Stream {
    Known(Incoming),
    /// What is kept cannot be read: until it is resynchronised (−1), nothing of it is taken.
    Unreadable,
}

impl Stream {
    /// Whether adapter state has it.
    fn is_kept(&self) -> bool {
        match self {
            Self::Known(stream) => *stream != Incoming::default(),
            Self::Unreadable => true,
        }
    }
}

impl Streams {
    pub(super) fn open(session: &Session) -> Self {
        let streams = session.state().iter().filter(|(key, _)| key.starts_with(PREFIX));
        let streams = streams.map(|(key, value)| {
            let stream = serde_json::from_slice(value).map_or(Stream::Unreadable, Stream::Known);
            (key.clone(), Arc::new(tokio::sync::Mutex::new(stream)))
        });
        Self(Mutex::new(streams.collect()))
    }

    /// `None`: there are too many. A stream that was resynchronised and nothing more is as good as none: its first number will do.
    fn get(&self, key: &str) -> Option<Arc<tokio::sync::Mutex<Stream>>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = all.get(key) {
            return Some(Arc::clone(stream));
        }
        if all.len() >= STREAMS_MAX {
            // Those of which nothing was ever taken are in nobody's way; whoever is looking at one now has it still.
            all.retain(|_, stream| {
                Arc::strong_count(stream) > 1 || stream.try_lock().is_ok_and(|stream| stream.is_kept())
            });
        }
        let new = || Arc::new(tokio::sync::Mutex::new(Stream::Known(Incoming::default())));
        (all.len() < STREAMS_MAX).then(|| Arc::clone(all.entry(key.to_owned()).or_insert_with(new)))
    }
}

fn changes(key: &str, stream: &Incoming) -> StateChanges {
    let mut changes = StateChanges::default();
    // It has no part that JSON cannot say.
    changes.set(key, serde_json::to_vec(stream).unwrap_or_default());
    changes
}

impl Receiver {
    /// An `Err` is the whole answer: there is nothing to store, or nothing more to do.
    pub(super) async fn store_numbered(
        &self,
        streams: &Streams,
        body: &Bytes,
        message: &Message<'_>,
        tally: &mut Tally,
    ) -> Result<Stored, Answer> {
        let key = match &self.settings.partner {
            Some(partner) => format!("{PREFIX}{partner}/{}", digest(&message.stream())),
            None => format!("{PREFIX}{}", digest(&message.stream())),
        };
        let Some(stream) = streams.get(&key) else {
            tally.tell_refusal(&"there are too many streams of numbered transactions");
            return Ok(Stored::refused(Trouble::internal("too many streams of numbered transactions")));
        };
        let mut stream = stream.lock().await;
        let (step, expected) = match &*stream {
            Stream::Known(known) => {
                (known.step(message.sequence_number(), digest(body)), Some(known.expected()))
            }
            Stream::Unreadable => match Incoming::default().step(message.sequence_number(), String::new()) {
                Step::Forget => (Step::Forget, None),
                _ => (Step::OutOfSequence, None),
            },
        };
        let only = |verdict, trouble: Option<Trouble>, expected| {
            let acknowledgement = numbered_acknowledgement(message, verdict, trouble.as_ref(), expected);
            Err(self.in_release(verdict, acknowledgement))
        };
        match step {
            Step::Tell => only(Verdict::Accepted, None, expected),
            // Whoever sent it again has not heard that it is stored, nor what else it is owed: an application's answer is asked for again.
            Step::Again => {
                let origin = Origin { settings: &self.settings, source: &self.source };
                let received = origin.event(body, message).ok();
                let expected = expected.map(|next| Expected { accepted: next, refused: next });
                Ok(Stored { verdict: Verdict::Accepted, trouble: None, received, expected })
            }
            Step::Forget => {
                let mut settlement = Settlement::default();
                settlement.state = changes(&key, &Incoming::default());
                match self.session.try_settle(settlement).await {
                    Ok(_) => {
                        tracing::warn!("a partner resynchronises its sequence numbers");
                        *stream = Stream::Known(Incoming::default());
                        only(Verdict::Accepted, None, Some(Incoming::default().expected()))
                    }
                    Err(error) => {
                        let (verdict, trouble) = self.judge_settled(Err(error), tally);
                        only(verdict, trouble, expected)
                    }
                }
            }
            Step::Unnumbered => {
                tally.refused += 1;
                let text = "transactions are numbered here, and MSH-13 is no sequence number";
                let code = ErrorCode::RequiredFieldMissing;
                only(
                    Verdict::Refused,
                    Some(Trouble { code, field: Some(13), text: text.to_owned() }),
                    expected,
                )
            }
            Step::OutOfSequence => {
                tally.refused += 1;
                tally.tell_refusal(&"it is out of sequence");
                only(Verdict::Refused, Some(Trouble::internal("out of sequence")), expected)
            }
            Step::Take(next) => {
                let mut stored = self.store_with(body, message, changes(&key, &next), tally).await;
                stored.expected = if stored.verdict == Verdict::Accepted {
                    // The standard has it echoed: it was the one that was expected.
                    let numbers = Expected { accepted: next.expected() - 1, refused: next.expected() };
                    *stream = Stream::Known(next);
                    Some(numbers)
                } else {
                    expected.map(|number| Expected { accepted: number, refused: number })
                };
                Ok(stored)
            }
        }
    }

    /// The message and its stream's number, in one commit.
    async fn store_with(
        &self,
        body: &Bytes,
        message: &Message<'_>,
        state: StateChanges,
        tally: &mut Tally,
    ) -> Stored {
        let received = match self.read(body, message, tally) {
            Ok(received) => received,
            Err(trouble) => return Stored::refused(trouble),
        };
        if body.len() > REPLY_BYTES_MAX {
            return Stored::refused(Trouble::internal("message too large for a numbered one"));
        }
        let mut event = received.event.clone();
        event.data = Some(Data::Binary(body.to_vec()));
        let mut settlement = Settlement::default();
        settlement.emit(event);
        settlement.state = state;
        let settled = self.session.try_settle(settlement).await.map(drop);
        tally.accepted += u64::from(settled.is_ok());
        let (verdict, trouble) = self.judge_settled(settled, tally);
        Stored { verdict, trouble, received: Some(received), expected: None }
    }

    fn judge_settled(
        &self,
        settled: Result<(), SettleError>,
        tally: &mut Tally,
    ) -> (Verdict, Option<Trouble>) {
        let error = match settled {
            Ok(()) => return self.judge(Ok(()), tally),
            Err(SettleError::Call(error)) => error,
            // Of its size, or of what else it is; nobody was asked.
            Err(error) => {
                tally.refused += 1;
                tally.tell_refusal(&error);
                return (Verdict::Refused, Some(Trouble::internal("the message cannot be stored")));
            }
        };
        match error {
            // Of this session and not of the message, which the newer session takes.
            error if error.superseded() => self.judge(Err(AcceptError::Later { source: error }), tally),
            CallError::Refused(refusal) if !refusal.problem.retryable => {
                self.judge(Err(AcceptError::Refused(refusal.problem)), tally)
            }
            error => self.judge(Err(AcceptError::Later { source: error }), tally),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn streams_of_which_nothing_was_taken_keep_no_others_out() {
        let streams = Streams(Mutex::new(HashMap::new()));
        for number in 0..STREAMS_MAX {
            assert!(streams.get(&number.to_string()).is_some());
        }
        let held = streams.get("0").unwrap();
        *streams.get("1").unwrap().lock().await = Stream::Unreadable;
        assert!(streams.get("new").is_some());
        assert_eq!(streams.0.lock().unwrap().len(), 3);
        assert!(Arc::ptr_eq(&held, &streams.get("0").unwrap()));
        for number in 0..STREAMS_MAX {
            if let Some(stream) = streams.get(&format!("s{number}")) {
                *stream.lock().await = Stream::Unreadable;
            }
        }
        assert!(streams.get("one more").is_none());
    }
}
