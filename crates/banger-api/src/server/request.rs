//! Documents to requests, and answers to lines: JSON-RPC 2.0 as the specification has it, with no I/O.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::error::{ErrorKind, RpcError, WireError};

/// JSON-RPC's code for text that is not JSON. All other codes follow from the kind.
const PARSE_ERROR: i32 = -32700;

/// A request's id, in the client's own spelling: a string, a number or null.
#[derive(Debug, Clone)]
pub(super) struct Id(Box<RawValue>);

impl Id {
    /// The id of an answer to something that had none, or none that could be read.
    pub(super) fn null() -> Self {
        Self(RawValue::NULL.to_owned())
    }

    fn new(raw: &RawValue) -> Option<Self> {
        match raw.get().as_bytes().first() {
            Some(b'"' | b'-' | b'0'..=b'9' | b'n') => Some(Self(raw.to_owned())),
            Some(_) | None => None,
        }
    }
}

/// One request.
#[derive(Debug)]
pub(super) struct Request {
    /// Absent in a notification, which gets no answer.
    pub(super) id: Option<Id>,
    pub(super) method: String,
    pub(super) params: Option<Box<RawValue>>,
}

/// An error answer.
#[derive(Debug)]
pub(super) struct Refusal {
    id: Id,
    error: WireError,
}

impl Refusal {
    /// An error answer to the request `id`.
    pub(super) fn new(id: Id, error: RpcError) -> Self {
        Self {
            id,
            error: error.into(),
        }
    }

    fn bad_request(id: Id, message: impl Into<String>) -> Self {
        Self::new(id, RpcError::new(ErrorKind::BadRequest, message))
    }

    /// As a line for the wire.
    pub(super) fn into_line(self) -> Bytes {
        line(&Response {
            jsonrpc: "2.0",
            result: None,
            error: Some(self.error),
            id: &self.id.0,
        })
    }
}

/// What a line holds.
#[derive(Debug)]
pub(super) enum Document {
    /// One request, or why it is none.
    Single(Result<Request, Refusal>),
    /// A batch; not empty.
    Batch(Vec<Result<Request, Refusal>>),
}

/// Parses a line. `max_batch` bounds the requests of a batch.
pub(super) fn parse(text: &[u8], max_batch: usize) -> Document {
    let raw: &RawValue = match serde_json::from_slice(text) {
        Ok(raw) => raw,
        Err(e) => {
            let mut refusal = Refusal::bad_request(Id::null(), format!("the request is not JSON: {e}"));
            refusal.error.code = PARSE_ERROR;
            return Document::Single(Err(refusal));
        }
    };
    if !raw.get().starts_with('[') {
        return Document::Single(parse_request(raw));
    }
    match serde_json::from_str::<Vec<&RawValue>>(raw.get()) {
        Ok(requests) if requests.is_empty() => {
            Document::Single(Err(Refusal::bad_request(Id::null(), "the batch is empty")))
        }
        Ok(requests) if requests.len() > max_batch => Document::Single(Err(Refusal::bad_request(
            Id::null(),
            format!(
                "the batch holds {} requests, more than {max_batch}",
                requests.len()
            ),
        ))),
        Ok(requests) => Document::Batch(requests.into_iter().map(parse_request).collect()),
        Err(e) => Document::Single(Err(Refusal::bad_request(
            Id::null(),
            format!("the batch cannot be read: {e}"),
        ))),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Members<'a> {
    jsonrpc: String,
    method: String,
    #[serde(borrow, default, deserialize_with = "present")]
    params: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
}

/// What can be read of a request that is not one, so that its answer finds its way.
#[derive(Deserialize)]
struct IdOnly<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
}

/// `null` counts as present, unlike in an [`Option`] of its own: an id of null is an id.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

fn parse_request(raw: &RawValue) -> Result<Request, Refusal> {
    let text = raw.get();
    if !text.starts_with('{') {
        return Err(Refusal::bad_request(
            Id::null(),
            "the request is not a JSON object",
        ));
    }
    let members: Members<'_> = serde_json::from_str(text).map_err(|e| {
        let id = serde_json::from_str::<IdOnly<'_>>(text)
            .ok()
            .and_then(|o| o.id.and_then(Id::new));
        let message = e.to_string();
        let message = message
            .rsplit_once(" at line ")
            .map_or(message.as_str(), |(message, _)| message);
        Refusal::bad_request(
            id.unwrap_or_else(Id::null),
            format!(
                "the request is not JSON-RPC 2.0: {}",
                message.chars().take(200).collect::<String>()
            ),
        )
    })?;
    let id = match members.id {
        None => None,
        Some(raw) => Some(Id::new(raw).ok_or_else(|| {
            Refusal::bad_request(
                Id::null(),
                "the request's id is neither a string nor a number nor null",
            )
        })?),
    };
    if members.jsonrpc != "2.0" {
        return Err(Refusal::bad_request(
            id.unwrap_or_else(Id::null),
            "the request's \"jsonrpc\" is not \"2.0\"",
        ));
    }
    Ok(Request {
        id,
        method: members.method,
        params: members.params.map(RawValue::to_owned),
    })
}

#[derive(Serialize)]
struct Response<'a> {
    jsonrpc: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<WireError>,
    id: &'a RawValue,
}

/// The answer to a request, as a line.
pub(super) fn answer_line(id: Id, result: Result<Box<RawValue>, RpcError>) -> Bytes {
    match result {
        Ok(result) => line(&Response {
            jsonrpc: "2.0",
            result: Some(&result),
            error: None,
            id: &id.0,
        }),
        Err(error) => Refusal::new(id, error).into_line(),
    }
}

/// The answer to a batch, from the lines of its answers; none where there were only notifications.
pub(super) fn batch_line(answers: &[Bytes]) -> Option<Bytes> {
    if answers.is_empty() {
        return None;
    }
    let mut text = BytesMut::with_capacity(answers.iter().map(Bytes::len).sum::<usize>() + 3);
    text.put_u8(b'[');
    for (n, answer) in answers.iter().enumerate() {
        if n > 0 {
            text.put_u8(b',');
        }
        text.put_slice(answer.trim_ascii_end());
    }
    text.put_slice(b"]\n");
    Some(text.freeze())
}

/// What a subscription's notification says.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Notice {
    /// An event.
    Result(Box<RawValue>),
    /// It failed and is over.
    Error(WireError),
    /// It is over.
    End(bool),
}

/// A subscription's notification, as a line.
pub(super) fn notification_line(method: &str, subscription: u64, notice: &Notice) -> Bytes {
    #[derive(Serialize)]
    struct Params<'a> {
        subscription: u64,
        #[serde(flatten)]
        notice: &'a Notice,
    }
    #[derive(Serialize)]
    struct Notification<'a> {
        jsonrpc: &'static str,
        method: &'a str,
        params: Params<'a>,
    }
    line(&Notification {
        jsonrpc: "2.0",
        method,
        params: Params { subscription, notice },
    })
}

/// A value as a line. All of them are strings, numbers and JSON made before, which cannot fail to serialise; were one to,
/// the client gets a well-formed error that belongs to no request rather than nothing.
fn line<T: Serialize>(value: &T) -> Bytes {
    let mut text = serde_json::to_vec(value).unwrap_or_else(|error| {
        tracing::error!(%error, "cannot write an answer as JSON");
        br#"{"jsonrpc":"2.0","error":{"code":-32603,"message":"cannot write the answer as JSON"},"id":null}"#
            .to_vec()
    });
    text.push(b'\n');
    Bytes::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn single(text: &str) -> Result<Request, String> {
        match parse(text.as_bytes(), 2) {
            Document::Single(result) => {
                result.map_err(|refusal| String::from_utf8(refusal.into_line().to_vec()).unwrap())
            }
            Document::Batch(_) => panic!("a batch"),
        }
    }

    #[test]
    fn requests_and_notifications_are_told_apart() {
        let request = single(r#" {"jsonrpc":"2.0","method":"vm.list","id":1.0,"params":{"a":1}} "#).unwrap();
        assert_eq!(request.id.unwrap().0.get(), "1.0");
        assert_eq!(request.params.unwrap().get(), r#"{"a":1}"#);
        assert!(
            single(r#"{"jsonrpc":"2.0","method":"vm.list"}"#)
                .unwrap()
                .id
                .is_none()
        );
        assert_eq!(
            single(r#"{"jsonrpc":"2.0","method":"vm.list","id":null}"#)
                .unwrap()
                .id
                .unwrap()
                .0
                .get(),
            "null"
        );
    }

    #[test]
    fn refusals_follow_the_specification() {
        let answers: Vec<String> = [
            r#"{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]"#,
            r#"{"jsonrpc": "2.0", "method": 1, "params": "bar"}"#,
            "[]",
            "1",
            "\"",
            r#"[1,2,3]"#,
            r#"{"jsonrpc":"1.0","method":"vm.list","id":7}"#,
            r#"{"method":"vm.list","id":"x"}"#,
            r#"{"jsonrpc":"2.0","method":"vm.list","id":{}}"#,
            r#"{"jsonrpc":"2.0","method":"vm.list","id":7,"parms":{}}"#,
            r#"{"jsonrpc":"2.0","method":"vm.list","id":7,"id":8}"#,
        ]
        .into_iter()
        .map(|text| single(text).unwrap_err())
        .collect();
        insta::assert_snapshot!(answers.concat());
        assert!(matches!(parse(b"\xff{}", 2), Document::Single(Err(r)) if r.error.code == PARSE_ERROR));
        assert!(
            matches!(parse(b"{\"id\":\"\xff\"}", 2), Document::Single(Err(r)) if r.error.code == PARSE_ERROR)
        );
        let deep = "[".repeat(1 << 20);
        assert!(single(&deep).is_err());
    }

    #[test]
    fn a_batch_keeps_its_order() {
        let Document::Batch(requests) = parse(br#"[{"jsonrpc":"2.0","method":"a","id":1}, 5]"#, 2) else {
            panic!("not a batch")
        };
        assert_eq!(requests[0].as_ref().unwrap().method, "a");
        assert!(requests[1].is_err());
        let lines = [Bytes::from_static(b"1\n"), Bytes::from_static(b"2\n")];
        assert_eq!(batch_line(&lines).unwrap(), "[1,2]\n");
        assert_eq!(batch_line(&[]), None);
    }

    #[test]
    fn notifications_of_subscriptions() {
        let event = serde_json::value::to_raw_value(&5).unwrap();
        let lines = [
            Notice::Result(event),
            Notice::End(true),
            Notice::Error(crate::server::stopping().into()),
        ]
        .map(|notice| notification_line("op.watch", 3, &notice));
        insta::assert_snapshot!(String::from_utf8(lines.concat()).unwrap());
    }
}
