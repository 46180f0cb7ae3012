//! Operators' calls to adapters. What can be called is the adapter's own: it offers calls by name, and says which of them change something.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

/// Longest wait of [`NextCallRequest`], ms.
pub const CALL_WAIT_MS_MAX: u64 = 30_000;
/// Largest body of an answer, bytes.
pub const CALL_ANSWER_BYTES_MAX: u64 = 256 * 1024;
/// Most calls that an adapter offers.
pub const OFFERS_MAX: usize = 32;
/// Longest name of a call, bytes: lower case letters, digits and `_`, as it stands in the audit log.
pub const CALL_NAME_BYTES_MAX: usize = 40;
/// Longest `about` of an offer and longest `refused` of an answer, bytes.
pub const CALL_TEXT_BYTES_MAX: usize = 1000;

/// A call that an adapter offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Offer {
    /// `[a-z0-9_]{1,40}`
    pub name: String,
    /// Whether it does more than look: then it takes an operator who may operate, and a reason.
    pub changes: bool,
    /// What it does and takes, for people.
    pub about: String,
}

/// `GET /v1/adapters/{name}/calls`
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OfferList {
    pub calls: Vec<Offer>,
}

/// `POST /v1/adapters/{name}/calls`
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CallRequest {
    pub call: String,
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub arguments: Map<String, Value>,
    /// Why; for a call that changes something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CallAnswer {
    /// The adapter's own.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub answer: Value,
}

/// `POST /v1/calls/next`: an adapter asks for the next call to it, and says what may be called.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NextCallRequest {
    /// The session's; what an older one asks is refused as `superseded`.
    pub epoch: u64,
    pub offers: Vec<Offer>,
    /// How long the answer may take if nobody calls, ms; at most [`CALL_WAIT_MS_MAX`].
    #[serde(default)]
    pub wait_ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NextCallResponse {
    /// The same one until it is answered. `null` if nobody calls.
    pub call: Option<PendingCall>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PendingCall {
    pub id: Uuid,
    /// One of the offers.
    pub call: String,
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub arguments: Map<String, Value>,
    /// The operator's name.
    pub operator: String,
}

/// `POST /v1/calls/{id}/answer`; one of `answer` and `refused`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CallAnswerRequest {
    pub epoch: u64,
    /// What it came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub answer: Option<Value>,
    /// Why nothing was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CallAnswered {
    /// Whether the operator was still waiting.
    pub told: bool,
}

/// Whether `name` can be a call's.
pub fn is_call_name(name: &str) -> bool {
    let fits = (1..=CALL_NAME_BYTES_MAX).contains(&name.len());
    fits && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_calls_name_fits_into_the_audit_log() {
        assert!(is_call_name("set_sequence_numbers") && is_call_name(&"a".repeat(40)));
        for name in ["", "Set", "a-b", "a b", "ä", &"a".repeat(41)] {
            assert!(!is_call_name(name), "{name}");
        }
    }
}
