//! The gateway's ears: sockets, who the peer is, and how much of one peer the gateway bears.
//!
//! A connection is accepted, the kernel (or its certificate) says who it is, and only a peer that some principal may match is read
//! from; every other one gets a fixed answer without a byte read. What is served is the application's `axum::Router`, with the
//! [`Peer`] in each request's extensions.
//!
//! This module must never take an identity from anything that the peer wrote, never listen on an abstract socket or on TCP without
//! client certificates, and never wait for a peer without a deadline.

mod adapter;
mod answer;
mod arrival;
mod body;
mod connection;
mod counters;
mod credentials;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod pace;
mod passed;
mod peer;
mod quota;
mod serve;
mod tls;
mod unix;

#[cfg(test)]
pub(crate) mod tests;

use std::time::Duration;

pub(crate) use adapter::{
    AdapterSockets, EgressSocket, ExpectedPid, HandedOver, adopt_adapter_sockets, bind_adapter_sockets,
};
pub(crate) use body::BodyError;
pub(crate) use counters::Counters;
pub(crate) use credentials::processes_are_provable;
pub(crate) use passed::{Passed, PassedError};
#[cfg(test)]
pub(crate) use peer::ConnectionId;
pub(crate) use peer::{Peer, PeerGate, Refusal, RefusalCode, RefusalSink, Serves};
pub(crate) use serve::{ListenError, Listener, Server};
pub(crate) use tls::{ServerTls, keep_current};
pub(crate) use unix::UnixBindError;

use crate::spaced::Spacing;

/// What one gateway bears of its peers.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) connections_per_listener: usize,
    /// Over all listeners but those of supervised adapters, which are bounded by themselves.
    pub(crate) connections_total: usize,
    /// On one listener: by user id on Unix sockets, by address on TCP.
    pub(crate) connections_per_peer: usize,
    /// New connections of one peer on one listener. One that comes too soon waits, with its place, before it is listened to.
    pub(crate) arrivals: Spacing,
    /// Connections for which there is no place, likewise. One that comes too soon is told later.
    pub(crate) turned_away: Spacing,
    /// Connections that bring no request, of one process or address. After too many its next ones wait.
    pub(crate) in_vain: Spacing,
    /// Request line and header fields together.
    pub(crate) head_bytes: usize,
    pub(crate) head_fields: usize,
    /// From accept to the end of the TLS handshake.
    pub(crate) handshake: Duration,
    /// From accept to the end of the first request's head, and from the first byte to the last of each later one.
    pub(crate) head: Duration,
    /// Between two requests.
    pub(crate) idle: Duration,
    /// How long the peer may keep the gateway waiting for [`body::PROGRESS_BYTES_MIN`] bytes of a request's body.
    pub(crate) body: Duration,
    /// How long the peer may take to accept any further byte of an answer.
    pub(crate) write: Duration,
    /// From the order to stop until the last connection is cut.
    pub(crate) drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_per_listener: 1024,
            connections_total: 4096,
            connections_per_peer: 256,
            // A thousand a second: nobody makes more who means well.
            arrivals: Spacing {
                interval: Duration::from_millis(1),
                prompt: 256,
                wait_max: Duration::from_secs(5),
            },
            // A hundred a second: nobody who listens gets as many.
            turned_away: Spacing {
                interval: Duration::from_millis(10),
                prompt: 50,
                wait_max: Duration::from_secs(5),
            },
            // Fifty a second: what answers them costs a neighbour more than a refusal does.
            in_vain: Spacing {
                interval: Duration::from_millis(20),
                prompt: 25,
                wait_max: Duration::from_secs(5),
            },
            head_bytes: 64 * 1024,
            head_fields: 100,
            handshake: Duration::from_secs(5),
            head: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            body: Duration::from_secs(30),
            write: Duration::from_secs(30),
            drain: Duration::from_secs(10),
        }
    }
}
