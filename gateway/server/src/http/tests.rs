//! The API in process, against a real store in a temporary directory.

use std::pin::Pin;
use std::task::Poll;

mod accept;
mod bench;
mod calls;
mod delivering;
mod limits;
mod operating;
mod shapes;
mod tokens;

/// Polls once; whether the future still waits.
pub(crate) async fn pends<F: Future>(mut future: Pin<&mut F>) -> bool {
    std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_pending())).await
}
