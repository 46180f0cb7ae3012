//! The domain of Gatepost: messages, the delivery machine, retry, routing and rights.
//!
//! **Architecture invariant:** nothing here does I/O, reads a clock or draws randomness; time and randomness are
//! parameters. This crate knows no database, no HTTP and no partner protocol.

pub mod delivery;
pub mod id;
pub mod message;
pub mod policy;
pub mod principal;
pub mod queue;
pub mod retry;
pub mod routing;
pub mod time;

pub use delivery::{Change, Delivery, Event, Illegal, Outcome, Resolution, Settled, State};
pub use id::{DeliveryId, LeaseToken, MessageId};
pub use policy::{Level, OnDead, OnDoubt, Order, QueuePolicy, RetryPolicy, RetryScope};
pub use time::{IdleMark, Timestamp};
