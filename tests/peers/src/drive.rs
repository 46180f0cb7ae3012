//! Publishing with so many messages unconfirmed at a time, over one connection or several, on one thread: whatever the
//! generator does not do is left to the system that it measures.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// No confirm for so long ends the measurement.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const READ_BYTES: usize = 256 * 1024;

/// How one system is spoken to.
pub(crate) trait Publisher {
    /// Appends the next request.
    fn publish(&mut self, out: &mut Vec<u8>);
    /// Takes what came, and says how many requests it confirms as durable. What is incomplete is kept.
    fn confirmed(&mut self, input: &[u8]) -> io::Result<u64>;
}

/// Either kind of connection.
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    pub(crate) fn tcp(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        Ok(Self::Tcp(stream))
    }

    pub(crate) fn wait_at_most(&self, patience: Duration) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(Some(patience)),
            Self::Tcp(stream) => stream.set_read_timeout(Some(patience)),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }?;
        if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(read) }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

pub(crate) struct Connection {
    stream: Stream,
    publisher: Box<dyn Publisher>,
    out: Vec<u8>,
    open: u64,
    /// When the newest request was written; with one at a time, the one that is open.
    begun: Instant,
}

impl Connection {
    pub(crate) fn new(stream: Stream, publisher: impl Publisher + 'static) -> io::Result<Self> {
        stream.wait_at_most(PATIENCE)?;
        Ok(Self { stream, publisher: Box::new(publisher), out: Vec::new(), open: 0, begun: Instant::now() })
    }

    fn fill(&mut self, window: u64) -> io::Result<()> {
        if self.open == window {
            return Ok(());
        }
        self.out.clear();
        while self.open < window {
            self.publisher.publish(&mut self.out);
            self.open += 1;
        }
        self.begun = Instant::now();
        self.stream.write_all(&self.out)
    }
}

#[derive(Debug)]
pub(crate) struct Driven {
    /// Requests that were confirmed.
    pub(crate) confirmed: u64,
    pub(crate) elapsed: Duration,
    /// Of each request with one in flight, µs; sorted. Of more, the time to the first confirm of a window.
    pub(crate) latencies_us: Vec<u32>,
}

impl Driven {
    pub(crate) fn per_second(&self, messages_per_request: u64) -> f64 {
        (self.confirmed * messages_per_request) as f64 / self.elapsed.as_secs_f64()
    }

    pub(crate) fn p50_us(&self) -> f64 {
        let middle = self.latencies_us.len() / 2;
        self.latencies_us.get(middle).copied().unwrap_or_default().into()
    }
}

/// Keeps `window` requests open on each connection for that long, and waits for what is then still open.
pub(crate) fn drive(mut connections: Vec<Connection>, window: u64, length: Duration) -> io::Result<Driven> {
    let started = Instant::now();
    let mut confirmed = 0;
    let mut latencies_us = Vec::new();
    let mut input = vec![0; READ_BYTES];
    for connection in &mut connections {
        connection.fill(window)?;
    }
    while connections.iter().any(|connection| connection.open > 0) {
        for index in ready(&connections)? {
            let connection = &mut connections[index];
            let read = connection.stream.read(&mut input)?;
            let more = connection.publisher.confirmed(&input[..read])?;
            let now = Instant::now();
            if more > 0 {
                let latency = (now - connection.begun).as_micros();
                latencies_us.push(u32::try_from(latency).unwrap_or(u32::MAX));
            }
            confirmed += more;
            connection.open =
                connection.open.checked_sub(more).ok_or_else(|| io::Error::other("a confirm too many"))?;
            if now - started < length {
                connection.fill(window)?;
            }
        }
    }
    latencies_us.sort_unstable();
    Ok(Driven { confirmed, elapsed: started.elapsed(), latencies_us })
}

/// Those that can be read. A single one simply blocks in its read.
fn ready(connections: &[Connection]) -> io::Result<Vec<usize>> {
    if connections.len() == 1 {
        return Ok(vec![0]);
    }
    let mut polled: Vec<PollFd<'_>> = connections
        .iter()
        .map(|connection| PollFd::new(connection.stream.as_fd(), PollFlags::POLLIN))
        .collect();
    let patience = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    if poll(&mut polled, patience)? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let indices = polled.iter().enumerate().filter(|(_, one)| one.any().unwrap_or(true));
    Ok(indices.map(|(index, _)| index).collect())
}

/// What has come of a stream and is not understood yet.
#[derive(Debug, Default)]
pub(crate) struct Input {
    bytes: Vec<u8>,
    taken: usize,
}

impl Input {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn rest(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    pub(crate) fn take(&mut self, length: usize) {
        self.taken += length;
    }

    /// Reads more; `false` when nothing came in time.
    pub(crate) fn read(&mut self, stream: &mut Stream, buffer: &mut [u8]) -> io::Result<bool> {
        match stream.read(buffer) {
            Ok(read) => {
                self.add(&buffer[..read]);
                Ok(true)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

pub(crate) fn buffer() -> Vec<u8> {
    vec![0; READ_BYTES]
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u64);

    impl Publisher for Echo {
        fn publish(&mut self, out: &mut Vec<u8>) {
            out.push(b'x');
            self.0 += 1;
        }

        fn confirmed(&mut self, input: &[u8]) -> io::Result<u64> {
            Ok(input.len() as u64)
        }
    }

    #[test]
    fn everything_that_was_sent_is_waited_for() {
        for (count, window) in [(1, 1), (1, 64), (5, 3)] {
            let mut servers = Vec::new();
            let mut connections = Vec::new();
            for _ in 0..count {
                let (ours, mut theirs) = UnixStream::pair().unwrap();
                servers.push(std::thread::spawn(move || {
                    let mut total = 0;
                    let mut bytes = [0; 16];
                    loop {
                        match theirs.read(&mut bytes).unwrap() {
                            0 => return total,
                            read => {
                                total += read as u64;
                                theirs.write_all(&bytes[..read]).unwrap();
                            }
                        }
                    }
                }));
                connections.push(Connection::new(Stream::Unix(ours), Echo(0)).unwrap());
            }
            let driven = drive(connections, window, Duration::from_millis(20)).unwrap();
            let served: u64 = servers.into_iter().map(|server| server.join().unwrap()).sum();
            assert!(driven.confirmed >= count * window, "{driven:?}");
            assert_eq!(driven.confirmed, served);
        }
    }
}
