//! A partner that listens.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::timeout;

use super::connection::{Connection, Framing, PATIENCE, Socket, lines, nodelay};

/// A partner that an adapter connects to.
///
/// A test takes its connections one by one with [`Self::accept`], or hands in a script that is played on each with [`Self::play`].
/// Dropping it refuses new connections.
pub struct Partner {
    listener: TcpListener,
    framing: Framing,
    patience: Duration,
    #[cfg(feature = "tls")]
    tls: Option<tokio_rustls::TlsAcceptor>,
}

impl Partner {
    /// On a free port of this host, without TLS. Frames are lines until [`Self::framed`] says otherwise.
    pub async fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self {
            listener,
            framing: Arc::new(lines),
            patience: PATIENCE,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    /// How frames are told in the adapter's protocol: takes the first whole one out of the buffer, or says that there is none yet.
    pub fn framed(
        mut self,
        framing: impl Fn(&mut BytesMut) -> Option<Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.framing = Arc::new(framing);
        self
    }

    /// How long it waits for what is expected; 20 s unless said otherwise.
    pub fn patient(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The kernel takes only so many bytes for connections that are not read, so that an adapter notices soon that its partner has stopped
    /// reading. What the adapter's own side holds comes on top.
    pub fn narrow(self, bytes: usize) -> Self {
        set_socket_recv_buffer_size(&self.listener, bytes).unwrap();
        self
    }

    /// From the next connection on it speaks TLS with this certificate.
    #[cfg(feature = "tls")]
    pub fn present(&mut self, certificate: &super::Certificate) {
        self.tls = Some(certificate.acceptor(None));
    }

    /// From the next connection on it speaks TLS with this certificate, and wants one of `clients`.
    #[cfg(feature = "tls")]
    pub fn present_and_demand(&mut self, certificate: &super::Certificate, clients: &super::Authority) {
        self.tls = Some(certificate.acceptor(Some(clients)));
    }

    /// `host:port`, as settings name it.
    pub fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    /// The adapter's next connection, with TLS where a certificate is presented.
    pub async fn accept(&self) -> Connection {
        self.converse(self.accepted().await).await
    }

    /// The adapter's next connection, on which TLS does not come about; says why, as this side sees it.
    #[cfg(feature = "tls")]
    pub async fn handshake_fails(&self) -> String {
        let tls = self.tls.as_ref().expect("a certificate is presented");
        let stream = self.accepted().await;
        let shaken = timeout(self.patience, async {
            let mut stream = tls.accept(stream).await?;
            // With TLS 1.3 this side learns only after its own part what the other thinks of it.
            tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 1]).await
        });
        match shaken.await.expect("expected that TLS fails, and the handshake does not end") {
            Err(error) => crate::tls::explain(&error),
            Ok(0) => "it closed the connection".to_owned(),
            Ok(_) => panic!("expected that TLS fails, and the adapter speaks on the connection"),
        }
    }

    /// The adapter's next connection, without TLS also where a certificate is presented: for what a partner says that has none, and for
    /// bytes that are no TLS.
    pub async fn accept_plain(&self) -> Connection {
        self.plain(self.accepted().await)
    }

    /// Refuses TLS on the adapter's next connection, by the alert that says so.
    pub async fn refuse_tls(&self) {
        // A record of type alert, of TLS 1.2, two bytes long: fatal, handshake_failure (RFC 8446 §6).
        const HANDSHAKE_FAILURE: [u8; 7] = [21, 3, 3, 0, 2, 2, 40];
        let mut connection = self.accept_plain().await;
        // What it was sent is read first, so that the kernel does not reset the connection over it.
        connection.expect([22, 3]).await;
        connection.send(HANDSHAKE_FAILURE).await;
        connection.half_close().await;
        connection.rest().await;
    }

    /// Nobody connects for so long.
    pub async fn nobody_for(&self, span: Duration) {
        if let Ok(accepted) = timeout(span, self.listener.accept()).await {
            panic!("expected nobody, and {:?} has connected", accepted.map(|(_, peer)| peer));
        }
    }

    /// Plays `script` on each connection, all of them at a time.
    pub fn play<F, S>(self, script: F) -> Playing
    where
        F: Fn(Connection) -> S + Send + Sync + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        let address = self.address();
        let (finish, mut finishing) = oneshot::channel::<()>();
        let playing = tokio::spawn(async move {
            let (partner, script) = (Arc::new(self), Arc::new(script));
            let mut scripts = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = partner.listener.accept() => {
                        let stream = nodelay(accepted.unwrap().0).unwrap();
                        let (partner, script) = (Arc::clone(&partner), Arc::clone(&script));
                        scripts.spawn(async move { script(partner.converse(stream).await).await });
                    }
                    Some(ended) = scripts.join_next() => passed(ended),
                    _ = &mut finishing => break,
                }
            }
            drop(partner);
            while let Some(ended) = scripts.join_next().await {
                passed(ended);
            }
        });
        Playing { address, finish: Some(finish), playing }
    }

    async fn accepted(&self) -> TcpStream {
        let accepted = timeout(self.patience, self.listener.accept()).await;
        let accepted = accepted.unwrap_or_else(|_| {
            panic!("expected a connection, and nobody connects within {} ms", self.patience.as_millis())
        });
        nodelay(accepted.unwrap().0).unwrap()
    }

    async fn converse(&self, stream: TcpStream) -> Connection {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            let shaken = timeout(self.patience, tls.accept(stream)).await;
            let shaken = shaken.expect("expected TLS, and the handshake does not end");
            let stream = shaken.unwrap_or_else(|error| panic!("expected TLS, and there is none: {error}"));
            return self.connection(Box::new(crate::tls::Stream::tls(stream, Vec::new())));
        }
        self.plain(stream)
    }

    fn plain(&self, stream: TcpStream) -> Connection {
        self.connection(Box::new(stream))
    }

    fn connection(&self, socket: Box<dyn Socket>) -> Connection {
        Connection::new(socket, Arc::clone(&self.framing), self.patience)
    }
}

/// A partner that plays a script; dropping it ends the partner and its connections.
pub struct Playing {
    address: String,
    /// Dropped to say so.
    finish: Option<oneshot::Sender<()>>,
    playing: JoinHandle<()>,
}

impl Playing {
    /// `host:port`, as settings name it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Takes no more connections, plays to the end on those that are open, and fails if a script has failed.
    pub async fn finish(mut self) {
        self.finish = None;
        passed((&mut self.playing).await);
    }
}

/// Fails as a script has failed.
fn passed(ended: Result<(), JoinError>) {
    if let Err(failed) = ended {
        std::panic::resume_unwind(failed.into_panic());
    }
}

impl Drop for Playing {
    fn drop(&mut self) {
        self.playing.abort();
    }
}
