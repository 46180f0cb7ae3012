//! A message as a sender hands it in, and its limits.

use std::fmt;
use std::time::Duration;

use crate::time::Timestamp;

/// Default of `[gateway] max_message`, bytes.
pub const MESSAGE_BYTES_MAX_DEFAULT: u64 = 64 * 1024 * 1024;
/// Most events of one batch.
pub const BATCH_EVENTS_MAX: usize = 1000;
/// Most bytes of one batch.
pub const BATCH_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Longest idempotency key, bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Events with more payload bytes than this are leased by reference.
pub const INLINE_DATA_BYTES_MAX: u64 = 1024 * 1024;
/// Default of `[gateway] dedup_window`.
pub const DEDUP_WINDOW_DEFAULT: Duration = Duration::from_secs(8 * 86_400);

/// How a payload stands in the JSON form of its event; decided once, when it is accepted, by parsing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataForm {
    /// The event has no data.
    None,
    /// One valid JSON value: spliced as it is.
    Json,
    /// Valid UTF-8 under `text/*`: a JSON string.
    Text,
    /// Everything else: `data_base64`.
    Base64,
}

/// A message on its way into the store. `attributes` is the event's JSON without data.
#[derive(Clone)]
pub struct NewMessage {
    /// The attribute `type`.
    pub kind: String,
    pub source: String,
    pub subject: Option<String>,
    pub partition_key: Option<String>,
    /// A second ordering key: the message is delivered behind all that came before it under either key, and before all
    /// that comes after it under either.
    pub barrier_key: Option<String>,
    pub datacontenttype: Option<String>,
    pub correlation_id: Option<String>,
    pub expires_at: Option<Timestamp>,
    pub attributes: Vec<u8>,
    pub form: DataForm,
    pub data: Vec<u8>,
    /// What makes a second hand-in the same: the sender's key, else the event's source and id.
    pub idempotency_key: String,
    /// Names of destinations, each once.
    pub destinations: Vec<String>,
}

impl fmt::Debug for NewMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewMessage({}, {} bytes)", self.kind, self.data.len())
    }
}
