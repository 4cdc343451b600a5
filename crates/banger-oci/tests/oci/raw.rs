//! A server that does with each connection whatever a test wants, and one that stands between a test and a registry.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// A request's head.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    head: String,
}

impl Request {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned())
    }

    /// The head as a proxy passes it on, for one request on its connection.
    pub(crate) fn forwarded(&self, origin: &str) -> String {
        let head = self.head.replacen(origin, "", 1);
        head.replacen("\r\n", "\r\nConnection: close\r\n", 1)
    }

    pub(crate) fn is_post(&self) -> bool {
        self.head.starts_with("POST ")
    }
}

type Answering<'a> = Pin<Box<dyn Future<Output = std::io::Result<()>> + Send + 'a>>;

/// Serves until it is dropped; each connection has one request.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    _task: tokio::task::JoinHandle<()>,
    stop: Option<watch::Sender<()>>,
}

impl Server {
    pub(crate) async fn start<F>(answer: F) -> Self
    where
        F: for<'a> Fn(Request, &'a mut TcpStream) -> Answering<'a> + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (stop, mut stopped) = watch::channel(());
        let answer = Arc::new(answer);
        let seen = requests.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let mut stream = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap().0,
                    _ = stopped.changed() => return,
                };
                let (answer, seen) = (answer.clone(), seen.clone());
                connections.spawn(async move {
                    let Some(request) = head(&mut stream).await else {
                        return;
                    };
                    seen.lock().unwrap().push(request.clone());
                    // A client that has had enough closes.
                    answer(request, &mut stream).await.ok();
                    stream.shutdown().await.ok();
                });
            }
        });
        Self {
            address,
            requests,
            _task: task,
            stop: Some(stop),
        }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.take();
    }
}

async fn head(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(bytes).unwrap();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    Some(Request { path, head })
}

/// A whole answer.
pub(crate) async fn reply(
    stream: &mut TcpStream,
    status: &str,
    headers: &str,
    body: &[u8],
) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await
}

/// Stands between a test and a registry, counts, and may let only so many bytes of answers through.
pub(crate) struct Between {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    _stop: watch::Sender<()>,
}

struct State {
    to: Mutex<SocketAddr>,
    /// Bytes of answers that went through.
    down: AtomicU64,
    /// Bytes of answers that may still go through.
    credit: Mutex<Option<u64>>,
    /// Told when the credit is used up.
    dry: Notify,
    /// Set to cut all connections.
    cut: watch::Sender<u64>,
    /// The first lines of requests.
    requests: Mutex<Vec<String>>,
}

impl Between {
    pub(crate) async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            to: Mutex::new(to),
            down: AtomicU64::new(0),
            credit: Mutex::new(None),
            dry: Notify::new(),
            cut: watch::Sender::new(0),
            requests: Mutex::default(),
        });
        let (stop, mut stopped) = watch::channel(());
        let shared = state.clone();
        tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let stream = accepted.unwrap().0;
                        let state = shared.clone();
                        connections.spawn(async move { state.carry(stream).await });
                    }
                    _ = stopped.changed() => return,
                }
            }
        });
        Self {
            address,
            state,
            _stop: stop,
        }
    }

    /// Bytes of answers so far.
    pub(crate) fn down(&self) -> u64 {
        self.state.down.load(Ordering::SeqCst)
    }

    /// First lines of requests that begin so.
    pub(crate) fn requests(&self, begin: &str) -> Vec<String> {
        let all = self.state.requests.lock().unwrap();
        all.iter()
            .filter(|line| line.starts_with(begin))
            .cloned()
            .collect()
    }

    /// Lets so many bytes through, from now on; none means all.
    pub(crate) fn allow(&self, bytes: Option<u64>) {
        *self.state.credit.lock().unwrap() = bytes;
    }

    /// Until no more may go through.
    pub(crate) async fn dry(&self) {
        self.state.dry.notified().await;
    }

    /// Ends all connections.
    pub(crate) fn cut(&self) {
        self.state.cut.send_modify(|count| *count += 1);
    }

    pub(crate) fn redirect(&self, to: SocketAddr) {
        *self.state.to.lock().unwrap() = to;
    }
}

impl State {
    async fn carry(&self, client: TcpStream) {
        let mut cut = self.cut.subscribe();
        let to = *self.to.lock().unwrap();
        let Ok(server) = TcpStream::connect(to).await else {
            return;
        };
        let (mut client_read, mut client_write) = client.into_split();
        let (mut server_read, mut server_write) = server.into_split();
        let up = async {
            let mut buffer = vec![0; 16 << 10];
            while let Ok(read @ 1..) = client_read.read(&mut buffer).await {
                let text = String::from_utf8_lossy(&buffer[..read]);
                if let Some(line) = text.lines().next().filter(|line| line.ends_with("HTTP/1.1")) {
                    self.requests.lock().unwrap().push(line.to_owned());
                }
                if server_write.write_all(&buffer[..read]).await.is_err() {
                    return;
                }
            }
        };
        let down = async {
            let mut buffer = vec![0; 16 << 10];
            while let Ok(read @ 1..) = server_read.read(&mut buffer).await {
                let (pass, dry) = {
                    let mut credit = self.credit.lock().unwrap();
                    match credit.as_mut() {
                        None => (read, false),
                        Some(left) => {
                            let pass = read.min(usize::try_from(*left).unwrap());
                            *left -= pass as u64;
                            (pass, *left == 0)
                        }
                    }
                };
                if client_write.write_all(&buffer[..pass]).await.is_err() {
                    return;
                }
                self.down.fetch_add(pass as u64, Ordering::SeqCst);
                if dry {
                    self.dry.notify_one();
                    // Until it is cut.
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            () = up => {}
            () = down => {}
            _ = cut.changed() => {}
        }
    }
}

/// An image in memory, for servers that have their own ideas.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Vec<u8>,
    pub(crate) layers: Vec<Vec<u8>>,
}

impl Image {
    pub(crate) fn new(layers: Vec<Vec<u8>>) -> Self {
        let digests: Vec<_> = layers.iter().map(|layer| sha256(layer)).collect();
        let config = serde_json::json!({
            "os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": digests},
        });
        let config = config.to_string().into_bytes();
        let mut image = Self {
            manifest: Vec::new(),
            config,
            layers,
        };
        image.manifest = image.description().to_string().into_bytes();
        image
    }

    /// The manifest, to be changed.
    pub(crate) fn description(&self) -> serde_json::Value {
        let layer = |bytes: &Vec<u8>| {
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": sha256(bytes), "size": bytes.len(),
            })
        };
        serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha256(&self.config),
                "size": self.config.len(),
            },
            "layers": self.layers.iter().map(layer).collect::<Vec<_>>(),
        })
    }

    /// What a registry has at a path.
    pub(crate) fn get(&self, path: &str) -> Option<&[u8]> {
        let path = path.split('?').next()?;
        let (_, name) = path.rsplit_once('/')?;
        if path.contains("/manifests/") {
            return (name == "1" || name == sha256(&self.manifest)).then_some(&self.manifest);
        }
        let mut blobs = self.layers.iter().chain([&self.config]);
        blobs.find(|bytes| sha256(bytes) == name).map(Vec::as_slice)
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hostkit::digest::Digest::of_bytes(bytes))
}

/// Answers as a registry does.
pub(crate) async fn serve(image: &Image, request: &Request, stream: &mut TcpStream) -> std::io::Result<()> {
    match image.get(&request.path) {
        Some(bytes) => reply(stream, "200 OK", "", bytes).await,
        None => reply(stream, "404 Not Found", "", b"").await,
    }
}
