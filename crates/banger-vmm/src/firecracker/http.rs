//! The HTTP/1.1 of Firecracker's API: one request with a JSON body, one response with a length, over a Unix socket.
//!
//! Why not a client library: fc-api and fc-sdk are generated over reqwest and its dozens of crates, for the three
//! requests that are made here once the configuration file has done the rest; and hyper's client would bring chunked
//! transfer, upgrades and pipelining, none of which Firecracker's micro_http speaks. The head is parsed by httparse, as
//! hyper does; a response that strays from what micro_http writes is an error.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest head of a response, in bytes; micro_http's has under 200.
const HEAD_LIMIT: usize = 8 * 1024;
/// Longest body of a response, in bytes; an error's has hundreds.
const BODY_LIMIT: usize = 64 * 1024;
/// Most header fields; micro_http writes five.
const MAX_HEADERS: usize = 32;

/// A response.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// Why there is no response.
#[derive(Debug)]
pub(super) enum HttpError {
    Io(io::Error),
    Protocol(String),
}

impl From<io::Error> for HttpError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Sends a request on a fresh connection and reads the response. `path` is one of ours, without spaces or breaks.
pub(super) async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    path: &str,
    body: Option<&str>,
) -> Result<Response, HttpError> {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n");
    if let Some(body) = body {
        request += &format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        );
    }
    request += "\r\n";
    request += body.unwrap_or_default();
    stream.write_all(request.as_bytes()).await?;

    let mut received = Vec::new();
    loop {
        if let Some(head) = Head::parse(&received).map_err(HttpError::Protocol)? {
            return read_body(&mut stream, received, &head).await;
        }
        if received.len() >= HEAD_LIMIT {
            return Err(HttpError::Protocol(format!(
                "a head of more than {HEAD_LIMIT} bytes"
            )));
        }
        let mut buffer = [0; 2048];
        match stream.read(&mut buffer).await? {
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            count => received.extend_from_slice(buffer.get(..count).unwrap_or_default()),
        }
    }
}

async fn read_body(
    stream: &mut (impl AsyncRead + Unpin),
    received: Vec<u8>,
    head: &Head,
) -> Result<Response, HttpError> {
    let mut body = received;
    body.drain(..head.length);
    if body.len() > head.body {
        return Err(HttpError::Protocol(
            "more bytes than the response announces".to_owned(),
        ));
    }
    let missing = head.body - body.len();
    let mut rest = stream.take(u64::try_from(missing).unwrap_or(u64::MAX));
    if rest.read_to_end(&mut body).await? < missing {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Response {
        status: head.status,
        body,
    })
}

/// What is needed of a response's head.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    /// Of the head, in bytes.
    length: usize,
    /// Length of the body, in bytes.
    body: usize,
}

impl Head {
    /// `None` while the head is incomplete.
    fn parse(bytes: &[u8]) -> Result<Option<Self>, String> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let length = match response
            .parse(bytes)
            .map_err(|error| format!("no HTTP response: {error}"))?
        {
            httparse::Status::Complete(length) => length,
            httparse::Status::Partial => return Ok(None),
        };
        let status = response.code.ok_or("a response without a status")?;
        let mut body = None;
        for header in response.headers.iter() {
            if header.name.eq_ignore_ascii_case("content-length") {
                let value = std::str::from_utf8(header.value)
                    .ok()
                    .filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
                let value = value
                    .and_then(|text| text.parse::<usize>().ok())
                    .ok_or("a length that is no number")?;
                if body.replace(value).is_some() {
                    return Err("two lengths".to_owned());
                }
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                return Err("a transfer encoding".to_owned());
            }
        }
        // RFC 9110, 15.3.5: a 204 has no body.
        let body = match (status, body) {
            (204, None | Some(0)) => 0,
            (204, Some(_)) => return Err("a body where there is none".to_owned()),
            (_, Some(body)) if body <= BODY_LIMIT => body,
            (_, Some(body)) => return Err(format!("a body of {body} bytes")),
            (_, None) => return Err("a body without a length".to_owned()),
        };
        Ok(Some(Self { status, length, body }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What comes of a response delivered in pieces of `piece` bytes, the connection closed after.
    async fn answer(response: &[u8], piece: usize) -> Result<Response, HttpError> {
        let (ours, mut theirs) = tokio::io::duplex(piece.max(1));
        let response = response.to_vec();
        let server = async move {
            // The request, up to the end of its body.
            let mut seen = Vec::new();
            while !seen.ends_with(b"{}") {
                seen.push(theirs.read_u8().await.unwrap());
            }
            theirs.write_all(&response).await.ok();
            drop(theirs);
            String::from_utf8(seen).unwrap()
        };
        let (answer, request) = tokio::join!(exchange(ours, "PATCH", "/vm", Some("{}")), server);
        assert_eq!(
            request,
            "PATCH /vm HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\
             Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        );
        answer
    }

    #[tokio::test]
    async fn responses_as_firecracker_writes_them() {
        let ok = b"HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\nhello";
        let empty = b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";
        for piece in [1, 7, 4096] {
            assert_eq!(
                answer(ok, piece).await.unwrap(),
                Response {
                    status: 200,
                    body: b"hello".to_vec()
                }
            );
            assert_eq!(
                answer(empty, piece).await.unwrap(),
                Response {
                    status: 204,
                    body: Vec::new()
                }
            );
        }
    }

    #[tokio::test]
    async fn hostile_responses_are_errors() {
        for response in [
            "garbage",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhello",
            &format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(2 * HEAD_LIMIT)),
            &format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: x\r\n".repeat(100)),
        ] {
            let error = answer(response.as_bytes(), 4096).await.unwrap_err();
            assert!(
                matches!(error, HttpError::Protocol(_)),
                "{response:.60}: {error:?}"
            );
        }
        for response in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello",
        ] {
            let error = answer(response.as_bytes(), 4096).await.unwrap_err();
            assert!(matches!(error, HttpError::Io(_)), "{response:.60}: {error:?}");
        }
    }

    proptest! {
        #[test]
        fn heads_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(Head::parse(&bytes));
            let mut response = b"HTTP/1.1 200 OK\r\n".to_vec();
            response.extend(bytes);
            drop(Head::parse(&response));
        }

        #[test]
        fn a_prefix_is_incomplete_or_wrong(status in 100u16..600, length in 0usize..1000, cut in 0usize..40) {
            let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {length}\r\n\r\n");
            let prefix = &head.as_bytes()[..cut.min(head.len() - 1)];
            prop_assert_eq!(Head::parse(prefix), Ok(None));
        }
    }
}
