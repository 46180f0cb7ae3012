//! Connections to a partner, plain or with TLS.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use rustls::client::ResolvesClientCert;
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ProtocolVersion, SignatureScheme};
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::explain::explain;
use super::misset::Misset;
use super::settings::ConnectTls;
use super::stream::Stream;
use crate::egress::{self, Turn};
use crate::files::Live;
use crate::process::Failure;

/// How long a partner that asks for our certificate gets to say that it refuses it.
const VERDICT_WAIT: Duration = Duration::from_millis(250);
/// What it says in place of that is kept so far.
const EARLY_BYTES_MAX: usize = 1024;

/// Connects to one partner.
pub struct Connector {
    address: String,
    tls: Option<Tls>,
}

struct Tls {
    settings: ConnectTls,
    name: ServerName<'static>,
    /// What is offered to be spoken on TLS, if anything (ALPN).
    protocols: Vec<Vec<u8>>,
    config: Live<ClientConfig>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("address", &self.address).field("tls", &self.tls.is_some()).finish()
    }
}

/// Why there is no connection. Nothing of a message can have left.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot connect: {}", plainly(.0))]
    Unreachable(#[source] io::Error),
    #[error("no connection within {} ms", .0.as_millis())]
    Late(Duration),
    #[error("connected, but the TLS handshake was not over within {} ms", .0.as_millis())]
    HandshakeLate(Duration),
    #[error("no TLS with the partner: {0}")]
    Handshake(String),
}

/// What the gateway or a resolver says of it in words, else the kernel's reason without its number.
fn plainly(error: &io::Error) -> String {
    error.get_ref().map_or_else(|| error.kind().to_string(), ToString::to_string)
}

impl Connector {
    /// `address` is `host:port`.
    pub fn new(address: &str, tls: Option<&ConnectTls>) -> Result<Self, Failure> {
        let tls = tls.map(|tls| Tls::new(address, tls)).transpose();
        let tls = tls.map_err(|misset| Failure::new("the settings of TLS cannot be used", misset))?;
        Ok(Self { address: address.to_owned(), tls })
    }

    /// Offers these protocols to a partner with TLS (ALPN, RFC 7301), the one that is preferred first.
    pub fn offering(mut self, protocols: &[&[u8]]) -> Self {
        if let Some(tls) = &mut self.tls {
            tls.protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        }
        self
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Connects through the gateway; `within` counts for all of it, from when this process has a turn to connect: others may be before it.
    pub async fn connect(&self, within: Duration) -> Result<Stream, ConnectError> {
        self.connect_in_turn(egress::turn(), within).await
    }

    async fn connect_in_turn(
        &self,
        turn: impl Future<Output = Turn<'_>>,
        within: Duration,
    ) -> Result<Stream, ConnectError> {
        let turn = turn.await;
        let until = Instant::now() + within;
        let stream = timeout_at(until, turn.connect(&self.address))
            .await
            .map_err(|_| ConnectError::Late(within))?
            .map_err(ConnectError::Unreachable)?;
        // Messages are written whole, and their sender waits for an answer: holding them back gains nothing.
        stream.set_nodelay(true).map_err(ConnectError::Unreachable)?;
        let Some(tls) = &self.tls else { return Ok(Stream::plain(stream)) };
        let (config, asked) = tls.asking();
        let handshake = async {
            let stream = TlsConnector::from(config).connect(tls.name.clone(), stream).await?;
            if asked.yes() { verdict(stream).await } else { Ok(Stream::tls(stream, Vec::new())) }
        };
        match timeout_at(until, handshake).await {
            Ok(ended) => ended.map_err(|error| ConnectError::Handshake(explain(&error))),
            Err(_) => Err(ConnectError::HandshakeLate(within)),
        }
    }
}

/// Notes whether the partner asks for a certificate.
#[derive(Debug)]
struct Asked {
    resolver: Arc<dyn ResolvesClientCert>,
    asked: AtomicBool,
}

impl Asked {
    fn yes(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }
}

impl ResolvesClientCert for Asked {
    fn resolve(&self, authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Release);
        self.resolver.resolve(authorities, schemes)
    }

    fn has_certs(&self) -> bool {
        self.resolver.has_certs()
    }
}

/// With TLS 1.3 our handshake is over before the partner has looked at our certificate. If a message were written before its verdict, a
/// refusal would look like a message that is in doubt. Most partners send a ticket once they are content; for the others it is enough to
/// have waited a moment, and one that refuses later than that leaves a doubt.
async fn verdict(mut stream: TlsStream<TcpStream>) -> io::Result<Stream> {
    if stream.get_ref().1.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
        return Ok(Stream::tls(stream, Vec::new()));
    }
    let mut space = [0; EARLY_BYTES_MAX];
    let said = poll_fn(|context| {
        let mut buffer = ReadBuf::new(&mut space);
        match Pin::new(&mut stream).poll_read(context, &mut buffer) {
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()))
            }
            Poll::Ready(read) => Poll::Ready(read.map(|()| buffer.filled().to_vec())),
            Poll::Pending if stream.get_ref().1.tls13_tickets_received() > 0 => Poll::Ready(Ok(Vec::new())),
            Poll::Pending => Poll::Pending,
        }
    });
    let early = timeout(VERDICT_WAIT, said).await.unwrap_or_else(|_| Ok(Vec::new()))?;
    Ok(Stream::tls(stream, early))
}

impl Tls {
    fn new(address: &str, settings: &ConnectTls) -> Result<Self, Misset> {
        let config = Live::new(settings.files(), || settings.config())?;
        let name = settings.name(address)?;
        Ok(Self { settings: settings.clone(), name, protocols: Vec::new(), config })
    }

    /// One connection's, which notes whether the partner asks for a certificate.
    fn asking(&self) -> (Arc<ClientConfig>, Arc<Asked>) {
        let config = self.config.current(self.settings.files(), || self.settings.config());
        let resolver = Arc::clone(&config.client_auth_cert_resolver);
        let asked = Arc::new(Asked { resolver, asked: AtomicBool::new(false) });
        let mut config = (*config).clone();
        config.client_auth_cert_resolver = asked.clone();
        config.alpn_protocols.clone_from(&self.protocols);
        (Arc::new(config), asked)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;
    use tokio::sync::Semaphore;
    use tokio::time::sleep;

    use super::*;

    /// Others of this process are before it, for longer than its partner may take.
    #[tokio::test]
    async fn the_partners_time_begins_with_our_turn() {
        const WITHIN: Duration = Duration::from_millis(200);
        let dir = tempfile::tempdir().unwrap();
        let desk = dir.path().join(egress::SOCKET_NAME);
        let gateway = UnixListener::bind(&desk).unwrap();
        let turns = Semaphore::new(0);
        let connector = Connector::new("lab:1", None).unwrap();
        let attempt = || connector.connect_in_turn(Turn::wait(Some(desk.clone()), &turns), WITHIN);
        let freed = async {
            sleep(4 * WITHIN).await;
            turns.add_permits(1);
            // Nobody answers: it is the partner who is late.
            gateway.accept().await.unwrap()
        };
        let begun = Instant::now();
        let both = async { tokio::join!(attempt(), freed) };
        let (ended, _asked) = timeout(Duration::from_secs(20), both).await.expect("the gateway is not asked");
        assert!(matches!(ended, Err(ConnectError::Late(WITHIN))), "{ended:?}");
        assert!(begun.elapsed() >= 5 * WITHIN, "the turn counted");
        assert_eq!(turns.available_permits(), 1, "a turn given back");
    }
}
