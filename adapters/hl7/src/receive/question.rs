//! Messages that an application behind the gateway answers: they are stored, then its reply is waited for and sent.

use bytes::Bytes;
use gatepost_adapter::reply_bytes;

use super::{Expected, Receiver};
use crate::ack::{self, Trouble, Verdict};
use crate::event::Received;
use crate::header::{AckCode, Message, expecting};
use crate::mllp;
use crate::owed::stamp;

/// A message that has been stored and whose answer an application gives.
pub(super) struct Question {
    pub(super) body: Bytes,
    pub(super) received: Received,
    /// Where it came in with its stream's number, as an event whose source and id are its idempotency key.
    pub(super) expected: Option<Expected>,
}

impl Receiver {
    /// Whether an application answers messages like this one.
    pub(super) fn asks(&self, message: &Message<'_>) -> bool {
        let code = message.message_type().map(|kind| kind.code).unwrap_or_default();
        self.settings.reply_from_app.iter().any(|asked| asked == code)
    }

    /// The application's answer to a message that is stored; in its place, when none comes in time, that there is none.
    pub(super) async fn ask(&self, Question { body, received, expected }: &Question) -> Vec<Bytes> {
        let wait = self.settings.reply_timeout();
        // By another key it would be another message.
        let key = expected.is_none().then_some(received.idempotency_key.as_str());
        let reply = self.session.ask(&received.event, key, wait).await;
        let trouble = match reply {
            Ok(Some(reply)) => match reply_bytes(&reply).map(Bytes::from) {
                Some(answer) if answers(&answer, body) => return vec![told(answer, body, *expected)],
                _ => {
                    tracing::warn!("an application's reply is no HL7 answer to the message; it is not sent");
                    "the application gave no usable answer"
                }
            },
            Ok(None) => "the application gave no answer in time",
            Err(error) => {
                tracing::warn!(%error, "cannot wait for an application's reply");
                "the application cannot be asked now"
            }
        };
        let Ok(message) = Message::parse(body) else { return Vec::new() };
        let trouble = Trouble::internal(trouble);
        let (code, expected) = match ack::is_two_phase(&message) {
            true => (ack::application_code_owed(&message, Verdict::TryLater), None),
            false => (ack::code_owed(&message, Verdict::TryLater), expected.map(|number| number.refused)),
        };
        code.map(|code| ack::build(&message, code, Some(&trouble), expected, &stamp())).into_iter().collect()
    }
}

/// Whether these bytes answer this message: HL7 that fits into a frame, with its control id in MSA-2.
fn answers(reply: &Bytes, body: &[u8]) -> bool {
    let asked = Message::parse(body);
    let control_id = asked.as_ref().ok().and_then(|message| message.control_id().ok());
    let answer = Message::parse(reply).ok().and_then(|message| message.acknowledgement());
    mllp::frame(reply).is_ok() && answer.is_some_and(|answer| Some(answer.control_id) == control_id)
}

/// The application's answer, with MSA-4 where it is the only acknowledgement of a numbered transaction. Whatever it says, the
/// transaction has been taken: a refusal that repeated its number would call for that number again (HL7 version 2.5.1, 2.10.1 d).
fn told(answer: Bytes, body: &[u8], expected: Option<Expected>) -> Bytes {
    let asked = Message::parse(body);
    let Some(expected) = expected.filter(|_| asked.is_ok_and(|message| !ack::is_two_phase(&message))) else {
        return answer;
    };
    let code =
        Message::parse(&answer).ok().and_then(|message| message.acknowledgement()).and_then(|ack| ack.code);
    let verdict = match code {
        Some(AckCode::Aa | AckCode::Ca) => Verdict::Accepted,
        Some(AckCode::Ae | AckCode::Ar | AckCode::Ce | AckCode::Cr) | None => Verdict::Refused,
    };
    expecting(&answer, expected.of(verdict)).unwrap_or(answer)
}
