//! `POST /v1/session`: an adapter opens its session and thereby ends its earlier ones.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Connections that one supervised adapter may have open.
pub const ADAPTER_CONNECTIONS_MAX: usize = 64;
/// Connections to partners that it may ask for at a time.
pub const EGRESS_AT_ONCE_MAX: usize = 256;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SessionRequest {
    /// The program's version, shown to operators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SessionResponse {
    /// Goes into every lease, settle and accept of this session; an older one is refused as `superseded`.
    pub epoch: u64,
    /// The adapter's name, which is also its queue's.
    pub name: String,
    /// The adapter's own settings from the configuration.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub settings: Box<RawValue>,
    /// The adapter's durable state: key → base64.
    pub state: BTreeMap<String, String>,
    /// `resend`, `hold` or `query`; without `resend` the adapter begins each delivery before bytes leave.
    pub on_doubt: String,
    /// The level of evidence that counts as delivered: `sent`, `transport` or `business`.
    pub confirm: String,
    /// `none`, `key` or `strict`: what deliveries wait for one another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
    /// Most consecutive deliveries of one lane leased at a time.
    pub window: u32,
    pub max_in_flight: u32,
}
