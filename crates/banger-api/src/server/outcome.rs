//! What a dispatched request turns into, with the types of its answer erased.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use serde::Serialize;
use serde_json::value::RawValue;

use crate::contract::{Events, StreamHandler};
use crate::error::{ErrorKind, RpcError};

/// Polls for a subscription's next event as JSON; `None` is the end.
pub(crate) type PollEvents =
    Box<dyn FnMut(&mut Context<'_>) -> Poll<Option<Result<Box<RawValue>, RpcError>>> + Send>;

/// What came of a request.
pub(crate) enum Outcome {
    /// The answer of a call.
    Reply(Box<RawValue>),
    /// Events to come.
    Subscription {
        /// The method, which its notifications carry.
        method: &'static str,
        /// The events.
        events: PollEvents,
    },
    /// What takes over the connection.
    Stream(StreamHandler),
}

/// Puts a method's future on the heap. Otherwise every request's task, and every stack frame on the way to it, would be
/// as large as the largest method's future. Not inlined, so that what is made passes through no other frame.
#[inline(never)]
pub(crate) fn boxed<'a, F: Future + Send + 'a>(
    make: impl FnOnce() -> F,
) -> Pin<Box<dyn Future<Output = F::Output> + Send + 'a>> {
    Box::pin(make())
}

/// The outcome of a call.
pub(crate) fn answer<T: Serialize>(reply: T) -> Result<Outcome, RpcError> {
    to_json(&reply).map(Outcome::Reply)
}

/// The outcome of a subscription.
pub(crate) fn subscription<T: Serialize + Send + 'static>(
    method: &'static str,
    mut events: Events<T>,
) -> Outcome {
    let events: PollEvents = Box::new(move |cx| {
        events
            .poll_recv(cx)
            .map(|event| event.map(|event| event.and_then(|event| to_json(&event))))
    });
    Outcome::Subscription { method, events }
}

fn to_json<T: Serialize>(value: &T) -> Result<Box<RawValue>, RpcError> {
    serde_json::value::to_raw_value(value).map_err(|e| {
        RpcError::new(
            ErrorKind::Internal,
            format!("cannot write the answer as JSON: {e}"),
        )
    })
}
