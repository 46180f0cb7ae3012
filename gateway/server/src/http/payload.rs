//! A payload on its way out, in pieces, with its place in memory: given back when the last piece has been handed over or the
//! reader has gone.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use super::places::Room;

/// Bytes of one piece.
const PIECE_BYTES: usize = 256 * 1024;

pub(crate) struct Payload {
    rest: Bytes,
    _room: Option<Room>,
}

impl Payload {
    pub(crate) fn new(bytes: Bytes, room: Option<Room>) -> Self {
        Self { rest: bytes, _room: room }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.rest.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn it_comes_in_pieces_and_whole() {
        let bytes = Bytes::from(vec![7u8; 2 * PIECE_BYTES + 1]);
        let mut payload = Payload::new(bytes.clone(), None);
        assert_eq!(payload.size_hint().exact(), Some(bytes.len() as u64));
        assert_eq!(payload.frame().await.unwrap().unwrap().into_data().unwrap().len(), PIECE_BYTES);
        assert_eq!(Payload::new(bytes.clone(), None).collect().await.unwrap().to_bytes(), bytes);
        assert!(Payload::new(Bytes::new(), None).is_end_stream());
    }
}
