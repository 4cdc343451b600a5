//! The caller's half of a call with streams both ways: a first message, then what comes through a queue.

use futures_util::Stream;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::Poll;
use tokio::sync::{mpsc, oneshot};

/// Messages between a caller and the connection; each holds at most one chunk.
const QUEUE: usize = 4;

/// Ends the requests when it is dropped, whatever the queue still holds. Kept with the half that receives: HTTP/2 only
/// cancels a call when both its directions have been let go, and the half that sends may live on.
#[derive(Debug)]
pub(crate) struct Cancel {
    _dropped: oneshot::Sender<Infallible>,
}

/// The requests of a call that begins with `first`, the way to send more, and what ends them early. They end with the
/// last sender as well.
pub(crate) fn requests<T: Send + Unpin + 'static>(
    first: T,
) -> (mpsc::Sender<T>, Cancel, impl Stream<Item = T> + Send + 'static) {
    let (sender, mut receiver) = mpsc::channel(QUEUE);
    let (cancel, mut cancelled) = oneshot::channel::<Infallible>();
    let mut first = Some(first);
    let requests = futures_util::stream::poll_fn(move |context| {
        if first.is_some() {
            return Poll::Ready(first.take());
        }
        match Pin::new(&mut cancelled).poll(context) {
            Poll::Ready(_dropped) => Poll::Ready(None),
            Poll::Pending => receiver.poll_recv(context),
        }
    });
    (sender, Cancel { _dropped: cancel }, requests)
}
