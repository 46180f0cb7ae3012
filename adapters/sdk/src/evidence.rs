//! What came of an attempt, and what proves it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use gatepost_api::event::Data;
use gatepost_api::messages::Reply;
use gatepost_api::settle::{Level, Outcome as WireOutcome, SETTLE_BYTES_MAX, Scope, SettleItem};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// Largest reply that a settlement carries, in bytes before they are written as base64: the gateway's limit for all of it, with room for
/// what else is settled in the same call.
pub const REPLY_BYTES_MAX: usize = (SETTLE_BYTES_MAX - 2 * 1024 * 1024) / 4 * 3;

/// What proves an outcome: how much it proves, and what the protocol can show for it. Never a payload.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    level: Level,
    shown: Map<String, Value>,
}

impl Evidence {
    pub fn new(level: Level) -> Self {
        Self { level, shown: Map::new() }
    }

    /// Adds one thing to show. `level` is not a name for it.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.shown.insert(name.to_owned(), value.into());
        self
    }

    pub fn level(&self) -> Level {
        self.level
    }

    fn into_json(self) -> Result<Box<RawValue>, serde_json::Error> {
        let mut all = self.shown;
        all.insert("level".to_owned(), serde_json::to_value(self.level)?);
        to_raw_value(&all)
    }
}

/// What came of an attempt.
#[derive(Debug)]
pub enum Outcome {
    Delivered {
        evidence: Evidence,
        reply: Option<Reply>,
    },
    /// Bytes are at the partner and proof may come until `within` has passed; whoever has the token settles it then.
    Sent {
        evidence: Evidence,
        within: Duration,
    },
    /// Bytes may have reached the partner and no answer came.
    InDoubt {
        reason: String,
    },
    /// The partner has certainly not taken it, and may later.
    Retry {
        scope: Scope,
        after: Option<Duration>,
        reason: String,
        /// What it answered: the delivery's reply, where its attempts or its time are spent with this one. Of no use with another scope than
        /// the message, which charges nothing.
        reply: Option<Reply>,
    },
    /// The partner will never take it as it is.
    Reject {
        reason: String,
        evidence: Option<Evidence>,
        reply: Option<Reply>,
    },
    /// Not tried; somebody may.
    Release,
    /// The lease ended before anything was done; there is nothing to report.
    LeaseLost,
    /// The worker has settled it by itself, together with state or messages ([`crate::Session::settle`]). `away`: it went back because the
    /// partner takes nothing now, and why.
    Settled {
        away: Option<String>,
    },
}

impl Outcome {
    /// The partner is unreachable or takes nothing now: no fault of this message.
    pub fn destination_down(reason: impl Into<String>) -> Self {
        Self::Retry { scope: Scope::Destination, after: None, reason: reason.into(), reply: None }
    }

    pub fn reject(reason: impl Into<String>) -> Self {
        Self::Reject { reason: reason.into(), evidence: None, reply: None }
    }

    pub fn in_doubt(reason: impl Into<String>) -> Self {
        Self::InDoubt { reason: reason.into() }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Delivered { .. } => "delivered",
            Self::Sent { .. } => "sent",
            Self::InDoubt { .. } => "in_doubt",
            Self::Retry { .. } => "retry",
            Self::Reject { .. } => "reject",
            Self::Release => "release",
            Self::LeaseLost => "lease_lost",
            Self::Settled { .. } => "settled",
        }
    }

    /// The wire form; `None` where there is nothing to report.
    pub(crate) fn into_item(
        self,
        delivery: Uuid,
        token: &str,
    ) -> Result<Option<SettleItem>, serde_json::Error> {
        let mut item = item(delivery, token, WireOutcome::Release);
        match self {
            Self::LeaseLost | Self::Settled { .. } => return Ok(None),
            Self::Release => {}
            Self::Delivered { evidence, reply } => {
                item.outcome = WireOutcome::Delivered;
                item.evidence = Some(evidence.into_json()?);
                item.reply = reply;
            }
            Self::Sent { evidence, within } => {
                item.outcome = WireOutcome::Sent;
                item.evidence = Some(evidence.into_json()?);
                item.after_ms = Some(millis(within));
            }
            Self::InDoubt { reason } => {
                item.outcome = WireOutcome::InDoubt;
                item.reason = Some(reason);
            }
            Self::Retry { scope, after, reason, reply } => {
                item.outcome = WireOutcome::Retry;
                item.scope = Some(scope);
                item.after_ms = after.map(millis);
                item.reason = Some(reason);
                item.reply = reply;
            }
            Self::Reject { reason, evidence, reply } => {
                item.outcome = WireOutcome::Reject;
                item.reason = Some(reason);
                item.evidence = evidence.map(Evidence::into_json).transpose()?;
                item.reply = reply;
            }
        }
        Ok(Some(item))
    }
}

/// A result that carries nothing but its outcome.
pub(crate) fn item(delivery: Uuid, token: &str, outcome: WireOutcome) -> SettleItem {
    SettleItem {
        delivery,
        token: token.to_owned(),
        outcome,
        after_ms: None,
        scope: None,
        reason: None,
        evidence: None,
        reply: None,
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What stands in evidence in place of bytes: their SHA-256 in hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A partner's answer as the delivery's reply: JSON and text as they are, anything else as base64.
pub fn reply(datacontenttype: &str, bytes: Vec<u8>) -> Reply {
    let content = Data::from_bytes(bytes, Some(datacontenttype));
    let data = match &content {
        Data::Json(text) => serde_json::from_str::<Box<RawValue>>(text).ok(),
        Data::Text(text) => to_raw_value(text).ok(),
        Data::Binary(_) => None,
    };
    let data_base64 = data.is_none().then(|| BASE64.encode(content.as_bytes()));
    Reply { datacontenttype: Some(datacontenttype.to_owned()), data, data_base64 }
}

/// A partner's answer as the delivery's reply, base64 whatever its type says; for bodies that were cut.
pub fn binary_reply(datacontenttype: &str, bytes: &[u8]) -> Reply {
    Reply {
        datacontenttype: Some(datacontenttype.to_owned()),
        data: None,
        data_base64: Some(BASE64.encode(bytes)),
    }
}

/// The bytes of a reply as whoever gave it had them: a JSON string is text, other JSON is itself. `None` for a reply without
/// content, or whose base64 is none.
pub fn reply_bytes(reply: &Reply) -> Option<Vec<u8>> {
    let is_json = reply.datacontenttype.as_deref().is_none_or(is_json);
    match (&reply.data, &reply.data_base64) {
        (Some(data), _) => Some(match serde_json::from_str::<String>(data.get()) {
            Ok(text) if !is_json => text.into_bytes(),
            _ => data.get().as_bytes().to_vec(),
        }),
        (None, Some(encoded)) => BASE64.decode(encoded).ok(),
        (None, None) => None,
    }
}

fn is_json(datacontenttype: &str) -> bool {
    let essence = datacontenttype.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || essence.ends_with("+json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(outcome: Outcome) -> Value {
        let item = outcome.into_item(Uuid::nil(), "t1").unwrap().unwrap();
        serde_json::to_value(item).unwrap()
    }

    #[test]
    fn outcomes_have_their_wire_form() {
        let id = Uuid::nil().to_string();
        let evidence = Evidence::new(Level::Transport).with("code", "AA");
        assert_eq!(
            json(Outcome::Delivered {
                evidence: evidence.clone(),
                reply: Some(reply("text/plain", b"ok".to_vec()))
            }),
            serde_json::json!({"delivery": id, "token": "t1", "outcome": "delivered",
                "evidence": {"level": "transport", "code": "AA"},
                "reply": {"datacontenttype": "text/plain", "data": "ok"}})
        );
        assert_eq!(
            json(Outcome::Sent { evidence, within: Duration::from_secs(2) }),
            serde_json::json!({"delivery": id, "token": "t1", "outcome": "sent", "after_ms": 2000,
                "evidence": {"level": "transport", "code": "AA"}})
        );
        assert_eq!(
            json(Outcome::destination_down("refused")),
            serde_json::json!({"delivery": id, "token": "t1", "outcome": "retry", "scope": "destination", "reason": "refused"})
        );
        assert_eq!(
            json(Outcome::in_doubt("no answer")),
            serde_json::json!({"delivery": id, "token": "t1", "outcome": "in_doubt", "reason": "no answer"})
        );
        assert_eq!(
            json(Outcome::reject("AR")),
            serde_json::json!({"delivery": id, "token": "t1", "outcome": "reject", "reason": "AR"})
        );
        assert_eq!(
            json(Outcome::Release),
            serde_json::json!({"delivery": id, "token": "t1", "outcome": "release"})
        );
        assert!(Outcome::LeaseLost.into_item(Uuid::nil(), "t1").unwrap().is_none());
        assert!(Outcome::Settled { away: None }.into_item(Uuid::nil(), "t1").unwrap().is_none());
    }

    #[test]
    fn the_digest_is_sha_256() {
        assert_eq!(digest(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_reply_keeps_json_text_and_encodes_other_bytes() {
        let json = reply("application/json", br#"{"b" : 1}"#.to_vec());
        assert_eq!(json.data.unwrap().get(), r#"{"b" : 1}"#);
        let broken = reply("application/json", b"{".to_vec());
        assert_eq!((broken.data.is_none(), broken.data_base64.as_deref()), (true, Some("ew==")));
        let hl7 = reply("application/hl7-v2+er7", b"MSH|".to_vec());
        assert_eq!(hl7.data_base64.as_deref(), Some("TVNIfA=="));
    }

    #[test]
    fn a_reply_is_read_as_it_was_written() {
        for (kind, bytes) in [
            ("application/json", &br#"{"b" : 1}"#[..]),
            ("application/json", br#""text""#),
            ("text/plain", "Dürer \"x\"\r".as_bytes()),
            ("application/hl7-v2+er7", b"MSH|^~\\&|\xff"),
        ] {
            assert_eq!(reply_bytes(&reply(kind, bytes.to_vec())).unwrap(), bytes, "{kind}");
        }
        let empty = Reply { datacontenttype: None, data: None, data_base64: None };
        assert_eq!(reply_bytes(&empty), None);
        assert_eq!(reply_bytes(&Reply { data_base64: Some("!".to_owned()), ..empty }), None);
    }
}
