//! One connection, plain or TLS, that carries MLLP frames.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Buf;
use gatepost_adapter::tls::Stream;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::coop::unconstrained;
use tokio::time::timeout;

use crate::gauge::{Counted, Gauge};
use crate::mllp::{Decoder, EndInsideFrame, Ending, Item};

const READ_BYTES: usize = 16 * 1024;
/// Partners stay silent for hours, and address translators forget a silent connection after ten minutes or less.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(120);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
/// How long the peer gets to take the last answer before the connection goes.
const LINGER: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error(transparent)]
    EndInsideFrame(#[from] EndInsideFrame),
    #[error("the sender paused for {} ms inside a frame", .0.as_millis())]
    Paused(Duration),
    #[error("nothing came for {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("the peer closed the connection")]
    Closed,
}

/// What a channel bears.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) body_bytes_max: usize,
    /// Longest pause inside a frame.
    pub(crate) frame_pause_max: Duration,
    /// Longest silence between frames, if there is a limit.
    pub(crate) silence_max: Option<Duration>,
    /// How much silence after FS stands for the CR that some senders leave away; `None`: none does.
    pub(crate) open_end: Option<Duration>,
}

impl Limits {
    /// Any silence between frames, and no frame without its end.
    pub(crate) fn new(body_bytes_max: usize, frame_pause_max: Duration) -> Self {
        Self { body_bytes_max, frame_pause_max, silence_max: None, open_end: None }
    }
}

pub(crate) struct Channel {
    stream: Stream,
    decoder: Decoder,
    limits: Limits,
    _counted: Option<Counted>,
}

impl Channel {
    pub(crate) fn new(stream: Stream, limits: Limits) -> io::Result<Self> {
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        let ending = if limits.open_end.is_some() { Ending::Lenient } else { Ending::Strict };
        Ok(Self { stream, decoder: Decoder::new(limits.body_bytes_max, ending), limits, _counted: None })
    }

    /// Is one of those that are open.
    pub(crate) fn counted_by(self, open: &Gauge) -> Self {
        Self { _counted: Some(open.count()), ..self }
    }

    /// The next item; `None` when the peer has closed between frames. May be dropped while it waits.
    pub(crate) async fn next(&mut self) -> Result<Option<Item>, ChannelError> {
        loop {
            if let Some(item) = self.decoder.next_item() {
                return Ok(Some(item));
            }
            match self.read().await {
                Ok(0) => {
                    // An end that anybody on the way can make says nothing of the frame's.
                    if !self.stream.was_cut()
                        && let Some(item) = self.decoder.take_open_end()
                    {
                        return Ok(Some(item));
                    }
                    self.decoder.finish()?;
                    return Ok(None);
                }
                Ok(_) => {}
                Err(error) => match self.decoder.take_open_end() {
                    Some(item) if matches!(error, ChannelError::Paused(_)) => return Ok(Some(item)),
                    _ => return Err(error),
                },
            }
        }
    }

    /// Reads what there is, as soon as there is something.
    async fn read(&mut self) -> Result<usize, ChannelError> {
        let Limits { frame_pause_max, silence_max, open_end, .. } = self.limits;
        let (pause, overdue): (_, fn(Duration) -> ChannelError) = match open_end {
            Some(pause) if self.decoder.end_is_open() => (Some(pause), ChannelError::Paused),
            _ if self.decoder.inside_frame() => (Some(frame_pause_max), ChannelError::Paused),
            _ => (silence_max, ChannelError::Silent),
        };
        let buffer = self.decoder.buffer();
        buffer.reserve(READ_BYTES);
        let reading = self.stream.read_buf(buffer);
        match pause {
            Some(pause) => Ok(timeout(pause, reading).await.map_err(|_| overdue(pause))??),
            None => Ok(reading.await?),
        }
    }

    /// Writes a frame and whatever of it the system still holds back.
    pub(crate) async fn write(&mut self, mut frame: impl Buf) -> io::Result<()> {
        if gatepost_faults::ON {
            let half = frame.remaining() / 2;
            self.stream.write_all_buf(&mut (&mut frame).take(half)).await?;
            self.stream.flush().await?;
            gatepost_faults::point("hl7.mid_write");
        }
        self.stream.write_all_buf(&mut frame).await?;
        self.stream.flush().await
    }

    /// Writes a few bytes without waiting. An error: they did not all go, and the connection is of no use any more.
    pub(crate) fn write_now(&mut self, mut frame: impl Buf) -> Result<(), ChannelError> {
        let frame = frame.copy_to_bytes(frame.remaining());
        let written = at_once(async {
            self.stream.write_all(&frame).await?;
            self.stream.flush().await
        });
        Ok(written.unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))?)
    }

    /// The next item if there is one without waiting.
    pub(crate) fn next_now(&mut self) -> Result<Option<Item>, ChannelError> {
        loop {
            if let Some(item) = self.decoder.next_item() {
                return Ok(Some(item));
            }
            let buffer = self.decoder.buffer();
            buffer.reserve(READ_BYTES);
            match at_once(self.stream.read_buf(buffer)) {
                None => return Ok(None),
                Some(Ok(0)) => return Err(ChannelError::Closed),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
            }
        }
    }

    pub(crate) fn junk_bytes(&self) -> u64 {
        self.decoder.junk_bytes()
    }

    /// Closes so that the answer just written arrives: a close with unread bytes in the system's hands is a reset, which
    /// takes the answer away from a peer that is still sending.
    pub(crate) async fn close_after_answer(mut self) {
        // Whatever goes wrong from here on, the connection is over.
        let _ = timeout(LINGER, async {
            self.stream.shutdown().await?;
            let mut unread = vec![0; READ_BYTES];
            while self.stream.read(&mut unread).await? > 0 {}
            io::Result::Ok(())
        })
        .await;
    }
}

/// What comes of it without waiting, if anything. What it has not done by then it does not do.
fn at_once<T>(doing: impl Future<Output = T>) -> Option<T> {
    // Not held back for having had its turn, which would look as if there were nothing to read.
    match pin!(unconstrained(doing)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn a_silent_peer_is_asked_whether_it_is_there() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        assert!(!SockRef::from(&stream).keepalive().unwrap());
        let channel = Channel::new(Stream::plain(stream), Limits::new(1, Duration::from_secs(1))).unwrap();
        assert!(SockRef::from(&channel.stream).keepalive().unwrap());
    }
}
