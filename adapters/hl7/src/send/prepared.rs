//! A message before it is sent: whether it can be, and what its acknowledgement must be like.

use bytes::Bytes;
use gatepost_adapter::Level;

use crate::ack::{self, Verdict};
use crate::charset::Declared;
use crate::header::{HeaderError, Message};
use crate::mllp;

/// A message ready for the wire.
pub(super) struct Prepared<'a> {
    /// What its acknowledgement must name.
    pub(super) control_id: &'a [u8],
    pub(super) wants_answer: bool,
    /// The partner says by a byte that it has stored what came (MLLP release 2).
    pub(super) commit_bytes: bool,
    /// Not an acknowledgement, which nobody numbers.
    pub(super) is_transaction: bool,
}

pub(super) fn prepare(
    body: &Bytes,
    confirm: Level,
    commit_bytes: bool,
    is_numbered: bool,
) -> Result<Prepared<'_>, String> {
    let message = Message::parse(body).map_err(|error| error.to_string())?;
    let control_id = message.control_id().map_err(|error| error.to_string())?;
    if message.charset() == Declared::Wide {
        return Err(HeaderError::Wide.to_string());
    }
    mllp::frame(body).map_err(|error| error.to_string())?;
    // Who is asked to say only that it failed (MSH-15 is ER) says that it worked by its application acknowledgement.
    let wants_answer = ack::code_owed(&message, Verdict::Accepted).is_some()
        || (confirm > Level::Sent && ack::application_code_owed(&message, Verdict::Accepted).is_some());
    let confirmable = match confirm {
        Level::Sent => true,
        Level::Transport => wants_answer || commit_bytes,
        Level::Business => wants_answer && message.wants_application_acknowledgement(),
    };
    if !confirmable {
        let what = match confirm {
            Level::Business => "asks for no application acknowledgement, so what became of it",
            Level::Sent | Level::Transport => "asks for no acknowledgement, so its arrival",
        };
        let lower = if confirm == Level::Business { "transport" } else { "sent" };
        return Err(format!(
            "the message {what} cannot be confirmed; set `confirm = \"{lower}\"` for such messages"
        ));
    }
    let is_transaction = message.acknowledgement().is_none();
    if is_numbered && is_transaction && !wants_answer {
        return Err("the message asks for no acknowledgement, and its sequence number needs one".to_owned());
    }
    Ok(Prepared { control_id, wants_answer, commit_bytes, is_transaction })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(body: &'static [u8], confirm: Level) -> String {
        prepare(&Bytes::from_static(body), confirm, false, false).err().unwrap()
    }

    #[test]
    fn what_cannot_be_sent_is_refused_with_its_reason() {
        let reason = |body| reason(body, Level::Transport);
        assert!(reason(b"").contains("MSH"));
        assert!(reason(b"{}").contains("MSH"));
        assert!(reason(b"MSH|^~\\&|A|B|C|D|||ADT^A01||P|2.5\r").contains("MSH-10"));
        assert!(reason(b"MSH|^~\\&|A|B|C|D|||ADT^A01|1|P|2.5\rOBX|\x1c\r").contains("0x1C"));
        assert!(reason(b"MSH|^~\\&|A|B|C|D|||ADT^A01|1|P|2.5||||||UNICODE UTF-32\r").contains("UTF-8"));
        assert!(reason(b"MSH|^~\\&|A|B|C|D|||ACK^A01|1|P|2.5\rMSA|AA|7\r").contains("confirm"));
    }

    #[test]
    fn what_the_message_does_not_ask_for_cannot_be_confirmed() {
        let message = |modes: &str| Bytes::from(format!("MSH|^~\\&|A|B|C|D|||ADT^A01|1|P|2.5|||{modes}\r"));
        let confirmable =
            |modes, confirm, release_2| prepare(&message(modes), confirm, release_2, false).is_ok();
        // MSH-15 and MSH-16, and whether `sent`, `transport` and `business` can be shown.
        for (modes, can) in [
            ("|", [true, true, true]),
            ("AL|NE", [true, true, false]),
            ("AL|AL", [true, true, true]),
            ("AL|SU", [true, true, true]),
            ("AL|ER", [true, true, false]),
            ("NE|AL", [true, true, true]),
            ("ER|AL", [true, true, true]),
            ("ER|NE", [true, false, false]),
            ("NE|NE", [true, false, false]),
        ] {
            let shown = [Level::Sent, Level::Transport, Level::Business]
                .map(|confirm| confirmable(modes, confirm, false));
            assert_eq!(shown, can, "{modes}");
        }
        assert!(confirmable("NE|NE", Level::Transport, true), "the commit byte shows it");
        assert!(!confirmable("NE|NE", Level::Business, true));
    }
}
