//! The wire of Gatepost: what stands in requests and answers of the HTTP API v1, as serde types.
//!
//! **Architecture invariant:** this crate does no I/O and imports no other crate of the workspace; adapters and
//! clients link it without linking the gateway. Requests refuse unknown fields, answers tolerate them.

pub mod calls;
pub mod event;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod keys;
pub mod lists;
pub mod messages;
pub mod problem;
pub mod queues;
pub mod session;
pub mod settle;

pub use event::{Data, Event, EventError, Extension};
pub use problem::{Code, Problem};

/// Media type of one CloudEvent in structured mode (CloudEvents JSON format §3).
pub const EVENT_MEDIA_TYPE: &str = "application/cloudevents+json";
/// Media type of a batch of CloudEvents (CloudEvents JSON format §4).
pub const BATCH_MEDIA_TYPE: &str = "application/cloudevents-batch+json";
/// Header in which an adapter names its session when it takes in messages outside `settle`.
pub const EPOCH_HEADER: &str = "gatepost-epoch";
/// Header that names a request's idempotency key (draft-ietf-httpapi-idempotency-key-header-07).
pub const IDEMPOTENCY_HEADER: &str = "idempotency-key";
