//! `POST /v1/queues/{name}/lease`.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

/// Most deliveries of one lease answer.
pub const LEASE_DELIVERIES_MAX: u32 = 1000;
/// Longest long poll, ms.
pub const LEASE_WAIT_MS_MAX: u64 = 60_000;
/// Lease length when the request names none, ms.
pub const LEASE_MS_DEFAULT: u64 = 30_000;
/// Longest lease, ms.
pub const LEASE_MS_MAX: u64 = 3_600_000;
/// Longest `request_id`, bytes.
pub const REQUEST_ID_BYTES_MAX: usize = 128;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LeaseRequest {
    /// Most deliveries wanted, 1 to 1000.
    pub max: u32,
    /// Stop adding events beyond this many payload bytes; at least one is always given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// How long to wait for something to give, ms; 0 answers at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
    /// Length of the leases, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u64>,
    /// Repeating a request under the same id gives the same, still valid leases again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// An adapter's session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
}

/// Answer to a lease. The events are raw JSON: the gateway assembles them from stored bytes.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LeaseResponse {
    pub deliveries: Vec<LeasedDelivery>,
    /// There is nothing because an operator has paused the queue.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LeasedDelivery {
    pub id: Uuid,
    pub token: String,
    /// The attempt's number in its series, from 1.
    pub attempt: u32,
    /// Bytes of an earlier attempt may have reached the partner.
    pub in_doubt: bool,
    /// How long the lease lasts from the moment this answer was received, ms.
    pub lease_ms: u64,
    /// The CloudEvent; above 1 MiB it has `dataref` in place of data.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub event: Box<RawValue>,
}
