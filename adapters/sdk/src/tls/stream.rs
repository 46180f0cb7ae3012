//! A partner's connection, plain or with TLS.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use super::name::{PeerName, names};

/// A connection to or from a partner. What has been written leaves with a flush.
///
/// A partner that closes without the goodbye of TLS has closed all the same, as many do. Where its end says that something is whole, look at
/// [`Stream::was_cut`]: anybody on the way can cut a connection.
#[derive(Debug)]
pub struct Stream {
    kind: Kind,
    peer_names: Vec<PeerName>,
    /// What the partner had said before the stream was handed out.
    early: Vec<u8>,
    was_cut: bool,
}

#[derive(Debug)]
enum Kind {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    pub fn plain(stream: TcpStream) -> Self {
        Self { kind: Kind::Plain(stream), peer_names: Vec::new(), early: Vec::new(), was_cut: false }
    }

    /// `early` is what has been read of it.
    pub(crate) fn tls(stream: impl Into<TlsStream<TcpStream>>, early: Vec<u8>) -> Self {
        let stream = stream.into();
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[CertificateDer<'_>]>::first);
        let peer_names = certificate.map(names).unwrap_or_default();
        Self { kind: Kind::Tls(Box::new(stream)), peer_names, early, was_cut: false }
    }

    pub fn is_tls(&self) -> bool {
        matches!(self.kind, Kind::Tls(_))
    }

    /// The names in the partner's certificate, which has been verified; none without TLS, or of one that has shown none.
    pub fn peer_names(&self) -> &[PeerName] {
        &self.peer_names
    }

    /// The connection has ended without the goodbye of TLS (close_notify): it need not be the partner who ended it. Never so without TLS, where
    /// nothing tells one from the other.
    pub fn was_cut(&self) -> bool {
        self.was_cut
    }

    /// The socket, for its addresses.
    pub fn tcp(&self) -> &TcpStream {
        match &self.kind {
            Kind::Plain(stream) => stream,
            Kind::Tls(stream) => stream.get_ref().0,
        }
    }
}

/// For options of the socket.
impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp().as_fd()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let stream = match &mut this.kind {
            Kind::Plain(stream) => return Pin::new(stream).poll_read(context, buffer),
            Kind::Tls(stream) => stream,
        };
        if !this.early.is_empty() {
            let now = this.early.len().min(buffer.remaining());
            buffer.put_slice(&this.early[..now]);
            this.early.drain(..now);
            return Poll::Ready(Ok(()));
        }
        match ready!(Pin::new(stream).poll_read(context, buffer)) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                this.was_cut = true;
                Poll::Ready(Ok(()))
            }
            read => Poll::Ready(read),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().kind {
            Kind::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Kind::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    /// A message with what goes around it leaves in one piece: there are partners that read once and take that for all of it.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().kind {
            Kind::Plain(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
            Kind::Tls(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.kind {
            Kind::Plain(stream) => stream.is_write_vectored(),
            Kind::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Plain(stream) => Pin::new(stream).poll_flush(context),
            Kind::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Kind::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
