//! Installing a runtime, as an operation: had, unpacked, tried, then there by a rename.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use banger_store::StoreError;
use banger_vmm::{Firecracker, Vmm as _, host_virtualization};
use hostkit::digest::{Digest, Hasher};
use jiff::Timestamp;

use super::archive::{self, ArchiveError};
use super::{CHANGING, FIRECRACKER, ORIGIN, Origin, directory, installed};
use crate::error::{Error, chain, io as io_error};
use crate::fetch::{self, Fetched, Pin};
use crate::host::Host;
use crate::image::make::check_file;
use crate::image::work::{self, Cancel, Published, WorkDir};
use crate::operation::{Operation, Progress};
use crate::space;

/// A release's archive is no longer than this; they have some 10 MB.
const DOWNLOAD_LIMIT: u64 = 512 << 20;
/// What is written besides the archive, in lengths of it: the program is a part of it, and packed to a third.
const UNPACKED: u64 = 3;
/// How often a program is tried that is "busy": a process that is just being forked elsewhere in this daemon has it open
/// for writing until it has become another program.
const BUSY_TRIES: u32 = 250;
const BUSY_PAUSE: Duration = Duration::from_millis(20);
const CHUNK: usize = 1 << 20;

/// Where a runtime comes from: a release's archive, or the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file of the caller's, and what it should be.
    File(PathBuf, Option<Digest>),
    /// A file on a server.
    Url(Pin),
}

impl Source {
    /// A file, with its SHA-256 where the caller knows it.
    pub fn file(path: PathBuf, sha256: Option<&str>) -> Result<Self, Error> {
        Ok(Self::File(path, sha256.map(fetch::digest).transpose()?))
    }

    /// What was given is not what it was given for.
    fn refused(&self, problem: String) -> Error {
        match self {
            Self::File(path, _) => Error::BadFile {
                what: FIRECRACKER,
                path: path.clone(),
                problem,
            },
            Self::Url(pin) => Error::BadSource {
                what: FIRECRACKER,
                text: pin.url.to_string(),
                problem,
            },
        }
    }
}

/// Begins to install Firecracker. `version` is what the program must say that it is.
pub(crate) async fn begin(
    host: &Arc<Host>,
    source: Source,
    version: Option<String>,
) -> Result<Operation, Error> {
    match &source {
        Source::File(path, _) => {
            check_file(FIRECRACKER, path)?;
            let length = fs::metadata(path).map_err(io_error("read", path))?.len();
            space::demand(host, length.saturating_mul(UNPACKED + 1))?;
        }
        Source::Url(pin) => fetch::check(host, pin)?,
    }
    let installing = host.clone();
    let work = move |progress: Progress| async move {
        let lock = async { Ok(CHANGING.lock().await) };
        let _changing = progress.or_cancelled(lock).await?;
        install(&installing, &source, version.as_deref(), &progress).await
    };
    host.operations
        .begin_alone("runtime.install", &["runtime.install"], FIRECRACKER, work)
        .await
}

async fn install(
    host: &Arc<Host>,
    source: &Source,
    wanted: Option<&str>,
    progress: &Progress,
) -> Result<(), Error> {
    let fetched = match source {
        Source::Url(pin) => Some(download(host, pin, progress).await?),
        Source::File(..) => None,
    };
    let file = match (&fetched, source) {
        (Some(fetched), _) => fetched.path.clone(),
        (None, Source::File(path, _)) => path.clone(),
        (None, Source::Url(_)) => return Err(Error::Cancelled),
    };
    let build = make(host, source, &file, wanted, progress);
    let made = progress.or_cancelled(build).await;
    drop(fetched);
    if let (Source::Url(pin), Ok(_) | Err(Error::BadSource { .. })) = (source, &made) {
        fetch::forget(host, pin).await;
    }
    if let Some(published) = made? {
        published.keep();
    }
    host.vmms.forget_firecracker().await;
    Ok(())
}

async fn download<'a>(host: &'a Arc<Host>, pin: &Pin, progress: &Progress) -> Result<Fetched<'a>, Error> {
    let wanted = fetch::Wanted {
        what: "runtime",
        name: FIRECRACKER,
        pin,
        limit: DOWNLOAD_LIMIT,
        unpacked: UNPACKED,
    };
    fetch::fetch(host, &wanted, progress).await
}

/// Makes the version's directory; none, where the same one is there. Stages: `unpack`, `try`, `store`.
async fn make(
    host: &Arc<Host>,
    source: &Source,
    file: &Path,
    wanted: Option<&str>,
    progress: &Progress,
) -> Result<Option<Published>, Error> {
    let dir = directory(&host.settings.state_dir);
    progress.stage_now("unpack");
    let work = WorkDir::new_in(&dir).map_err(io_error("make a directory in", &dir))?;
    let (unpacking, from, given) = (work.clone(), file.to_owned(), source.clone());
    let (source_sha256, sha256) =
        work::blocking(move |cancel| unpack(&given, &from, unpacking.path(), cancel)).await?;

    progress.stage_now("try");
    let version = ask(source, &work.path().join("new").join(FIRECRACKER)).await?;
    if let Some(wanted) = wanted.map(|wanted| wanted.trim_start_matches('v'))
        && wanted != version
    {
        return Err(source.refused(format!("it is version {version}, not {wanted}")));
    }
    progress.message(&format!("{FIRECRACKER} {version}"));

    progress.stage_now("store");
    let there = installed(&host.settings.state_dir)?
        .into_iter()
        .find(|one| one.version == version);
    if there.as_ref().is_some_and(|one| one.origin.sha256 != sha256) {
        return Err(StoreError::Exists {
            what: "runtime",
            name: format!("{FIRECRACKER} {version}"),
        }
        .into());
    }
    let origin = Origin {
        source: match source {
            Source::File(path, _) => path.display().to_string(),
            Source::Url(pin) => pin.url.to_string(),
        },
        source_sha256,
        sha256,
        installed: Timestamp::now(),
    };
    let target = dir.join(&version);
    let is_there = there.is_some();
    let storing = work::blocking(move |cancel| store(&work, &target, &origin, is_there, cancel));
    let stored = storing.await.map_err(io_error("write", &dir))?;
    if is_there {
        progress.notice(format!(
            "{FIRECRACKER} {version} is there already; it is the one in use now"
        ));
    }
    Ok(stored)
}

/// Copies what was given, so that what is digested is what is used, and takes the program out of it. Gives the digests of
/// both.
fn unpack(source: &Source, file: &Path, work: &Path, cancel: &Cancel) -> Result<(String, String), Error> {
    let copied;
    let (from, given) = match source {
        // Verified when it came.
        Source::Url(pin) => (file, pin.sha256),
        Source::File(_, expected) => {
            copied = work.join("source");
            let actual = copy(file, &copied, cancel).map_err(io_error("copy", file))?;
            if let Some(expected) = expected.filter(|expected| *expected != actual) {
                return Err(source.refused(format!("it has digest sha256:{actual}, not sha256:{expected}")));
            }
            (copied.as_path(), actual)
        }
    };
    let new = work.join("new");
    fs::create_dir(&new).map_err(io_error("make", &new))?;
    let program = new.join(FIRECRACKER);
    let failed = io_error("write", &program);
    let created = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(&program);
    let mut out = created.map_err(failed)?;
    archive::extract(from, &mut out, cancel).map_err(|error| match error {
        ArchiveError::Write(source) => io_error("write", &program)(source),
        error @ (ArchiveError::Unknown
        | ArchiveError::Lacking
        | ArchiveError::Several
        | ArchiveError::TooMany
        | ArchiveError::TooLong
        | ArchiveError::Read(_)) => source.refused(chain(&error)),
    })?;
    // Whatever the umask left out: the VMM is run by this user alone, but read by who looks.
    fs::set_permissions(&program, Permissions::from_mode(0o755)).map_err(io_error("write", &program))?;
    drop(out);
    let sha256 = Digest::of_file(&program).map_err(io_error("read", &program))?;
    Ok((given.to_string(), sha256.to_string()))
}

fn copy(from: &Path, to: &Path, cancel: &Cancel) -> io::Result<Digest> {
    use std::io::Read as _;
    let mut from = File::open(from)?.take(DOWNLOAD_LIMIT + 1);
    let mut out = File::create_new(to)?;
    let (mut hasher, mut buffer, mut copied) = (Hasher::default(), vec![0; CHUNK], 0_u64);
    loop {
        cancel.check()?;
        let read = from.read(&mut buffer)?;
        let bytes = buffer.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(hasher.finish());
        }
        copied += read as u64;
        if copied > DOWNLOAD_LIMIT {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        hasher.update(bytes);
        out.write_all(bytes)?;
    }
}

/// Asks the program what it is; one that does not run, is something else or is too old is refused.
async fn ask(source: &Source, program: &Path) -> Result<String, Error> {
    let mut tries = 0;
    let version = loop {
        match Firecracker::probe(program, &host_virtualization()).await {
            Ok(vmm) => break vmm.describe().version,
            Err(error) if tries < BUSY_TRIES && is_busy(&error) => {
                tries += 1;
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            Err(error) => return Err(source.refused(chain(&error))),
        }
    };
    // It names a directory.
    let fits = version.len() <= 40
        && version.starts_with(|first: char| first.is_ascii_digit())
        && version
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || ".+-_".contains(c));
    if fits {
        return Ok(version);
    }
    Err(source.refused("its version is none".to_owned()))
}

/// Whether an error comes of the program's being open for writing (ETXTBSY, execve(2)).
fn is_busy(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::ExecutableFileBusy;
        }
        next = cause.source();
    }
    false
}

/// Puts a version in its place, or only its record, where it is there.
fn store(
    work: &WorkDir,
    target: &Path,
    origin: &Origin,
    is_there: bool,
    cancel: &Cancel,
) -> io::Result<Option<Published>> {
    cancel.check()?;
    let record = work.path().join("new").join(ORIGIN);
    let mut file = File::create_new(&record)?;
    file.write_all(&serde_json::to_vec_pretty(origin)?)?;
    file.sync_all()?;
    if is_there {
        fs::rename(&record, target.join(ORIGIN))?;
        File::open(target)?.sync_all()?;
        return Ok(None);
    }
    work.publish("new", target).map(Some)
}
