//! Sending: one message in flight on one connection, and no outcome without the acknowledgement that names it.
//!
//! A message that asks for no acknowledgement is delivered when it has been written, if the destination settles for that.
//! Once bytes may have left, only the partner's answer to exactly this message settles it. Anything else closes the
//! connection first, so that a late answer cannot be taken for the next message's, and leaves the delivery in doubt.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use gatepost_adapter::{DataError, Delivery, Evidence, Level, Outcome, Worker, digest, egress, reply};
use tokio::time::timeout;

use crate::ack::{self, Verdict};
use crate::channel::{Channel, ChannelError};
use crate::charset::{Charset, Declared};
use crate::event::MEDIA_TYPE;
use crate::header::{AckCode, HeaderError, Message, attribute_text};
use crate::mllp::{self, Item};
use crate::settings::Settings;

/// Larger answers are evidenced by their digest alone.
const REPLY_BYTES_MAX: usize = 1024 * 1024;
const CONTROL_ID_CHARS_MAX: usize = 200;

/// One connection to the partner, made when it is first needed.
pub(crate) struct Link {
    address: String,
    settings: Arc<Settings>,
    /// What the destination counts as delivered.
    confirm: Level,
    channel: Option<Channel>,
}

impl Link {
    pub(crate) fn new(address: String, settings: Arc<Settings>, confirm: Level) -> Self {
        Self { address, settings, confirm, channel: None }
    }

    /// The kept connection if the partner still has it, else a new one. An error is the outcome of the attempt: the
    /// partner cannot be reached, and that is not the message's fault.
    async fn channel(&mut self) -> Result<Channel, Outcome> {
        if let Some(mut channel) = self.channel.take() {
            match channel.clear() {
                Ok(0) => return Ok(channel),
                Ok(frames) => {
                    tracing::info!(frames, "the partner sent answers that nobody was waiting for");
                    return Ok(channel);
                }
                Err(error) => {
                    tracing::info!(%error, "the partner has closed the connection; making a new one")
                }
            }
        }
        let connecting = timeout(self.settings.connect_timeout(), egress::connect(&self.address));
        let stream = match connecting.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                return Err(Outcome::destination_down(format!("cannot connect: {}", error.kind())));
            }
            Err(_) => {
                let waited = self.settings.connect_timeout_ms;
                return Err(Outcome::destination_down(format!("no connection within {waited} ms")));
            }
        };
        Channel::new(stream, self.settings.link_limits()).map_err(|error| {
            Outcome::destination_down(format!("cannot use the connection: {}", error.kind()))
        })
    }

    fn outcome(&self, answer: &Answer) -> Outcome {
        let evidence = Evidence::new(Level::Transport)
            .with("code", answer.code.as_str())
            .with("control_id", answer.control_id.as_str())
            .with("ack_sha256", digest(&answer.body))
            .with("ack_bytes", answer.body.len());
        let reply = (answer.body.len() <= REPLY_BYTES_MAX).then(|| reply(MEDIA_TYPE, answer.body.to_vec()));
        let Some(action) = self.settings.on_ack.action(answer.code) else {
            return Outcome::Delivered { evidence, reply };
        };
        let reason = format!("the partner answered {}", answer.code.as_str());
        match action.retry_scope() {
            Some(scope) => Outcome::Retry { scope, after: None, reason },
            None => Outcome::Reject { reason, evidence: Some(evidence), reply },
        }
    }
}

impl Worker for Link {
    async fn deliver(&mut self, delivery: &Delivery) -> Outcome {
        let body = match delivery.data(self.settings.max_frame_bytes).await {
            Ok(body) => body,
            Err(error) => return no_data(&error),
        };
        let prepared = match prepare(&body, self.confirm) {
            Ok(prepared) => prepared,
            Err(reason) => return Outcome::reject(reason),
        };
        let mut channel = match self.channel().await {
            Ok(channel) => channel,
            Err(outcome) => return outcome,
        };
        if delivery.begin().await.is_err() {
            self.channel = Some(channel);
            return Outcome::LeaseLost;
        }
        let exchanged = timeout(self.settings.ack_timeout(), exchange(&mut channel, prepared)).await;
        match exchanged {
            Ok(Ok(answer)) => {
                self.channel = Some(channel);
                match answer {
                    Some(answer) => self.outcome(&answer),
                    None => Outcome::Delivered { evidence: Evidence::new(Level::Sent), reply: None },
                }
            }
            // In both cases the connection is dropped here, and with it every late answer.
            Ok(Err(error)) => Outcome::in_doubt(format!("no acknowledgement: {error}")),
            Err(_) => {
                Outcome::in_doubt(format!("no acknowledgement within {} ms", self.settings.ack_timeout_ms))
            }
        }
    }
}

fn no_data(error: &DataError) -> Outcome {
    match error {
        DataError::Call(call) if call.retryable() => {
            tracing::warn!(%error, "giving the delivery back");
            Outcome::Release
        }
        _ => Outcome::reject(error.to_string()),
    }
}

/// A message ready for the wire.
struct Prepared<'a, B> {
    frame: B,
    /// What its acknowledgement must name.
    control_id: &'a [u8],
    wants_answer: bool,
}

fn prepare(body: &Bytes, confirm: Level) -> Result<Prepared<'_, impl Buf + use<>>, String> {
    let message = Message::parse(body).map_err(|error| error.to_string())?;
    let control_id = message.control_id().map_err(|error| error.to_string())?;
    if message.charset() == Declared::Wide {
        return Err(HeaderError::Wide.to_string());
    }
    let frame = mllp::frame(body).map_err(|error| error.to_string())?;
    let wants_answer = ack::code_owed(&message, Verdict::Accepted).is_some();
    if !wants_answer && confirm > Level::Sent {
        let what = "the message asks for no acknowledgement, so its arrival cannot be confirmed";
        return Err(format!("{what}; set `confirm = \"sent\"` for such messages"));
    }
    Ok(Prepared { frame, control_id, wants_answer })
}

/// The partner's answer to our message.
struct Answer {
    code: AckCode,
    control_id: String,
    body: Bytes,
}

/// `None` for a message that wants no answer.
async fn exchange(
    channel: &mut Channel,
    prepared: Prepared<'_, impl Buf>,
) -> Result<Option<Answer>, ChannelError> {
    let Prepared { frame, control_id, wants_answer } = prepared;
    channel.write(frame).await?;
    if !wants_answer {
        return Ok(None);
    }
    loop {
        let body = match channel.next().await?.ok_or(ChannelError::Closed)? {
            Item::Frame(body) => body,
            Item::Oversize { length, .. } => {
                tracing::warn!(length, "passing over an answer above max_frame_bytes");
                continue;
            }
            Item::Abandoned { length } => {
                tracing::warn!(length, "the partner broke off an answer and began another");
                continue;
            }
        };
        match verdict(&body, control_id) {
            Ok(code) => {
                let control_id = attribute_text(control_id, Charset::Utf8, CONTROL_ID_CHARS_MAX);
                return Ok(Some(Answer { code, control_id, body }));
            }
            Err(reason) => tracing::warn!(reason, "waiting on: this answer settles nothing"),
        }
    }
}

/// The code with which this answer settles our message, or why it does not.
pub(crate) fn verdict(body: &[u8], control_id: &[u8]) -> Result<AckCode, &'static str> {
    let message = Message::parse(body).map_err(|_| "it is not an HL7 message")?;
    let acknowledgement = message.acknowledgement().ok_or("it has no MSA segment")?;
    if acknowledgement.control_id != control_id {
        return Err("its MSA-2 names another message");
    }
    acknowledgement.code.ok_or("its MSA-1 is not a code that HL7 knows")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_answer_that_names_the_message_settles_it() {
        let ack = |rest: &str| format!("MSH|^~\\&|B||A||2026||ACK|9|P|2.5\r{rest}").into_bytes();
        assert_eq!(verdict(&ack("MSA|AA|M1\r"), b"M1"), Ok(AckCode::Aa));
        assert_eq!(verdict(&ack("MSA|AE| M1 |text\rERR|\r"), b"M1"), Ok(AckCode::Ae));
        assert!(verdict(&ack("MSA|AA|M10\r"), b"M1").is_err());
        assert!(verdict(&ack("MSA|AA|m1\r"), b"M1").is_err());
        assert!(verdict(&ack("MSA|AA|\r"), b"M1").is_err());
        assert!(verdict(&ack("MSA|OK|M1\r"), b"M1").is_err());
        assert!(verdict(&ack("ERR|\r"), b"M1").is_err());
        assert!(verdict(b"\x06", b"M1").is_err());
        assert_eq!(verdict(b"MSH:;~\\&::::::::ACK:9:P:2.5\rMSA:CA:M^1", b"M^1"), Ok(AckCode::Ca));
    }

    #[test]
    fn what_cannot_be_sent_is_refused_with_its_reason() {
        let reason =
            |body: &'static [u8]| prepare(&Bytes::from_static(body), Level::Transport).err().unwrap();
        assert!(reason(b"").contains("MSH"));
        assert!(reason(b"{}").contains("MSH"));
        assert!(reason(b"MSH|^~\\&|A|B|C|D|||ADT^A01||P|2.5\r").contains("MSH-10"));
        assert!(reason(b"MSH|^~\\&|A|B|C|D|||ADT^A01|1|P|2.5\rOBX|\x1c\r").contains("0x1C"));
        assert!(reason(b"MSH|^~\\&|A|B|C|D|||ADT^A01|1|P|2.5||||||UNICODE UTF-32\r").contains("UTF-8"));
        assert!(reason(b"MSH|^~\\&|A|B|C|D|||ACK^A01|1|P|2.5\rMSA|AA|7\r").contains("confirm"));
    }

    #[test]
    fn the_table_turns_codes_into_outcomes() {
        let link = |on_ack: &str| {
            let settings =
                serde_json::from_str(&format!(r#"{{"connect":"a:1","on_ack":{on_ack}}}"#)).unwrap();
            Link::new("a:1".to_owned(), Arc::new(settings), Level::Transport)
        };
        let answer = |code| Answer { code, control_id: "M1".to_owned(), body: Bytes::from_static(b"MSH|") };
        let standard = link("{}");
        assert_eq!(standard.outcome(&answer(AckCode::Aa)).name(), "delivered");
        assert_eq!(standard.outcome(&answer(AckCode::Ca)).name(), "delivered");
        assert_eq!(standard.outcome(&answer(AckCode::Ae)).name(), "reject");
        assert_eq!(standard.outcome(&answer(AckCode::Ar)).name(), "reject");
        assert_eq!(standard.outcome(&answer(AckCode::Ce)).name(), "retry");
        assert_eq!(standard.outcome(&answer(AckCode::Cr)).name(), "reject");
        let lenient = link(r#"{"AE":"retry","AR":"retry_destination"}"#);
        assert_eq!(lenient.outcome(&answer(AckCode::Ae)).name(), "retry");
        let Outcome::Retry { scope, .. } = lenient.outcome(&answer(AckCode::Ar)) else { panic!("no retry") };
        assert_eq!(scope, gatepost_adapter::Scope::Destination);
    }
}
