//! The sequence number protocol: transactions of one stream are numbered, so that none is lost, doubled or overtaken unseen.
//!
//! Pure: what the numbers say, on either side. What must be durable before what is said where they are used.
//!
//! Source: HL7 version 2.5.1, chapter 2, 2.10.1.

pub(crate) mod incoming;
pub(crate) mod outgoing;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a partner says, or is told, that expects no particular number (MSA-4).
pub(crate) const ANY: i64 = -1;

/// The sequence number protocol (MSH-13, MSA-4).
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SequenceNumbers {
    /// Messages to the partner are numbered. Needs `order = "strict"`; there is one connection then.
    pub(crate) send: bool,
    /// Messages of partners must be numbered, and are refused out of their order.
    pub(crate) receive: bool,
    /// The partner expects another number than ours.
    pub(crate) on_mismatch: OnMismatch,
}

/// What to do about a partner that expects another number than ours, as after one side was restored from a backup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnMismatch {
    /// Nothing is sent until an operator has looked, or the partner expects ours again.
    #[default]
    Hold,
    /// Go on with the number that the partner expects.
    Adopt,
    /// Tell the partner to go on with ours (−1).
    Resynchronise,
}
