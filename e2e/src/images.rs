//! Container images for tests, and a registry that has them: Debian's `docker-registry` on loopback, filled by `skopeo`.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;

use crate::testbed;

/// A docker archive of one image with one layer, which holds these files and a busybox as `bin/busybox` and `bin/sh`. Its
/// environment says `GREETING=hello`, its label `team=a`.
///
/// # Panics
/// Where a program fails.
pub fn docker_archive(directory: &Path, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let tree = tempfile::tempdir_in(directory).expect("a directory");
    let (root, image) = (tree.path().join("root"), tree.path().join("image"));
    std::fs::create_dir_all(root.join("bin")).expect("a directory");
    std::fs::create_dir_all(&image).expect("a directory");
    let busybox = testbed::find_program("busybox").expect("busybox");
    std::fs::copy(busybox, root.join("bin/busybox")).expect("copy busybox");
    std::os::unix::fs::symlink("busybox", root.join("bin/sh")).expect("a link");
    std::os::unix::fs::symlink("busybox", root.join("bin/cat")).expect("a link");
    for (path, contents) in files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(path, contents).expect("write");
    }
    let layer = image.join("layer.tar");
    tar(&root, &layer, &["--owner=0", "--group=0"]);
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["GREETING=hello"], "Labels": {"team": "a"}, "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))]},
    });
    std::fs::write(image.join("config.json"), config.to_string()).expect("write");
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    std::fs::write(image.join("manifest.json"), manifest.to_string()).expect("write");
    let archive = directory.join(format!("{}.tar", name.replace(['/', ':'], "-")));
    tar(&image, &archive, &[]);
    archive
}

fn tar(directory: &Path, to: &Path, options: &[&str]) {
    let made = Command::new("tar")
        .arg("-cf")
        .arg(to)
        .args(options)
        .arg("-C")
        .arg(directory)
        .arg(".")
        .status();
    assert!(made.expect("run tar").success());
}

/// A file's digest, hexadecimal.
///
/// # Panics
/// Where `sha256sum` fails.
#[expect(clippy::disallowed_methods, reason = "nothing of the product's is used here")]
pub fn sha256(file: &Path) -> String {
    let summed = Command::new("sha256sum")
        .arg(file)
        .output()
        .expect("run sha256sum");
    assert!(summed.status.success());
    String::from_utf8_lossy(&summed.stdout).chars().take(64).collect()
}

/// A registry. It ends with this.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    directory: tempfile::TempDir,
    /// Where it listens.
    pub port: u16,
}

impl Registry {
    /// Starts one that has nothing; `None` where its program or that which fills it is missing, after having said so.
    pub fn start() -> Option<Self> {
        if testbed::find_program("skopeo").is_none() {
            testbed::require("skopeo is missing: make setup");
            return None;
        }
        let Some(program) = program() else {
            testbed::require("there is no docker-registry: BANGER_TEST_DOCKER_REGISTRY");
            return None;
        };
        let directory = tempfile::tempdir().expect("a directory");
        let (config, store) = (directory.path().join("config.yml"), directory.path());
        let (process, address) = testkit::docker_registry(&program, &config, store, "");
        let port = address.port();
        Some(Self {
            process,
            directory,
            port,
        })
    }

    /// Puts an image of a docker archive into it.
    ///
    /// # Panics
    /// Where that fails.
    #[expect(clippy::disallowed_methods, reason = "nothing of the product's is used here")]
    pub fn push(&self, archive: &Path, name: &str) {
        let to = format!("docker://127.0.0.1:{}/{name}", self.port);
        let copied = Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
            .arg(format!("docker-archive:{}", archive.display()))
            .arg(to)
            .output()
            .expect("run skopeo");
        assert!(
            copied.status.success(),
            "{}",
            String::from_utf8_lossy(&copied.stderr)
        );
    }

    /// The file that a blob is in.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let blobs = self.directory.path().join("docker/registry/v2/blobs/sha256");
        blobs.join(&digest[..2]).join(digest).join("data")
    }
}

/// The one that the environment names, or that is installed.
fn program() -> Option<PathBuf> {
    let named = std::env::var_os("BANGER_TEST_DOCKER_REGISTRY").map(PathBuf::from);
    named.or_else(|| testbed::find_program("docker-registry"))
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// What is between the daemon and a registry: it lets so many bytes of answers through, and then breaks off everything.
#[derive(Debug, Clone)]
pub struct Cut {
    /// Where it listens.
    pub port: u16,
    state: Arc<CutState>,
}

#[derive(Debug)]
struct CutState {
    to: u16,
    /// Bytes of answers that are still let through.
    left: Mutex<u64>,
    /// Bytes of answers that were.
    passed: AtomicU64,
}

impl Cut {
    /// Listens on a port of its own, for as long as the test runs.
    ///
    /// # Panics
    /// Where it cannot listen.
    pub fn before(registry: &Registry, bytes: u64) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let state = Arc::new(CutState {
            to: registry.port,
            left: Mutex::new(bytes),
            passed: AtomicU64::new(0),
        });
        let cut = Self {
            port: listener.local_addr().expect("an address").port(),
            state: state.clone(),
        };
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = state.clone();
                std::thread::spawn(move || carry(&client, &state));
            }
        });
        cut
    }

    /// Lets so many more bytes through.
    pub fn allow(&self, bytes: u64) {
        *self.state.left.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
    }

    /// Bytes of answers that were let through.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.state.passed.load(Ordering::SeqCst)
    }
}

fn carry(client: &TcpStream, state: &CutState) {
    let registry = SocketAddr::from((Ipv4Addr::LOCALHOST, state.to));
    let Ok(registry) = TcpStream::connect(registry) else {
        return;
    };
    let (asking, asked) = (client.try_clone(), registry.try_clone());
    let (Ok(mut asking), Ok(mut asked)) = (asking, asked) else {
        return;
    };
    std::thread::spawn(move || {
        // Ends when either side has ended.
        std::io::copy(&mut asking, &mut asked).ok();
        asked.shutdown(Shutdown::Write).ok();
    });
    let (mut answers, mut buffer) = (&registry, vec![0; 16 << 10]);
    let mut to = client;
    while let Ok(read @ 1..) = answers.read(&mut buffer) {
        let through = {
            let mut left = state.left.lock().unwrap_or_else(PoisonError::into_inner);
            let through = (*left).min(read as u64);
            *left -= through;
            through
        };
        let part = usize::try_from(through).unwrap_or(read);
        if to.write_all(&buffer[..part]).is_err() {
            break;
        }
        state.passed.fetch_add(through, Ordering::SeqCst);
        if part < read {
            break;
        }
    }
    client.shutdown(Shutdown::Both).ok();
    registry.shutdown(Shutdown::Both).ok();
}
