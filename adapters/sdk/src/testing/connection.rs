//! One connection of a played partner.

use std::fmt::Write as _;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::net::sockopt::set_socket_linger;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Longer than anything should take; what takes longer hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// Between two tries to reach an adapter that does not listen yet.
const TRY_AGAIN: Duration = Duration::from_millis(10);
/// Between two pieces, so that the other side reads them one by one.
const PIECE_PAUSE: Duration = Duration::from_millis(2);
const READ_BYTES: usize = 64 * 1024;
/// Of what was said, a failure shows so much at the end of each step.
const SHOWN_BYTES_MAX: usize = 200;

pub(super) trait Socket: AsyncRead + AsyncWrite + AsFd + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + AsFd + Send + Unpin> Socket for S {}

/// Takes the first whole frame out of what has come; `None` while there is none.
pub(super) type Framing = Arc<dyn Fn(&mut BytesMut) -> Option<Bytes> + Send + Sync>;

/// A connection on which a test says and expects what a partner would.
///
/// It reads only when something is expected, so that a partner that has stopped reading is one that is not asked: see [`Self::pause`], and
/// [`Partner::narrow`](super::Partner::narrow) for an adapter to notice it soon.
pub struct Connection {
    socket: Box<dyn Socket>,
    framing: Framing,
    patience: Duration,
    /// What has come and was not expected yet.
    buffer: BytesMut,
    /// What was said and heard, for whoever reads a failure.
    said: Vec<String>,
}

/// A frame is a line, without its end.
pub fn lines(buffer: &mut BytesMut) -> Option<Bytes> {
    let end = buffer.iter().position(|byte| *byte == b'\n')?;
    let line = buffer.split_to(end + 1).freeze();
    Some(line.slice(..end))
}

impl Connection {
    /// Connects to an adapter, as soon as it listens.
    pub async fn open(
        address: &str,
        framing: impl Fn(&mut BytesMut) -> Option<Bytes> + Send + Sync + 'static,
    ) -> Self {
        Self::new(Box::new(reach(address).await), Arc::new(framing), PATIENCE)
    }

    pub(super) fn new(socket: Box<dyn Socket>, framing: Framing, patience: Duration) -> Self {
        Self { socket, framing, patience, buffer: BytesMut::new(), said: Vec::new() }
    }

    /// How long it waits for what is expected; 20 s unless said otherwise.
    pub fn patient(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The other side sends these bytes next.
    pub async fn expect(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        let until = Instant::now() + self.patience;
        loop {
            let common =
                self.buffer.iter().zip(bytes).take_while(|(came, expected)| came == expected).count();
            if common == bytes.len() {
                let taken = self.buffer.split_to(bytes.len());
                return self.note("took", &taken);
            }
            if common < self.buffer.len() {
                self.fail(&format!("expected {}; it differs at byte {common}", shown(bytes)));
            }
            self.more(until, || format!("expected {}", shown(bytes))).await;
        }
    }

    /// The next frame that the other side sends.
    pub async fn frame(&mut self) -> Bytes {
        let until = Instant::now() + self.patience;
        loop {
            if let Some(frame) = (self.framing)(&mut self.buffer) {
                self.note("took a frame", &frame);
                return frame;
            }
            self.more(until, || "expected a frame".to_owned()).await;
        }
    }

    /// Nothing comes for so long, nor does the connection end.
    pub async fn nothing_for(&mut self, span: Duration) {
        if !self.buffer.is_empty() {
            self.fail("expected nothing");
        }
        match timeout(span, self.socket.read_buf(&mut self.buffer)).await {
            Err(_) => self.said.push(format!("heard nothing for {} ms", span.as_millis())),
            Ok(Ok(1..)) => self.fail("expected nothing"),
            Ok(Ok(0)) => self.fail("expected nothing, and the other side has closed"),
            Ok(Err(error)) => self.fail(&format!("expected nothing, and the connection broke: {error}")),
        }
    }

    /// The other side has sent nothing more, and closes or resets the connection.
    pub async fn closed(&mut self) {
        if !self.buffer.is_empty() {
            self.fail("expected the end of the connection");
        }
        match timeout(self.patience, self.socket.read_buf(&mut self.buffer)).await {
            Ok(Ok(0) | Err(_)) => self.said.push("saw the end of the connection".to_owned()),
            Ok(Ok(_)) => self.fail("expected the end of the connection"),
            Err(_) => self.fail(&format!(
                "expected the end of the connection, which is still open after {} ms",
                self.patience.as_millis()
            )),
        }
    }

    /// All that the other side still sends until it closes its side.
    pub async fn rest(&mut self) -> Bytes {
        let until = Instant::now() + self.patience;
        loop {
            match timeout_at(until, self.socket.read_buf(&mut self.buffer)).await {
                Ok(Ok(0)) => break,
                Ok(Ok(_)) => {}
                Ok(Err(error)) => self.fail(&format!("expected all until the end, and it broke: {error}")),
                Err(_) => self.fail("expected all until the end, and it does not end"),
            }
        }
        let rest = self.buffer.split().freeze();
        self.note("took the rest", &rest);
        rest
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        self.note("said", bytes);
        let written = timeout(self.patience, async {
            self.socket.write_all(bytes).await?;
            self.socket.flush().await
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.fail(&format!("the other side takes no more: {error}")),
            Err(_) => self.fail("the other side does not read what is sent"),
        }
    }

    /// In pieces of so many bytes, which the other side reads one by one.
    pub async fn send_in_pieces(&mut self, bytes: impl AsRef<[u8]>, piece_bytes: usize) {
        for piece in bytes.as_ref().chunks(piece_bytes) {
            self.send(piece).await;
            sleep(PIECE_PAUSE).await;
        }
    }

    /// Does nothing for so long; reads nothing either.
    pub async fn pause(&mut self, span: Duration) {
        sleep(span).await;
        self.said.push(format!("paused for {} ms", span.as_millis()));
    }

    /// Says that nothing more is to come, and still reads.
    pub async fn half_close(&mut self) {
        // The other side may have gone before, which `closed` tells.
        let _ = timeout(self.patience, self.socket.shutdown()).await;
        self.said.push("closed its side".to_owned());
    }

    /// Closes as the protocols say: with TLS's goodbye, where there is TLS.
    pub async fn close(mut self) {
        self.half_close().await;
    }

    /// Closes without TLS's goodbye.
    pub fn hang_up(self) {}

    /// Breaks the connection off; what the other side has not read yet is lost.
    pub fn reset(self) {
        set_socket_linger(&self.socket, Some(Duration::ZERO)).unwrap();
    }

    async fn more(&mut self, until: Instant, expected: impl Fn() -> String) {
        self.buffer.reserve(READ_BYTES);
        let why = match timeout_at(until, self.socket.read_buf(&mut self.buffer)).await {
            Ok(Ok(1..)) => return,
            Ok(Ok(0)) => "the other side has closed".to_owned(),
            Ok(Err(error)) => format!("the connection broke: {error}"),
            Err(_) => format!("no more came within {} ms", self.patience.as_millis()),
        };
        self.fail(&format!("{}; {why}", expected()));
    }

    fn note(&mut self, what: &str, bytes: &[u8]) {
        self.said.push(format!("{what} {}", shown(bytes)));
    }

    fn fail(&self, what: &str) -> ! {
        let mut text = format!("{what}\nnot taken yet: {}", shown(&self.buffer));
        for (number, said) in self.said.iter().enumerate() {
            let _ = write!(text, "\n{:>4}. {said}", number + 1);
        }
        panic!("{text}");
    }
}

pub(super) async fn reach(address: &str) -> TcpStream {
    let until = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect(address).await {
            Ok(stream) => return nodelay(stream).unwrap(),
            Err(error) if Instant::now() > until => panic!("nobody listens on {address}: {error}"),
            Err(_) => sleep(TRY_AGAIN).await,
        }
    }
}

/// Each piece leaves as it is.
pub(super) fn nodelay(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn shown(bytes: &[u8]) -> String {
    let cut = bytes.len().min(SHOWN_BYTES_MAX);
    let more = if cut < bytes.len() { "…" } else { "" };
    format!("{} bytes \"{}{more}\"", bytes.len(), bytes[..cut].escape_ascii())
}
