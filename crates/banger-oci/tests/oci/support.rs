//! A real registry, images in it, and what is between a test and it.

use std::fs;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use banger_oci::{Blobs, Error, Event, Platform, Pulled, Reference, Registries, Registry, Timing, pull};
use hostkit::digest::Digest;
use tempfile::TempDir;

/// Only ends tests that have failed already.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// `anna`, whose password is `geheim`; `htpasswd -Bbn -C 4 anna geheim`.
const HTPASSWD: &str = "anna:$2y$04$uXZmDUEoEeXNIqUR9NFA8uEOml7seENyLkIjaKQZPnuWbET0QaSia\n";

/// The tools. None, said aloud, where one is missing.
pub(crate) struct Tools {
    registry: PathBuf,
    skopeo: PathBuf,
    umoci: PathBuf,
}

impl Tools {
    pub(crate) fn find() -> Option<Self> {
        Some(Self {
            registry: testkit::program("BANGER_TEST_DOCKER_REGISTRY", "docker-registry")?,
            skopeo: testkit::program("BANGER_TEST_SKOPEO", "skopeo")?,
            umoci: testkit::program("BANGER_TEST_UMOCI", "umoci")?,
        })
    }

    /// What `skopeo` prints.
    pub(crate) fn skopeo(&self, arguments: &[&str]) -> String {
        let mut all = vec!["--insecure-policy"];
        all.extend(arguments);
        run(&self.skopeo, &all)
    }

    /// An OCI layout in `dir` with an image `tag` of one layer for each of `files`, with a configuration.
    pub(crate) fn layout(&self, dir: &Path, tag: &str, files: &[Vec<u8>]) {
        let umoci = |arguments: &[&str]| run(&self.umoci, arguments);
        let layout = dir.to_str().unwrap();
        let image = format!("{layout}:{tag}");
        if !dir.join("index.json").exists() {
            umoci(&["init", "--layout", layout]);
        }
        umoci(&["new", "--image", &image]);
        for (number, contents) in files.iter().enumerate() {
            let file = dir.with_extension("file");
            fs::write(&file, contents).unwrap();
            let target = format!("/file-{number}");
            umoci(&[
                "insert",
                "--rootless",
                "--image",
                &image,
                file.to_str().unwrap(),
                &target,
            ]);
            fs::remove_file(&file).unwrap();
        }
        self.configure(
            dir,
            tag,
            &[
                "--config.env",
                "A=b",
                "--config.cmd",
                "serve",
                "--config.entrypoint",
                "/init",
                "--config.user",
                "1000:1000",
                "--config.workingdir",
                "/srv",
                "--config.exposedports",
                "80/tcp",
                "--os",
                "linux",
                "--architecture",
                "amd64",
            ],
        );
    }

    /// Changes an image's configuration.
    pub(crate) fn configure(&self, layout: &Path, tag: &str, options: &[&str]) {
        let image = format!("{}:{tag}", layout.display());
        let mut all = vec!["config", "--image", &image];
        all.extend(options);
        run(&self.umoci, &all);
    }

    /// Adds an index of images of a layout to it, as `name`. Returns its digest.
    pub(crate) fn index(&self, layout: &Path, images: &[(&str, &str)], name: &str) -> Digest {
        let file = layout.join("index.json");
        let mut top: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let mut entries = Vec::new();
        for (tag, platform) in images {
            let all = top["manifests"].as_array().unwrap();
            let named = |entry: &&serde_json::Value| {
                entry["annotations"]["org.opencontainers.image.ref.name"] == *tag
            };
            let mut entry = all.iter().find(named).unwrap().clone();
            let mut parts = platform.split('/');
            entry.as_object_mut().unwrap().remove("annotations");
            entry["platform"] = serde_json::json!({"os": parts.next(), "architecture": parts.next()});
            if let Some(variant) = parts.next() {
                entry["platform"]["variant"] = variant.into();
            }
            entries.push(entry);
        }
        let index = |entries: &[serde_json::Value]| {
            let index = serde_json::json!({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries,
            });
            let bytes = index.to_string().into_bytes();
            let digest = Digest::of_bytes(&bytes);
            fs::write(layout.join(format!("blobs/sha256/{digest}")), &bytes).unwrap();
            let entry = serde_json::json!({
                "mediaType": "application/vnd.oci.image.index.v1+json", "digest": format!("sha256:{digest}"),
                "size": bytes.len(),
            });
            (digest, entry)
        };
        let (digest, mut entry) = index(&entries);
        entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
        top["manifests"].as_array_mut().unwrap().push(entry);
        fs::write(&file, top.to_string()).unwrap();
        digest
    }
}

/// Runs a program to its end. What it says is shown if it fails.
pub(crate) fn run(program: &Path, arguments: &[&str]) -> String {
    #[expect(
        clippy::disallowed_methods,
        reason = "a tool of the test, whose whole output is the message of its failure"
    )]
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{} {arguments:?}: {}{}",
        program.display(),
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// A running `docker-registry`.
pub(crate) struct RealRegistry {
    child: Child,
    pub(crate) address: SocketAddr,
    store: PathBuf,
}

/// How a registry is run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Open,
    /// See `HTPASSWD`.
    Password,
    /// With the certificate in `tls/`.
    Tls,
}

impl RealRegistry {
    /// Starts one with its files below `dir`, which may have some already.
    pub(crate) fn start(tools: &Tools, dir: &Path, access: Access) -> Self {
        let store = dir.join("registry");
        fs::create_dir_all(&store).unwrap();
        let mut config = String::new();
        match access {
            Access::Open => {}
            Access::Password => {
                let users = dir.join("htpasswd");
                fs::write(&users, HTPASSWD).unwrap();
                config.push_str(&format!(
                    "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                    users.display()
                ));
            }
            Access::Tls => {
                let tls = tls();
                config.push_str(&format!(
                    "  tls: {{certificate: {0}/server.pem, key: {0}/server.key}}\n",
                    tls.display()
                ));
            }
        }
        let file = dir.join("registry.yml");
        let (child, address) = testkit::docker_registry(&tools.registry, &file, &store, &config);
        Self {
            child,
            address,
            store,
        }
    }

    /// A blob's file in it.
    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.to_string();
        let path = format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
        self.store.join(path)
    }

    /// Pushes an image of a layout.
    pub(crate) fn push(&self, tools: &Tools, layout: &Path, tag: &str, name: &str) {
        let from = format!("oci:{}:{tag}", layout.display());
        let to = format!("docker://{}/{name}", self.address);
        tools.skopeo(&["copy", "-q", "--dest-tls-verify=false", &from, &to]);
    }

    pub(crate) fn name(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.address).parse().unwrap()
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

pub(crate) fn tls() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oci/tls")
}

/// A directory, a registry with an image `x:1`, and where blobs come.
pub(crate) struct Scene {
    pub(crate) tools: Tools,
    pub(crate) registry: RealRegistry,
    pub(crate) layout: PathBuf,
    pub(crate) blobs: Blobs,
    pub(crate) dir: TempDir,
}

impl Scene {
    /// With layers of so many random bytes.
    pub(crate) fn new(layers: &[usize]) -> Option<Self> {
        let tools = Tools::find()?;
        let dir = tempfile::tempdir().unwrap();
        let layout = dir.path().join("layout");
        let files: Vec<_> = layers.iter().map(|&size| noise(size)).collect();
        tools.layout(&layout, "1", &files);
        let registry = RealRegistry::start(&tools, dir.path(), Access::Open);
        registry.push(&tools, &layout, "1", "x:1");
        let blobs = Blobs::open(dir.path().join("blobs")).unwrap();
        Some(Self {
            tools,
            registry,
            layout,
            blobs,
            dir,
        })
    }

    pub(crate) fn other_blobs(&self, name: &str) -> Blobs {
        Blobs::open(self.dir.path().join(name)).unwrap()
    }

    pub(crate) async fn pull(&self) -> Result<Pulled, Error> {
        let name = self.registry.name("x:1");
        pull_into(&plain(&[&self.registry.address.to_string()]), &name, &self.blobs).await
    }
}

/// Bytes that no compressor makes shorter.
pub(crate) fn noise(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let mut random = fs::File::open("/dev/urandom").unwrap();
    std::io::Read::read_exact(&mut random, &mut bytes).unwrap();
    bytes
}

/// Registries that are talked to in plain http, with short pauses.
pub(crate) fn plain(hosts: &[&str]) -> Registries {
    let registry = Registry {
        plain_http: true,
        ..Registry::default()
    };
    Registries {
        each: hosts
            .iter()
            .map(|&host| (host.to_owned(), registry.clone()))
            .collect(),
        timing: quick(),
        ..Registries::default()
    }
}

/// Short pauses; long times for what is not to happen.
pub(crate) fn quick() -> Timing {
    Timing {
        connect: LONG,
        silence: LONG,
        pause: Duration::from_millis(5),
        patience: Duration::from_secs(5),
        attempts: 3,
    }
}

pub(crate) fn quiet(_: Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

pub(crate) async fn pull_into(
    registries: &Registries,
    name: &Reference,
    blobs: &Blobs,
) -> Result<Pulled, Error> {
    let platform = Platform::linux("amd64");
    tokio::time::timeout(LONG, pull(registries, name, &platform, blobs, &quiet))
        .await
        .expect("a pull ends")
}

/// An error with its causes.
pub(crate) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

/// All files below a directory of blobs, by name.
pub(crate) fn files(blobs: &Blobs) -> Vec<String> {
    let mut all = Vec::new();
    for part in ["sha256", "partial"] {
        for item in fs::read_dir(blobs.directory().join(part)).unwrap() {
            all.push(format!("{part}/{}", item.unwrap().file_name().to_string_lossy()));
        }
    }
    all.sort();
    all
}

/// Until nobody downloads: the writer's thread ends by itself.
pub(crate) async fn idle(blobs: &Blobs) {
    let end = Instant::now() + LONG;
    while blobs.list().unwrap().entries.iter().any(|entry| entry.in_use) {
        assert!(Instant::now() < end, "somebody goes on downloading");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
