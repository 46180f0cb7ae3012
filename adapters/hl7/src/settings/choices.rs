//! Settings with a few values, each with a name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What may end a segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SegmentEnd {
    /// CR, LF or CR LF, as the message's first segment ends.
    #[default]
    Any,
    /// CR, as HL7 says; other messages are refused.
    Cr,
}

/// Who gives the application acknowledgement in enhanced mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ApplicationAck {
    /// The application, by a message of its own through the gateway; here it says nothing.
    #[default]
    App,
    /// The adapter, as soon as the message is stored, right behind the accept acknowledgement.
    OnCommit,
}

/// What a control id is worth that a partner has used before, for a message with other content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnReusedId {
    /// Nothing: some senders put the same id into every message. Only the same bytes are the same message.
    #[default]
    Accept,
    /// The sender's word: within the gateway's window another message with the same MSH-3, MSH-4 and MSH-10 is refused.
    Refuse,
}

/// The acknowledgements of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BatchAck {
    /// Each in a frame of its own, in the order of the messages.
    #[default]
    Message,
    /// All in one batch, which names the partner's in BHS-12.
    Batch,
}

/// What somebody gets who sends bytes that are not HL7.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnUnreadable {
    /// An AR that names no message.
    #[default]
    Answer,
    /// Nothing.
    Silence,
}
