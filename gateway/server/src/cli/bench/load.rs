//! The senders: so many connections, each with one request at a time, until the phase is over.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gatepost_api::BATCH_MEDIA_TYPE;
use tokio::task::JoinSet;

use super::super::failure::Failure;
use super::wire::{Wire, post};

/// Payload of every message, bytes.
pub(super) const PAYLOAD_BYTES: usize = 1024;
/// Messages of one batch.
pub(super) const BATCH: u64 = 100;
/// Digits of the part of an id that changes.
const ID_DIGITS: usize = 12;
const ID_ZERO: &str = "000000000000";

/// What one phase sends.
#[derive(Clone, Debug)]
pub(super) struct Phase {
    /// CloudEvents type, by which the messages are routed.
    pub(super) kind: &'static str,
    pub(super) senders: u64,
    /// Messages of one request: 1 or [`BATCH`].
    pub(super) batch: u64,
    /// Number of ordering keys; 0 for none.
    pub(super) keys: u64,
    pub(super) until: Until,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Until {
    Elapsed(Duration),
    /// So many messages over all senders.
    Messages(u64),
}

#[derive(Debug)]
pub(super) struct Measured {
    /// Messages that were accepted.
    pub(super) messages: u64,
    pub(super) elapsed: Duration,
    pub(super) started: Instant,
    /// Of each request, µs; sorted.
    pub(super) latencies_us: Vec<u32>,
}

impl Measured {
    pub(super) fn per_second(&self) -> f64 {
        self.messages as f64 / self.elapsed.as_secs_f64()
    }

    pub(super) fn percentile_us(&self, share: f64) -> u32 {
        percentile(&self.latencies_us, share)
    }
}

/// The value below which `share` of the sorted values lie; 0 of none.
pub(super) fn percentile(sorted: &[u32], share: f64) -> u32 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// Runs the phase against the gateway's socket for apps.
pub(super) async fn run(socket: &Path, phase: &Phase) -> Result<Measured, Failure> {
    let started = Instant::now();
    let mut senders = JoinSet::new();
    for number in 0..phase.senders {
        senders.spawn(send(socket.to_path_buf(), phase.clone(), number, started));
    }
    let mut result = Measured { messages: 0, elapsed: Duration::ZERO, started, latencies_us: Vec::new() };
    while let Some(ended) = senders.join_next().await {
        let latencies =
            ended.map_err(|error| Failure::unsuccessful(format!("a sender failed: {error}")))??;
        result.messages += latencies.len() as u64 * phase.batch;
        result.latencies_us.extend(latencies);
    }
    result.elapsed = started.elapsed();
    result.latencies_us.sort_unstable();
    Ok(result)
}

async fn send(socket: PathBuf, phase: Phase, number: u64, started: Instant) -> Result<Vec<u32>, Failure> {
    let failed = Failure::io("a sender lost its connection");
    let mut latencies = Vec::new();
    let mut request = Request::new(&phase, number);
    let rounds = match phase.until {
        Until::Elapsed(_) => u64::MAX,
        Until::Messages(messages) => messages.div_ceil(phase.batch * phase.senders),
    };
    let exchanges = async {
        let mut wire = Wire::connect(&socket).await?;
        for round in 0..rounds {
            if matches!(phase.until, Until::Elapsed(limit) if started.elapsed() >= limit) {
                break;
            }
            request.renumber(round * phase.batch);
            let begun = Instant::now();
            let status = wire.exchange(&request.bytes).await?;
            latencies.push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
            if status != 202 {
                return Ok(Some(refusal(status, wire.body())));
            }
        }
        io::Result::Ok(None)
    };
    match exchanges.await.map_err(failed)? {
        None => Ok(latencies),
        Some(refusal) => Err(refusal),
    }
}

fn refusal(status: u16, body: &[u8]) -> Failure {
    match serde_json::from_slice(body) {
        Ok(problem) => Failure::Refused(Box::new(problem)),
        Err(_) => Failure::Garbled { status },
    }
}

/// A request whose bytes are built once; only the digits of its ids, and of its keys, change.
struct Request {
    bytes: Vec<u8>,
    /// Where the ids' digits stand.
    ids: Vec<usize>,
    /// Where the keys' digits stand.
    keys: Vec<usize>,
    /// Number of keys; 0 for none.
    key_count: u64,
    /// Keeps the senders' keys apart from each other's rounds.
    offset: u64,
}

impl Request {
    fn new(phase: &Phase, number: u64) -> Self {
        let prefix = format!("{}-{number}", phase.kind.replace('.', "-"));
        let bytes = if phase.batch == 1 { single(phase, &prefix) } else { batch(phase, &prefix) };
        let mark = format!("{prefix}-{ID_ZERO}");
        let ids = positions(&bytes, mark.as_bytes()).map(|at| at + mark.len() - ID_DIGITS).collect();
        let mark = format!("key-{ID_ZERO}");
        let keys = positions(&bytes, mark.as_bytes()).map(|at| at + mark.len() - ID_DIGITS).collect();
        Self { bytes, ids, keys, key_count: phase.keys, offset: number * BATCH }
    }

    fn renumber(&mut self, first: u64) {
        for (n, &at) in (first..).zip(&self.ids) {
            write_digits(&mut self.bytes[at..at + ID_DIGITS], n);
        }
        for (n, &at) in (first + self.offset..).zip(&self.keys) {
            write_digits(&mut self.bytes[at..at + ID_DIGITS], n % self.key_count.max(1));
        }
    }
}

fn single(phase: &Phase, prefix: &str) -> Vec<u8> {
    let key = if phase.keys > 0 { format!("ce-partitionkey: key-{ID_ZERO}\r\n") } else { String::new() };
    let headers = format!(
        "ce-specversion: 1.0\r\nce-type: {}\r\nce-source: /bench\r\nce-id: {prefix}-{ID_ZERO}\r\n{key}",
        phase.kind
    );
    post("/v1/messages", "application/json", &headers, payload().as_bytes())
}

fn batch(phase: &Phase, prefix: &str) -> Vec<u8> {
    let key = if phase.keys > 0 { format!(r#","partitionkey":"key-{ID_ZERO}""#) } else { String::new() };
    let event = format!(
        r#"{{"specversion":"1.0","id":"{prefix}-{ID_ZERO}","source":"/bench","type":"{}","datacontenttype":"application/json"{key},"data":{}}}"#,
        phase.kind,
        payload()
    );
    let events = vec![event; phase.batch as usize];
    post("/v1/messages", BATCH_MEDIA_TYPE, "", format!("[{}]", events.join(",")).as_bytes())
}

/// A JSON object of [`PAYLOAD_BYTES`].
fn payload() -> String {
    const FRAME: &str = r#"{"text":""}"#;
    format!(
        r#"{{"text":"{}"}}"#,
        "The quick brown fox. ".repeat(50).get(..PAYLOAD_BYTES - FRAME.len()).unwrap_or("")
    )
}

fn positions<'a>(haystack: &'a [u8], needle: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    haystack.windows(needle.len()).enumerate().filter(move |(_, window)| *window == needle).map(|(at, _)| at)
}

fn write_digits(digits: &mut [u8], mut n: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (n % 10) as u8;
        n /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn phase(batch: u64, keys: u64) -> Phase {
        Phase { kind: "bench.accept", senders: 2, batch, keys, until: Until::Messages(1) }
    }

    fn body(request: &Request) -> &str {
        let text = std::str::from_utf8(&request.bytes).unwrap();
        text.split_once("\r\n\r\n").unwrap().1
    }

    #[test]
    fn the_payload_has_its_size_and_is_json() {
        assert_eq!(payload().len(), PAYLOAD_BYTES);
        assert!(serde_json::from_str::<serde_json::Value>(&payload()).is_ok());
    }

    #[test]
    fn no_two_messages_share_an_id() {
        let mut ids = HashSet::new();
        for sender in 0..2 {
            let mut request = Request::new(&phase(BATCH, 0), sender);
            for round in 0..3 {
                request.renumber(round * BATCH);
                let events: Vec<gatepost_api::Event> = serde_json::from_str(body(&request)).unwrap();
                assert_eq!(events.len() as u64, BATCH);
                for event in events {
                    assert_eq!(event.data.unwrap().as_bytes().len(), PAYLOAD_BYTES);
                    assert!(ids.insert(event.id));
                }
            }
        }
    }

    #[test]
    fn single_requests_change_their_id_and_key_only() {
        let mut request = Request::new(&phase(1, 10), 1);
        let length = request.bytes.len();
        request.renumber(7);
        let text = String::from_utf8(request.bytes.clone()).unwrap();
        assert!(text.contains("ce-id: bench-accept-1-000000000007\r\n"), "{text}");
        assert!(text.contains("ce-partitionkey: key-000000000007\r\n"), "{text}");
        assert_eq!(request.bytes.len(), length);
        assert_eq!(body(&request).len(), PAYLOAD_BYTES);
    }

    #[test]
    fn percentiles_are_of_the_sorted_values() {
        let values: Vec<u32> = (1..=100).collect();
        assert_eq!(
            (percentile(&values, 0.5), percentile(&values, 0.99), percentile(&values, 1.0)),
            (50, 99, 100)
        );
        assert_eq!(percentile(&[], 0.5), 0);
    }
}
