//! Connections to a partner, plain or with TLS.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::explain::explain;
use super::settings::{ConnectTls, Misset};
use super::stream::Stream;
use crate::client::locked;
use crate::egress;
use crate::files::Stamp;
use crate::process::Failure;

/// Connects to one partner.
pub struct Connector {
    address: String,
    tls: Option<Tls>,
}

struct Tls {
    settings: ConnectTls,
    name: ServerName<'static>,
    live: Mutex<Live>,
}

struct Live {
    config: Arc<ClientConfig>,
    /// The files as they were when they were last read.
    stamps: Vec<Option<Stamp>>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("address", &self.address).field("tls", &self.tls.is_some()).finish()
    }
}

/// Why there is no connection. Nothing of a message can have left.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot connect: {}", .0.kind())]
    Unreachable(#[source] io::Error),
    #[error("no connection within {} ms", .0.as_millis())]
    Late(Duration),
    #[error("connected, but the TLS handshake was not over within {} ms", .0.as_millis())]
    HandshakeLate(Duration),
    #[error("no TLS with the partner: {0}")]
    Handshake(String),
}

impl Connector {
    /// `address` is `host:port`.
    pub fn new(address: &str, tls: Option<&ConnectTls>) -> Result<Self, Failure> {
        let tls = tls.map(|tls| Tls::new(address, tls)).transpose();
        let tls = tls.map_err(|misset| Failure::new("the settings of TLS cannot be used", misset))?;
        Ok(Self { address: address.to_owned(), tls })
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Connects through the gateway; `within` counts for all of it.
    pub async fn connect(&self, within: Duration) -> Result<Stream, ConnectError> {
        let until = Instant::now() + within;
        let stream = timeout_at(until, egress::connect(&self.address))
            .await
            .map_err(|_| ConnectError::Late(within))?
            .map_err(ConnectError::Unreachable)?;
        // Messages are written whole, and their sender waits for an answer: holding them back gains nothing.
        stream.set_nodelay(true).map_err(ConnectError::Unreachable)?;
        let Some(tls) = &self.tls else { return Ok(Stream::plain(stream)) };
        let handshake = TlsConnector::from(tls.current()).connect(tls.name.clone(), stream);
        match timeout_at(until, handshake).await {
            Ok(Ok(stream)) => Ok(Stream::tls(stream)),
            Ok(Err(error)) => Err(ConnectError::Handshake(explain(&error))),
            Err(_) => Err(ConnectError::HandshakeLate(within)),
        }
    }
}

impl Tls {
    fn new(address: &str, settings: &ConnectTls) -> Result<Self, Misset> {
        // Before they are read: what changes in between is read once more.
        let stamps = Stamp::all(settings.files());
        let live = Live { config: Arc::new(settings.config()?), stamps };
        Ok(Self { settings: settings.clone(), name: settings.name(address)?, live: Mutex::new(live) })
    }

    fn current(&self) -> Arc<ClientConfig> {
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
