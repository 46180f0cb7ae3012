//! What adapters print goes into the gateway's log, line by line, under the adapter's name. Bounded in length and rate: an
//! adapter that floods its output costs neither memory nor the log. What stands in the lines is the adapter's affair.

use std::fmt::Write as _;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

/// Longest line that is logged; what is longer is cut, bytes.
const LINE_BYTES_MAX: usize = 4096;
/// Lines per stream and second; what is more is counted and dropped.
const LINES_PER_SECOND_MAX: u32 = 200;
/// Longest excerpt of the last line of standard error, bytes of UTF-8.
const LAST_LINE_BYTES_MAX: usize = 512;
const READ_BYTES: usize = 8192;
/// How long output is awaited that somebody else still holds open after the process has ended.
const REST_DEADLINE: Duration = Duration::from_secs(1);
const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Stdout,
    Stderr,
}

/// Follows one process's output until it ends. Dropping it stops following.
#[derive(Debug)]
pub(super) struct Output {
    streams: JoinSet<()>,
    last_error_line: Arc<Mutex<String>>,
}

impl Output {
    pub(super) fn follow(name: &str, stdout: Option<OwnedFd>, stderr: Option<OwnedFd>) -> io::Result<Self> {
        let mut streams = JoinSet::new();
        let last_error_line = Arc::new(Mutex::new(String::new()));
        for (stream, fd) in [(Stream::Stdout, stdout), (Stream::Stderr, stderr)] {
            let Some(fd) = fd else { continue };
            let pipe = pipe::Receiver::from_owned_fd(fd)?;
            let log = Log {
                name: name.to_owned(),
                stream,
                meter: Meter::new(Instant::now()),
                last_error_line: Arc::clone(&last_error_line),
            };
            streams.spawn(log.follow(pipe));
        }
        Ok(Self { streams, last_error_line })
    }

    /// Waits for the rest of the output after the process has ended; gives the last line of standard error.
    pub(super) async fn rest(mut self) -> Option<String> {
        let all = async { while self.streams.join_next().await.is_some() {} };
        if timeout(REST_DEADLINE, all).await.is_err() {
            self.streams.shutdown().await;
        }
        let line = std::mem::take(&mut *self.last_error_line.lock().unwrap_or_else(PoisonError::into_inner));
        (!line.is_empty()).then_some(line)
    }
}

struct Log {
    name: String,
    stream: Stream,
    meter: Meter,
    last_error_line: Arc<Mutex<String>>,
}

impl Log {
    async fn follow(mut self, mut pipe: pipe::Receiver) {
        let mut lines = Lines::default();
        let mut bytes = [0; READ_BYTES];
        loop {
            let read = tokio::select! {
                read = pipe.read(&mut bytes) => read,
                () = sleep_until(self.meter.second_ends()), if self.meter.dropped > 0 => {
                    self.report_dropped(Instant::now());
                    continue;
                }
            };
            match read {
                Ok(length) if length > 0 => lines.feed(&bytes[..length], |line| self.line(line)),
                Ok(_) | Err(_) => break,
            }
        }
        lines.finish(|line| self.line(line));
        self.report_dropped(self.meter.second_ends());
    }

    fn line(&mut self, line: Line<'_>) {
        if line.bytes.is_empty() {
            return;
        }
        let now = Instant::now();
        self.report_dropped(now);
        // Also kept when the log has no room for it: the last words of a process that floods its log count most.
        if self.stream == Stream::Stderr {
            let text = printable(line.bytes);
            let mut last = self.last_error_line.lock().unwrap_or_else(PoisonError::into_inner);
            last.clear();
            last.push_str(&text[..text.floor_char_boundary(LAST_LINE_BYTES_MAX)]);
        }
        if !self.meter.admit() {
            return;
        }
        let text = printable(line.bytes);
        let cut = line.cut;
        match self.stream {
            Stream::Stdout => tracing::info!(adapter = %self.name, stream = "stdout", cut, "{text}"),
            Stream::Stderr => tracing::info!(adapter = %self.name, stream = "stderr", cut, "{text}"),
        }
    }

    fn report_dropped(&mut self, now: Instant) {
        if let Some(dropped) = self.meter.turn(now) {
            tracing::warn!(
                adapter = %self.name,
                dropped,
                "the adapter prints more than {LINES_PER_SECOND_MAX} lines per second; the rest was dropped"
            );
        }
    }
}

/// Counts lines by the second.
#[derive(Debug)]
struct Meter {
    second: Instant,
    admitted: u32,
    dropped: u64,
}

impl Meter {
    fn new(now: Instant) -> Self {
        Self { second: now, admitted: 0, dropped: 0 }
    }

    fn second_ends(&self) -> Instant {
        self.second + SECOND
    }

    /// Begins a new second if the present one is over; gives what was dropped in it, if anything.
    fn turn(&mut self, now: Instant) -> Option<u64> {
        if now < self.second_ends() {
            return None;
        }
        let dropped = self.dropped;
        *self = Self::new(now);
        (dropped > 0).then_some(dropped)
    }

    fn admit(&mut self) -> bool {
        let admitted = self.admitted < LINES_PER_SECOND_MAX;
        if admitted {
            self.admitted += 1;
        } else {
            self.dropped += 1;
        }
        admitted
    }
}

pub(super) struct Line<'a> {
    pub(super) bytes: &'a [u8],
    /// It was longer than `LINE_BYTES_MAX`.
    pub(super) cut: bool,
}

/// Splits bytes into lines of bounded length.
#[derive(Default)]
pub(super) struct Lines {
    line: Vec<u8>,
    cut: bool,
}

impl Lines {
    pub(super) fn feed(&mut self, bytes: &[u8], mut emit: impl FnMut(Line<'_>)) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (content, ended) = match piece.strip_suffix(b"\n") {
                Some(content) => (content, true),
                None => (piece, false),
            };
            let room = LINE_BYTES_MAX - self.line.len();
            self.line.extend_from_slice(&content[..content.len().min(room)]);
            self.cut |= content.len() > room;
            if ended {
                self.emit(&mut emit);
            }
        }
    }

    pub(super) fn finish(mut self, mut emit: impl FnMut(Line<'_>)) {
        if !self.line.is_empty() {
            self.emit(&mut emit);
        }
    }

    fn emit(&mut self, emit: &mut impl FnMut(Line<'_>)) {
        emit(Line { bytes: self.line.strip_suffix(b"\r").unwrap_or(&self.line), cut: self.cut });
        self.line.clear();
        self.cut = false;
    }
}

/// Text that cannot drive a terminal or forge a log line.
pub(super) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        let turns_text =
            matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if character.is_control() || turns_text {
            // Writing to a string cannot fail.
            let _ = write!(out, "{}", character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(chunks: &[&[u8]]) -> Vec<(Vec<u8>, bool)> {
        let mut found = Vec::new();
        let mut lines = Lines::default();
        for chunk in chunks {
            lines.feed(chunk, |line| found.push((line.bytes.to_vec(), line.cut)));
        }
        lines.finish(|line| found.push((line.bytes.to_vec(), line.cut)));
        found
    }

    #[test]
    fn lines_are_put_together_from_pieces() {
        let lines = split(&[b"on", b"e\r\ntwo\n\nth", b"ree"]);
        let expected: [(&[u8], bool); 4] =
            [(b"one", false), (b"two", false), (b"", false), (b"three", false)];
        assert_eq!(lines, expected.map(|(bytes, cut)| (bytes.to_vec(), cut)));
    }

    #[test]
    fn a_line_without_an_end_takes_no_more_memory_than_its_limit() {
        let mut lines = Lines::default();
        for _ in 0..1000 {
            lines.feed(&[b'x'; READ_BYTES], |_| panic!("no line has ended"));
        }
        assert!(lines.line.capacity() <= 2 * LINE_BYTES_MAX);
        let mut emitted = Vec::new();
        lines.feed(b"\nnext\n", |line| emitted.push((line.bytes.len(), line.cut)));
        assert_eq!(emitted, [(LINE_BYTES_MAX, true), (4, false)]);
    }

    #[test]
    fn what_exceeds_the_rate_is_counted_and_the_next_second_starts_afresh() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        let admitted = (0..500).filter(|_| meter.admit()).count();
        assert_eq!(admitted, LINES_PER_SECOND_MAX as usize);
        assert_eq!(meter.turn(start + SECOND / 2), None);
        assert_eq!(meter.turn(start + SECOND), Some(300));
        assert!(meter.admit());
        assert_eq!(meter.turn(start + 2 * SECOND), None, "nothing was dropped");
    }

    #[test]
    fn control_characters_and_broken_utf8_are_made_harmless() {
        assert_eq!(printable(b"a\x1b[31mred\t\xff\n"), "a\\u{1b}[31mred\\t\u{fffd}\\n");
        assert_eq!(printable("grün \u{202e}txt".as_bytes()), "grün \\u{202e}txt");
    }
}
