//! `POST /v1/messages` and the views of one message.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::event::Event;

/// Answer to an accept: one entry per event of the request, in its order.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AcceptResponse {
    pub messages: Vec<AcceptedMessage>,
    /// How durable the messages are when this answer leaves: `fsync`, or `quorum` where a synchronous standby of the database has
    /// confirmed them too.
    pub durability: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AcceptedMessage {
    pub id: Uuid,
    /// The message had been accepted before under the same idempotency key.
    pub duplicate: bool,
    pub deliveries: Vec<AcceptedDelivery>,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AcceptedDelivery {
    pub id: Uuid,
    pub destination: String,
    /// `waiting`, `leased`, `sending`, `in_doubt`, `delivered`, `dead`, `expired` or `discarded`.
    pub state: String,
    /// What the partner answered, be it yes or no; only when the request waited and there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub reply: Option<Reply>,
}

/// A reply to a message: a payload with its media type, in the forms of CloudEvents (`data` for JSON and text, else
/// `data_base64`).
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datacontenttype: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_base64: Option<String>,
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = self.data.as_ref().map_or(0, |data| data.get().len());
        let base64 = self.data_base64.as_ref().map_or(0, String::len);
        write!(f, "Reply({} bytes)", bytes + base64)
    }
}

/// `GET /v1/messages/{id}`.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MessageView {
    pub id: Uuid,
    pub app: String,
    /// RFC 3339, UTC, microseconds.
    pub accepted_at: String,
    /// Payload size in bytes, also when the payload has been purged.
    pub size: u64,
    /// The event's attributes as accepted, without its data.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub attributes: Event,
    pub payload_purged: bool,
    pub deliveries: Vec<DeliveryView>,
}

/// One delivery with its history.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeliveryView {
    #[serde(flatten)]
    pub delivery: crate::lists::DeliveryItem,
    /// What the partner answered that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub reply: Option<Reply>,
    pub history: Vec<HistoryItem>,
}

/// One step of a delivery: an attempt's begin, an outcome, an operator's decision.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HistoryItem {
    /// RFC 3339, UTC, microseconds.
    pub at: String,
    /// The audit event: `attempt`, `delivered`, `retry`, `in_doubt`, …
    pub event: String,
    /// The attempt's number in its series, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Closed reason code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Free text of whoever reported it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who did it: `adapter:lab`, `operator:ops`, `gateway:clinic-1`.
    pub by: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub evidence: Option<Box<RawValue>>,
}
