//! What an adapter links: the session with its gateway, work in bounded parallel, outcomes, intake, drain.
//!
//! An adapter is a process that speaks one partner protocol. It implements [`Adapter`] for its settings and [`Worker`]
//! for its sending side, hands what partners send to [`Session::accept`], and calls [`main`]. Everything durable happens
//! in the gateway: leases say what to attempt, settling says what came of it, and adapter state commits together with
//! that.
//!
//! **Architecture invariant:** nothing here knows a partner protocol, and nothing here retries a delivery. Calls to the
//! gateway are repeated until it answers, because every one of them is idempotent; whether a partner is tried again is
//! the gateway's decision.

mod binary;
mod calls;
mod client;
mod delivery;
mod desk;
pub mod egress;
mod evidence;
pub mod files;
mod intake;
mod lease;
mod lifetime;
pub mod listener;
mod network;
mod partners;
mod patience;
mod pipeline;
mod process;
mod session;
mod settle;
mod settlement;
mod space;
mod state;
#[cfg(feature = "tls")]
pub mod tls;
mod work;

#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use calls::OperatorCall;
pub use client::{CallError, Refusal};
pub use delivery::{DataError, Delivery};
pub use desk::Placement;
pub use evidence::{Evidence, Outcome, REPLY_BYTES_MAX, binary_reply, digest, reply, reply_bytes};
pub use gatepost_api::calls::Offer;
pub use gatepost_api::event::{Data, Event, Extension};
pub use gatepost_api::messages::Reply;
pub use gatepost_api::settle::{EmittedItem, Level, Scope, SettleResponse, SettleStatus, SettledItem};
pub use intake::{ACCEPT_EVENTS_MAX, AcceptError, Accepted};
pub use lease::{Lease, LeaseLost};
pub use lifetime::Stop;
pub use network::{Network, NetworkError};
pub use partners::{Dispatch, PartnerSetup, PartnerState, Partners, PartnersWork};
pub use patience::Backoff;
pub use pipeline::Pipeline;
pub use process::{Access, Adapter, Args, Failure, Fault, Manifest, element, main};
pub use session::{OnDoubt, Session};
pub use settlement::{SettleError, Settlement};
pub use space::{Space, SpaceError};
pub use state::{STATE_BYTES_MAX, StateChanges};
pub use work::{Crew, Worker};
