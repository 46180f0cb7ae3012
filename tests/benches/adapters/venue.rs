//! A FIX 4.4 acceptor that takes what comes at once, checks that its numbers have no gap, notes when it came, and answers each order
//! with an ExecutionReport if it is to.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use crate::played;

const SOH: u8 = 1;
const READ_BYTES: usize = 256 * 1024;
/// ` 10=xyz` and its end.
const TRAILER_BYTES: usize = 7;

/// Lives as long as the process.
pub(crate) struct Venue {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    has_logged_on: bool,
    /// ClOrdID (11) of each order, and when it was here.
    orders: Vec<(String, Instant)>,
}

impl Venue {
    pub(crate) fn start(answers: bool) -> Self {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let noted = Arc::clone(&seen);
        let address = played::listen(move |stream| {
            Session { seen: &noted, answers, next_in: 1, next_out: 1, out: Vec::new() }.serve(stream)
        });
        Self { address, seen }
    }

    pub(crate) fn has_logged_on(&self) -> bool {
        self.seen.lock().expect("no thread of it panics").has_logged_on
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.lock().expect("no thread of it panics").orders.len()
    }

    pub(crate) fn orders(&self) -> Vec<(String, Instant)> {
        self.seen.lock().expect("no thread of it panics").orders.clone()
    }
}

struct Session<'a> {
    seen: &'a Mutex<Seen>,
    answers: bool,
    next_in: u64,
    next_out: u64,
    out: Vec<u8>,
}

impl Session<'_> {
    fn serve(mut self, mut stream: TcpStream) -> io::Result<()> {
        let mut held = Vec::new();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let read = stream.read(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            let now = Instant::now();
            held.extend_from_slice(&buffer[..read]);
            let mut taken = 0;
            while let Some(length) = whole(&held[taken..])? {
                self.take(&held[taken..taken + length], now)?;
                taken += length;
            }
            held.drain(..taken);
            stream.write_all(&self.out)?;
            self.out.clear();
        }
    }

    fn take(&mut self, message: &[u8], now: Instant) -> io::Result<()> {
        let text = std::str::from_utf8(message).map_err(|_| io::ErrorKind::InvalidData)?;
        let field = |tag: &str| {
            text.split('\u{1}').find_map(|field| field.strip_prefix(tag)?.strip_prefix('=')).unwrap_or("")
        };
        if field("34") != self.next_in.to_string() {
            return Err(io::Error::other(format!("34={} where {} is due", field("34"), self.next_in)));
        }
        self.next_in += 1;
        match field("35") {
            "A" => {
                self.say("A", &format!("98=0\u{1}108={}\u{1}", field("108")));
                self.seen.lock().expect("no thread of it panics").has_logged_on = true;
            }
            "1" => self.say("0", &format!("112={}\u{1}", field("112"))),
            "D" => {
                let order = field("11").to_owned();
                if self.answers {
                    let number = self.next_out;
                    let report = format!(
                        "37=V{number}\u{1}17=E{number}\u{1}150=0\u{1}39=0\u{1}11={order}\u{1}55=X\u{1}54=1\u{1}151=100\u{1}14=0\u{1}6=0\u{1}"
                    );
                    self.say("8", &report);
                }
                self.seen.lock().expect("no thread of it panics").orders.push((order, now));
            }
            "5" => self.say("5", ""),
            "0" => {}
            other => return Err(io::Error::other(format!("35={other} is not expected here"))),
        }
        Ok(())
    }

    fn say(&mut self, kind: &str, body: &str) {
        let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let now: String = now.chars().filter(|c| !matches!(c, '-' | 'Z')).collect();
        let now = now.replace('T', "-");
        let inner =
            format!("35={kind}\u{1}49=SELL\u{1}56=BUY\u{1}34={}\u{1}52={now}\u{1}{body}", self.next_out);
        let text = format!("8=FIX.4.4\u{1}9={}\u{1}{inner}", inner.len());
        let sum = text.bytes().fold(0_u8, u8::wrapping_add);
        self.out.extend_from_slice(text.as_bytes());
        self.out.extend_from_slice(format!("10={sum:03}\u{1}").as_bytes());
        self.next_out += 1;
    }
}

/// Bytes of the first message, if it is here whole.
fn whole(bytes: &[u8]) -> io::Result<Option<usize>> {
    let mut ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == SOH).map(|(at, _)| at);
    let (Some(first), Some(second)) = (ends.next(), ends.next()) else { return Ok(None) };
    let length = bytes[first + 1..second].strip_prefix(b"9=").and_then(|digits| str::from_utf8(digits).ok());
    let length: usize = length.and_then(|digits| digits.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    let length = second + 1 + length + TRAILER_BYTES;
    Ok((bytes.len() >= length).then_some(length))
}
