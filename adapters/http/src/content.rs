//! A request's body that says when the connection asks for it: until then nothing of the request can have left.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;

pub(crate) struct Content {
    bytes: Option<Bytes>,
    /// Dropped when the body is asked for, or given up.
    untouched: Option<oneshot::Sender<Infallible>>,
}

impl Content {
    /// The body, and what is done once bytes may have left, or never will. An empty body is not asked for, but dropped when
    /// the head has been written.
    pub(crate) fn new(bytes: Bytes) -> (Self, oneshot::Receiver<Infallible>) {
        let (untouched, leaving) = oneshot::channel();
        (Self { bytes: Some(bytes), untouched: Some(untouched) }, leaving)
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.untouched = None;
        let bytes = self.bytes.take().filter(|bytes| !bytes.is_empty());
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    /// Not before it was asked for, empty or not: what has ended already would have no `content-length`.
    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
