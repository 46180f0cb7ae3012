//! Connections from partners, plain or with TLS.

use std::fmt;
use std::io;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::explain::explain;
use super::settings::ListenTls;
use super::stream::Stream;
use crate::files::Live;
use crate::process::Failure;

/// Makes streams of accepted connections.
pub struct Acceptor(Option<Tls>);

struct Tls {
    settings: ListenTls,
    config: Live<ServerConfig>,
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").field("tls", &self.0.is_some()).finish()
    }
}

/// Why a connection was not let in.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    #[error("the connection cannot be used: {}", .0.kind())]
    Io(#[source] io::Error),
    #[error("the TLS handshake was not over within {} ms", .0.as_millis())]
    HandshakeLate(Duration),
    #[error("no TLS with the partner: {0}")]
    Handshake(String),
}

impl Acceptor {
    pub fn new(tls: Option<&ListenTls>) -> Result<Self, Failure> {
        let Some(settings) = tls else { return Ok(Self(None)) };
        let config = Live::new(settings.files(), || settings.config())
            .map_err(|misset| Failure::new("the settings of TLS cannot be used", misset))?;
        Ok(Self(Some(Tls { settings: settings.clone(), config })))
    }

    /// The connection as the adapter speaks on it, once a TLS handshake is over, which may take as long as `within`. To be called in the
    /// connection's own task: a partner that is slow at it must not hold up the others.
    pub async fn accept(&self, stream: TcpStream, within: Duration) -> Result<Stream, AcceptError> {
        // Messages are written whole, and their sender waits for an answer: holding them back gains nothing.
        stream.set_nodelay(true).map_err(AcceptError::Io)?;
        let Some(tls) = &self.0 else { return Ok(Stream::plain(stream)) };
        let config = tls.config.current(tls.settings.files(), || tls.settings.config());
        match timeout(within, TlsAcceptor::from(config).accept(stream)).await {
            Ok(Ok(stream)) => Ok(Stream::tls(stream, Vec::new())),
            Ok(Err(error)) => Err(AcceptError::Handshake(explain(&error))),
            Err(_) => Err(AcceptError::HandshakeLate(within)),
        }
    }
}
