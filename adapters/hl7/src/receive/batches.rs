//! A batch that came in: all of its messages are stored or none, and answered one by one or as a batch.

use bytes::{BufMut as _, Bytes, BytesMut};
use gatepost_adapter::{ACCEPT_EVENTS_MAX, Data, Event, Extension};

use super::{Answer, Receiver, Tally};
use crate::ack::{self, ErrorCode, Trouble, Verdict};
use crate::answer;
use crate::awaited::From;
use crate::batch::{self, Batch, BatchError, Head, Member};
use crate::event::Origin;
use crate::header::{Message, attribute_text};
use crate::mllp::CR;
use crate::owed::{acknowledgement, stamp};
use crate::peer::Peer;
use crate::settings::BatchAck;

const ID_CHARS_MAX: usize = 256;

impl Receiver {
    pub(super) async fn answer_batch(&self, body: &Bytes, caller: &Peer, tally: &mut Tally) -> Answer {
        let (batch, verdict, trouble) = match batch::split(body, ACCEPT_EVENTS_MAX) {
            Ok(batch) if self.streams.is_some() && !is_answer(&batch) => {
                let text = "batches are not taken where transactions are numbered (MSH-13)";
                (batch, Verdict::Refused, Some(Trouble::internal(text)))
            }
            Ok(batch) => {
                let (verdict, trouble) = self.store_batch(&batch, caller, tally).await;
                (batch, verdict, trouble)
            }
            Err(error) => {
                let Some(batch) = batch::split_unchecked(body, ACCEPT_EVENTS_MAX) else {
                    return self.refuse_unreadable(&error, tally);
                };
                tally.unreadable += 1;
                (batch, Verdict::Refused, Some(trouble(&error)))
            }
        };
        if let (Some(trouble), Verdict::Refused) = (&trouble, verdict) {
            tally.tell_refusal(&trouble.text);
        }
        let mut answer = self.in_release(verdict, None);
        answer.frames.extend(self.acknowledge(&batch, verdict, trouble.as_ref()));
        answer
    }

    /// One accept for all but answers that somebody waits for. Those are given out only after that, so that a batch which could not
    /// be stored settles nothing; what nobody waits for any more by then is stored too.
    async fn store_batch(
        &self,
        batch: &Batch,
        caller: &Peer,
        tally: &mut Tally,
    ) -> (Verdict, Option<Trouble>) {
        let from = From::Caller(caller, self.settings.partner.as_deref());
        let mut events = Vec::with_capacity(batch.messages.len());
        let mut answers = Vec::new();
        for (index, member) in batch.messages.iter().enumerate() {
            let event = match self.event(batch, member, index) {
                Ok(event) => event,
                Err(error) => {
                    tally.unreadable += 1;
                    return (Verdict::Refused, Some(trouble(&error)));
                }
            };
            match answer::read(&member.body) {
                Ok(answer) if self.awaited.awaits(&answer, from) => answers.push((answer, event)),
                _ => events.push(event),
            }
        }
        let stored = self.accept_events(&events, tally).await;
        if stored.0 != Verdict::Accepted {
            return stored;
        }
        let mut left_over = Vec::new();
        for (answer, event) in answers {
            match self.awaited.offer(answer, from) {
                Some(mut taken) => {
                    taken.settled().await;
                    tally.answers += 1;
                }
                None => left_over.push(event),
            }
        }
        self.accept_events(&left_over, tally).await
    }

    async fn accept_events(&self, events: &[Event], tally: &mut Tally) -> (Verdict, Option<Trouble>) {
        if events.is_empty() {
            return (Verdict::Accepted, None);
        }
        let accepted = self.session.accept_all(events).await.map(|_| ());
        if accepted.is_ok() {
            tally.accepted += events.len() as u64;
        }
        self.judge(accepted, tally)
    }

    fn event(&self, batch: &Batch, member: &Member, index: usize) -> Result<Event, BatchError> {
        let number = index + 1;
        let wrong = |error| BatchError::Message { number, error };
        let message = Message::parse(&member.body).map_err(wrong)?;
        let origin = Origin { settings: &self.settings, source: &self.source };
        let mut event = origin.event(&member.body, &message).map_err(wrong)?.event;
        event.data = Some(Data::Binary(member.body.to_vec()));
        let charset = self.settings.default_charset;
        for (name, id) in [("hl7file", &batch.file_id), ("hl7batch", &member.batch_id)] {
            if !id.is_empty() {
                let id = attribute_text(id, charset, ID_CHARS_MAX);
                event.extensions.insert(name.to_owned(), Extension::Text(id));
            }
        }
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        event.extensions.insert("hl7batchindex".to_owned(), Extension::Integer(number));
        Ok(event)
    }

    /// What each message is owed; in frames of their own, or together in one.
    fn acknowledge(&self, batch: &Batch, verdict: Verdict, trouble: Option<&Trouble>) -> Vec<Bytes> {
        if is_answer(batch) {
            return Vec::new();
        }
        let owed = |member: &Member| acknowledgement(&Message::parse(&member.body).ok()?, verdict, trouble);
        let acks: Vec<Bytes> = batch.messages.iter().filter_map(owed).collect();
        match self.settings.batch_ack {
            BatchAck::Message if acks.is_empty() && trouble.is_some() => {
                vec![enclosed(&batch.head, &acks, trouble)]
            }
            BatchAck::Message => acks,
            BatchAck::Batch => vec![enclosed(&batch.head, &acks, trouble)],
        }
    }
}

/// Whether it holds acknowledgements and nothing else. To answer it, in whatever form, would start a loop.
fn is_answer(batch: &Batch) -> bool {
    let acknowledges = |member: &Member| {
        Message::parse(&member.body).is_ok_and(|message| message.acknowledgement().is_some())
    };
    batch.messages.iter().all(acknowledges) && (batch.head.is_answer || !batch.messages.is_empty())
}

fn trouble(error: &BatchError) -> Trouble {
    match error {
        BatchError::Message { error, .. } => Trouble { text: error.to_string(), ..Trouble::from(error) },
        _ => Trouble { code: ErrorCode::SegmentSequence, field: None, text: error.to_string() },
    }
}

/// BHS that refers to the sender's batch (BHS-12), the acknowledgements, and BTS with their number. BHS-10 says why a batch
/// was refused.
fn enclosed(head: &Head, acks: &[Bytes], trouble: Option<&Trouble>) -> Bytes {
    let [from, from_facility, to, to_facility] = &head.parties;
    let stamp = stamp();
    let reason = trouble.map(|trouble| trouble.text.as_str()).unwrap_or_default();
    let reason = ack::plain_text(reason, head.delimiters, &head.encoding_characters);
    let fields: [&[u8]; 11] = [
        &head.encoding_characters,
        to,
        to_facility,
        from,
        from_facility,
        stamp.time(head.delimiters, &head.encoding_characters),
        b"",
        b"",
        &reason,
        stamp.control_id(),
        &head.control_id,
    ];
    let mut bytes = BytesMut::new();
    ack::put_segment(&mut bytes, head.delimiters.field, b"BHS", &fields);
    for ack in acks {
        bytes.extend_from_slice(ack);
    }
    bytes.put_slice(b"BTS");
    bytes.put_u8(head.delimiters.field);
    bytes.put_slice(acks.len().to_string().as_bytes());
    bytes.put_u8(CR);
    bytes.freeze()
}
