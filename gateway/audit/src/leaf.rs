//! What one entry of the log says, and its one encoding: RFC 8785 canonical JSON of a flat, closed object.
//!
//! A leaf holds ids, states, outcomes, times and digests; never payload, never a person's identifier, and no index:
//! where it stands is what the tree says. One meaning has one encoding, and [`Leaf::parse`] refuses every other.

mod encode;
mod instant;
mod parse;

use std::borrow::Cow;

use crate::tiles::ENTRY_BYTES_MAX;

/// Canonical JSON numbers are doubles, which count exactly up to here.
pub const INTEGER_MAX: u64 = (1 << 53) - 1;
/// The last microsecond of the year 9999, the last one that RFC 3339 can spell.
pub const AT_US_MAX: i64 = 253_402_300_799_999_999;
pub const CODE_CHARS_MAX: usize = 40;

/// Defines a closed set of words.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$about:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$about])* $variant,)+ }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// What happened.
    Event {
        /// A message was accepted; `deliveries` names what becomes of it.
        Accepted = "accepted",
        /// An adapter handed in a message with a settle; as `accepted`.
        Emitted = "emitted",
        /// Bytes may leave from now on.
        Attempt = "attempt",
        /// Written to the wire; the proof is still to come.
        Sent = "sent",
        Delivered = "delivered",
        Retry = "retry",
        /// Given back, or a lease lost, before any byte left.
        Released = "released",
        InDoubt = "in_doubt",
        Dead = "dead",
        Expired = "expired",
        Replayed = "replayed",
        Discarded = "discarded",
        /// An operator decided a doubt; `state` says how.
        Resolved = "resolved",
        /// An operator gave it to another destination: `destination` from now on, `subject_of` until now.
        Moved = "moved",
        PayloadRead = "payload_read",
        Searched = "searched",
        AuditRead = "audit_read",
        AuditExported = "audit_exported",
        /// An operator made the gateway go on from a log that does not extend its last checkpoint, or, where `code` is `restored`,
        /// from that of a backup: what was signed after the backup is not in it. A leaf of this kind has, as `subject_of`, `sha256:`
        /// and the digest of the file beside the log in which the reason stands.
        AuditAdopted = "audit_adopted",
        QueuePaused = "queue_paused",
        QueueResumed = "queue_resumed",
        BreakerTripped = "breaker_tripped",
        BreakerResumed = "breaker_resumed",
        AdapterStarted = "adapter_started",
        /// What was taken from the adapter's process before its program started: `code` holds the level, the version of Landlock,
        /// whether calls are filtered, and whose user it is.
        AdapterSandboxed = "adapter_sandboxed",
        AdapterExited = "adapter_exited",
        AdapterRestarted = "adapter_restarted",
        /// An operator called an adapter for what `code` says: `subject_of` is `sha256:` and the digest of the file beside the log that
        /// holds the arguments and the reason.
        AdapterCalled = "adapter_called",
        /// What the adapter said to the call with the same `subject_of`: `code` is `done` or `refused`. Without one nobody knows.
        AdapterAnswered = "adapter_answered",
        SessionOpened = "session_opened",
        ConfigChanged = "config_changed",
        GatewayStarted = "gateway_started",
        GatewayStopped = "gateway_stopped",
        /// A peer or a request was refused; `code` says why.
        Refused = "refused",
        PayloadPurged = "payload_purged",
        /// An operator had everything erased that a message was about.
        MessageErased = "message_erased",
        /// Data keys are wrapped with a new version of the seal key, and the older ones destroyed; `subject_of` is the version.
        SealKeyRotated = "seal_key_rotated",
        /// A row of the database holds something else than was written; `subject_of` says which.
        DamageFound = "damage_found",
        /// An operator saved what was sound of a damaged directory into a new one, in which the log goes on from here, or, as
        /// `code` says, begins. `subject_of` is `sha256:` and the digest of the file beside the log that lists what was damaged,
        /// `count` how much.
        Salvaged = "salvaged",
        /// The first leaf of every log.
        LogOpened = "log_opened",
    }
}

words! {
    /// The kind of principal that did it.
    ActorKind {
        Gateway = "gateway",
        App = "app",
        Adapter = "adapter",
        Operator = "operator",
        /// Someone who could not be matched to a principal.
        Peer = "peer",
    }
}

words! {
    /// What the evidence of an outcome proves.
    Level { Sent = "sent", Transport = "transport", Business = "business", }
}

words! {
    /// The state of the delivery after the event.
    State {
        Waiting = "waiting",
        Leased = "leased",
        Sending = "sending",
        InDoubt = "in_doubt",
        Delivered = "delivered",
        Dead = "dead",
        Expired = "expired",
        Discarded = "discarded",
    }
}

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct By<'a> {
    pub kind: ActorKind,
    pub name: Cow<'a, str>,
}

impl<'a> By<'a> {
    pub fn new(kind: ActorKind, name: impl Into<Cow<'a, str>>) -> Self {
        Self { kind, name: name.into() }
    }
}

/// One delivery that an accepted message leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafDelivery<'a> {
    pub id: [u8; 16],
    pub to: Cow<'a, str>,
}

/// One entry. Make one with [`Leaf::new`] and set what applies; absent fields are not encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf<'a> {
    /// Microseconds since the Unix epoch, store time.
    pub at: i64,
    /// Number of this attempt within its series.
    pub attempt: Option<u32>,
    /// Attempts charged so far.
    pub attempts: Option<u32>,
    pub by: By<'a>,
    /// Closed reason code, `[a-z0-9_]{1,40}`; its text stays in the database.
    pub code: Option<Cow<'a, str>>,
    /// HMAC-SHA-256 of the payload under a salt that is erased with it.
    pub content: Option<[u8; 32]>,
    /// How many like events this leaf stands for.
    pub count: Option<u64>,
    pub deliveries: Vec<LeafDelivery<'a>>,
    pub delivery: Option<[u8; 16]>,
    pub destination: Option<Cow<'a, str>>,
    /// Whether the partner may already have got it.
    pub doubt: Option<bool>,
    pub event: Event,
    /// Digest of what the partner answered.
    pub evidence: Option<[u8; 32]>,
    pub level: Option<Level>,
    pub message: Option<[u8; 16]>,
    /// Rises with each replay.
    pub series: Option<u32>,
    /// Epoch of the adapter's session.
    pub session: Option<u64>,
    /// Payload bytes.
    pub size: Option<u64>,
    pub state: Option<State>,
    /// What an operator's or security event was about, such as a principal or a queue.
    pub subject_of: Option<Cow<'a, str>>,
}

impl<'a> Leaf<'a> {
    pub fn new(at: i64, by: By<'a>, event: Event) -> Self {
        Self {
            at,
            attempt: None,
            attempts: None,
            by,
            code: None,
            content: None,
            count: None,
            deliveries: Vec::new(),
            delivery: None,
            destination: None,
            doubt: None,
            event,
            evidence: None,
            level: None,
            message: None,
            series: None,
            session: None,
            size: None,
            state: None,
            subject_of: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    #[error("it has {0} bytes, more than {ENTRY_BYTES_MAX}")]
    TooLong(usize),
    #[error("it is not UTF-8")]
    NotUtf8,
    #[error("it is not canonical JSON at byte {offset}")]
    NotCanonical { offset: usize },
    #[error("unknown key {0:?}")]
    UnknownKey(String),
    #[error("the key {0:?} is missing")]
    MissingKey(&'static str),
    #[error("{key:?} is not {expected}")]
    WrongValue { key: &'static str, expected: &'static str },
    #[error("{word:?} is not a known {key}")]
    UnknownWord { key: &'static str, word: String },
}

fn is_code(code: &str) -> bool {
    (1..=CODE_CHARS_MAX).contains(&code.len())
        && code.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

#[cfg(test)]
mod tests;
