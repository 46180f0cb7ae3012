//! Lists for operators: pages of messages, deliveries, queues and adapters.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A delivery as lists show it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeliveryItem {
    pub id: Uuid,
    pub message: Uuid,
    pub destination: String,
    pub state: String,
    /// Closed code that says why it is in this state, for example `rejected`, `attempts_spent`, `poison`, `held`.
    pub reason: Option<String>,
    /// Attempts charged in the present series.
    pub attempts: u32,
    /// How often it was replayed from `dead`.
    pub series: u32,
    pub in_doubt: bool,
    pub replayed: bool,
    /// RFC 3339, UTC.
    pub accepted_at: String,
    /// When it entered its present state.
    pub changed_at: String,
    /// When it is due next; only while it waits.
    pub due_at: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeliveryList {
    pub deliveries: Vec<DeliveryItem>,
    pub next: Option<String>,
}

/// A message as lists show it.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MessageItem {
    pub id: Uuid,
    pub app: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub accepted_at: String,
    pub size: u64,
    pub deliveries: Vec<DeliveryItem>,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MessageList {
    pub messages: Vec<MessageItem>,
    pub next: Option<String>,
}

/// One destination's queue.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct QueueItem {
    pub name: String,
    /// `adapter`, `inbox`, `builtin`, or `removed` for one that has left the configuration with deliveries in it.
    pub kind: String,
    pub depth: Depth,
    /// Age in milliseconds of the oldest delivery that is not settled.
    pub oldest_ms: Option<u64>,
    /// Age in milliseconds of the oldest delivery that is due and not leased.
    pub oldest_ready_ms: Option<u64>,
    /// Lanes blocked by a delivery held in doubt or a dead head.
    pub held_lanes: u64,
    pub paused: bool,
    /// Why the breaker holds the queue back, if it does.
    pub tripped: Option<String>,
    pub rate: Rate,
}

/// Deliveries by state; `held` counts those in doubt that wait for a person (also in `in_doubt`).
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Depth {
    pub waiting: u64,
    pub leased: u64,
    pub sending: u64,
    pub in_doubt: u64,
    pub held: u64,
    pub dead: u64,
}

/// Per second, over the last minute.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Rate {
    pub accepted_per_s: f64,
    pub settled_per_s: f64,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct QueueList {
    pub queues: Vec<QueueItem>,
    pub next: Option<String>,
}

/// One of the gateways that share a database.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeItem {
    /// `[gateway] node` of its configuration.
    pub name: String,
    /// Eight hexadecimal digits, others for each start.
    pub epoch: String,
    pub version: String,
    pub started_at: String,
    /// It is the one that answers.
    pub here: bool,
    /// Milliseconds that are left of its right to write, which it renews every second; null when another node is about to take its
    /// place.
    pub lease_ms: Option<u64>,
    /// It gives the audit log's entries their places.
    pub sequencer: bool,
    /// Adapters with `nodes = "one"` that run here.
    pub adapters: Vec<String>,
    pub queues: Vec<NodeShare>,
}

/// A node's share of a queue that it has a consumer of.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeShare {
    pub queue: String,
    /// Parts of the queue that it leases from …
    pub buckets: u32,
    /// … of so many.
    pub of: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeList {
    /// By name; none for a gateway that has its database for itself.
    pub nodes: Vec<NodeItem>,
}

/// What an app or an adapter has handed in and is not settled.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SenderItem {
    /// Kind and name: `app:NAME` or `adapter:NAME`.
    pub sender: String,
    /// A message to several destinations counts for each.
    pub deliveries: u64,
    /// Their payloads.
    pub bytes: u64,
    /// What the configuration allows of it; null for a sender without such a limit.
    pub limit: Option<SenderLimit>,
}

/// Of what is not settled; null where only the other is limited.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SenderLimit {
    pub deliveries: Option<u64>,
    pub bytes: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SenderList {
    /// By name; also those that have left the configuration.
    pub senders: Vec<SenderItem>,
}

/// An operator's reason for what it does to a delivery.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReasonRequest {
    pub reason: String,
}

/// Gives what waits and what is dead in one queue to another destination.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MoveRequest {
    /// An adapter or inbox of the configuration.
    pub to: String,
    pub reason: String,
    /// The `next` of the answer before; absent to begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// What one call has moved, and where to go on.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MoveAnswer {
    /// Deliveries that wait at the new destination now.
    pub waiting: u64,
    /// Dead ones, which are dead there now, for the reason they died of.
    pub dead: u64,
    /// Waited past their expiry, and have ended as `expired` instead.
    pub expired: u64,
    /// What the queue holds still: with the partner, in doubt, or waiting in a lane behind such a one.
    pub left: Depth,
    /// Not null: there may be more; call again with this as `cursor`.
    pub next: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ResolveRequest {
    #[serde(rename = "as")]
    pub resolution: Resolution,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Resolution {
    Delivered,
    Retry,
    Dead,
}

/// An adapter process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AdapterItem {
    pub name: String,
    /// `starting`, `running`, `backing_off`, `tripped`, `stopping`, `elsewhere` (another node runs it), `external` or `external_absent`.
    pub state: String,
    pub pid: Option<u32>,
    pub version: Option<String>,
    pub restarts: u64,
    pub session_epoch: Option<u64>,
    pub last_error: Option<String>,
    pub started_at: Option<String>,
    /// What was taken from its process; absent for one that somebody else starts, and while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxItem>,
}

/// What was taken from an adapter's process before its program started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SandboxItem {
    /// `strict`, `standard`, `minimal` or `off`, as configured: a level that cannot be reached starts nothing.
    pub level: String,
    pub uid: u32,
    /// The gateway, started as root, gave it a user of its own.
    pub own_uid: bool,
    /// Version of Landlock in force; 0 is none.
    pub landlock_abi: u8,
    pub seccomp: bool,
    /// Memory of all its processes together; absent without such a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Its processes and threads; absent without such a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
    /// Processor time, in hundredths of a processor; absent without such a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u32>,
    /// What is not there, and what follows from that.
    pub missing: Vec<String>,
    /// What the configuration asks for by name and what is not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unmet: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AdapterList {
    pub adapters: Vec<AdapterItem>,
    pub next: Option<String>,
}
