//! The partner's answer to a message: which one it answers, and what that means for the delivery.

use bytes::Bytes;
use gatepost_adapter::{Evidence, Level, Outcome, REPLY_BYTES_MAX, Scope, digest, reply};

pub(crate) use crate::awaited::Answer;
use crate::charset::Charset;
use crate::event::MEDIA_TYPE;
use crate::header::{Message, attribute_text};
use crate::on_ack::OnAck;

const CONTROL_ID_CHARS_MAX: usize = 200;
const ERROR_CODE_CHARS_MAX: usize = 20;

/// The answer that these bytes are, or why they are none.
pub(crate) fn read(body: &Bytes) -> Result<Answer, &'static str> {
    let message = Message::parse(body).map_err(|_| "it is not an HL7 message")?;
    let acknowledgement = message.acknowledgement().ok_or("it has no MSA segment")?;
    let code = acknowledgement.code.ok_or("its MSA-1 is not a code that HL7 knows")?;
    if acknowledgement.control_id.is_empty() {
        return Err("its MSA-2 names no message");
    }
    let error = message.error_code().filter(|code| code.len() <= ERROR_CODE_CHARS_MAX);
    Ok(Answer {
        code,
        control_id: acknowledgement.control_id.to_vec(),
        error: error.map(str::to_owned),
        expected: acknowledgement.expected,
        body: body.clone(),
    })
}

/// What the answer means. An application acknowledgement is `business` where that is asked for, since then it is the partner
/// who says that AA means more than having stored the message.
pub(crate) fn outcome(on_ack: &OnAck, confirm: Level, answer: &Answer) -> Outcome {
    let is_application = !answer.is_accept();
    let level = if is_application && confirm == Level::Business { Level::Business } else { Level::Transport };
    let fits = answer.body.len() <= REPLY_BYTES_MAX;
    let reply = fits.then(|| reply(MEDIA_TYPE, answer.body.to_vec()));
    let evidence = evidence(level, answer);
    // Whoever waits for it must see that it is not empty.
    let evidence = if fits { evidence } else { evidence.with("reply", "too large") };
    let Some(action) = on_ack.action(answer.code, answer.error.as_deref()) else {
        return Outcome::Delivered { evidence, reply };
    };
    let error = answer.error.as_ref().map(|error| format!(" with error {error}")).unwrap_or_default();
    let reason = format!("the partner answered {}{error}", answer.code.as_str());
    match action.retry_scope() {
        Some(scope) => {
            let reply = reply.filter(|_| scope == Scope::Message);
            Outcome::Retry { scope, after: None, reason, reply }
        }
        None => Outcome::Reject { reason, evidence: Some(evidence), reply },
    }
}

pub(crate) fn evidence(level: Level, answer: &Answer) -> Evidence {
    let control_id = attribute_text(&answer.control_id, Charset::Utf8, CONTROL_ID_CHARS_MAX);
    let evidence = Evidence::new(level)
        .with("code", answer.code.as_str())
        .with("control_id", control_id)
        .with("ack_sha256", digest(&answer.body))
        .with("ack_bytes", answer.body.len());
    match &answer.error {
        Some(error) => evidence.with("error", error.as_str()),
        None => evidence,
    }
}

/// For a message that asks for no answer.
pub(crate) fn sent() -> Evidence {
    Evidence::new(Level::Sent)
}

/// The partner's byte says that it has stored the message.
pub(crate) fn committed() -> Evidence {
    Evidence::new(Level::Transport).with("commit", "0x06")
}

/// The partner's byte says that it has not.
pub(crate) fn not_committed() -> Outcome {
    let reason = "the partner could not store it (0x15)".to_owned();
    Outcome::Retry { scope: Scope::Message, after: None, reason, reply: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::AckCode;

    fn ack(rest: &str) -> Bytes {
        Bytes::from(format!("MSH|^~\\&|B||A||2026||ACK|9|P|2.5\r{rest}"))
    }

    #[test]
    fn only_what_names_a_message_with_a_known_code_is_an_answer() {
        let named = |body: &Bytes| {
            read(body).map(|answer| (answer.code, String::from_utf8(answer.control_id).unwrap()))
        };
        assert_eq!(named(&ack("MSA|AA|M1\r")), Ok((AckCode::Aa, "M1".to_owned())));
        assert_eq!(named(&ack("MSA|AE| M1 |text\rERR|\r")), Ok((AckCode::Ae, "M1".to_owned())));
        assert!(read(&ack("MSA|AA|\r")).is_err());
        assert!(read(&ack("MSA|OK|M1\r")).is_err());
        assert!(read(&ack("ERR|\r")).is_err());
        assert!(read(&Bytes::from_static(b"\x06")).is_err());
        let other = Bytes::from_static(b"MSH:;~\\&::::::::ACK:9:P:2.5\rMSA:CA:M^1");
        assert_eq!(named(&other), Ok((AckCode::Ca, "M^1".to_owned())));
    }

    #[test]
    fn codes_and_errors_become_outcomes() {
        let answer = |code: &str, err: &str| read(&ack(&format!("MSA|{code}|M1\r{err}"))).unwrap();
        let standard = OnAck::default();
        for (code, name) in [
            ("AA", "delivered"),
            ("CA", "delivered"),
            ("AE", "reject"),
            ("AR", "reject"),
            ("CE", "retry"),
            ("CR", "reject"),
        ] {
            assert_eq!(outcome(&standard, Level::Transport, &answer(code, "")).name(), name, "{code}");
        }
        let lenient: OnAck = serde_json::from_str(r#"{"errors":{"206":"retry_destination"}}"#).unwrap();
        let told = outcome(&lenient, Level::Transport, &answer("AE", "ERR|||206^Locked\r"));
        let Outcome::Retry { scope, reason, .. } = told else { panic!("no retry") };
        assert_eq!((scope, reason.as_str()), (Scope::Destination, "the partner answered AE with error 206"));
    }

    #[test]
    fn an_application_acknowledgement_counts_as_business_only_where_that_is_asked() {
        let level = |code: &str, confirm| {
            let answer = read(&ack(&format!("MSA|{code}|M1\r"))).unwrap();
            let Outcome::Delivered { evidence, .. } = outcome(&OnAck::default(), confirm, &answer) else {
                panic!("not delivered")
            };
            evidence.level()
        };
        assert_eq!(level("AA", Level::Business), Level::Business);
        assert_eq!(level("AA", Level::Transport), Level::Transport);
        assert_eq!(level("CA", Level::Business), Level::Transport);
    }
}
