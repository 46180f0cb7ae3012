//! `POST /v1/settle`: outcomes, emitted events and adapter state in one transaction.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::event::Event;
use crate::messages::Reply;

/// Most results of one settle.
pub const SETTLE_RESULTS_MAX: usize = 1000;
/// Most emitted events of one settle.
pub const SETTLE_EVENTS_MAX: usize = 1000;
/// Largest settle, bytes of JSON.
pub const SETTLE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Longest reason text, bytes; longer ones are cut.
pub const REASON_BYTES_MAX: usize = 2048;
/// Longest evidence, bytes of JSON.
pub const EVIDENCE_BYTES_MAX: usize = 64 * 1024;
/// Most changes of an adapter's state in one settle.
pub const STATE_KEYS_MAX: usize = 1000;
/// Longest key of adapter state, bytes.
pub const STATE_KEY_BYTES_MAX: usize = 256;
/// Longest value of adapter state, bytes.
pub const STATE_VALUE_BYTES_MAX: usize = 1024 * 1024;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SettleRequest {
    #[serde(default)]
    pub results: Vec<SettleItem>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Object>))]
    pub emit: Vec<Event>,
    /// Key → base64, or null to delete the key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "each_once")]
    pub state: BTreeMap<String, Option<String>>,
    /// All or nothing; implied by `state` and `emit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub atomic: Option<bool>,
    /// An adapter's session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SettleItem {
    pub delivery: Uuid,
    pub token: String,
    pub outcome: Outcome,
    /// `retry`: when to try again at the earliest. `sent`: until when proof may come. `extend`: the lease's new length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_ms: Option<u64>,
    /// `retry` only: whose trouble it is. `destination` charges no attempt and backs the whole destination off; `lane` charges
    /// nothing, leaves a doubt as it is, and lets the destination's other lanes go on; what is leased behind the delivery in its lane and has
    /// not been reported as begun or sent goes back with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What proves the outcome: an object with `level` and whatever else the protocol can show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub evidence: Option<Box<RawValue>>,
    /// What the partner answered; kept if the outcome ends the delivery, until that is replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub reply: Option<Reply>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Outcome {
    Begin,
    Sent,
    Delivered,
    InDoubt,
    Retry,
    Reject,
    Release,
    Extend,
    /// Of a delivery that went back with `retry` and scope `lane`, by that lease's token: it is due at once.
    Wake,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Scope {
    #[default]
    Message,
    Destination,
    Lane,
}

/// The one member of `evidence` that the gateway reads.
#[derive(Debug, Deserialize)]
pub struct EvidenceLevel {
    pub level: Level,
}

/// How much a piece of evidence proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Level {
    Sent,
    Transport,
    Business,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SettleResponse {
    pub results: Vec<SettledItem>,
    #[serde(default)]
    pub emitted: Vec<EmittedItem>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SettledItem {
    pub delivery: Uuid,
    pub status: SettleStatus,
    /// The delivery's state after the call; `unknown` for a delivery that does not exist.
    pub state: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SettleStatus {
    Ok,
    Stale,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EmittedItem {
    pub id: Uuid,
    pub duplicate: bool,
}

/// A map whose keys stand there once: of two values for one key, neither is what the adapter must find again.
fn each_once<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Option<String>>, D::Error> {
    struct EachOnce;

    impl<'de> Visitor<'de> for EachOnce {
        type Value = BTreeMap<String, Option<String>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of strings and nulls")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut read = BTreeMap::new();
            while let Some((key, value)) = map.next_entry()? {
                if read.insert(key, value).is_some() {
                    return Err(A::Error::custom("a key of `state` stands there twice"));
                }
            }
            Ok(read)
        }
    }

    deserializer.deserialize_map(EachOnce)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_the_state_stands_there_once() {
        let read =
            |text: &str| serde_json::from_str::<SettleRequest>(text).map(|request| request.state.len());
        assert_eq!(read(r#"{"state":{"a":"AA==","b":null}}"#).unwrap(), 2);
        assert_eq!(read("{}").unwrap(), 0);
        let twice = read(r#"{"state":{"a":"AA==","a":null}}"#).unwrap_err().to_string();
        assert!(twice.contains("stands there twice"), "{twice}");
    }
}
