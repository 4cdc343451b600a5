//! Disk images: a raw disk with a table of partitions, or a qcow2 of one, to the root file system in it.
//!
//! A qcow2 is made into a raw disk by `qemu-img` first, in the work directory. It may name other files of the host as its own
//! contents, and the daemon may read files that whoever made it may not: such a one is refused by its header
//! ([`hostkit::qcow2`]) before any program sees it. How much is written is asked for beforehand.
//!
//! Which partition is the root: the one that says so by its type (GPT), else the only ext4, else the only ext4 with an
//! `os-release`; where none of it decides, the caller does.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use hostkit::exec::{ExecError, Tool};
use hostkit::ext4::reader::{Last, Reader};
use hostkit::ext4::superblock;
use hostkit::partitions::{self, Kind, Partition, Scheme, Table};
use hostkit::process::Exit;
use hostkit::qcow2;

use super::{Paced, Rootfs, RootfsError, look_into, new_file, new_work, publish};
use crate::image::work::{self, Cancel, Reporter};
use crate::limits::bytes;

/// The largest disk that is read. It is sparse, and its length is nothing that is written.
const LARGEST: u64 = 16 << 40;

/// Why there is no root file system in a disk image.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It is no qcow2 that is read.
    #[error(transparent)]
    Qcow2(qcow2::Error),
    /// It has a table of partitions that is none.
    #[error(transparent)]
    Table(partitions::Error),
    /// Its disk is larger than is read.
    #[error("a disk of {} is larger than is read ({})", bytes(.0), bytes(&LARGEST))]
    TooLarge(u64),
    /// There is no such partition in it.
    #[error("it has no partition {wanted}: {}", listed(.there))]
    NoPartition {
        /// As asked for.
        wanted: u32,
        /// All there are.
        there: Vec<String>,
    },
    /// The partition that is the root by its type, or was asked for, is no ext4.
    #[error("partition {number} cannot be used")]
    NotUsable {
        /// Which.
        number: u32,
        /// Why.
        #[source]
        source: superblock::Error,
    },
    /// None of its partitions is a sound ext4.
    #[error("none of its partitions is a usable ext4 file system: {}", listed(.0))]
    NoneUsable(Vec<String>),
    /// Several partitions may be the root.
    #[error("several of its partitions may be the root file system (say which: --partition N): {}", listed(.0))]
    Several(Vec<String>),
    /// A partition was asked for, and it has none.
    #[error("it has no partition table, and --partition was given")]
    NoTable,
}

fn listed(parts: &[String]) -> String {
    match parts {
        [] => "it has none".to_owned(),
        parts => parts.join(", "),
    }
}

/// The program that reads qcow2.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// It is not installed.
    #[error("qemu-img is needed to read qcow2 (package qemu-utils)")]
    Missing(#[source] ExecError),
    /// It failed: the file is damaged, or there is no room.
    #[error("failed to read it as a qcow2")]
    Failed(#[source] ExecError),
    /// It said something else than it should.
    #[error("qemu-img did not say how much the image holds")]
    Unclear,
}

/// What a file is, by how it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum Form {
    /// A raw disk with partitions.
    Disk,
    /// QEMU's.
    Qcow2,
    /// Something else.
    Other,
}

/// What a file is. One that cannot be read, or has a table that is damaged, is found out about by who takes it up.
pub(in crate::image) fn form(path: &Path) -> Form {
    if !matches!(qcow2::look(path), Ok(None)) {
        return match File::open(path) {
            Ok(_) => Form::Qcow2,
            Err(_) => Form::Other,
        };
    }
    let table = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
    match table.map(|(size, file)| partitions::read(&file, size)) {
        Ok(Ok(Some(_)) | Err(_)) => Form::Disk,
        Ok(Ok(None)) | Err(_) => Form::Other,
    }
}

/// Bytes that a qcow2 takes as a raw disk, at most. It is small itself where one cluster is named many times, so its tables are
/// read; one whose tables contradict each other is refused.
pub(in crate::image) async fn writes(path: &Path, tools: &[PathBuf]) -> Result<u64, RootfsError> {
    /// What `qemu-img check` ends with where there are clusters that nothing names: no harm is done.
    const LEAKS: i32 = 3;
    let failed = |error| RootfsError::Qemu {
        path: path.to_owned(),
        source: Box::new(error),
    };
    let header = header(path)?;
    let check = tool(tools).map_err(failed)?.command();
    let check = check.args(["check", "-f", "qcow2", "--output=json"]).arg(path);
    let told = match check.run().await {
        Ok(told) => told.stdout,
        Err(ExecError::Failed {
            exit: Exit::Code(LEAKS),
            ..
        }) => return Ok(header.size),
        Err(e) => return Err(failed(QemuError::Failed(e))),
    };
    let told: serde_json::Value =
        serde_json::from_slice(&told).map_err(|_not_json| failed(QemuError::Unclear))?;
    // Not named where it is none.
    let clusters = told.get("allocated-clusters").and_then(serde_json::Value::as_u64);
    let taken = clusters.unwrap_or(0).saturating_mul(header.cluster);
    Ok(taken.min(header.size))
}

fn tool(tools: &[PathBuf]) -> Result<Tool, QemuError> {
    Tool::find("qemu-img", tools).map_err(QemuError::Missing)
}

fn header(path: &Path) -> Result<qcow2::Header, RootfsError> {
    let disk = |error| RootfsError::Disk {
        path: path.to_owned(),
        source: Box::new(error),
    };
    match qcow2::look(path).map_err(|e| disk(DiskError::Qcow2(e)))? {
        Some(header) if header.size > LARGEST => Err(disk(DiskError::TooLarge(header.size))),
        Some(header) => Ok(header),
        // It was one when it was looked at first.
        None => Err(disk(DiskError::Qcow2(qcow2::Error::Truncated))),
    }
}

/// Makes the directory `target` from the root file system in a disk image. Stages: `convert` (qcow2), `copy`, `digest`,
/// `store`.
pub(in crate::image) async fn from_disk(
    target: &Path,
    source: &Path,
    form: Form,
    partition: Option<u32>,
    tools: &[PathBuf],
    progress: &Reporter,
) -> Result<Rootfs, RootfsError> {
    let work = new_work(target)?;
    let new = new_file(&work, target)?;
    let raw = match form {
        Form::Disk | Form::Other => source.to_owned(),
        Form::Qcow2 => {
            header(source)?;
            progress.step("convert", format!("converting {}", source.display()));
            let raw = work.path().join("disk.raw");
            let converted = tool(tools).map(|tool| {
                let convert = tool.command().args(["convert", "-f", "qcow2", "-O", "raw"]);
                convert.arg(source).arg(&raw)
            });
            let failed = |error| RootfsError::Qemu {
                path: source.to_owned(),
                source: Box::new(error),
            };
            let converted = converted.map_err(failed)?.run().await;
            converted.map_err(|e| failed(QemuError::Failed(e)))?;
            raw
        }
    };
    let (name, to, told) = (source.to_owned(), new.clone(), progress.clone());
    // So that the directory outlives this thread when nobody waits for it any more.
    let kept = work.clone();
    work::blocking(move |cancel| {
        let _kept = kept;
        extract(&name, &raw, &to, partition, cancel, &told)
    })
    .await?;
    let found = look_into(&new, source, tools).await?;
    publish(work, target, found, progress).await
}

/// Writes the root file system of a raw disk, which is called `name`, to a new file.
fn extract(
    name: &Path,
    raw: &Path,
    to: &Path,
    partition: Option<u32>,
    cancel: &Cancel,
    progress: &Reporter,
) -> Result<(), RootfsError> {
    let read = |source| RootfsError::Read {
        path: name.to_owned(),
        source,
    };
    let disk = |error| RootfsError::Disk {
        path: name.to_owned(),
        source: Box::new(error),
    };
    let file = File::open(raw).map_err(read)?;
    let size = file.metadata().map_err(read)?.len();
    let whole = match superblock::check_part(name, &file, 0, size) {
        Err(superblock::Error::NotExt4 { .. }) => false,
        Ok(_) => true,
        Err(source) => {
            return Err(RootfsError::Ext4 {
                path: name.to_owned(),
                source,
            });
        }
    };
    let (start, length) = match (whole, partition) {
        (true, None) => (0, size),
        (true, Some(_)) => return Err(disk(DiskError::NoTable)),
        (false, partition) => {
            let table = partitions::read(&file, size).map_err(|e| disk(DiskError::Table(e)))?;
            match table {
                Some(table) => {
                    let root = choose(name, &file, &table, partition).map_err(disk)?;
                    (root.start, root.length)
                }
                None => {
                    return Err(RootfsError::Ext4 {
                        path: name.to_owned(),
                        source: superblock::Error::NotExt4 {
                            path: name.to_owned(),
                        },
                    });
                }
            }
        }
    };
    let store = |source: io::Error| RootfsError::Store {
        path: to.to_owned(),
        source,
    };
    let new = File::create_new(to).map_err(store)?;
    let mut paced = Paced::default();
    let copied = hostkit::copy::copy_part(&file, start, length, &new, |done| {
        if paced.is_due(done) {
            progress.bytes("copy", "copying the file system", done, Some(length));
        }
        cancel.check()
    });
    copied.map(|_bytes| ()).map_err(store)
}

/// The partition that is the root.
fn choose<'t>(
    name: &Path,
    disk: &File,
    table: &'t Table,
    wanted: Option<u32>,
) -> Result<&'t Partition, DiskError> {
    let check = |part: &Partition| superblock::check_part(name, disk, part.start, part.length);
    let usable = |part: &'t Partition| match check(part) {
        Ok(_) => Ok(part),
        Err(source) => Err(DiskError::NotUsable {
            number: part.number,
            source,
        }),
    };
    let all = || table.partitions.iter();
    let show = |parts: &[&Partition]| parts.iter().map(|part| shown(table.scheme, part)).collect();
    if let Some(wanted) = wanted {
        let part = all().find(|part| part.number == wanted);
        return part.map_or_else(
            || {
                Err(DiskError::NoPartition {
                    wanted,
                    there: show(&all().collect::<Vec<_>>()),
                })
            },
            usable,
        );
    }
    let by_type: Vec<_> = all().filter(|part| part.kind == Kind::ROOT).collect();
    if let [root] = by_type.as_slice() {
        return usable(root);
    }
    let ext4: Vec<_> = all().filter(|part| check(part).is_ok()).collect();
    match ext4.as_slice() {
        [] => return Err(DiskError::NoneUsable(show(&all().collect::<Vec<_>>()))),
        [root] => return Ok(root),
        _ => {}
    }
    let system = |part: &&&Partition| is_system(name, disk, part);
    let mut systems = ext4.iter().filter(system);
    match (systems.next(), systems.next()) {
        (Some(root), None) => Ok(root),
        (None | Some(_), _) => Err(DiskError::Several(show(&ext4))),
    }
}

/// Whether there is an operating system in a partition.
fn is_system(name: &Path, disk: &File, part: &Partition) -> bool {
    let opened = disk.try_clone().map_err(drop);
    let reader = opened.and_then(|disk| Reader::open_part(name, disk, part.start, part.length).map_err(drop));
    reader.is_ok_and(|reader| {
        ["usr/lib/os-release", "etc/os-release"]
            .iter()
            .any(|path| matches!(reader.lookup(path.as_bytes(), Last::Follow), Ok(Some(_))))
    })
}

fn shown(scheme: Scheme, part: &Partition) -> String {
    let kind = match (scheme, part.kind) {
        (_, Kind::Mbr(kind)) => format!("type {kind:#04x}"),
        (_, Kind::ROOT) => "root".to_owned(),
        (_, Kind::Gpt(kind)) => format!("type {}", guid(&kind)),
    };
    format!("{} ({}, {kind})", part.number, bytes(&part.length))
}

/// As people write it.
fn guid(raw: &[u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = raw;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (clock, node) = rest.split_at(2);
    format!(
        "{}-{}-{}-{}-{}",
        hex(&[*d, *c, *b, *a]),
        hex(&[*f, *e]),
        hex(&[*h, *g]),
        hex(clock),
        hex(node)
    )
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
