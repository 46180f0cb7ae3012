//! The senders: so many connections, each with one request at a time, until the phase is over.
//!
//! One thread serves them all: it shares the cores with the gateway, and a thread for each would cost more than it sends.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::super::failure::Failure;
use super::answer::Answer;
use super::request::{Request, Shape};
use super::spread::percentile;

/// No answer at all for so long ends the measurement.
const PATIENCE_MS: u16 = 60_000;
/// Answers of a batch have some 20 KiB.
const READ_BYTES: usize = 128 * 1024;
/// Events of one look; more senders wait for the next.
const EVENTS_MAX: usize = 256;

/// What one phase sends.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) shape: Shape,
    pub(super) senders: u64,
    /// The number of each sender's first message.
    pub(super) first: u64,
    pub(super) until: Until,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Until {
    Elapsed(Duration),
    /// So many messages over all senders, rounded up to whole requests of all.
    Messages(u64),
}

#[derive(Debug)]
pub(super) struct Measured {
    /// Messages that were accepted.
    pub(super) messages: u64,
    pub(super) elapsed: Duration,
    pub(super) started: Instant,
    /// Of each request, µs; sorted.
    latencies_us: Vec<u32>,
}

impl Measured {
    pub(super) fn per_second(&self) -> f64 {
        self.messages as f64 / self.elapsed.as_secs_f64()
    }

    pub(super) fn percentile_us(&self, share: f64) -> u32 {
        percentile(&self.latencies_us, share)
    }
}

/// Sends to the gateways' sockets for apps, each sender to one of them, on a thread of its own.
pub(super) async fn run(sockets: Vec<PathBuf>, load: Load) -> Result<Measured, Failure> {
    // A measurement that is given up leaves this thread behind only until the gateway has ended.
    let ended = tokio::task::spawn_blocking(move || send(&sockets, &load)).await;
    ended.map_err(|error| Failure::unsuccessful(format!("the senders failed: {error}")))?
}

fn send(sockets: &[PathBuf], load: &Load) -> Result<Measured, Failure> {
    let lost = |source| Failure::Io { doing: "a sender lost its connection".to_owned(), source };
    let rounds = match load.until {
        Until::Elapsed(_) => u64::MAX,
        Until::Messages(messages) => messages.div_ceil(load.shape.batch * load.senders),
    };
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|error| lost(error.into()))?;
    let mut senders = Vec::new();
    for (number, socket) in (0..load.senders).zip(sockets.iter().cycle()) {
        senders.push(Sender::connect(socket, &epoll, load, number).map_err(lost)?);
    }
    let started = Instant::now();
    let is_over = |now: Instant| matches!(load.until, Until::Elapsed(limit) if now - started >= limit);
    let mut latencies_us = Vec::new();
    let mut open = senders.len();
    for sender in &mut senders {
        sender.next(&epoll, load, started).map_err(lost)?;
    }
    let mut events = [EpollEvent::empty(); EVENTS_MAX];
    let mut scratch = vec![0; READ_BYTES];
    while open > 0 {
        let ready = match epoll.wait(&mut events, EpollTimeout::from(PATIENCE_MS)) {
            Ok(0) => return Err(lost(io::ErrorKind::TimedOut.into())),
            Ok(ready) => ready,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(lost(error.into())),
        };
        for event in &events[..ready] {
            let sender = &mut senders[event.data() as usize];
            if event.events().contains(EpollFlags::EPOLLOUT) {
                sender.write_rest(&epoll).map_err(lost)?;
            }
            if !event.events().intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
                continue;
            }
            match sender.read(&mut scratch).map_err(lost)? {
                None => continue,
                Some(202) => {}
                Some(status) => return Err(refusal(status, &sender.answer.refusal)),
            }
            let now = Instant::now();
            latencies_us.push(u32::try_from((now - sender.begun).as_micros()).unwrap_or(u32::MAX));
            if sender.round < rounds && !is_over(now) {
                sender.next(&epoll, load, now).map_err(lost)?;
            } else {
                open -= 1;
            }
        }
    }
    let elapsed = started.elapsed();
    latencies_us.sort_unstable();
    Ok(Measured { messages: latencies_us.len() as u64 * load.shape.batch, elapsed, started, latencies_us })
}

/// Why something was not accepted.
pub(super) fn refusal(status: u16, body: &[u8]) -> Failure {
    match serde_json::from_slice(body) {
        Ok(problem) => Failure::Refused(Box::new(problem)),
        Err(_) => Failure::Garbled { status },
    }
}

struct Sender {
    number: u64,
    stream: UnixStream,
    request: Request,
    written: usize,
    answer: Answer,
    /// Requests begun.
    round: u64,
    begun: Instant,
}

impl Sender {
    fn connect(socket: &Path, epoll: &Epoll, load: &Load, number: u64) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_nonblocking(true)?;
        epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, number))?;
        let request = Request::new(&load.shape, number, load.senders);
        Ok(Self {
            number,
            stream,
            request,
            written: 0,
            answer: Answer::default(),
            round: 0,
            begun: Instant::now(),
        })
    }

    /// Begins the next request.
    fn next(&mut self, epoll: &Epoll, load: &Load, now: Instant) -> io::Result<()> {
        self.request.renumber(load.first + self.round * load.shape.batch);
        self.round += 1;
        self.begun = now;
        self.written = 0;
        if !self.write()? {
            self.expect(epoll, EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT)?;
        }
        Ok(())
    }

    fn write_rest(&mut self, epoll: &Epoll) -> io::Result<()> {
        if self.write()? {
            self.expect(epoll, EpollFlags::EPOLLIN)?;
        }
        Ok(())
    }

    /// Writes what the socket takes; whether that was all.
    fn write(&mut self) -> io::Result<bool> {
        while self.written < self.request.bytes.len() {
            match self.stream.write(&self.request.bytes[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.written += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn expect(&self, epoll: &Epoll, flags: EpollFlags) -> io::Result<()> {
        epoll.modify(&self.stream, &mut EpollEvent::new(flags, self.number))?;
        Ok(())
    }

    /// Reads what is there; the status when the answer is whole.
    fn read(&mut self, scratch: &mut [u8]) -> io::Result<Option<u16>> {
        match self.stream.read(scratch) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => self.answer.take(&scratch[..length]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead as _;
    use std::os::unix::net::UnixListener;

    /// Answers each request with `status`; gives the bytes of each connection's bodies.
    fn stub(listener: UnixListener, connections: usize, status: u16) -> std::thread::JoinHandle<Vec<usize>> {
        std::thread::spawn(move || {
            let accepted = (0..connections).map(|_| listener.accept().unwrap().0);
            let serving = accepted.map(|stream| std::thread::spawn(move || serve(&stream, status)));
            let serving: Vec<_> = serving.collect();
            serving.into_iter().map(|one| one.join().unwrap()).collect()
        })
    }

    fn serve(stream: &UnixStream, status: u16) -> usize {
        let mut reader = io::BufReader::new(stream);
        let mut bodies = 0;
        loop {
            let mut length = 0;
            loop {
                let mut line = String::new();
                // Whoever was refused goes without a look back.
                if reader.read_line(&mut line).unwrap_or(0) == 0 {
                    return bodies;
                }
                if let Some(value) = line.strip_prefix("content-length: ") {
                    length = value.trim().parse().unwrap();
                }
                if line == "\r\n" {
                    break;
                }
            }
            let Ok(read) = io::copy(&mut (&mut reader).take(length), &mut io::sink()) else { return bodies };
            bodies += read as usize;
            let mut stream = stream;
            let _ = write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\n{{}}");
        }
    }

    fn load(batch: u64, payload_bytes: usize, messages: u64) -> Load {
        let shape = Shape {
            kind: "x".to_owned(),
            destinations: 0,
            batch,
            keys: 0,
            payload_bytes,
            series: 0,
            bearer: None,
        };
        Load { shape, senders: 4, first: 0, until: Until::Messages(messages) }
    }

    #[test]
    fn every_sender_sends_its_share_however_large_the_requests_are() {
        for (batch, payload_bytes) in [(1, 1024), (10, 300_000)] {
            let dir = tempfile::tempdir().unwrap();
            let socket = dir.path().join("s");
            let serving = stub(UnixListener::bind(&socket).unwrap(), 4, 202);
            let measured = send(&[socket], &load(batch, payload_bytes, 4 * batch * 3)).unwrap();
            assert_eq!(measured.messages, 4 * batch * 3);
            assert_eq!(measured.latencies_us.len(), 12);
            assert!(measured.latencies_us.is_sorted());
            for bodies in serving.join().unwrap() {
                assert!(bodies >= 3 * payload_bytes * batch as usize);
            }
        }
    }

    #[test]
    fn a_refusal_ends_the_measurement() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let serving = stub(UnixListener::bind(&socket).unwrap(), 4, 429);
        assert!(matches!(send(&[socket], &load(1, 100, 400)), Err(Failure::Garbled { status: 429 })));
        serving.join().unwrap();
    }
}
