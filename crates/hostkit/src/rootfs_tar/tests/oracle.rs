//! The same images unpacked by `umoci`, an implementation of the OCI specification that is not ours, and by us: the trees
//! are compared entry by entry. Needs root, as which `umoci` makes owners and devices.
//!
//! What is not compared is the attributes of directories that no entry mentions (`umoci` takes them from the process, or
//! leaves a hidden directory's) and the times of directories that `umoci` has touched and not put right.

mod generator;
mod real;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use super::layers::agrees;
use super::*;
use crate::decompress;
use crate::digest::Digest;
use crate::exec::Tool;

/// What is at a name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    kind: &'static str,
    owner: (u32, u32),
    mode: u32,
    mtime: i64,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Size and digest of a file, target of a link, numbers of a device.
    what: String,
    /// The least name of the same inode.
    first: String,
}

type Seens = BTreeMap<String, Seen>;

/// A program of the oracle's, or a word about its absence.
fn tool(name: &str) -> Option<Tool> {
    let variable = format!("BANGER_TEST_{}", name.to_uppercase());
    testkit::program(&variable, name).map(|path| Tool::at(path).unwrap())
}

fn run(tool: &Tool, arguments: &[&str]) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let output = runtime.block_on(tool.command().args(arguments.iter().copied()).run());
    output
        .map(|output| output.text())
        .map_err(|error| format!("{error:?}"))
}

/// Writes an OCI layout of one image, named `latest`, with these archives as its layers.
fn write_layout(dir: &Path, layers: &[Vec<u8>]) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |bytes: &[u8], kind: &str| {
        let digest = Digest::of_bytes(bytes);
        fs::write(blobs.join(digest.to_string()), bytes).unwrap();
        let size = bytes.len();
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"sha256:{digest}","size":{size}}}"#
        )
    };
    let diff_ids: Vec<_> = layers
        .iter()
        .map(|layer| format!(r#""sha256:{}""#, Digest::of_bytes(layer)))
        .collect();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    );
    let config = blob(config.as_bytes(), "config.v1+json");
    let layers: Vec<_> = layers.iter().map(|layer| blob(layer, "layer.v1.tar")).collect();
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#,
        layers.join(",")
    );
    let manifest = blob(manifest.as_bytes(), "manifest.v1+json");
    let named = manifest.replace(
        "\"size\"",
        r#""annotations":{"org.opencontainers.image.ref.name":"latest"},"size""#,
    );
    fs::write(
        dir.join("index.json"),
        format!(r#"{{"schemaVersion":2,"manifests":[{named}]}}"#),
    )
    .unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// Unpacks the image of a layout with the oracle and looks at what it has made.
fn umoci(tool: &Tool, layout: &Path, rootfs: &Path) -> Result<Seens, String> {
    let image = format!("{}:latest", layout.display());
    run(
        tool,
        &["raw", "unpack", "--image", &image, rootfs.to_str().unwrap()],
    )?;
    let mut seens = Seens::new();
    let mut firsts = BTreeMap::new();
    let mut pending = vec![String::new()];
    while let Some(name) = pending.pop() {
        let path = rootfs.join(&name);
        let metadata = fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        let rdev = || {
            let (major, minor) = (
                rustix::fs::major(metadata.rdev()),
                rustix::fs::minor(metadata.rdev()),
            );
            format!("{major}:{minor}")
        };
        let (kind, what) = if kind.is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                let child = entry.unwrap().file_name().into_string().unwrap();
                let child = if name.is_empty() {
                    child
                } else {
                    format!("{name}/{child}")
                };
                pending.push(child);
            }
            ("directory", String::new())
        } else if kind.is_file() {
            ("file", contents(&path))
        } else if kind.is_symlink() {
            (
                "symlink",
                fs::read_link(&path).unwrap().to_str().unwrap().to_owned(),
            )
        } else if kind.is_fifo() {
            ("fifo", String::new())
        } else if kind.is_char_device() {
            ("char", rdev())
        } else {
            ("block", rdev())
        };
        let first = firsts.entry(metadata.ino()).or_insert_with(|| name.clone());
        if name < *first {
            first.clone_from(&name);
        }
        let seen = Seen {
            kind,
            owner: (metadata.uid(), metadata.gid()),
            mode: if kind == "symlink" {
                0
            } else {
                metadata.permissions().mode() & 0o7777
            },
            mtime: metadata.mtime(),
            xattrs: xattrs(&path),
            what,
            // Known when all were seen.
            first: metadata.ino().to_string(),
        };
        seens.insert(name, seen);
    }
    for seen in seens.values_mut() {
        seen.first
            .clone_from(&firsts[&seen.first.parse::<u64>().unwrap()]);
    }
    Ok(seens)
}

fn contents(path: &Path) -> String {
    let size = fs::metadata(path).unwrap().len();
    format!("{size} {}", Digest::of_file(path).unwrap())
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names).unwrap_or(0);
    names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| name.starts_with(b"user.") || *name == b"security.capability")
        .map(|name| {
            let mut value = vec![0; 4096];
            let len = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
            value.truncate(len);
            (name.to_vec(), value)
        })
        .collect()
}

/// What we make of the same.
fn ours(layers: &[Vec<u8>], dir: &Path) -> Result<Seens, Error> {
    let spool = tempfile::tempdir().unwrap();
    let mut applied = Layers::new(spool.path(), &Limits::default());
    for layer in layers {
        let packed = layer.len() as u64;
        match decompress::detect(layer) {
            None => applied.apply(layer.as_slice(), packed, |_| Ok(()))?,
            Some(format) => {
                let reader = decompress::reader(format, layer.as_slice()).unwrap();
                applied.apply(reader, packed, |_| Ok(()))?
            }
        };
    }
    let tree = applied.finish()?;
    disk::lay_out(&tree, dir);
    agrees(&tree, dir);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut firsts: BTreeMap<Vec<u8>, String> = BTreeMap::new();
    for (path, node) in tree.iter() {
        let owner = owner(path, node).to_vec();
        // In the order of names.
        firsts.entry(owner).or_insert_with(|| text(path));
    }
    let mut seens = Seens::new();
    for (path, node) in tree.iter() {
        let owner = owner(path, node);
        let node = tree.get(owner).unwrap();
        let (kind, what) = match &node.kind {
            Kind::Directory => ("directory", String::new()),
            Kind::File { .. } => ("file", contents(&dir.join(text(path)))),
            Kind::Symlink { target } => ("symlink", text(target)),
            Kind::Fifo => ("fifo", String::new()),
            Kind::CharDevice { major, minor } => ("char", format!("{major}:{minor}")),
            Kind::BlockDevice { major, minor } => ("block", format!("{major}:{minor}")),
            Kind::Link { .. } => unreachable!("an inode's own name is no link"),
        };
        let seen = Seen {
            kind,
            owner: (node.uid, node.gid),
            mode: if kind == "symlink" { 0 } else { node.mode },
            mtime: i64::try_from(node.mtime).unwrap(),
            xattrs: node.xattrs.iter().cloned().collect(),
            what,
            first: firsts[owner].clone(),
        };
        seens.insert(text(path), seen);
    }
    Ok(seens)
}

/// The own name of the inode that a name is of.
fn owner<'a>(path: &'a [u8], node: &'a Node) -> &'a [u8] {
    if let Kind::Link { to } = &node.kind {
        to
    } else {
        path
    }
}

/// What differs, but for what the oracle does not say. `since` is when it was started.
fn differences(umoci: &Seens, ours: &Seens, since: i64) -> Vec<String> {
    let mut found = Vec::new();
    let names: std::collections::BTreeSet<_> = umoci.keys().chain(ours.keys()).collect();
    for name in names {
        match (umoci.get(name), ours.get(name)) {
            (Some(theirs), Some(ours)) => {
                let mut theirs = theirs.clone();
                if theirs.kind == "directory" && ours.kind == "directory" {
                    // No entry of these tests is of the time 0.
                    if ours.mtime == 0 {
                        theirs = ours.clone();
                    } else if theirs.mtime >= since {
                        theirs.mtime = ours.mtime;
                    }
                }
                if theirs != *ours {
                    found.push(format!("{name:?}: umoci {theirs:?}\n     ours {ours:?}"));
                }
            }
            (theirs, ours) => found.push(format!("{name:?}: umoci {theirs:?}, ours {ours:?}")),
        }
    }
    found
}

fn now() -> i64 {
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

/// Whether the file system of temporary files has extended attributes of users.
fn has_xattrs(dir: &Path) -> bool {
    rustix::fs::setxattr(dir, "user.probe", b"1", rustix::fs::XattrFlags::empty()).is_ok()
}
