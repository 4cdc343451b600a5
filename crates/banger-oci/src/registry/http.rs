//! Requests and answers, bounded: redirects by number, headers by size, answers by silence and, for documents, by length
//! and time. HTTP/1.1 only.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, PROXY_AUTHORIZATION,
    USER_AGENT,
};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::Instant;

use super::Timing;
use super::connect::{ConnectError, Connector};
use super::proxy::{Proxies, is_loopback};
use crate::error::Error;

const REDIRECTS: usize = 5;
/// All headers of an answer.
const HEADERS_LIMIT: usize = 64 << 10;
/// Less than this within [`Timing::silence`] is silence.
const TRICKLE: usize = 16 << 10;
/// A document has this many times [`Timing::silence`] to come.
const DOCUMENT_PATIENCE: u32 = 4;
const AGENT: &str = concat!("banger/", env!("CARGO_PKG_VERSION"));

/// A client for one place, with connections that are kept while it is.
pub(crate) struct Http {
    client: Client<Connector, Full<Bytes>>,
    proxies: Proxies,
    timing: Timing,
    /// Whether a redirect may lead to another host without TLS.
    plain_elsewhere: bool,
}

/// Why there was no answer, or not all of it. The caller knows whose.
#[derive(Debug)]
pub(crate) enum HttpError {
    Connect(ConnectError),
    Broken(Box<dyn std::error::Error + Send + Sync>),
    Silent(Duration),
    Redirect(&'static str),
    TooLong(u64),
}

impl HttpError {
    pub(crate) fn of(self, registry: &str, what: &'static str) -> Error {
        let registry = registry.to_owned();
        match self {
            Self::Connect(source) => Error::Connect { registry, source },
            Self::Broken(source) => Error::Broken { registry, source },
            Self::Silent(after) => Error::Silent { registry, after },
            Self::Redirect(reason) => Error::Redirect { registry, reason },
            Self::TooLong(limit) => Error::TooLong {
                what,
                from: registry,
                limit,
            },
        }
    }
}

/// An answer's beginning, and from where it came in the end.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    /// Whether it came from the host that was asked, and not from one that it redirected to.
    pub(super) is_own: bool,
}

impl Http {
    pub(crate) fn new(proxies: &Proxies, ca: Option<std::path::PathBuf>, timing: &Timing) -> Self {
        let connector = Connector::new(proxies.clone(), ca, timing);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(4)
            .http1_max_buf_size(HEADERS_LIMIT)
            .build(connector);
        Self {
            client,
            proxies: proxies.clone(),
            timing: timing.clone(),
            plain_elsewhere: true,
        }
    }

    /// Follows no redirect to another host without TLS, except to this one.
    pub(crate) fn without_plain_elsewhere(self) -> Self {
        Self {
            plain_elsewhere: false,
            ..self
        }
    }

    /// GET, following redirects. Credentials go to the host that was asked, and to no other.
    pub(crate) async fn get(&self, url: Uri, headers: &HeaderMap) -> Result<Reply, HttpError> {
        let mut headers = headers.clone();
        let mut at = url.clone();
        for _ in 0..=REDIRECTS {
            let response = self.send(Method::GET, &at, &headers, Bytes::new()).await?;
            let status = response.status();
            if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(self.reply(response, same_origin(&url, &at)));
            }
            let next = response
                .headers()
                .get(LOCATION)
                .and_then(|location| location.to_str().ok())
                .and_then(|location| resolve(&at, location))
                .ok_or(HttpError::Redirect("to nowhere"))?;
            if at.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(HttpError::Redirect("from https to plain http"));
            }
            let is_plain = next.scheme_str() != Some("https");
            if is_plain
                && !self.plain_elsewhere
                && !same_origin(&url, &next)
                && !next.host().is_some_and(is_loopback)
            {
                return Err(HttpError::Redirect("to another host by plain http"));
            }
            if !same_origin(&url, &next) {
                headers.remove(AUTHORIZATION);
            }
            at = next;
        }
        Err(HttpError::Redirect("more than five times"))
    }

    /// POST of a form. A redirect is an answer like any other.
    pub(super) async fn post(&self, url: Uri, form: String) -> Result<Reply, HttpError> {
        let mut headers = HeaderMap::new();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        );
        let response = self.send(Method::POST, &url, &headers, form.into()).await?;
        Ok(self.reply(response, true))
    }

    async fn send(
        &self,
        method: Method,
        url: &Uri,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, HttpError> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = url.clone();
        *request.headers_mut() = headers.clone();
        request
            .headers_mut()
            .insert(USER_AGENT, HeaderValue::from_static(AGENT));
        if url.scheme_str() == Some("http") {
            let proxy = self
                .proxies
                .for_url(url)
                .map_err(|e| HttpError::Connect(e.into()))?;
            if let Some(authorization) = proxy.and_then(|proxy| proxy.authorization) {
                request.headers_mut().insert(PROXY_AUTHORIZATION, authorization);
            }
        }
        // Connecting has its own limit within.
        let limit = self.timing.connect + self.timing.silence;
        match tokio::time::timeout(limit, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Err(HttpError::Silent(self.timing.silence)),
        }
    }

    fn reply(&self, response: Response<Incoming>, is_own: bool) -> Reply {
        let (parts, incoming) = response.into_parts();
        Reply {
            status: parts.status,
            body: Body {
                length: parts
                    .headers
                    .get(CONTENT_LENGTH)
                    .and_then(|value| value.to_str().ok()?.parse().ok()),
                incoming,
                silence: self.timing.silence,
                left: self.timing.silence,
                seen: 0,
            },
            headers: parts.headers,
            is_own,
        }
    }
}

fn failed(error: hyper_util::client::legacy::Error) -> HttpError {
    let mut next = std::error::Error::source(&error);
    while let Some(cause) = next {
        if let Some(connect) = cause.downcast_ref::<ConnectError>() {
            return HttpError::Connect(connect.clone());
        }
        next = cause.source();
    }
    HttpError::Broken(Box::new(error))
}

/// The rest of an answer.
pub(crate) struct Body {
    incoming: Incoming,
    length: Option<u64>,
    silence: Duration,
    /// What is left of `silence`, in time spent waiting here, for `TRICKLE` bytes, of which `seen` have come.
    left: Duration,
    seen: usize,
}

impl Body {
    /// What the answer says its length is.
    pub(crate) fn length(&self) -> Option<u64> {
        self.length
    }

    /// The next bytes; none at the end. An end before the length that was announced is an error.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            let began = Instant::now();
            let frame = match tokio::time::timeout(self.left, self.incoming.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(frame)) => frame.map_err(|error| HttpError::Broken(Box::new(error)))?,
                Err(_) => return Err(HttpError::Silent(self.silence)),
            };
            self.left = self.left.saturating_sub(began.elapsed());
            // Trailers are nothing to us.
            let Ok(bytes) = frame.into_data() else { continue };
            self.seen = self.seen.saturating_add(bytes.len());
            if self.seen >= TRICKLE {
                self.seen = 0;
                self.left = self.silence;
            }
            return Ok(Some(bytes));
        }
    }

    /// All of a document.
    pub(crate) async fn collect(mut self, limit: u64) -> Result<Vec<u8>, HttpError> {
        if self.length.is_some_and(|length| length > limit) {
            return Err(HttpError::TooLong(limit));
        }
        let patience = self.silence * DOCUMENT_PATIENCE;
        let all = async {
            let mut bytes = Vec::new();
            while let Some(chunk) = self.chunk().await? {
                bytes.extend_from_slice(&chunk);
                if bytes.len() as u64 > limit {
                    return Err(HttpError::TooLong(limit));
                }
            }
            Ok(bytes)
        };
        tokio::time::timeout(patience, all)
            .await
            .unwrap_or(Err(HttpError::Silent(patience)))
    }
}

fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |url: &Uri| match (url.port_u16(), url.scheme_str()) {
        (Some(port), _) => port,
        (None, Some("https")) => 443,
        (None, _) => 80,
    };
    let host = |url: &Uri| url.host().unwrap_or_default().to_ascii_lowercase();
    a.scheme() == b.scheme() && host(a) == host(b) && port(a) == port(b)
}

/// Where a `Location` leads (RFC 3986, 5.2, as far as servers use it).
fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let scheme = base.scheme_str()?;
    let authority = base.authority()?;
    // A fragment is not sent.
    let location = location.split('#').next()?;
    let text = if location.contains("://") && !location.starts_with(['/', '?', '.']) {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let directory = base
            .path()
            .rsplit_once('/')
            .map_or("", |(directory, _)| directory);
        format!("{scheme}://{authority}{directory}/{location}")
    };
    let url: Uri = text.parse().ok()?;
    let usable =
        matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some_and(|host| !host.is_empty());
    usable.then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved() {
        let base = "https://r.example:5000/v2/a/blobs/x".parse().unwrap();
        for (location, expected) in [
            ("https://cdn.example/b?c=d", Some("https://cdn.example/b?c=d")),
            ("/b#c", Some("https://r.example:5000/b")),
            ("//cdn.example/b", Some("https://cdn.example/b")),
            ("b", Some("https://r.example:5000/v2/a/blobs/b")),
            ("/b?u=http://x", Some("https://r.example:5000/b?u=http://x")),
            ("ftp://x/", None),
            ("http:///x", None),
            ("https://a b/", None),
        ] {
            let found = resolve(&base, location).map(|url| url.to_string());
            assert_eq!(found.as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn another_port_is_another_origin() {
        let url = |text: &str| text.parse::<Uri>().unwrap();
        assert!(same_origin(&url("https://a/x"), &url("https://A:443/y")));
        assert!(!same_origin(&url("https://a/x"), &url("https://a:444/x")));
        assert!(!same_origin(&url("https://a/x"), &url("http://a:443/x")));
        assert!(!same_origin(&url("https://a/x"), &url("https://a.b/x")));
    }
}
