//! What a user has been told already, so that a note which is true of every start is said once a day and not each time.
//!
//! Kept beside the daemon's socket, in a directory of the user's own which a reboot empties; where that directory is not
//! there or not theirs, the note is said again. A note whose text changes is another note. `banger doctor` says it
//! always.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use banger_api::places::TOLD;
use jiff::Timestamp;

use crate::paths::Paths;

/// How long a note needs no repeating, in seconds.
const LASTS: i64 = 24 * 60 * 60;

/// Most of the file that is read, in bytes.
const MAX_FILE: u64 = 64 << 10;

/// Whether a note is news. From now on it is none.
pub(crate) fn is_news(note: &str) -> bool {
    let directory = Paths::of_this_process(None)
        .ok()
        .and_then(|paths| paths.socket.parent().map(Path::to_owned));
    directory.is_none_or(|directory| is_news_in(&directory, note, Timestamp::now().as_second()))
}

fn is_news_in(directory: &Path, note: &str, now: i64) -> bool {
    let note = note.replace('\n', " ");
    let path = directory.join(TOLD);
    let mut said = lines(&path);
    // A clock that went back makes what was said then news again.
    said.retain(|(at, _)| (0..LASTS).contains(&now.saturating_sub(*at)));
    if said.iter().any(|(_, text)| *text == note) {
        return false;
    }
    said.push((now, note));
    // Saying it again is all that a failure costs.
    save(directory, &path, &said).ok();
    true
}

/// A line for each note: the second it was said in, and its text.
fn lines(path: &Path) -> Vec<(i64, String)> {
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
    if read.is_err() {
        return Vec::new();
    }
    text.lines()
        .filter_map(|line| {
            let (at, text) = line.split_once(' ')?;
            Some((at.parse().ok()?, text.to_owned()))
        })
        .collect()
}

/// By way of a name of our own: another command may be at the same.
fn save(directory: &Path, path: &Path, said: &[(i64, String)]) -> std::io::Result<()> {
    let text: String = said.iter().map(|(at, text)| format!("{at} {text}\n")).collect();
    let new = directory.join(format!("{TOLD}.{}", std::process::id()));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    let written = std::io::Write::write_all(&mut file, text.as_bytes()).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        fs::remove_file(&new).ok();
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_news_once_a_day() {
        let directory = tempfile::tempdir().unwrap();
        let is_news = |note: &str, now| is_news_in(directory.path(), note, now);
        assert!(is_news("slow: no KVM", 1_000_000));
        assert!(!is_news("slow: no KVM", 1_000_001));
        assert!(!is_news("slow: no KVM", 1_000_000 + LASTS - 1));
        assert!(is_news("slow: nested\nKVM", 1_000_002), "another reason");
        assert!(!is_news("slow: nested\nKVM", 1_000_003));
        assert!(is_news("slow: no KVM", 1_000_000 + LASTS), "the next day");
        assert!(is_news("slow: no KVM", 5), "a clock that went back");
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn without_a_place_to_keep_it_everything_is_news() {
        let nowhere = Path::new("/nowhere/banger");
        assert!(is_news_in(nowhere, "slow", 1) && is_news_in(nowhere, "slow", 1));
        // What is there is no list: it is replaced.
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(TOLD), b"\xff\xfe\nnonsense\n").unwrap();
        assert!(is_news_in(directory.path(), "slow", 1));
        assert!(!is_news_in(directory.path(), "slow", 1));
    }
}
