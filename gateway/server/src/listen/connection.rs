//! A connection of a known peer: HTTP for as long as the peer keeps pace.

use std::{
    convert::Infallible, error::Error as _, future::poll_fn, io, panic::AssertUnwindSafe, pin::pin,
    sync::Arc, time::Duration,
};

use axum::body::Body;
use futures_util::FutureExt;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    ExpectedPid, answer,
    body::{BusyBody, PacedBody},
    pace::{Pace, PacedStream},
    peer::Peer,
    quota::PrincipalSlot,
    serve::{Server, stopped},
    tls::Chain,
};

/// After an answer that ends the connection, what the peer still sends is thrown away for this long and this much, for the same reason.
const LINGER_MAX: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What is read of one connection ahead of its handler.
const READ_BUFFER_BYTES_MAX: usize = 128 * 1024;

/// A connection whose peer is somebody.
pub(super) struct Admitted {
    pub(super) server: Arc<Server>,
    pub(super) peer: Peer,
    /// The supervised process behind it.
    pub(super) child: Option<(ExpectedPid, u32)>,
    /// Its place among its principal's connections, where those are limited.
    pub(super) _place: Option<PrincipalSlot>,
    /// What it stands on, on TLS.
    pub(super) certificate: Option<Standing>,
}

/// A verified client certificate.
pub(super) struct Standing {
    /// How long it still holds by itself.
    pub(super) valid_for: Duration,
    pub(super) chain: Chain,
}

/// What a connection was good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Brought {
    Requests,
    /// Not one whole head.
    Nothing,
    /// Its peer may not connect.
    Nobody,
}

/// How a connection's HTTP ended.
enum Ended {
    /// By an answer, an error of the peer, or its leaving.
    ByHttp,
    TooSlow,
    /// Its supervised process is no longer the one that runs.
    ChildGone,
    /// Its certificate was revoked, or its authority left.
    CertificateRefused,
}

impl Admitted {
    pub(super) async fn serve<S>(self, stream: S, stop: watch::Receiver<bool>) -> Brought
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Peer { serves, connection, pid, .. } = &self.peer;
        tracing::debug!(%connection, serves = serves.as_str(), pid, "a known peer has connected");
        let limits = &self.server.limits;
        let pace = Pace::new(limits);
        let paced = TokioIo::new(PacedStream::new(stream, pace.clone(), limits.write));
        let (server, peer, begin) = (self.server.clone(), self.peer.clone(), pace.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let busy = begin.begin();
            let (server, peer) = (server.clone(), peer.clone());
            // Boxed, as hyper gives the stream back only if the future can be moved.
            Box::pin(async move {
                let answer = answer(&server, peer, request).await;
                Ok::<_, Infallible>(answer.map(|body| BusyBody::new(body, busy)))
            })
        });
        let mut http = http1::Builder::new();
        http.header_read_timeout(None)
            .max_headers(limits.head_fields)
            .max_header_size(limits.head_bytes)
            .max_buf_size(READ_BUFFER_BYTES_MAX.max(limits.head_bytes));
        let mut connection = http.serve_connection(paced, service);
        match self.drive(&mut connection, &pace, stop).await {
            Ended::ByHttp => linger(connection.into_parts().io.into_inner()).await,
            Ended::TooSlow => self.server.counters.count_cut_slow(),
            // Nothing more is said to somebody who is nobody any more. What a request has begun to commit is committed.
            Ended::ChildGone | Ended::CertificateRefused => {}
        }
        if pace.has_begun() { Brought::Requests } else { Brought::Nothing }
    }

    /// Runs the connection to its end, telling it to finish what it does when the gateway stops or its certificate runs out.
    async fn drive<I, S>(
        &self,
        connection: &mut http1::Connection<I, S>,
        pace: &Pace,
        mut stop: watch::Receiver<bool>,
    ) -> Ended
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin,
        S: Service<Request<Incoming>, Response = Response<BusyBody>, Error = Infallible> + Unpin,
        S::Future: Unpin,
    {
        let mut too_slow = pin!(pace.expired());
        let mut child_gone = pin!(self.child_gone());
        let mut certificate_refused = pin!(self.certificate_refused());
        let mut finish = pin!(async {
            tokio::select! {
                () = stopped(&mut stop) => {}
                () = self.certificate_ended() => {}
            }
        });
        let mut finishing = false;
        loop {
            tokio::select! {
                ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => {
                    return match ended {
                        Err(error) if timed_out(&error) => Ended::TooSlow,
                        Ok(()) | Err(_) => Ended::ByHttp,
                    };
                }
                () = &mut too_slow => return Ended::TooSlow,
                () = &mut child_gone => return Ended::ChildGone,
                () = &mut certificate_refused => return Ended::CertificateRefused,
                () = &mut finish, if !finishing => {
                    finishing = true;
                    std::pin::Pin::new(&mut *connection).graceful_shutdown();
                }
            }
        }
    }

    async fn child_gone(&self) {
        match &self.child {
            // A supervisor that is gone has no children either.
            Some((child, pid)) => drop(child.clone().wait_for(|expected| *expected != Some(*pid)).await),
            None => std::future::pending().await,
        }
    }

    async fn certificate_ended(&self) {
        match &self.certificate {
            Some(certificate) => sleep(certificate.valid_for).await,
            None => std::future::pending().await,
        }
    }

    async fn certificate_refused(&self) {
        match &self.certificate {
            Some(certificate) => certificate.chain.refused().await,
            None => std::future::pending().await,
        }
    }
}

/// The application's answer, or the one that stands for its panic.
async fn answer(server: &Server, peer: Peer, request: Request<Incoming>) -> Response<Body> {
    let (mut parts, body) = request.into_parts();
    parts.extensions.insert(peer);
    let request = Request::from_parts(parts, Body::new(PacedBody::new(body, server.limits.body)));
    // Unwind safety: nothing that the handler shared is looked at here afterwards; shared state elsewhere must bear a lost task anyway.
    let answered = AssertUnwindSafe(async { server.app.call(request).await }).catch_unwind().await;
    match answered {
        Ok(Ok(response)) => response,
        Err(_) => {
            server.counters.count_panic();
            tracing::error!("a request's handler panicked");
            answer::panicked()
        }
    }
}

fn timed_out(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::TimedOut)
}

/// Closes our side and gives the peer time to read the last answer.
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let mut thrown_away = [0; 8 * 1024];
    let mut left = LINGER_BYTES_MAX;
    let closed = async {
        stream.shutdown().await?;
        while left > 0 {
            match stream.read(&mut thrown_away).await? {
                0 => break,
                bytes => left = left.saturating_sub(bytes),
            }
        }
        io::Result::Ok(())
    };
    // However it goes, the stream is dropped next.
    let _ = timeout(LINGER_MAX, closed).await;
}
