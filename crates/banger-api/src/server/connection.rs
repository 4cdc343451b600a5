//! One connection: reads documents, starts requests, and keeps to the bounds.
//!
//! Channels: `answers` (bounded) from the requests' tasks to the writer. Tokens: `gone` is set when the client has gone or
//! does not read; the server's `stopping` when the daemon ends.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::value::RawValue;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::outcome::{Outcome, PollEvents};
use super::request::{self, Document, Id, Notice, Refusal, Request};
use super::{Shared, stopping, turn_away};
use crate::contract::{Caller, Service, Shape, StreamHandler, dispatch, shape};
use crate::error::{ErrorKind, RpcError};
use crate::frame::FrameStream;
use crate::line::{Line, LineReader};

/// Answers that wait for the writer. A request holds its place among those in flight until its answer is queued, so at
/// most this many and the in-flight limit together are in memory.
const QUEUE: usize = 16;

/// What a connection's tasks share.
struct Connection<S> {
    shared: Arc<Shared<S>>,
    caller: Caller,
    answers: mpsc::Sender<Bytes>,
    in_flight: Arc<Semaphore>,
    gone: CancellationToken,
    /// Id of the last subscription.
    subscriptions: u64,
}

/// What a document asks of the reading task.
enum Next {
    /// Read on.
    Read,
    /// Hand the connection over; this answer goes first.
    Upgrade(Bytes, StreamHandler),
    /// Nobody reads the answers.
    Close,
}

/// Why the reading task reads no more lines.
enum Ended {
    /// A stream takes over; this answer goes first.
    Upgrade(Bytes, StreamHandler),
    /// The client has gone, or has nothing more to ask, or is not worth listening to.
    Client,
    /// The daemon stops.
    Stopping,
}

/// Serves a connection until its end.
pub(super) async fn serve<S: Service>(shared: Arc<Shared<S>>, stream: UnixStream) {
    let caller = match shared.access.admit(&stream) {
        Ok(caller) => caller,
        Err(error) => {
            tracing::warn!(%error, "refused a connection");
            turn_away(&stream, error);
            return;
        }
    };
    let limits = shared.limits.clone();
    let (read, write) = stream.into_split();
    let mut lines = LineReader::new(read, limits.line, limits.skip);
    let (answers, queue) = mpsc::channel(QUEUE);
    let gone = CancellationToken::new();
    let writer = AbortOnDropHandle::new(tokio::spawn(write_answers(
        write,
        queue,
        limits.stall,
        gone.clone(),
    )));
    // Whatever ends this function ends the connection's subscriptions.
    let _gone = gone.clone().drop_guard();
    let mut connection = Connection {
        in_flight: Arc::new(Semaphore::new(limits.in_flight)),
        shared,
        caller,
        answers,
        gone,
        subscriptions: 0,
    };

    match connection.read(&mut lines).await {
        Ended::Upgrade(answer, handler) => {
            if connection.answers.send(answer).await.is_err() {
                return;
            }
            // The writer ends when the last sender does and gives back its half; no request is in flight.
            drop(connection.answers);
            if let Ok(Some(write)) = writer.await {
                let (read, received) = lines.into_parts();
                guarded(handler(FrameStream::new(read, write, received)))
                    .await
                    .unwrap_or_else(|error| {
                        tracing::error!(%error, "a stream's handler failed");
                    });
            }
            return;
        }
        // Ends the subscriptions. Calls at work still get their answers out: the client may have closed only its
        // writing half.
        Ended::Client => connection.gone.cancel(),
        // Subscriptions say that the daemon stops, and end by themselves.
        Ended::Stopping => {}
    }
    drop(connection.answers);
    if let Ok(Some(mut write)) = writer.await {
        // The client may have gone; then there is nobody to tell.
        write
            .shutdown()
            .await
            .unwrap_or_else(|error| tracing::debug!(%error, "cannot close a connection"));
    }
}

impl<S: Service> Connection<S> {
    /// Reads until the connection's end, or until a stream takes it over.
    async fn read(&mut self, lines: &mut LineReader) -> Ended {
        let mut oversized = false;
        loop {
            let line = tokio::select! {
                biased;
                () = self.gone.cancelled() => return Ended::Client,
                () = self.shared.stopping.cancelled() => return Ended::Stopping,
                // Cancel-safe: the reader keeps what it has read.
                line = lines.next() => line,
            };
            let next = match line {
                Ok(Line::Text(text)) if text.trim_ascii().is_empty() => Next::Read,
                Ok(Line::Text(text)) => self.document(&text).await,
                Ok(Line::TooLong) => {
                    let limit = self.shared.limits.line;
                    let error = RpcError::new(
                        ErrorKind::BadRequest,
                        format!("the request is longer than {limit} bytes"),
                    );
                    let next = self.queue(Refusal::new(Id::null(), error).into_line()).await;
                    if std::mem::replace(&mut oversized, true) {
                        Next::Close
                    } else {
                        next
                    }
                }
                Ok(Line::Endless | Line::End) => Next::Close,
                Err(error) => {
                    tracing::debug!(%error, "a connection broke");
                    Next::Close
                }
            };
            match next {
                Next::Read => {}
                Next::Upgrade(answer, handler) => return Ended::Upgrade(answer, handler),
                Next::Close => return Ended::Client,
            }
        }
    }

    async fn document(&mut self, text: &[u8]) -> Next {
        match request::parse(text, self.shared.limits.batch) {
            Document::Single(Ok(request)) => self.single(request).await,
            Document::Single(Err(refusal)) => self.queue(refusal.into_line()).await,
            Document::Batch(requests) => self.batch(requests).await,
        }
    }

    async fn single(&mut self, request: Request) -> Next {
        match (shape(&request.method), request.id) {
            (Some(Shape::Stream), Some(id)) => {
                self.open_stream(id, &request.method, request.params.as_deref())
                    .await
            }
            (Some(Shape::Subscription), Some(id)) => {
                let Some(place) = self.place() else {
                    return self.queue(busy(id)).await;
                };
                self.subscriptions += 1;
                let task = subscribe(
                    self.context(),
                    self.answers.clone(),
                    self.gone.clone(),
                    place,
                    (id, self.subscriptions),
                    (request.method, request.params),
                );
                self.shared.calls.spawn(task);
                Next::Read
            }
            // A notification gets no answer, and nothing that needs one: neither Busy nor that it has the wrong shape.
            (Some(Shape::Stream | Shape::Subscription), None) => Next::Read,
            (Some(Shape::Call) | None, id) => {
                let Some(place) = self.place() else {
                    return match id {
                        Some(id) => self.queue(busy(id)).await,
                        None => Next::Read,
                    };
                };
                let context = self.context();
                let answers = self.answers.clone();
                self.shared.calls.spawn(async move {
                    let result = context.call(&request.method, request.params.as_deref()).await;
                    if let Some(id) = id {
                        deliver(&answers, place, request::answer_line(id, result)).await;
                    }
                });
                Next::Read
            }
        }
    }

    /// A batch counts as one request: its calls run one after the other.
    async fn batch(&mut self, requests: Vec<Result<Request, Refusal>>) -> Next {
        let Some(place) = self.place() else {
            return self.queue(busy(Id::null())).await;
        };
        let context = self.context();
        let answers = self.answers.clone();
        self.shared.calls.spawn(async move {
            let mut lines = Vec::with_capacity(requests.len());
            for request in requests {
                match request {
                    Ok(Request { id, method, params }) => {
                        let result = match shape(&method) {
                            Some(Shape::Call) | None => context.call(&method, params.as_deref()).await,
                            Some(Shape::Subscription | Shape::Stream) => Err(RpcError::new(
                                ErrorKind::BadRequest,
                                format!("{method} cannot be part of a batch"),
                            )),
                        };
                        lines.extend(id.map(|id| request::answer_line(id, result)));
                    }
                    Err(refusal) => lines.push(refusal.into_line()),
                }
            }
            if let Some(line) = request::batch_line(&lines) {
                deliver(&answers, place, line).await;
            }
        });
        Next::Read
    }

    /// Opens a stream. Nothing is read meanwhile: what follows the request belongs to the stream.
    async fn open_stream(&mut self, id: Id, method: &str, params: Option<&RawValue>) -> Next {
        if self.in_flight.available_permits() < self.shared.limits.in_flight {
            let error = RpcError::new(
                ErrorKind::BadRequest,
                format!("{method} while other requests are in flight"),
            )
            .hint("open a stream on a connection of its own");
            return self.queue(Refusal::new(id, error).into_line()).await;
        }
        let error = match self.context().dispatch(method, params).await {
            Ok(Outcome::Stream(handler)) => {
                return match serde_json::value::to_raw_value(&serde_json::json!({ "stream": true })) {
                    Ok(accepted) => Next::Upgrade(request::answer_line(id, Ok(accepted)), handler),
                    Err(_) => Next::Close,
                };
            }
            Ok(Outcome::Reply(_) | Outcome::Subscription { .. }) => wrong_shape(method),
            Err(error) => error,
        };
        self.queue(Refusal::new(id, error).into_line()).await
    }

    /// A place among the requests in flight, if one is free.
    fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.in_flight).try_acquire_owned().ok()
    }

    /// Queues an answer of the reading task's own. While the queue is full nothing more is read.
    async fn queue(&self, line: Bytes) -> Next {
        match self.answers.send(line).await {
            Ok(()) => Next::Read,
            Err(_) => Next::Close,
        }
    }

    fn context(&self) -> Context<S> {
        Context {
            shared: Arc::clone(&self.shared),
            caller: self.caller,
        }
    }
}

/// What a request's task needs to run it.
struct Context<S> {
    shared: Arc<Shared<S>>,
    caller: Caller,
}

impl<S: Service> Context<S> {
    async fn dispatch(&self, method: &str, params: Option<&RawValue>) -> Result<Outcome, RpcError> {
        let began = Instant::now();
        let outcome = guarded(dispatch(&*self.shared.service, self.caller, method, params))
            .await
            .and_then(|outcome| outcome);
        let took = began.elapsed();
        match &outcome {
            Ok(_) => tracing::debug!(method, uid = self.caller.uid, ?took, "answered"),
            Err(error) if error.kind == ErrorKind::Internal => {
                tracing::error!(method, uid = self.caller.uid, ?took, %error, "failed");
            }
            Err(error) => {
                tracing::debug!(method, uid = self.caller.uid, ?took, kind = ?error.kind, %error, "refused");
            }
        }
        outcome
    }

    /// Runs a method that must be a call.
    async fn call(&self, method: &str, params: Option<&RawValue>) -> Result<Box<RawValue>, RpcError> {
        match self.dispatch(method, params).await? {
            Outcome::Reply(reply) => Ok(reply),
            Outcome::Subscription { .. } | Outcome::Stream(_) => Err(wrong_shape(method)),
        }
    }
}

/// A subscription's task: the answer, then its events until it ends, the client goes or the daemon stops.
async fn subscribe<S: Service>(
    context: Context<S>,
    answers: mpsc::Sender<Bytes>,
    gone: CancellationToken,
    place: OwnedSemaphorePermit,
    (id, number): (Id, u64),
    (method, params): (String, Option<Box<RawValue>>),
) {
    let (name, mut events) = match context.dispatch(&method, params.as_deref()).await {
        Ok(Outcome::Subscription { method, events }) => (method, events),
        Ok(Outcome::Reply(_) | Outcome::Stream(_)) => {
            return deliver(
                &answers,
                place,
                Refusal::new(id, wrong_shape(&method)).into_line(),
            )
            .await;
        }
        Err(error) => return deliver(&answers, place, Refusal::new(id, error).into_line()).await,
    };
    let accepted = serde_json::value::to_raw_value(&serde_json::json!({ "subscription": number }))
        .map_err(|e| RpcError::new(ErrorKind::Internal, e.to_string()));
    if answers.send(request::answer_line(id, accepted)).await.is_err() {
        return;
    }
    loop {
        let notice = next_notice(&context, &gone, &mut events).await;
        let Some(notice) = notice else { return };
        let line = request::notification_line(name, number, &notice);
        match notice {
            Notice::Result(_) => {
                if answers.send(line).await.is_err() {
                    return;
                }
            }
            Notice::Error(_) | Notice::End(_) => return deliver(&answers, place, line).await,
        }
    }
}

/// The next thing to tell a subscriber; `None` when it has gone.
async fn next_notice<S>(
    context: &Context<S>,
    gone: &CancellationToken,
    events: &mut PollEvents,
) -> Option<Notice> {
    tokio::select! {
        biased;
        () = gone.cancelled() => None,
        // Cancel-safe: polling a channel takes an event only when it returns it.
        event = std::future::poll_fn(|cx| events(cx)) => Some(match event {
            Some(Ok(event)) => Notice::Result(event),
            Some(Err(error)) => Notice::Error(error.into()),
            None => Notice::End(true),
        }),
        () = context.shared.stopping.cancelled() => Some(Notice::Error(stopping().into())),
    }
}

/// Queues a request's last line. Its place becomes free just before the client can see the line, and not before there is
/// room for it: a client that waits for an answer never finds the place still taken, and one that does not read its
/// answers cannot pile them up.
async fn deliver(answers: &mpsc::Sender<Bytes>, place: OwnedSemaphorePermit, line: Bytes) {
    // An error means that the client has gone; then nobody waits for the answer.
    if let Ok(room) = answers.reserve().await {
        drop(place);
        room.send(line);
    }
}

/// Writes what is queued. Ends when all senders have, giving back the socket; or, without it, when the client does not
/// read for `stall` or has gone.
async fn write_answers(
    mut socket: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Bytes>,
    stall: Duration,
    gone: CancellationToken,
) -> Option<OwnedWriteHalf> {
    while let Some(mut line) = queue.recv().await {
        while !line.is_empty() {
            match tokio::time::timeout(stall, socket.write_buf(&mut line)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a client went away before its answer");
                    gone.cancel();
                    return None;
                }
                Err(_) => {
                    tracing::info!(?stall, "dropped a client that does not read its answers");
                    gone.cancel();
                    return None;
                }
            }
        }
    }
    Some(socket)
}

/// Runs a future; should it panic where panics unwind, that is an error of this one request. Release builds abort, and
/// nothing there may panic.
async fn guarded<T>(future: impl Future<Output = T>) -> Result<T, RpcError> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        // The future is not polled again after a panic, so what it left half-done is not seen.
        match std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(_) => Poll::Ready(Err(RpcError::new(
                ErrorKind::Internal,
                "the daemon failed on this request; its log has more",
            ))),
        }
    })
    .await
}

fn busy(id: Id) -> Bytes {
    let error = RpcError::new(
        ErrorKind::Busy,
        "too many requests are in flight on this connection",
    )
    .hint("wait for answers, or use another connection");
    Refusal::new(id, error).into_line()
}

/// The contract's table and the dispatcher come from one macro, so this cannot come up.
fn wrong_shape(method: &str) -> RpcError {
    RpcError::new(
        ErrorKind::Internal,
        format!("{method} was answered in another shape than its own"),
    )
}
