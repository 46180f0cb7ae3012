//! What whoever sent us something is owed for it, once it is clear what became of it.

use bytes::Bytes;

use crate::ack::{self, Stamp, Trouble, Verdict};
use crate::header::Message;
use crate::mllp::{COMMITTED, NOT_COMMITTED};
use crate::settings::Settings;

/// The byte that release 2 of MLLP wants first; `None` in release 1.
pub(crate) fn commit_byte(settings: &Settings, verdict: Verdict) -> Option<Bytes> {
    let byte = if verdict == Verdict::Accepted { COMMITTED } else { NOT_COMMITTED };
    settings.commit_bytes().then(|| Bytes::from_static(byte))
}

/// `None` where the sender wants no answer.
pub(crate) fn acknowledgement(
    message: &Message<'_>,
    verdict: Verdict,
    trouble: Option<&Trouble>,
) -> Option<Bytes> {
    numbered_acknowledgement(message, verdict, trouble, None)
}

/// With the sequence number that is expected (MSA-4).
pub(crate) fn numbered_acknowledgement(
    message: &Message<'_>,
    verdict: Verdict,
    trouble: Option<&Trouble>,
    expected: Option<i64>,
) -> Option<Bytes> {
    let code = ack::code_owed(message, verdict)?;
    Some(ack::build(message, code, trouble, expected, &stamp()))
}

/// For the partner's answer to a message of ours: the byte, and an accept acknowledgement where it asks for one, as the answer to
/// a query may (MSH-15).
pub(crate) fn for_answer(settings: &Settings, body: &[u8]) -> Vec<Bytes> {
    let acknowledgement = Message::parse(body)
        .ok()
        .and_then(|message| self::acknowledgement(&message, Verdict::Accepted, None));
    commit_byte(settings, Verdict::Accepted).into_iter().chain(acknowledgement).collect()
}

pub(crate) fn stamp() -> Stamp {
    Stamp::new(uuid::Uuid::now_v7(), time::OffsetDateTime::now_utc())
}
