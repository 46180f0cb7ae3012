//! Connections from partners, plain or with TLS.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::explain::explain;
use super::settings::ListenTls;
use super::stream::Stream;
use crate::client::locked;
use crate::files::Stamp;
use crate::process::Failure;

/// Makes streams of accepted connections.
pub struct Acceptor(Option<Tls>);

struct Tls {
    settings: ListenTls,
    live: Mutex<Live>,
}

struct Live {
    config: Arc<ServerConfig>,
    /// The files as they were when they were last read.
    stamps: Vec<Option<Stamp>>,
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
        // Before they are read: what changes in between is read once more.
        let stamps = Stamp::all(settings.files());
        let config =
            settings.config().map_err(|misset| Failure::new("the settings of TLS cannot be used", misset))?;
        let live = Mutex::new(Live { config: Arc::new(config), stamps });
        Ok(Self(Some(Tls { settings: settings.clone(), live })))
    }

    /// The connection as the adapter speaks on it, once a TLS handshake is over, which may take as long as `within`. To be called in the
    /// connection's own task: a partner that is slow at it must not hold up the others.
    pub async fn accept(&self, stream: TcpStream, within: Duration) -> Result<Stream, AcceptError> {
        // Messages are written whole, and their sender waits for an answer: holding them back gains nothing.
        stream.set_nodelay(true).map_err(AcceptError::Io)?;
        let Some(tls) = &self.0 else { return Ok(Stream::plain(stream)) };
        match timeout(within, TlsAcceptor::from(tls.current()).accept(stream)).await {
            Ok(Ok(stream)) => Ok(Stream::tls(stream, Vec::new())),
            Ok(Err(error)) => Err(AcceptError::Handshake(explain(&error))),
            Err(_) => Err(AcceptError::HandshakeLate(within)),
        }
    }
}

impl Tls {
    fn current(&self) -> Arc<ServerConfig> {
        let stamps = Stamp::all(self.settings.files());
        let mut live = locked(&self.live);
        if live.stamps != stamps {
            // Told once per change: a bad file is looked at again when it changes again.
            live.stamps = stamps;
            match self.settings.config() {
                Ok(config) => {
                    live.config = Arc::new(config);
                    tracing::info!("certificates have changed and were read again");
                }
                Err(error) => {
                    tracing::warn!(%error, "certificates have changed and cannot be used; going on with those before");
                }
            }
        }
        Arc::clone(&live.config)
    }
}
