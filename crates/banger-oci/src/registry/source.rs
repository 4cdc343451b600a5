//! One place to get an image from: the requests of the distribution specification's pull side, logged in as it wants.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use hostkit::digest::Digest;
use hyper::Uri;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE, RETRY_AFTER,
};
use serde::Deserialize;

use super::auth::Login;
use super::credentials::Store;
use super::http::{Body, Http, HttpError, Reply};
use super::proxy::is_loopback;
use super::{Place, Registries};
use crate::error::Error;
use crate::media;
use crate::reference::parse_digest;
use crate::text::tame;

/// What an error's text may take.
const MESSAGE_LIMIT: u64 = 16 << 10;
/// How often one request may be refused for its token: once because it has expired, once because it never did.
const LOGINS: u32 = 2;

/// See the module.
pub(crate) struct Source {
    place: Place,
    http: Http,
    login: Login,
    plain: AtomicBool,
    /// On this host: without TLS if it does not speak it.
    may_be_plain: bool,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum What<'a> {
    /// A manifest or index, by tag or `sha256:…`; the image's name, for errors.
    Manifest { target: &'a str, reference: &'a str },
    /// A blob's bytes from an offset on.
    Blob { digest: &'a Digest, from: u64 },
}

/// What comes.
pub(crate) struct Answer {
    /// The offset at which the body begins: the one that was asked for, or 0.
    pub(crate) from: u64,
    /// The body's Content-Type.
    pub(crate) media_type: Option<String>,
    /// What the registry says the digest is (`Docker-Content-Digest`).
    pub(crate) digest: Option<Digest>,
    pub(crate) body: Body,
}

impl Source {
    pub(crate) fn new(place: Place, registries: &Registries) -> Self {
        let host = place
            .authority
            .rsplit_once(':')
            .map_or(place.authority.as_str(), |(host, port)| {
                if port.ends_with(']') {
                    &place.authority
                } else {
                    host
                }
            });
        let store = Store {
            config: registries.docker_config.clone(),
            helper_path: registries.helper_path.clone(),
        };
        Self {
            http: Http::new(&registries.proxies, place.ca.clone(), &registries.timing),
            login: Login::new(&place.registry, &place.repository, store),
            plain: AtomicBool::new(place.plain),
            may_be_plain: !place.plain && place.ca.is_none() && is_loopback(host),
            place,
        }
    }

    /// As people know it.
    pub(crate) fn name(&self) -> &str {
        &self.place.registry
    }

    pub(crate) fn is_mirror(&self) -> bool {
        self.place.is_mirror
    }

    /// Asks for something. Credentials are shown when the registry wants them, and again when it wants other ones.
    pub(crate) async fn get(&self, what: What<'_>) -> Result<Answer, Error> {
        let mut headers = HeaderMap::new();
        let mut begin = 0;
        match what {
            What::Manifest { .. } => {
                headers.insert(ACCEPT, HeaderValue::from_static(media::ACCEPT));
            }
            What::Blob { from: 0, .. } => {}
            What::Blob { from, .. } => {
                begin = from;
                let range = HeaderValue::try_from(format!("bytes={from}-"));
                headers.extend(range.ok().map(|range| (RANGE, range)));
            }
        }
        let mut logins = 0;
        loop {
            let url = self.url(what)?;
            let (authorization, generation) = self.login.header().await;
            headers.remove(AUTHORIZATION);
            headers.extend(authorization.map(|value| (AUTHORIZATION, value)));
            let reply = match self.http.get(url.clone(), &headers).await {
                Ok(reply) => reply,
                Err(HttpError::Connect(error)) if self.falls_back(&url, &error) => continue,
                Err(error) => return Err(error.of(self.name(), "answer")),
            };
            match reply.status.as_u16() {
                200 => return Ok(answer(reply, 0)),
                206 if begins_at(&reply.headers, begin) => return Ok(answer(reply, begin)),
                // It does not do ranges, or not this one: all of it, then.
                206 | 416 if begin > 0 => {
                    begin = 0;
                    headers.remove(RANGE);
                }
                401 if reply.is_own && logins < LOGINS => {
                    logins += 1;
                    self.login.answer(&self.http, &url, reply, generation).await?;
                }
                401 | 403 if reply.is_own => return Err(self.login.denied(said(reply.body).await)),
                404 => return Err(self.not_found(what)),
                _ => return Err(status_error(self.name(), reply).await),
            }
        }
    }

    fn url(&self, what: What<'_>) -> Result<Uri, Error> {
        let scheme = if self.plain.load(Ordering::Relaxed) {
            "http"
        } else {
            "https"
        };
        let (kind, name) = match what {
            What::Manifest { target, .. } => ("manifests", target.to_owned()),
            What::Blob { digest, .. } => ("blobs", format!("sha256:{digest}")),
        };
        let Place {
            authority,
            repository,
            ..
        } = &self.place;
        format!("{scheme}://{authority}/v2/{repository}/{kind}/{name}")
            .parse()
            .map_err(|_| Error::Login {
                registry: self.name().to_owned(),
                reason: "its name makes no URL".to_owned(),
            })
    }

    /// Whether to ask again without TLS, which others may have found out meanwhile.
    fn falls_back(&self, asked: &Uri, error: &super::ConnectError) -> bool {
        let falls = self.may_be_plain && asked.scheme_str() == Some("https") && error.is_plain();
        if falls {
            self.plain.store(true, Ordering::Relaxed);
        }
        falls
    }

    fn not_found(&self, what: What<'_>) -> Error {
        let registry = self.name().to_owned();
        match what {
            What::Manifest { reference, .. } => Error::NotFound {
                registry,
                reference: reference.to_owned(),
            },
            What::Blob { digest, .. } => Error::NoBlob {
                registry,
                repository: self.place.repository.clone(),
                digest: *digest,
            },
        }
    }
}

fn answer(reply: Reply, from: u64) -> Answer {
    let text = |name: &str| reply.headers.get(name)?.to_str().ok().map(str::to_owned);
    Answer {
        from,
        media_type: text(CONTENT_TYPE.as_str()),
        digest: text("docker-content-digest").and_then(|digest| parse_digest(&digest).ok()),
        body: reply.body,
    }
}

/// `Content-Range: bytes FROM-TO/SIZE` (RFC 9110, 14.4).
pub(crate) fn begins_at(headers: &HeaderMap, from: u64) -> bool {
    let range = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    range
        .and_then(|range| range.strip_prefix("bytes ")?.split_once('-'))
        .is_some_and(|(start, _)| start.parse() == Ok(from))
}

/// `Retry-After` (RFC 9110, 10.2.3), seconds or a date, as the time from `now`; a date that has passed is no time. What is
/// neither is not said.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// What anything but success means.
pub(super) async fn status_error(registry: &str, reply: Reply) -> Error {
    let registry = registry.to_owned();
    match reply.status.as_u16() {
        429 => Error::Busy {
            registry,
            after: retry_after(&reply.headers, SystemTime::now()),
        },
        status => Error::Status {
            registry,
            status,
            message: said(reply.body).await,
        },
    }
}

/// What a registry's error says (distribution specification, "Error Codes"), or the beginning of whatever it is. What
/// cannot be read is nothing.
pub(super) async fn said(body: Body) -> String {
    #[derive(Deserialize)]
    struct Answer {
        errors: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(bytes) = body.collect(MESSAGE_LIMIT).await else {
        return String::new();
    };
    match serde_json::from_slice::<Answer>(&bytes) {
        Ok(Answer { errors }) => {
            let texts = errors.iter().take(3).map(|item| {
                let text = if item.message.is_empty() {
                    &item.code
                } else {
                    &item.message
                };
                tame(text, 200)
            });
            texts.collect::<Vec<_>>().join("; ")
        }
        // A page for browsers says nothing in one line.
        Err(_) if bytes.trim_ascii_start().starts_with(b"<") => String::new(),
        Err(_) => tame(&String::from_utf8_lossy(&bytes), 200),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn when_to_come_back_is_seconds_or_a_date() {
        // 1994-11-06 08:49:37 UTC, the example of RFC 9110, 5.6.7.
        let date = 784_111_777;
        let at = |value: &'static str, now: u64| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(value))]);
            retry_after(&headers, UNIX_EPOCH + Duration::from_secs(now)).map(|after| after.as_secs())
        };
        assert_eq!(at(" 120 ", 0), Some(120));
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(at(text, date - 30), Some(30), "{text}");
            assert_eq!(at(text, date + 30), Some(0), "{text}");
        }
        for text in [
            "",
            "-1",
            "1.5",
            "soon",
            "Sun, 06 Nov 1994",
            "99999999999999999999",
        ] {
            assert_eq!(at(text, 0), None, "{text}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), UNIX_EPOCH), None);
    }
}
