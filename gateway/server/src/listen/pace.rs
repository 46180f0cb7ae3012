//! The pace of a connection: what it waits for now, and until when. Hyper has one timeout for "nothing of a next request yet" and "half a
//! head"; here they differ, and writing has one as well.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep, sleep_until},
};

use super::Limits;

/// One connection's state as to time. Shared by the connection's task, its stream and the answer in hand.
#[derive(Debug)]
pub(super) struct Pace {
    phase: Mutex<Phase>,
    /// Whether there was a request.
    begun: AtomicBool,
    head: Duration,
    idle: Duration,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// A request's head is due or has begun.
    Head { since: Instant },
    /// A request is in hand. Its body and its answer have clocks of their own.
    Busy,
    /// Nothing has come since the last answer.
    Idle { since: Instant },
}

impl Pace {
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        let phase = Mutex::new(Phase::Head { since: Instant::now() });
        Arc::new(Self { phase, begun: AtomicBool::new(false), head: limits.head, idle: limits.idle })
    }

    /// A request has arrived; the connection is busy until the value is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.begun.store(true, Ordering::Relaxed);
        self.enter(|_| Phase::Busy);
        Busy(self.clone())
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// Returns when the peer has used up its time, or up to one shortest limit later: looking now and then costs less than being woken
    /// at each request.
    pub(super) async fn expired(&self) {
        let look_again = self.head.min(self.idle);
        loop {
            let now = Instant::now();
            match self.deadline() {
                Some(deadline) if deadline <= now => return,
                Some(deadline) => sleep_until(deadline.min(now + look_again)).await,
                None => sleep(look_again).await,
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match *self.phase.lock().unwrap_or_else(PoisonError::into_inner) {
            Phase::Head { since } => Some(since + self.head),
            Phase::Busy => None,
            Phase::Idle { since } => Some(since + self.idle),
        }
    }

    fn note_read(&self) {
        self.enter(|phase| match phase {
            Phase::Idle { .. } => Phase::Head { since: Instant::now() },
            Phase::Head { .. } | Phase::Busy => phase,
        });
    }

    fn enter(&self, next: impl FnOnce(Phase) -> Phase) {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        *phase = next(*phase);
    }
}

/// A request in hand.
#[derive(Debug)]
pub(super) struct Busy(Arc<Pace>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.enter(|_| Phase::Idle { since: Instant::now() });
    }
}

/// A stream that reports what it reads, and whose writes fail when the peer takes nothing for too long.
pub(super) struct PacedStream<S> {
    inner: S,
    pace: Arc<Pace>,
    write_limit: Duration,
    write_deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> PacedStream<S> {
    pub(super) fn new(inner: S, pace: Arc<Pace>, write_limit: Duration) -> Self {
        Self { inner, pace, write_limit, write_deadline: None }
    }

    fn within_limit<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_deadline = None;
            return written;
        }
        let limit = self.write_limit;
        let deadline = self.write_deadline.get_or_insert_with(|| Box::pin(sleep(limit)));
        match deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PacedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.pace.note_read();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PacedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.within_limit(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.within_limit(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.within_limit(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.within_limit(cx, shut)
    }
}
