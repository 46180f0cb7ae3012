//! Data keys: erasing messages, and the seal key.

use serde::{Deserialize, Serialize};

/// Which messages are to be erased: one of the three.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EraseRequest {
    /// A message's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// All that this app has sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// All that have exactly this `subject`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EraseAnswer {
    /// Messages erased.
    pub erased: u64,
    /// Their ids; of many, the first 1,000.
    pub messages: Vec<String>,
    /// Messages that stay, since a delivery of theirs is under way: discard or resolve it, and erase again.
    pub under_way: u64,
    /// Their ids; of many, the first 1,000.
    pub messages_under_way: Vec<String>,
    /// Of the erased, how many were stored in the clear: of those, bytes may stand in free pages until they are used again.
    pub stored_plain: u64,
    /// The seal key's version since; all older ones are destroyed, so that copies of what was erased cannot be opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seal_key: Option<u32>,
    /// Why the older seal keys are there still: until they are destroyed, copies of the database can be opened with them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copies_remain: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RotateAnswer {
    /// The version that everything is wrapped with now.
    pub version: u32,
    /// Versions that were destroyed.
    pub destroyed: Vec<u32>,
}
