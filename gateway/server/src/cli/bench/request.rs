//! Requests whose bytes are built once; only the digits of ids, keys and destinations change from one to the next.

use gatepost_api::BATCH_MEDIA_TYPE;

use super::wire::post;

/// Digits of the part of an id, or of a key, that changes.
const DIGITS: usize = 12;
const ZERO: &str = "000000000000";
/// Digits of a destination's number.
pub(super) const DESTINATION_DIGITS: usize = 3;

/// What the messages of a request look like.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// CloudEvents type, by which the messages are routed.
    pub(super) kind: String,
    /// Destinations that share the messages; their number is added to the type. 0 for a type as it stands.
    pub(super) destinations: u64,
    /// Messages of one request; 1 is sent in binary mode.
    pub(super) batch: u64,
    /// Number of ordering keys; 0 for none.
    pub(super) keys: u64,
    pub(super) payload_bytes: usize,
    /// Keeps the ids of a phase apart from those of all others in the same store.
    pub(super) series: u32,
    /// The sender's token, where its connection alone does not say who it is.
    pub(super) bearer: Option<&'static str>,
}

impl Shape {
    /// The senders begin as far apart among the keys as they can.
    pub(super) fn first_key(&self, sender: u64, senders: u64) -> u64 {
        sender * (self.keys / senders).max(1)
    }
}

pub(super) struct Request {
    pub(super) bytes: Vec<u8>,
    ids: Digits,
    keys: Digits,
    destinations: Digits,
}

impl Request {
    /// For the `sender`th of so many.
    pub(super) fn new(shape: &Shape, sender: u64, senders: u64) -> Self {
        let prefix = format!("bench-{}-{sender}-", shape.series);
        let bytes = if shape.batch == 1 { single(shape, &prefix) } else { batch(shape, &prefix) };
        Self {
            ids: Digits::find(&bytes, &format!("{prefix}{ZERO}"), DIGITS, 0, u64::MAX),
            keys: Digits::find(
                &bytes,
                &format!("key-{ZERO}"),
                DIGITS,
                shape.first_key(sender, senders),
                shape.keys,
            ),
            destinations: Digits::find(
                &bytes,
                &format!("{}.{}", shape.kind, &ZERO[..DESTINATION_DIGITS]),
                DESTINATION_DIGITS,
                sender,
                shape.destinations,
            ),
            bytes,
        }
    }

    /// Makes it the request whose first message is the sender's `first`.
    pub(super) fn renumber(&mut self, first: u64) {
        for digits in [&self.ids, &self.keys, &self.destinations] {
            digits.write(&mut self.bytes, first);
        }
    }
}

/// The places of one kind of number.
struct Digits {
    /// Where they end.
    ends: Vec<usize>,
    width: usize,
    /// Added to the number.
    offset: u64,
    /// The number is taken modulo this.
    count: u64,
}

impl Digits {
    fn find(bytes: &[u8], mark: &str, width: usize, offset: u64, count: u64) -> Self {
        let found = memchr::memmem::find_iter(bytes, mark).map(|at| at + mark.len());
        let ends = if count == 0 { Vec::new() } else { found.collect() };
        Self { ends, width, offset, count }
    }

    fn write(&self, bytes: &mut [u8], first: u64) {
        for (n, &end) in (first + self.offset..).zip(&self.ends) {
            let mut n = n % self.count;
            for digit in bytes[end - self.width..end].iter_mut().rev() {
                *digit = b'0' + (n % 10) as u8;
                n /= 10;
            }
        }
    }
}

fn kind(shape: &Shape) -> String {
    match shape.destinations {
        0 => shape.kind.clone(),
        _ => format!("{}.{}", shape.kind, &ZERO[..DESTINATION_DIGITS]),
    }
}

fn single(shape: &Shape, prefix: &str) -> Vec<u8> {
    let key = if shape.keys > 0 { format!("ce-partitionkey: key-{ZERO}\r\n") } else { String::new() };
    let headers = format!(
        "ce-specversion: 1.0\r\nce-type: {}\r\nce-source: /bench\r\nce-id: {prefix}{ZERO}\r\n{key}",
        kind(shape)
    );
    post(
        "/v1/messages",
        "application/json",
        &(headers + &bearer(shape)),
        payload(shape.payload_bytes).as_bytes(),
    )
}

fn batch(shape: &Shape, prefix: &str) -> Vec<u8> {
    let key = if shape.keys > 0 { format!(r#","partitionkey":"key-{ZERO}""#) } else { String::new() };
    let event = format!(
        r#"{{"specversion":"1.0","id":"{prefix}{ZERO}","source":"/bench","type":"{}","datacontenttype":"application/json"{key},"data":{}}}"#,
        kind(shape),
        payload(shape.payload_bytes)
    );
    let events = vec![event; shape.batch as usize];
    post("/v1/messages", BATCH_MEDIA_TYPE, &bearer(shape), format!("[{}]", events.join(",")).as_bytes())
}

fn bearer(shape: &Shape) -> String {
    shape.bearer.map_or_else(String::new, |token| format!("authorization: Bearer {token}\r\n"))
}

/// Frame of the payload: the least that it can have.
const FRAME: &str = r#"{"text":""}"#;
pub(super) const PAYLOAD_BYTES_MIN: usize = FRAME.len();

/// A JSON object of so many bytes.
fn payload(bytes: usize) -> String {
    const TEXT: &str = "The quick brown fox. ";
    let text = bytes.saturating_sub(PAYLOAD_BYTES_MIN);
    let long = TEXT.repeat(text.div_ceil(TEXT.len()));
    format!(r#"{{"text":"{}"}}"#, long.get(..text).unwrap_or(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn shape(batch: u64, keys: u64) -> Shape {
        Shape {
            kind: "bench.accept".to_owned(),
            destinations: 0,
            batch,
            keys,
            payload_bytes: 1024,
            series: 4,
            bearer: None,
        }
    }

    fn body(request: &Request) -> &str {
        let text = std::str::from_utf8(&request.bytes).unwrap();
        text.split_once("\r\n\r\n").unwrap().1
    }

    #[test]
    fn payloads_have_their_size_and_are_json() {
        for bytes in [PAYLOAD_BYTES_MIN, 128, 1024, 70_000] {
            assert_eq!(payload(bytes).len(), bytes);
            assert!(serde_json::from_str::<serde_json::Value>(&payload(bytes)).is_ok());
        }
    }

    #[test]
    fn no_two_messages_share_an_id() {
        let mut ids = HashSet::new();
        for (sender, series) in [(0, 1), (1, 1), (0, 2)] {
            let mut request = Request::new(&Shape { series, ..shape(100, 0) }, sender, 2);
            for round in 0..3 {
                request.renumber(round * 100);
                let events: Vec<gatepost_api::Event> = serde_json::from_str(body(&request)).unwrap();
                assert_eq!(events.len(), 100);
                for event in events {
                    assert_eq!(event.data.unwrap().as_bytes().len(), 1024);
                    assert!(ids.insert(event.id));
                }
            }
        }
    }

    #[test]
    fn single_requests_change_their_id_and_key_only() {
        let mut request = Request::new(&shape(1, 10), 1, 2);
        let length = request.bytes.len();
        // The second of two senders begins half way through the keys.
        request.renumber(7);
        let text = String::from_utf8(request.bytes.clone()).unwrap();
        assert!(text.contains("ce-id: bench-4-1-000000000007\r\n"), "{text}");
        assert!(text.contains("ce-partitionkey: key-000000000002\r\n"), "{text}");
        assert_eq!(request.bytes.len(), length);
        assert_eq!(body(&request).len(), 1024);
    }

    #[test]
    fn messages_are_spread_over_the_destinations() {
        let mut request = Request::new(&Shape { destinations: 3, ..shape(4, 0) }, 1, 2);
        request.renumber(4);
        let events: Vec<gatepost_api::Event> = serde_json::from_str(body(&request)).unwrap();
        let kinds: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
        assert_eq!(kinds, ["bench.accept.002", "bench.accept.000", "bench.accept.001", "bench.accept.002"]);
    }
}
