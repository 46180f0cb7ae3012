//! One TCP connection that carries MLLP frames.

use std::io;
use std::time::Duration;

use bytes::Buf;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::mllp::{Decoder, EndInsideFrame, Item};

const READ_BYTES: usize = 16 * 1024;
/// Partners stay silent for hours, and address translators forget a silent connection after ten minutes or less.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(120);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error(transparent)]
    EndInsideFrame(#[from] EndInsideFrame),
    #[error("the sender paused for {} ms inside a frame", .0.as_millis())]
    Paused(Duration),
    #[error("the peer closed the connection")]
    Closed,
}

pub(crate) struct Channel {
    stream: TcpStream,
    decoder: Decoder,
    /// Longest pause inside a frame; between frames there is no limit.
    pause_max: Duration,
}

impl Channel {
    pub(crate) fn new(stream: TcpStream, body_bytes_max: usize, pause_max: Duration) -> io::Result<Self> {
        // A frame is one write, and its sender waits for the answer: holding it back gains nothing.
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok(Self { stream, decoder: Decoder::new(body_bytes_max), pause_max })
    }

    /// The next item; `None` when the peer has closed between frames. May be dropped while it waits.
    pub(crate) async fn next(&mut self) -> Result<Option<Item>, ChannelError> {
        loop {
            if let Some(item) = self.decoder.next_item() {
                return Ok(Some(item));
            }
            let inside_frame = self.decoder.inside_frame();
            let buffer = self.decoder.buffer();
            buffer.reserve(READ_BYTES);
            let reading = self.stream.read_buf(buffer);
            let read = if inside_frame {
                timeout(self.pause_max, reading).await.map_err(|_| ChannelError::Paused(self.pause_max))?
            } else {
                reading.await
            };
            if read? == 0 {
                self.decoder.finish()?;
                return Ok(None);
            }
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

    /// Whether a message may be sent: the peer has not closed. What it sent unasked meanwhile is taken out of the way;
    /// the number of its frames is given.
    pub(crate) fn clear(&mut self) -> Result<usize, ChannelError> {
        let mut frames = 0;
        loop {
            let buffer = self.decoder.buffer();
            buffer.reserve(READ_BYTES);
            match self.stream.try_read_buf(buffer) {
                Ok(0) => return Err(ChannelError::Closed),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(frames),
                Err(error) => return Err(error.into()),
            }
            while self.decoder.next_item().is_some() {
                frames += 1;
            }
        }
    }

    pub(crate) fn junk_bytes(&self) -> u64 {
        self.decoder.junk_bytes()
    }
}
