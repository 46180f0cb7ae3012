//! A session's connection: made or taken, given up, made again.

use std::sync::Arc;

use gatepost_adapter::tls::Stream;
use gatepost_adapter::{Delivery, Failure, Lease};
use tokio::time::Instant;

use super::{Arrival, Driver, GOOD_AFTER, Heard};
use crate::engine::{Closing, Now, Role};
use crate::link::{self, Link};

/// Deliveries that are told of in one turn.
const SENT_AT_ONCE_MAX: usize = 256;

impl Driver {
    /// Starts to connect, if it is this side that does and the time has come.
    pub(super) fn connect(&mut self, now: Now) {
        let Some(connector) = &self.connector else { return };
        // A new window may begin with new numbers.
        self.halted = self.halted.filter(|since| *since == self.engine.window(now));
        let may = self.enabled && self.halted.is_none() && !self.gateway.stop().is_requested();
        if !may
            || !self.connecting.is_empty()
            || Instant::now() < self.connect_at
            || !self.engine.is_open(now)
        {
            return;
        }
        let (connector, patience) = (Arc::clone(connector), self.config.logon_timeout);
        self.connecting.spawn(async move {
            let stream = connector.connect(patience).await.map_err(|error| error.to_string())?;
            link::prepare(&stream).map_err(|error| error.to_string())?;
            Ok(stream)
        });
    }

    pub(super) async fn connected(&mut self, made: Result<Stream, String>) -> Result<(), Failure> {
        match made {
            Ok(stream) => {
                self.begin(stream, &[]);
                self.gather().await
            }
            Err(error) => {
                // Said once per outage.
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(session = self.config.name, error, "cannot connect; trying again");
                }
                self.back_off();
                Ok(())
            }
        }
    }

    pub(super) fn begin(&mut self, stream: Stream, rest: &[u8]) {
        let data_fields = self.config.validator.data_fields().clone();
        self.link = Some(Link::new(stream, rest, self.message_bytes_max, data_fields));
        self.up_since = None;
        let now = self.now();
        self.engine.connected(now);
    }

    pub(super) async fn arrive(&mut self, arrival: Arrival) -> Result<(), Failure> {
        if self.link.is_some() {
            // No word to it: that would cost a sequence number of the session that is up.
            tracing::warn!(
                session = self.config.name,
                "turning a second connection away: the session is logged on"
            );
            return Ok(());
        }
        if !self.enabled {
            tracing::warn!(
                session = self.config.name,
                "turning a connection away: the session is not enabled"
            );
            return Ok(());
        }
        self.begin(arrival.stream, &arrival.rest);
        self.gather().await?;
        self.heard(Heard::Message(arrival.logon)).await
    }

    /// The connection is to be closed, or has been.
    pub(super) async fn disconnected(&mut self, why: Option<Closing>) -> Result<(), Failure> {
        let Some(link) = self.link.take() else { return Ok(()) };
        if let Some(why) = &why {
            tracing::info!(session = self.config.name, %why, "closing the connection");
        }
        if link.garbled() > 0 {
            tracing::warn!(session = self.config.name, count = link.garbled(), "messages were garbled");
        }
        let now = self.now();
        if why == Some(Closing::NumbersDiffer) && self.config.role == Role::Initiator {
            self.halted = Some(self.engine.window(now));
            tracing::error!(
                session = self.config.name,
                "not connecting again until numbers are set, or the adapter starts anew"
            );
        }
        self.gather().await?;
        for places in link.close().await {
            places.into_iter().for_each(|place| self.engine.written(place));
            self.gather().await?;
        }
        let begun: Vec<Lease> = self.in_hand.values().map(Delivery::lease).collect();
        for some in begun.chunks(SENT_AT_ONCE_MAX) {
            self.engine.may_have_left(some);
            self.gather().await?;
        }
        self.engine.disconnected();
        self.gather().await?;
        self.back_off();
        Ok(())
    }

    /// The longer the more often it has failed.
    pub(super) fn back_off(&mut self) {
        if self.up_since.take().is_some_and(|since| since.elapsed() >= GOOD_AFTER) {
            self.backoff.reset();
        }
        self.connect_at = Instant::now() + self.backoff.pause();
    }
}
