//! Steps that were done before: what each made of the disk that it was done on.
//!
//! `build-cache/KEY-STATE.delta`: KEY is the digest of what the step depends on, the state of the disk before it among that;
//! STATE is the disk's afterwards, the digest of the state before and of the difference. So a difference is only ever put
//! onto the very disk that it was taken from, and a step that is done again with another result has nothing of the steps
//! that came after the former one.
//!
//! A build links what it uses into a directory of its own, so the cache may be emptied at any time.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use hostkit::delta::Pieces;
use hostkit::digest::Digest;

use crate::image::work::{Cancel, WorkDir};

/// Bytes that are kept of steps of former builds.
const LIMIT: u64 = 16 << 30;
const ENDING: &str = ".delta";

/// Where it is.
pub(crate) fn directory(state: &Path) -> PathBuf {
    state.join("build-cache")
}

/// What a step made of a disk.
#[derive(Debug, Clone)]
pub(super) struct Made {
    /// The disk's state afterwards.
    pub(super) state: Digest,
    /// In the build's own directory.
    pub(super) difference: PathBuf,
}

/// The cache, as one build sees it.
#[derive(Debug)]
pub(super) struct Cache {
    directory: PathBuf,
    work: WorkDir,
    next: u32,
}

impl Cache {
    pub(super) fn open(state: &Path) -> io::Result<Self> {
        let directory = directory(state);
        let work = WorkDir::new_in(&directory)?;
        Ok(Self {
            directory,
            work,
            next: 0,
        })
    }

    fn own(&mut self) -> PathBuf {
        self.next += 1;
        self.work.path().join(self.next.to_string())
    }

    /// What a step made when it was done last.
    pub(super) fn find(&mut self, key: &Digest) -> Option<Made> {
        let own = self.own();
        let mut found: Vec<_> = entries(&self.directory)
            .filter(|entry| entry.key == key.to_string())
            .collect();
        found.sort_by_key(|entry| entry.used);
        let entry = found.pop()?;
        let state = entry.state.parse().ok()?;
        // One that is removed meanwhile is not there.
        fs::hard_link(&entry.path, &own).ok()?;
        // Used by now; that it cannot be said costs it its place earlier.
        let now = fs::FileTimes::new().set_modified(SystemTime::now());
        let _unsaid = File::options()
            .append(true)
            .open(&own)
            .and_then(|file| file.set_times(now));
        Some(Made {
            state,
            difference: own,
        })
    }

    /// Where the difference that [`Self::keep`] is to keep is to be written.
    pub(super) fn new_difference(&mut self) -> PathBuf {
        self.own()
    }

    /// Keeps what a step has made.
    pub(super) fn keep(&self, key: &Digest, made: &Made) -> io::Result<()> {
        for former in entries(&self.directory).filter(|entry| entry.key == key.to_string()) {
            if former.state != made.state.to_string() {
                fs::remove_file(&former.path)?;
            }
        }
        let name = format!("{key}-{}{ENDING}", made.state);
        match fs::hard_link(&made.difference, self.directory.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes what was used longest ago, until what is there is within the limit.
    pub(super) fn trim(&self) -> io::Result<()> {
        let mut all: Vec<_> = entries(&self.directory).collect();
        all.sort_by_key(|entry| std::cmp::Reverse(entry.used));
        let mut total = 0;
        for entry in all {
            total += entry.size;
            if total > LIMIT {
                fs::remove_file(&entry.path)?;
            }
        }
        Ok(())
    }
}

struct Entry {
    path: PathBuf,
    key: String,
    state: String,
    size: u64,
    used: SystemTime,
}

fn entries(directory: &Path) -> impl Iterator<Item = Entry> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let (key, state) = name.strip_suffix(ENDING)?.split_once('-')?;
        let metadata = entry.metadata().ok()?;
        Some(Entry {
            path: entry.path(),
            key: key.to_owned(),
            state: state.to_owned(),
            size: metadata.len(),
            used: metadata.modified().ok()?,
        })
    })
}

/// Empties the cache. Returns how many steps and bytes it had.
pub(crate) fn clear(state: &Path) -> io::Result<(u32, u64)> {
    let (mut steps, mut bytes) = (0, 0);
    for entry in entries(&directory(state)) {
        fs::remove_file(&entry.path)?;
        steps += 1;
        bytes += entry.size;
    }
    Ok((steps, bytes))
}

/// Writes what `disk` has become since it was as `pieces` knows it, which was the state `before`.
pub(super) fn difference(
    mut pieces: Pieces,
    before: &Digest,
    disk: &Path,
    to: PathBuf,
    cancel: &Cancel,
) -> io::Result<(Pieces, Made)> {
    let file = File::create_new(&to)?;
    let mut out = BufWriter::new(&file);
    pieces.difference(&File::open(disk)?, &mut out, |_| cancel.check())?;
    out.flush()?;
    drop(out);
    file.sync_all()?;
    let content = Digest::of_file(&to)?;
    let state = Digest::of_parts([before.as_bytes().as_slice(), content.as_bytes().as_slice()]);
    Ok((
        pieces,
        Made {
            state,
            difference: to,
        },
    ))
}

/// Puts differences onto a disk that is as before the first of them.
pub(super) fn apply(disk: &Path, differences: &[PathBuf], cancel: &Cancel) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(disk)?;
    let length = file.metadata()?.len();
    let mut unknown = Pieces::default();
    for difference in differences {
        unknown.apply(io::BufReader::new(File::open(difference)?), &file)?;
        cancel.check()?;
    }
    // As large as its machine is to have it.
    if file.metadata()?.len() < length {
        file.set_len(length)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_found_by_its_key_and_only_its_last_result() {
        let state = tempfile::tempdir().unwrap();
        fs::create_dir(directory(state.path())).unwrap();
        let mut cache = Cache::open(state.path()).unwrap();
        let (key, other) = (Digest::of_bytes(b"key"), Digest::of_bytes(b"other"));
        assert!(cache.find(&key).is_none());
        let mut kept = Vec::new();
        for content in ["first", "second"] {
            let difference = cache.new_difference();
            fs::write(&difference, content).unwrap();
            let state = Digest::of_bytes(content.as_bytes());
            let made = Made { state, difference };
            cache.keep(&key, &made).unwrap();
            // Again: it is there.
            cache.keep(&key, &made).unwrap();
            kept.push(made);
        }
        let found = cache.find(&key).unwrap();
        assert_eq!(found.state, Digest::of_bytes(b"second"));
        assert_eq!(fs::read(&found.difference).unwrap(), b"second");
        assert!(cache.find(&other).is_none());
        // What a build has found is its own.
        assert_eq!(clear(state.path()).unwrap(), (1, 6));
        assert!(cache.find(&key).is_none());
        assert_eq!(fs::read(&found.difference).unwrap(), b"second");
        cache.trim().unwrap();
    }
}
