//! Bodies of requests and answers, with an eye on the clock.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::{Body as AnswerBody, Bytes};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::pace::Busy;

/// What a peer must send of a body for each [`super::Limits::body`] that it makes the gateway wait; the last piece may be smaller. So a
/// drip of single bytes ends as surely as silence.
pub(super) const PROGRESS_BYTES_MIN: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the peer stopped sending the request's body")]
    Stalled,
    #[error("the request's body did not arrive whole")]
    Broken(#[source] hyper::Error),
}

/// A request's body that fails when its peer makes the gateway wait too long. Only waiting counts: a handler may take its time.
pub(super) struct PacedBody {
    inner: Incoming,
    allowance: Duration,
    left: Duration,
    received: usize,
    waiting_since: Option<Instant>,
    /// Made at the first wait: most bodies are there when they are asked for.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl PacedBody {
    pub(super) fn new(inner: Incoming, allowance: Duration) -> Self {
        Self { inner, allowance, left: allowance, received: 0, waiting_since: None, deadline: None }
    }

    fn note_received(&mut self, bytes: usize) {
        if let Some(since) = self.waiting_since.take() {
            self.left = self.left.saturating_sub(since.elapsed());
        }
        self.received += bytes;
        if self.received >= PROGRESS_BYTES_MIN {
            self.received = 0;
            self.left = self.allowance;
        }
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let left = self.left;
        let newly_waiting = self.waiting_since.is_none();
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep_until(since + left)));
        if newly_waiting {
            deadline.as_mut().reset(since + left);
        }
        deadline.as_mut().poll(cx)
    }
}

impl Body for PacedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                self.note_received(bytes);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(BodyError::Broken(error)))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                ready!(self.poll_deadline(cx));
                Poll::Ready(Some(Err(BodyError::Stalled)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// An answer's body. As long as it lives the connection is busy.
pub(super) struct BusyBody {
    inner: AnswerBody,
    _busy: Busy,
}

impl BusyBody {
    pub(super) fn new(inner: AnswerBody, busy: Busy) -> Self {
        Self { inner, _busy: busy }
    }
}

impl Body for BusyBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
