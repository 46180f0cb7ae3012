//! The way to the endpoint: a connection that the gateway makes, and TLS on it where the URL says so. All of it together has one
//! limit of time, and while it lasts nothing of a request can have left.
//!
//! Certificates are verified against the name that the settings say, by default the URL's, whatever the gateway has connected to.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use gatepost_adapter::Failure;
use gatepost_adapter::tls::{self, ConnectError, ConnectTls, Stream};
use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_service::Service;

const HTTP_1_1: &[u8] = b"http/1.1";
/// An endpoint that has vanished is noticed while its answer is awaited, and while a connection waits for its next request.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(15);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES_MAX: u32 = 3;
/// How long written bytes may go unacknowledged.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);

/// Connects for one client, to one endpoint.
#[derive(Clone)]
pub(crate) struct Connector {
    partner: Arc<tls::Connector>,
    patience: Duration,
}

impl Connector {
    /// `address` is the endpoint's `host:port`.
    pub(crate) fn new(address: &str, tls: Option<&ConnectTls>, patience: Duration) -> Result<Self, Failure> {
        let partner = tls::Connector::new(address, tls)?.offering(&[HTTP_1_1]);
        Ok(Self { partner: Arc::new(partner), patience })
    }
}

/// The client follows nobody, so that it asks for no other than the one endpoint.
impl Service<Uri> for Connector {
    type Response = TokioIo<Socket>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { partner, patience } = self.clone();
        Box::pin(async move {
            let stream = partner.connect(patience).await?;
            prepare(&stream).map_err(ConnectError::Unreachable)?;
            Ok(TokioIo::new(Socket(stream)))
        })
    }
}

/// As the HTTP client wants it.
#[derive(Debug)]
pub(crate) struct Socket(Stream);

impl Connection for Socket {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

fn prepare(stream: &Stream) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_EVERY)
        .with_retries(KEEPALIVE_PROBES_MAX);
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_is_one_that_holds_nothing_back_and_notices_who_vanishes() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut connector = Connector::new(&address, None, UNACKNOWLEDGED_MAX).unwrap();
        let stream = connector.call(Uri::from_static("http://x/")).await.unwrap().into_inner();
        let socket = SockRef::from(&stream.0);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_AFTER);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED_MAX));
    }
}
