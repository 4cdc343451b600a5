//! Logging in: what a registry wants to be shown, and getting it.
//!
//! ```text
//! 401 with WWW-Authenticate ─► Basic  ─► user and password with every request
//!                         └──► Bearer ─► a token from `realm`, for `service` and `scope`: anonymous, with user and
//!                                        password, or for an identity token ─► with every request until the next 401
//! ```
//!
//! Tokens expire in the middle of pulls; the 401 that says so is answered like the first. Sources: RFC 9110, 11; docker
//! "Token Authentication Specification" and "OAuth2 Token Authentication".

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;
use tokio::sync::{Mutex, OnceCell};

use super::credentials::{Credential, Store};
use super::http::{Http, Reply};
use super::source::{said, status_error};
use crate::error::Error;

const TOKEN_LIMIT: u64 = 1 << 20;
const CHALLENGE_LIMIT: usize = 8 << 10;
const CLIENT_ID: &str = "banger";

/// What one registry has been shown, in one pull.
#[derive(Debug)]
pub(super) struct Login {
    registry: String,
    repository: String,
    store: Store,
    credential: OnceCell<Option<Credential>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    header: Option<HeaderValue>,
    /// How often `header` was changed: who was refused with an older one tries the newer one first.
    generation: u64,
}

/// One of the ways to log in that a registry offers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Challenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Login {
    pub(super) fn new(registry: &str, repository: &str, store: Store) -> Self {
        Self {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            store,
            credential: OnceCell::new(),
            state: Mutex::default(),
        }
    }

    /// What to send with a request, and its generation.
    pub(super) async fn header(&self) -> (Option<HeaderValue>, u64) {
        let state = self.state.lock().await;
        (state.header.clone(), state.generation)
    }

    /// The registry has refused a request that was sent with the header of a generation. Makes another one, or says why
    /// there is none.
    pub(super) async fn answer(
        &self,
        http: &Http,
        asked: &Uri,
        reply: Reply,
        generation: u64,
    ) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        if state.generation != generation {
            return Ok(());
        }
        let challenges = challenges(&reply.headers);
        let bearer = challenges
            .iter()
            .find(|c| c.scheme == "bearer" && c.get("realm").is_some());
        let header = if let Some(challenge) = bearer {
            let token = self.token(http, asked, challenge).await?;
            HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| self.wrong("its token is no text"))?
        } else if challenges.iter().any(|challenge| challenge.scheme == "basic") {
            match self.credential().await? {
                // Once is enough: it will not be better liked.
                Some(Credential::Password { user, secret }) if state.header.is_none() => basic(user, secret)
                    .ok_or_else(|| self.wrong("the credentials there are cannot be sent"))?,
                Some(_) | None => return Err(self.denied(said(reply.body).await)),
            }
        } else if challenges.is_empty() {
            return Err(self.denied(said(reply.body).await));
        } else {
            let schemes: Vec<_> = challenges
                .iter()
                .map(|challenge| challenge.scheme.as_str())
                .collect();
            return Err(self.wrong(&format!("it wants {}", schemes.join(" or "))));
        };
        let mut header = header;
        header.set_sensitive(true);
        state.header = Some(header);
        state.generation += 1;
        Ok(())
    }

    /// Refused for good.
    pub(super) fn denied(&self, message: String) -> Error {
        Error::Denied {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            config: self.store.config.clone(),
            refused: self.credential.get().is_some_and(Option::is_some),
            message,
        }
    }

    fn wrong(&self, reason: &str) -> Error {
        Error::Login {
            registry: self.registry.clone(),
            reason: reason.to_owned(),
        }
    }

    async fn credential(&self) -> Result<&Option<Credential>, Error> {
        self.credential
            .get_or_try_init(|| self.store.look_up(&self.registry))
            .await
    }

    async fn token(&self, http: &Http, asked: &Uri, challenge: &Challenge) -> Result<String, Error> {
        let credential = self.credential().await?;
        if let Some(Credential::Registry(token)) = credential {
            return Ok(token.clone());
        }
        let realm = challenge.get("realm").unwrap_or_default();
        let url: Uri = realm
            .parse()
            .map_err(|_| self.wrong("the place for tokens (realm) is no URL"))?;
        match url.scheme_str() {
            Some("https") => {}
            Some("http") if asked.scheme_str() == Some("http") => {}
            Some(_) | None => return Err(self.wrong("the place for tokens (realm) is not https")),
        }
        let scope = match challenge.get("scope") {
            Some(scope) => scope.to_owned(),
            None => format!("repository:{}:pull", self.repository),
        };
        let service = challenge.get("service").map(|service| ("service", service));
        let mut fields: Vec<(&str, &str)> = service.into_iter().chain([("scope", scope.as_str())]).collect();
        let reply = match credential {
            Some(Credential::Identity(token)) => {
                fields.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", CLIENT_ID),
                    ("refresh_token", token.as_str()),
                ]);
                http.post(url, query(&fields)).await
            }
            Some(Credential::Password { .. } | Credential::Registry(_)) | None => {
                let mut headers = HeaderMap::new();
                if let Some(Credential::Password { user, secret }) = credential {
                    fields.push(("account", user));
                    let header = basic(user, secret)
                        .ok_or_else(|| self.wrong("the credentials there are cannot be sent"))?;
                    headers.insert(AUTHORIZATION, header);
                }
                let separator = if realm.contains('?') { '&' } else { '?' };
                let url = format!("{realm}{separator}{}", query(&fields))
                    .parse()
                    .map_err(|_| self.wrong("the place for tokens (realm) is no URL"))?;
                http.get(url, &headers).await
            }
        };
        let reply = reply.map_err(|error| error.of(&self.registry, "token"))?;
        match reply.status.as_u16() {
            200 => {}
            // OAuth2 says 400 for a token that is none any more (RFC 6749, 5.2).
            400 | 401 | 403 => return Err(self.denied(said(reply.body).await)),
            _ => return Err(status_error(&self.registry, reply).await),
        }
        let text = reply
            .body
            .collect(TOKEN_LIMIT)
            .await
            .map_err(|error| error.of(&self.registry, "token"))?;
        let answer: TokenAnswer =
            serde_json::from_slice(&text).map_err(|_| self.wrong("what it gives as a token is none"))?;
        [answer.token, answer.access_token]
            .into_iter()
            .flatten()
            .find(|token| !token.is_empty())
            .ok_or_else(|| self.wrong("what it gives as a token is none"))
    }
}

impl Challenge {
    fn get(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

fn basic(user: &str, secret: &str) -> Option<HeaderValue> {
    let mut header =
        HeaderValue::try_from(format!("Basic {}", STANDARD.encode(format!("{user}:{secret}")))).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// A query or form (WHATWG URL, "application/x-www-form-urlencoded", with `%20` for spaces).
fn query(fields: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (name, value) in fields {
        if !out.is_empty() {
            out.push('&');
        }
        out.push_str(name);
        out.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    out.push(char::from(byte));
                }
                _ => out.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    out
}

/// All challenges of an answer (RFC 9110, 11.6.1). What cannot be understood ends the list.
fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let mut all = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE) {
        if let Ok(text) = value.to_str()
            && text.len() <= CHALLENGE_LIMIT
        {
            parse(text, &mut all);
        }
    }
    all
}

/// Takes challenges apart, for the fuzzer.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_challenge(bytes: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(bytes) {
        drop(challenges(&HeaderMap::from_iter([(WWW_AUTHENTICATE, value)])));
    }
}

fn parse(mut rest: &str, all: &mut Vec<Challenge>) {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(|c| !is_token(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return;
        }
        let after_space = after.trim_start();
        // A word with `=` is a parameter of the challenge before, one without begins a challenge.
        let Some(value) = after_space.strip_prefix('=') else {
            all.push(Challenge {
                scheme: word.to_ascii_lowercase(),
                parameters: Vec::new(),
            });
            rest = after;
            continue;
        };
        let value = value.trim_start();
        let (text, after) = if let Some(quoted) = value.strip_prefix('"') {
            let mut text = String::new();
            let mut characters = quoted.char_indices();
            let end = loop {
                match characters.next() {
                    Some((at, '"')) => break at + 1,
                    Some((_, '\\')) => text.extend(characters.next().map(|(_, c)| c)),
                    Some((_, c)) => text.push(c),
                    None => return,
                }
            };
            (text, quoted.get(end..).unwrap_or_default())
        } else {
            let end = value.find([',', ' ', '\t']).unwrap_or(value.len());
            let (text, after) = value.split_at(end);
            (text.to_owned(), after)
        };
        if let Some(challenge) = all.last_mut() {
            challenge.parameters.push((word.to_ascii_lowercase(), text));
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Vec<Challenge> {
        let mut all = Vec::new();
        parse(text, &mut all);
        all
    }

    #[test]
    fn challenges_are_taken_apart() {
        let hub = parsed(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
        );
        assert_eq!(hub.len(), 1);
        assert_eq!(hub[0].scheme, "bearer");
        assert_eq!(hub[0].get("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(hub[0].get("scope"), Some("repository:a/b:pull,push"));
        let two = parsed(r#"Negotiate, BASIC Realm = "a \"b\"" , charset=UTF-8,, bearer realm=x"#);
        let schemes: Vec<_> = two.iter().map(|challenge| challenge.scheme.as_str()).collect();
        assert_eq!(schemes, ["negotiate", "basic", "bearer"]);
        assert_eq!(two[1].get("realm"), Some("a \"b\""));
        assert_eq!(two[1].get("charset"), Some("UTF-8"));
        assert_eq!(parsed(r#"Bearer realm="unended"#).len(), 1);
        assert_eq!(parsed(""), []);
    }

    #[test]
    fn queries_are_encoded() {
        assert_eq!(
            query(&[("a", "x y&z"), ("b", "ä:/")]),
            "a=x%20y%26z&b=%C3%A4%3A%2F"
        );
    }

    proptest! {
        #[test]
        fn any_challenge_is_survived(text in r#"[a-zA-Z=", \\é]{0,60}"#) {
            parsed(&text);
        }
    }
}
