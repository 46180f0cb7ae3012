//! What a destination's configuration says about its deliveries.

use std::time::Duration;

/// Which deliveries of a destination wait for each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// None of them.
    #[default]
    None,
    /// Those with the same `partitionkey`.
    Key,
    /// All of them.
    Strict,
}

/// What happens to a delivery whose bytes may have reached the partner without an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDoubt {
    /// Send again under the same delivery id.
    #[default]
    Resend,
    /// Wait for a person.
    Hold,
    /// Lease it again, marked, so that the adapter asks the partner first.
    Query,
}

impl OnDoubt {
    /// Whether handing out the lease already counts as the begin of an attempt.
    pub fn lease_begins(self) -> bool {
        self == Self::Resend
    }
}

/// What a dead delivery does to its lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDead {
    #[default]
    Continue,
    HoldLane,
}

/// How much an outcome's evidence proves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Written to the wire.
    Sent,
    /// The partner's transport confirmed: HL7 AA/CA, HTTP 2xx, a FIX session confirmation.
    #[default]
    Transport,
    /// The partner's application confirmed.
    Business,
}

/// Whose trouble a failed attempt is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RetryScope {
    #[default]
    Message,
    /// The partner is unreachable, refuses the login or throttles: no attempt is charged, the destination backs off.
    Destination,
    /// The same of the one among the destination's partners that this lane leads to: nothing is charged, and all other lanes go on.
    Lane,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    pub initial: Duration,
    pub max: Duration,
    /// Attempts charged before a delivery is dead; at least 1.
    pub attempts: u32,
    /// Age at which a delivery is dead; time in which its destination was paused or tripped does not count.
    pub give_up_after: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            initial: Duration::from_secs(1),
            max: Duration::from_secs(300),
            attempts: 20,
            give_up_after: Duration::from_secs(7 * 86_400),
        }
    }
}

/// Accepting stops when a destination's backlog has reached one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BacklogLimit {
    pub messages: u64,
    pub bytes: u64,
}

/// Everything the machine must know about one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePolicy {
    pub order: Order,
    pub on_doubt: OnDoubt,
    pub on_dead: OnDead,
    /// The weakest evidence that counts as delivered; inboxes ask for none.
    pub confirm: Option<Level>,
    pub retry: RetryPolicy,
    /// Most consecutive deliveries of one lane leased at a time, at least 1.
    pub window: u32,
    pub max_in_flight: u32,
    pub max_backlog: Option<BacklogLimit>,
}

impl Default for QueuePolicy {
    fn default() -> Self {
        Self {
            order: Order::default(),
            on_doubt: OnDoubt::default(),
            on_dead: OnDead::default(),
            confirm: Some(Level::default()),
            retry: RetryPolicy::default(),
            window: 1,
            max_in_flight: 256,
            max_backlog: None,
        }
    }
}

macro_rules! names {
    ($type:ty { $($variant:path => $name:literal),+ }) => {
        impl $type {
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            pub const fn as_str(self) -> &'static str {
                match self { $($variant => $name),+ }
            }

            /// Reads the name used in configuration and on the wire.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some($variant),)+ _ => None }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

names!(Order { Order::None => "none", Order::Key => "key", Order::Strict => "strict" });
names!(OnDoubt { OnDoubt::Resend => "resend", OnDoubt::Hold => "hold", OnDoubt::Query => "query" });
names!(OnDead { OnDead::Continue => "continue", OnDead::HoldLane => "hold_lane" });
names!(Level { Level::Sent => "sent", Level::Transport => "transport", Level::Business => "business" });
names!(RetryScope { RetryScope::Message => "message", RetryScope::Destination => "destination", RetryScope::Lane => "lane" });
