//! Which proxy, if any, is between us and a host: the rules that curl and Go have for `HTTP_PROXY`, `HTTPS_PROXY` and
//! `NO_PROXY`. The values come from the caller. Proxies are asked in plain http; SOCKS is not supported.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use hyper::header::HeaderValue;
use ipnet::IpNet;

use super::SettingError;

/// Proxies for all registries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For plain http: `http://[USER:PASSWORD@]HOST:PORT`.
    pub http: Option<String>,
    /// For https, by CONNECT; a URL of the same form.
    pub https: Option<String>,
    /// Hosts to reach without: domains (with all below them), addresses, networks (`10.0.0.0/8`), `*`; separated by
    /// commas. The loopback interface is always reached without.
    pub no_proxy: String,
}

/// A proxy to use.
#[derive(Debug, Clone)]
pub(super) struct Proxy {
    pub(super) host: String,
    pub(super) port: u16,
    /// For `Proxy-Authorization`.
    pub(super) authorization: Option<HeaderValue>,
}

impl Proxies {
    pub(super) fn check(&self) -> Result<(), SettingError> {
        for proxy in [&self.http, &self.https].into_iter().flatten() {
            parse(proxy)?;
        }
        Ok(())
    }

    /// The proxy for a URL.
    pub(super) fn for_url(&self, url: &Uri) -> Result<Option<Proxy>, SettingError> {
        let https = url.scheme_str() == Some("https");
        let configured = if https { &self.https } else { &self.http };
        let Some(proxy) = configured.as_deref().filter(|proxy| !proxy.is_empty()) else {
            return Ok(None);
        };
        let host = bare(url.host().unwrap_or_default());
        let port = url.port_u16().unwrap_or(if https { 443 } else { 80 });
        if is_loopback(host) || self.is_exempt(host, port) {
            return Ok(None);
        }
        parse(proxy).map(Some)
    }

    fn is_exempt(&self, host: &str, port: u16) -> bool {
        let address = host.parse::<IpAddr>().ok();
        let mut rules = self
            .no_proxy
            .split(',')
            .map(str::trim)
            .filter(|rule| !rule.is_empty());
        rules.any(|rule| {
            if rule == "*" {
                return true;
            }
            if let Some(address) = address {
                let network = rule
                    .parse::<IpNet>()
                    .is_ok_and(|network| network.contains(&address));
                if network || bare(rule).parse() == Ok(address) {
                    return true;
                }
            }
            let (name, of_port) = match rule.rsplit_once(':') {
                Some((name, text)) if text.parse::<u16>().is_ok() && !name.contains(':') => {
                    (name, text.parse() == Ok(port))
                }
                Some((name, text)) if name.ends_with(']') => (name, text.parse() == Ok(port)),
                Some(_) | None => (rule, true),
            };
            if !of_port {
                return false;
            }
            if let Some(address) = address {
                return bare(name).parse() == Ok(address);
            }
            let name = name
                .trim_start_matches("*.")
                .trim_start_matches('.')
                .to_ascii_lowercase();
            let host = host.to_ascii_lowercase();
            host == name || host.strip_suffix(&name).is_some_and(|front| front.ends_with('.'))
        })
    }
}

/// Whether a host is this one by its name or address.
pub(crate) fn is_loopback(host: &str) -> bool {
    let host = bare(host);
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A host without the brackets that URLs have around IPv6 addresses.
pub(super) fn bare(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host)
}

fn parse(text: &str) -> Result<Proxy, SettingError> {
    let wrong = |reason| SettingError {
        registry: "*".to_owned(),
        what: "proxy",
        // Its password is not for errors.
        value: text.rsplit_once('@').map_or(text, |(_, host)| host).to_owned(),
        reason,
    };
    let rest = match text.split_once("://") {
        Some(("http", rest)) => rest,
        Some(_) => return Err(wrong("only http:// proxies are supported")),
        None => text,
    };
    let rest = rest.trim_end_matches('/');
    let (login, authority) = match rest.rsplit_once('@') {
        Some((login, authority)) => (Some(login), authority),
        None => (None, rest),
    };
    let uri: Uri = format!("http://{authority}/")
        .parse()
        .map_err(|_| wrong("it is no URL"))?;
    let host = uri.host().filter(|host| !host.is_empty());
    let authorization = match login {
        None => None,
        Some(login) => {
            let decoded = percent_decode(login).ok_or_else(|| wrong("its credentials are no text"))?;
            let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(decoded)))
                .map_err(|_| wrong("its credentials are no text"))?;
            value.set_sensitive(true);
            Some(value)
        }
    };
    Ok(Proxy {
        host: bare(host.ok_or_else(|| wrong("it has no host"))?).to_owned(),
        port: uri.port_u16().unwrap_or(80),
        authorization,
    })
}

/// RFC 3986, 2.1. None where a `%` is not followed by two hexadecimal digits.
fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let value = digit(bytes.next()?)? * 16 + digit(bytes.next()?)?;
        out.push(u8::try_from(value).ok()?);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxied(no_proxy: &str, url: &str) -> bool {
        let proxies = Proxies {
            http: Some("http://proxy:3128".to_owned()),
            https: Some("proxy:3128/".to_owned()),
            no_proxy: no_proxy.to_owned(),
        };
        proxies.for_url(&url.parse().unwrap()).unwrap().is_some()
    }

    #[test]
    fn exemptions_are_curls() {
        for (no_proxy, url, expected) in [
            ("", "https://ghcr.io/v2/", true),
            ("*", "https://ghcr.io/v2/", false),
            ("ghcr.io", "https://ghcr.io/v2/", false),
            ("GHCR.IO", "https://ghcr.io/v2/", false),
            ("x, .ghcr.io", "https://a.ghcr.io/v2/", false),
            ("*.ghcr.io", "https://a.ghcr.io/v2/", false),
            ("hcr.io", "https://ghcr.io/v2/", true),
            ("ghcr.io:443", "https://ghcr.io/v2/", false),
            ("ghcr.io:5000", "https://ghcr.io/v2/", true),
            ("10.0.0.0/8", "http://10.1.2.3:5000/v2/", false),
            ("10.1.2.3", "http://10.1.2.3:5000/v2/", false),
            ("10.1.2.3:80", "http://10.1.2.3:5000/v2/", true),
            ("fd00::/8", "http://[fd00::1]:5000/v2/", false),
            ("[fd00::1]", "http://[fd00::1]:5000/v2/", false),
            ("", "http://localhost:5000/v2/", false),
            ("", "http://127.1.2.3:5000/v2/", false),
            ("", "http://[::1]:5000/v2/", false),
        ] {
            assert_eq!(proxied(no_proxy, url), expected, "{no_proxy:?} {url}");
        }
    }

    #[test]
    fn a_proxy_is_taken_apart() {
        let proxy = parse("http://us%65r:p@ss@[fd00::1]:8080/").unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("fd00::1", 8080));
        assert_eq!(
            proxy.authorization.unwrap(),
            format!("Basic {}", STANDARD.encode("user:p@ss"))
        );
        for (wrong, reason) in [
            ("socks5://a:1", "only http"),
            ("http://", "URL"),
            ("a b", "URL"),
            ("u%zz@a", "text"),
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.reason.contains(reason), "{wrong}: {error}");
        }
        assert!(
            !parse("https://user:secret@host")
                .unwrap_err()
                .to_string()
                .contains("secret")
        );
    }
}
