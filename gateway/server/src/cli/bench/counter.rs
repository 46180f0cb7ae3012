//! Hears from the adapters what they have settled.

use std::io;
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::net::UnixDatagram;
use tokio::time::timeout;

use super::super::failure::Failure;
use super::adapter::TALLY_BYTES;

/// How long the queues may take to drain without any progress.
const DRAIN_PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Counter {
    socket: UnixDatagram,
    /// Since the last reset.
    settled: u64,
    /// Times between the settles, µs, the first left out.
    cycles_us: Vec<u32>,
    heard: u64,
    /// When the last message came.
    pub(super) at: Instant,
}

impl Counter {
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        let socket = StdDatagram::bind(path)?;
        socket.set_nonblocking(true)?;
        let socket = UnixDatagram::from_std(socket)?;
        Ok(Self { socket, settled: 0, cycles_us: Vec::new(), heard: 0, at: Instant::now() })
    }

    /// Counts from zero again. All that was sent must have been settled.
    pub(super) fn reset(&mut self) {
        (self.settled, self.heard) = (0, 0);
        self.cycles_us.clear();
    }

    pub(super) async fn hear(&mut self) -> Result<(), Failure> {
        let mut message = [0; TALLY_BYTES];
        self.socket.recv(&mut message).await.map_err(Failure::io("cannot hear the adapter"))?;
        self.at = Instant::now();
        let (settled, cycle) = message.split_at(8);
        self.settled += settled.try_into().map_or(0, u64::from_le_bytes);
        if self.heard > 0 {
            let cycle = cycle.try_into().map_or(0, u64::from_le_bytes);
            self.cycles_us.push(u32::try_from(cycle).unwrap_or(u32::MAX));
        }
        self.heard += 1;
        Ok(())
    }

    /// Waits until so many have been settled since the reset.
    pub(super) async fn until(&mut self, messages: u64) -> Result<(), Failure> {
        while self.settled < messages {
            timeout(DRAIN_PATIENCE, self.hear()).await.map_err(|_| {
                Failure::unsuccessful(format!(
                    "the adapter settled {} of {messages} messages, then nothing for {} s",
                    self.settled,
                    DRAIN_PATIENCE.as_secs()
                ))
            })??;
        }
        Ok(())
    }

    /// The times between the settles, sorted.
    pub(super) fn cycles_us(&self) -> Vec<u32> {
        let mut sorted = self.cycles_us.clone();
        sorted.sort_unstable();
        sorted
    }
}
