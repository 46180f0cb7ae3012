//! What every peer is asked to do.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::drive::{Connection, PATIENCE, drive};

/// A consumer looks this often whether it is still needed.
pub(crate) const LOOK: Duration = Duration::from_millis(100);
const IN_FLIGHT: u64 = 64;
const IN_FLIGHT_MANY: u64 = 256;

/// A system whose server runs.
pub(crate) trait Peer {
    fn name(&self) -> &'static str;
    fn version(&self) -> String;
    /// How it is made durable, for the table.
    fn durability(&self) -> &'static str;
    /// The numbers of consumers to measure with.
    fn consumers(&self) -> &'static [usize] {
        &[1]
    }
    /// A file that holds the address of its server, if Gatepost can keep its messages there too.
    fn url_file(&self) -> Option<PathBuf> {
        None
    }
    /// Makes an empty queue, and forgets the last.
    fn queue(&mut self) -> io::Result<()>;
    /// Connections that publish to it one message a request, and the requests to keep open on each.
    fn publishers(&mut self, in_flight: u64) -> io::Result<Publishing>;
    /// Something that consumes it until told to stop.
    fn consumer(&mut self, number: usize) -> io::Result<Consumer>;
}

pub(crate) struct Publishing {
    pub(crate) connections: Vec<Connection>,
    /// Requests open on each connection.
    pub(crate) window: u64,
    pub(crate) messages_per_request: u64,
}

/// Consumes until the flag is set, and counts what it has acknowledged durably.
pub(crate) type Consumer = Box<dyn FnOnce(&AtomicBool, &AtomicU64) -> io::Result<()> + Send>;

/// What one round found of a peer.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) serial_us_p50: f64,
    pub(crate) publish_64_per_s: f64,
    pub(crate) publish_256_per_s: f64,
    /// With so many consumers.
    pub(crate) end_to_end_per_s: Vec<(usize, f64)>,
}

pub(crate) fn measure(peer: &mut dyn Peer, length: Duration) -> io::Result<Figures> {
    let mut figures = Figures::default();
    let mut publish = |in_flight: u64, length: Duration| -> io::Result<(f64, f64)> {
        peer.queue()?;
        let publishing = peer.publishers(in_flight)?;
        let driven = drive(publishing.connections, publishing.window, length)?;
        Ok((driven.p50_us(), driven.per_second(publishing.messages_per_request)))
    };
    // Warm.
    publish(IN_FLIGHT_MANY, length / 5)?;
    figures.serial_us_p50 = publish(1, length)?.0;
    figures.publish_64_per_s = publish(IN_FLIGHT, length)?.1;
    figures.publish_256_per_s = publish(IN_FLIGHT_MANY, length)?.1;
    for &consumers in peer.consumers() {
        let per_s = end_to_end(peer, consumers, length)?;
        figures.end_to_end_per_s.push((consumers, per_s));
    }
    peer.queue()?;
    Ok(figures)
}

/// Publishes with 256 in flight while it is consumed, and waits until all has been acknowledged.
fn end_to_end(peer: &mut dyn Peer, consumers: usize, length: Duration) -> io::Result<f64> {
    peer.queue()?;
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut running: Vec<JoinHandle<io::Result<()>>> = Vec::new();
    for number in 0..consumers {
        let consumer = peer.consumer(number)?;
        let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
        running.push(std::thread::spawn(move || consumer(&stop, &acknowledged)));
    }
    let publishing = peer.publishers(IN_FLIGHT_MANY)?;
    let started = Instant::now();
    let published = drive(publishing.connections, publishing.window, length)?;
    let messages = published.confirmed * publishing.messages_per_request;
    let ended = all_acknowledged(messages, &acknowledged, &running);
    let elapsed = started.elapsed();
    stop.store(true, Ordering::Relaxed);
    for consumer in running {
        consumer.join().map_err(|_| io::Error::other("a consumer panicked"))??;
    }
    ended?;
    Ok(messages as f64 / elapsed.as_secs_f64())
}

fn all_acknowledged(
    messages: u64,
    acknowledged: &AtomicU64,
    consumers: &[JoinHandle<io::Result<()>>],
) -> io::Result<()> {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let now = acknowledged.load(Ordering::Relaxed);
        if now >= messages {
            return Ok(());
        }
        if consumers.iter().any(JoinHandle::is_finished) {
            return Err(io::Error::other("a consumer ended"));
        }
        if now > last {
            (last, since) = (now, Instant::now());
        }
        if since.elapsed() > PATIENCE {
            return Err(io::Error::other(format!("{now} of {messages} messages acknowledged, then nothing")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
