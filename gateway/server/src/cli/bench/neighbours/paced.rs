//! The well-behaved client: a few connections, each with one message at a time, at a pace that the machine bears easily.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::super::failure::Failure;
use super::super::answer::Answer;
use super::super::request::{Request, Shape};
use super::super::senders::refusal;

pub(super) const CONNECTIONS: u64 = 8;
/// From one message of a connection to the next.
pub(super) const INTERVAL: Duration = Duration::from_millis(20);
/// No answer at all for so long ends the measurement.
const PATIENCE: Duration = Duration::from_secs(60);
/// Answers to single messages are far smaller.
const READ_BYTES: usize = 16 * 1024;

/// Connected, and about to begin.
pub(super) struct Paced {
    connections: Vec<(UnixStream, Request)>,
}

impl Paced {
    /// Whoever comes later finds these connections there.
    pub(super) fn connect(socket: &Path, shape: &Shape) -> Result<Self, Failure> {
        let connect = |number| {
            let stream = UnixStream::connect(socket)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok((stream, Request::new(shape, number, CONNECTIONS)))
        };
        let connections: io::Result<_> = (0..CONNECTIONS).map(connect).collect();
        connections.map(|connections| Self { connections }).map_err(lost)
    }

    /// Latencies of all that falls due in `span` after `warm_up`, µs, sorted. They count from when a message was due: one that
    /// had to wait because the one before was late has waited, and one that could not be sent at all has waited to the end.
    pub(super) async fn measure(self, warm_up: Duration, span: Duration) -> Result<Vec<u32>, Failure> {
        let measured = tokio::task::spawn_blocking(move || self.send(warm_up, span)).await;
        measured.map_err(|error| Failure::unsuccessful(format!("the clients failed: {error}")))?
    }

    fn send(self, warm_up: Duration, span: Duration) -> Result<Vec<u32>, Failure> {
        let begun = Instant::now();
        let count = self.connections.len() as u32;
        let threads: Vec<JoinHandle<_>> = (0..)
            .zip(self.connections)
            .map(|(number, (stream, request))| {
                let first = begun + INTERVAL * number / count;
                std::thread::spawn(move || send(&stream, request, first, begun + warm_up, span))
            })
            .collect();
        let mut latencies = Vec::new();
        for thread in threads {
            let ended = thread.join().map_err(|_| Failure::unsuccessful("a client's thread failed"))?;
            latencies.extend(ended?);
        }
        latencies.sort_unstable();
        Ok(latencies)
    }
}

fn send(
    mut stream: &UnixStream,
    mut request: Request,
    first: Instant,
    counted_from: Instant,
    span: Duration,
) -> Result<Vec<u32>, Failure> {
    let mut latencies = Vec::new();
    let mut answer = Answer::default();
    let mut scratch = vec![0; READ_BYTES];
    let timetable = (0u32..).map(|number| (number, first + INTERVAL * number));
    let end = counted_from + span;
    for (number, due) in timetable.take_while(|(_, due)| *due < end) {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if Instant::now() >= end {
            // It has waited until the end without being sent; who waited longer would measure for hours.
            if due >= counted_from {
                latencies.push(micros(end - due));
            }
            continue;
        }
        request.renumber(number.into());
        stream.write_all(&request.bytes).map_err(lost)?;
        let status = loop {
            match stream.read(&mut scratch) {
                Ok(0) => return Err(lost(io::ErrorKind::UnexpectedEof.into())),
                Ok(length) => {
                    if let Some(status) = answer.take(&scratch[..length]).map_err(lost)? {
                        break status;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(lost(error)),
            }
        };
        if status != 202 {
            return Err(refusal(status, &answer.refusal));
        }
        if due >= counted_from {
            latencies.push(micros(due.elapsed()));
        }
    }
    Ok(latencies)
}

fn micros(span: Duration) -> u32 {
    u32::try_from(span.as_micros()).unwrap_or(u32::MAX)
}

fn lost(source: io::Error) -> Failure {
    Failure::Io { doing: "the well-behaved client lost its connection".to_owned(), source }
}
