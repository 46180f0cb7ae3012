//! The way to the endpoint: a connection that the gateway makes, and TLS on it where the URL says so. All of it together has one
//! limit of time, and while it lasts nothing of a request can have left.
//!
//! Certificates are verified against the name in the URL, whatever the gateway has connected to.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use gatepost_adapter::egress;
use http::Uri;
use http::uri::Scheme;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls_platform_verifier::Verifier;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower_service::Service;

const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;
const HTTP_1_1: &[u8] = b"http/1.1";
/// An endpoint that has vanished is noticed while its answer is awaited, and while a connection waits for its next request.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(15);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES_MAX: u32 = 3;
/// How long written bytes may go unacknowledged.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Connecting<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

#[derive(Debug, thiserror::Error)]
#[error("no connection within {} ms", .0.as_millis())]
struct TooLate(Duration);

/// Connects for one client.
#[derive(Clone)]
pub(crate) struct Connector {
    tls: HttpsConnector<Tcp>,
    patience: Duration,
}

impl Connector {
    /// `authorities` are trusted on top of the system's.
    pub(crate) fn new(
        authorities: &[CertificateDer<'static>],
        patience: Duration,
    ) -> Result<Self, rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Verifier::new_with_extra_roots(authorities.iter().cloned(), Arc::clone(&provider))?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(rustls::ALL_VERSIONS)?
            .dangerous()
            // The verifier of the system's authorities; rustls has this name for each verifier that it does not make itself.
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![HTTP_1_1.to_vec()];
        Ok(Self { tls: HttpsConnector::from((Tcp, config)), patience })
    }
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = BoxError;
    type Future = Connecting<Self::Response, BoxError>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tls.poll_ready(context)
    }

    fn call(&mut self, endpoint: Uri) -> Self::Future {
        let (connecting, patience) = (self.tls.call(endpoint), self.patience);
        Box::pin(async move { timeout(patience, connecting).await.map_err(|_| TooLate(patience))? })
    }
}

/// Without TLS.
#[derive(Clone)]
struct Tcp;

impl Service<Uri> for Tcp {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Connecting<Self::Response, io::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, endpoint: Uri) -> Self::Future {
        Box::pin(async move {
            let stream = egress::connect(&host_and_port(&endpoint)).await?;
            prepare(&stream)?;
            Ok(TokioIo::new(stream))
        })
    }
}

/// As the gateway wants it, which knows it from the same URL.
fn host_and_port(endpoint: &Uri) -> String {
    let usual = if endpoint.scheme() == Some(&Scheme::HTTPS) { HTTPS_PORT } else { HTTP_PORT };
    format!("{}:{}", endpoint.host().unwrap_or_default(), endpoint.port_u16().unwrap_or(usual))
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    // A request goes out in few writes, and its sender waits for the answer: holding them back gains nothing.
    stream.set_nodelay(true)?;
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

    #[test]
    fn the_gateway_is_asked_for_what_the_url_says() {
        for (url, asked) in [
            ("https://partner.example/", "partner.example:443"),
            ("http://partner.example/", "partner.example:80"),
            ("https://partner.example:8443/", "partner.example:8443"),
            ("http://[::1]:8080/", "[::1]:8080"),
        ] {
            assert_eq!(host_and_port(&url.parse().unwrap()), asked, "{url}");
        }
    }

    #[tokio::test]
    async fn a_connection_is_one_that_holds_nothing_back_and_notices_who_vanishes() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let stream = Tcp.call(url.parse().unwrap()).await.unwrap().into_inner();
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_AFTER);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED_MAX));
    }
}
