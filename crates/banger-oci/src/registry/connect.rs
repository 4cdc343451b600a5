//! Connections: name, TCP, perhaps a proxy, perhaps TLS, all within one time.
//!
//! TLS is rustls with ring; the host's certificates are trusted, and those of one more file if it is configured. Both are
//! read when the first connection needs them, and anew for each pull.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hyper::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;

use super::proxy::{Proxies, Proxy, bare};
use super::{SettingError, Timing};
use crate::error::Retry;

/// How long one address has before the next one is tried as well (RFC 8305, 5: "Connection Attempt Delay").
const HEAD_START: Duration = Duration::from_millis(250);
/// A proxy's answer to CONNECT.
const PROXY_ANSWER_LIMIT: usize = 16 << 10;

/// Why there is no connection. Sources are shared, so that what waited for one connection can say the same.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("unknown host {host}")]
    UnknownHost {
        /// The name.
        host: String,
        /// What the resolver said.
        source: Arc<io::Error>,
    },
    /// No address took a connection.
    #[error("connect to {host}, port {port}")]
    Tcp {
        /// Name or address.
        host: String,
        /// The port.
        port: u16,
        /// What the last address said.
        source: Arc<io::Error>,
    },
    /// It took too long.
    #[error("no connection to {host} within {} s", after.as_secs_f32())]
    Timeout {
        /// Name or address.
        host: String,
        /// How long it had.
        after: Duration,
    },
    /// TLS failed: another certificate, one that nobody here trusts, or no TLS at all.
    #[error("TLS with {host}")]
    Tls {
        /// Name or address.
        host: String,
        /// What is wrong.
        source: Arc<io::Error>,
    },
    /// The certificates that are to be trusted cannot be read.
    #[error("no certificates to trust from {from}: {reason}")]
    Trust {
        /// A file, or the host.
        from: String,
        /// What is wrong.
        reason: String,
    },
    /// The proxy does not connect us.
    #[error("proxy {proxy} does not connect to {host}: {reason}")]
    Proxy {
        /// The proxy's host.
        proxy: String,
        /// To whom.
        host: String,
        /// What it said.
        reason: String,
    },
    /// A configured proxy cannot be.
    #[error(transparent)]
    Setting(#[from] SettingError),
}

impl ConnectError {
    /// Whether trying again may help.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::UnknownHost { .. } | Self::Tcp { .. } | Self::Timeout { .. } | Self::Proxy { .. } => {
                Retry::Perhaps
            }
            // What rustls itself says (a certificate, a protocol) stays; a connection that was cut may not.
            Self::Tls { source, .. } if rustls_error(source).is_none() => Retry::Perhaps,
            Self::Tls { .. } | Self::Trust { .. } | Self::Setting(_) => Retry::No,
        }
    }

    /// Whether the other side may not speak TLS at all.
    pub(super) fn is_plain(&self) -> bool {
        match self {
            Self::Tls { source, .. } => {
                matches!(
                    rustls_error(source),
                    None | Some(rustls::Error::InvalidMessage(_))
                )
            }
            Self::UnknownHost { .. }
            | Self::Tcp { .. }
            | Self::Timeout { .. }
            | Self::Trust { .. }
            | Self::Proxy { .. }
            | Self::Setting(_) => false,
        }
    }
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Makes connections for hyper.
#[derive(Clone)]
pub(super) struct Connector(Arc<Inner>);

struct Inner {
    proxies: Proxies,
    ca: Option<PathBuf>,
    limit: Duration,
    tls: OnceCell<TlsConnector>,
}

impl Connector {
    pub(super) fn new(proxies: Proxies, ca: Option<PathBuf>, timing: &Timing) -> Self {
        Self(Arc::new(Inner {
            proxies,
            ca,
            limit: timing.connect,
            tls: OnceCell::new(),
        }))
    }

    async fn connect(self, url: Uri) -> Result<Transport, ConnectError> {
        let limit = self.0.limit;
        tokio::time::timeout(limit, self.open(&url))
            .await
            .unwrap_or_else(|_| {
                Err(ConnectError::Timeout {
                    host: url.host().unwrap_or_default().to_owned(),
                    after: limit,
                })
            })
    }

    async fn open(&self, url: &Uri) -> Result<Transport, ConnectError> {
        let https = url.scheme_str() == Some("https");
        let host = bare(url.host().unwrap_or_default());
        let port = url.port_u16().unwrap_or(if https { 443 } else { 80 });
        let proxy = self.0.proxies.for_url(url)?;
        let tcp = match &proxy {
            None => dial(host, port).await?,
            Some(proxy) => {
                let mut tcp = dial(&proxy.host, proxy.port).await?;
                if https {
                    tunnel(&mut tcp, proxy, host, port).await?;
                }
                tcp
            }
        };
        let stream: Box<dyn Stream> = if https {
            Box::new(self.tls(host, tcp).await?)
        } else {
            Box::new(tcp)
        };
        Ok(Transport {
            stream: TokioIo::new(stream),
            by_proxy: proxy.is_some() && !https,
        })
    }

    async fn tls(&self, host: &str, tcp: TcpStream) -> Result<impl Stream + use<>, ConnectError> {
        let failed = |source| ConnectError::Tls {
            host: host.to_owned(),
            source: Arc::new(source),
        };
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let load = || async {
            let ca = self.0.ca.clone();
            let loaded = tokio::task::spawn_blocking(move || trust(ca)).await;
            loaded.unwrap_or_else(|error| {
                Err(ConnectError::Trust {
                    from: "this host".to_owned(),
                    reason: error.to_string(),
                })
            })
        };
        let connector = self.0.tls.get_or_try_init(load).await?;
        connector.connect(name, tcp).await.map_err(failed)
    }
}

impl tower::Service<Uri> for Connector {
    type Response = Transport;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Transport, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        Box::pin(self.clone().connect(url))
    }
}

/// The addresses of a name in the resolver's order, one kind after the other; each has a head start before the next.
async fn dial(host: &str, port: u16) -> Result<TcpStream, ConnectError> {
    let unknown = |source| ConnectError::UnknownHost {
        host: host.to_owned(),
        source: Arc::new(source),
    };
    let found = tokio::net::lookup_host((host, port)).await.map_err(unknown)?;
    let mut addresses = in_turn(found.collect()).into_iter();
    let mut attempts = FuturesUnordered::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no addresses");
    loop {
        match addresses.next() {
            Some(address) => attempts.push(TcpStream::connect(address)),
            None if attempts.is_empty() => {
                return Err(ConnectError::Tcp {
                    host: host.to_owned(),
                    port,
                    source: Arc::new(last),
                });
            }
            None => {}
        }
        let more = addresses.len() > 0;
        tokio::select! {
            // Cancel-safe: attempts that are not done stay in the set.
            Some(outcome) = attempts.next() => match outcome {
                Ok(stream) => {
                    stream.set_nodelay(true).map_err(unknown)?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            },
            // Cancel-safe: only a timer.
            () = tokio::time::sleep(HEAD_START), if more => {}
        }
    }
}

/// RFC 8305, 4: the first address's kind, then the other one, in turn.
fn in_turn(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let six_first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == six_first);
    let mut second = second.into_iter();
    let mut all: Vec<_> = first
        .into_iter()
        .flat_map(|address| [Some(address), second.next()])
        .flatten()
        .collect();
    all.extend(second);
    all
}

/// CONNECT (RFC 9110, 9.3.6).
async fn tunnel(tcp: &mut TcpStream, proxy: &Proxy, host: &str, port: u16) -> Result<(), ConnectError> {
    let refused = |reason: String| ConnectError::Proxy {
        proxy: proxy.host.clone(),
        host: host.to_owned(),
        reason,
    };
    let target = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
    if let Some(authorization) = &proxy.authorization {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(authorization.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    tcp.write_all(&request)
        .await
        .map_err(|error| refused(error.to_string()))?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the answer is the other side's TLS already.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= PROXY_ANSWER_LIMIT {
            return Err(refused("its answer does not end".to_owned()));
        }
        answer.push(tcp.read_u8().await.map_err(|error| refused(error.to_string()))?);
    }
    let text = String::from_utf8_lossy(&answer);
    let status = text.lines().next().unwrap_or_default();
    match status.split(' ').nth(1) {
        Some(code) if code.len() == 3 && code.starts_with('2') => Ok(()),
        Some(_) | None => Err(refused(crate::text::tame(status, 100))),
    }
}

fn trust(ca: Option<PathBuf>) -> Result<TlsConnector, ConnectError> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = ca {
        let wrong = |reason: String| ConnectError::Trust {
            from: path.display().to_string(),
            reason,
        };
        let mut found = 0;
        for certificate in CertificateDer::pem_file_iter(&path).map_err(|error| wrong(error.to_string()))? {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            found += 1;
        }
        if found == 0 {
            return Err(wrong("it has no certificates".to_owned()));
        }
    }
    if roots.is_empty() {
        let errors: Vec<_> = native.errors.iter().map(ToString::to_string).collect();
        return Err(ConnectError::Trust {
            from: "this host (install ca-certificates)".to_owned(),
            reason: if errors.is_empty() {
                "there are none".to_owned()
            } else {
                errors.join(", ")
            },
        });
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ConnectError::Trust {
            from: "rustls".to_owned(),
            reason: error.to_string(),
        })?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// What a connection is made of.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// A connection, as hyper wants it.
pub(super) struct Transport {
    stream: TokioIo<Box<dyn Stream>>,
    /// The proxy reads the requests and wants whole URLs in them.
    by_proxy: bool,
}

impl Connection for Transport {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.by_proxy)
    }
}

impl hyper::rt::Read for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_addresses_take_turns() {
        let list = |texts: &[&str]| -> Vec<SocketAddr> { texts.iter().map(|t| t.parse().unwrap()).collect() };
        assert_eq!(
            in_turn(list(&[
                "[::1]:1",
                "[::2]:1",
                "1.1.1.1:1",
                "1.1.1.2:1",
                "1.1.1.3:1"
            ])),
            list(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "1.1.1.2:1", "1.1.1.3:1"])
        );
        assert_eq!(in_turn(list(&["1.1.1.1:1"])), list(&["1.1.1.1:1"]));
    }
}
