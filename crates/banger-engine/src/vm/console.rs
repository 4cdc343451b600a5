//! A machine's serial console on the host: a file that the VMM appends to, kept bounded, read back for people.
//!
//! The guest decides what and how much is written, so everything here is bounded, and what goes into a message is
//! stripped of control characters. Three files: `console.log` (this run), `console.log.old` (this run, before the last
//! rotation) and `console.log.previous` (the run before).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use banger_vmm::{MachineExit, ProcessRole};
use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

use crate::vm::state::{Failure, View};

/// A file of the VMM's grows to this at most before it is rotated.
const LIMIT: u64 = 4 << 20;
/// Lines of an error's details.
const SHOWN: usize = 12;
/// Bytes looked at for them.
const LOOKED_AT: u64 = 64 << 10;
/// Bytes handed on at once.
const CHUNK: usize = 64 << 10;

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Before a run: the last run's console becomes the previous one.
pub(crate) fn begin_run(console: &Path) -> io::Result<()> {
    let gone_is_fine = |result: io::Result<()>| match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    gone_is_fine(std::fs::remove_file(beside(console, ".old")))?;
    gone_is_fine(std::fs::rename(console, beside(console, ".previous")))?;
    File::create(console)?;
    Ok(())
}

/// Keeps a file that a VMM appends to bounded: what is in it becomes `.old`, and it starts anew. The writer has it open
/// with `O_APPEND`, so it goes on at the new end. What is written between the copy and the cut is lost.
pub(crate) fn rotate(path: &Path) -> io::Result<()> {
    let length = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    if length <= LIMIT {
        return Ok(());
    }
    let mut file = File::options().read(true).write(true).open(path)?;
    file.seek(SeekFrom::Start(length.saturating_sub(LIMIT)))?;
    let mut old = File::create(beside(path, ".old"))?;
    io::copy(&mut file.by_ref().take(LIMIT), &mut old)?;
    file.set_len(0)
}

/// The last lines of this run's console, for an error message.
pub(crate) fn last_lines(console: &Path) -> Vec<String> {
    let text = read_end(console, LOOKED_AT).unwrap_or_default();
    let lines: Vec<String> = String::from_utf8_lossy(&text)
        .lines()
        .map(printable)
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(SHOWN)..].to_vec()
}

fn read_end(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A line without escape sequences and control characters, bounded.
fn printable(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            // CSI sequences end with a letter (ECMA-48 5.4); anything else is two characters.
            if chars.next() == Some('[') {
                for c in chars.by_ref() {
                    if ('\u{40}'..='\u{7e}').contains(&c) {
                        break;
                    }
                }
            }
        } else if c == '\t' {
            out.push(' ');
        } else if !c.is_control() {
            out.push(c);
        }
        if out.len() >= 200 {
            break;
        }
    }
    out
}

/// How a run ended, by the VMM's exit and what the console says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The guest ended it in order: it rebooted or powered off.
    Orderly,
    /// Anything else.
    Bad(Failure),
}

/// What the console itself says of a bad end.
fn testimony(console: &Path) -> Option<String> {
    let text = read_end(console, LOOKED_AT).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines().rev().map(printable);
    lines.find_map(|line| {
        if let Some(at) = line.find("Kernel panic - not syncing") {
            return Some(format!("guest kernel panic: {}", &line[at..]));
        }
        line.find("banger-agent: cannot boot")
            .map(|at| line[at..].trim().to_owned())
    })
}

/// How a run ended whose VMM's exit was seen.
pub(crate) fn ending(exit: &MachineExit, console: &Path) -> Ending {
    let reason = match (testimony(console), exit.role) {
        (Some(reason), _) => reason,
        (None, ProcessRole::Vmm) if exit.exit.success() => return Ending::Orderly,
        (None, ProcessRole::Vmm | ProcessRole::VsockDevice | ProcessRole::Passt) => exit.to_string(),
    };
    Ending::Bad(Failure {
        reason,
        console: last_lines(console),
    })
}

/// How a run ended that ended while no daemon watched: the console is the only witness. One that says nothing of a
/// shutdown was cut off, by a kill or with the host.
pub(crate) fn unseen_ending(console: &Path) -> Ending {
    let lines = last_lines(console);
    let reason = match testimony(console) {
        Some(reason) => reason,
        // What the kernel says last of a reboot and of a power-off (kernel/reboot.c), and our agent before it.
        None if lines.iter().any(|line| line.contains("reboot: ")) => return Ending::Orderly,
        None => "ended while no daemon watched, and not by shutting down".to_owned(),
    };
    Ending::Bad(Failure {
        reason,
        console: lines,
    })
}

/// Sends the console's bytes: the last `tail` lines or all that is kept, then, when following, what comes until the
/// machine no longer runs or the receiver is dropped.
pub(crate) async fn send(
    console: PathBuf,
    tail: Option<u32>,
    follow: bool,
    mut view: watch::Receiver<View>,
    out: mpsc::Sender<Vec<u8>>,
) -> io::Result<()> {
    let changes = if follow {
        Some(Changes::of(&console)?)
    } else {
        None
    };
    let mut position = Position::default();
    match tail {
        None => send_from(&beside(&console, ".old"), &mut Position::default(), &out).await?,
        Some(lines) => position.offset = start_of_last(&console, lines)?,
    }
    loop {
        let runs =
            view.borrow_and_update().phase.running().is_some() || view.borrow().phase.state().in_motion();
        send_from(&console, &mut position, &out).await?;
        let Some(changes) = changes.as_ref().filter(|_| runs) else {
            return Ok(());
        };
        tokio::select! {
            // Each arm only waits, and what woke it is read again above; nothing is lost by dropping the others.
            changed = changes.wait() => changed?,
            changed = view.changed() => if changed.is_err() { return Ok(()) },
            () = out.closed() => return Ok(()),
        }
    }
}

/// How far a file has been read.
#[derive(Debug, Default)]
struct Position {
    /// Which file that is: the next run has another one of the same name.
    inode: Option<u64>,
    offset: u64,
}

async fn send_from(path: &Path, position: &mut Position, out: &mpsc::Sender<Vec<u8>>) -> io::Result<()> {
    loop {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        let found = file.metadata()?;
        let another = position
            .inode
            .replace(found.ino())
            .is_some_and(|inode| inode != found.ino());
        if another || found.len() < position.offset {
            position.offset = 0;
        }
        file.seek(SeekFrom::Start(position.offset))?;
        let mut chunk = vec![0; CHUNK];
        let count = file.read(&mut chunk)?;
        if count == 0 {
            return Ok(());
        }
        position.offset += u64::try_from(count).unwrap_or(0);
        chunk.truncate(count);
        if out.send(chunk).await.is_err() {
            return Ok(());
        }
    }
}

/// Where the last `lines` lines begin, looking at what is kept of this run.
fn start_of_last(path: &Path, lines: u32) -> io::Result<u64> {
    let bytes = match read_end(path, LIMIT) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(e),
    };
    let length = std::fs::metadata(path)?.len();
    let body = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let wanted = usize::try_from(lines).unwrap_or(usize::MAX);
    let start = if wanted == 0 {
        bytes.len()
    } else {
        let newlines = body
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, b)| **b == b'\n')
            .map(|(at, _)| at + 1);
        newlines.take(wanted).nth(wanted - 1).unwrap_or(0)
    };
    let kept = u64::try_from(bytes.len() - start).unwrap_or(0);
    Ok(length.saturating_sub(kept))
}

/// Wakes when a file is written to, and when another takes its name, as at the start of a run (inotify(7)).
struct Changes {
    inotify: AsyncFd<OwnedFd>,
    path: PathBuf,
}

impl Changes {
    fn of(path: &Path) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        inotify::add_watch(&fd, directory, inotify::WatchFlags::CREATE)?;
        // SAFETY: `OwnedFd` returns the same descriptor every time and keeps it open until it is dropped, which happens
        // after `AsyncFd` has taken it off the poller; it is never replaced or moved out.
        let inotify = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        let changes = Self {
            inotify,
            path: path.to_owned(),
        };
        changes.watch()?;
        Ok(changes)
    }

    /// Watches the file that has the name now; one that is watched already stays so.
    fn watch(&self) -> io::Result<()> {
        match inotify::add_watch(self.inotify.get_ref(), &self.path, inotify::WatchFlags::MODIFY) {
            Ok(_) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    async fn wait(&self) -> io::Result<()> {
        let mut buffer = [0_u8; 4096];
        loop {
            let mut ready = self.inotify.readable().await?;
            match rustix::io::read(self.inotify.get_ref(), &mut buffer) {
                // Before the caller reads what is in it.
                Ok(_) => return self.watch(),
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use hostkit::process::Exit;

    use super::*;

    fn exit(role: ProcessRole, exit: Exit) -> MachineExit {
        MachineExit {
            role,
            exit,
            reason: None,
        }
    }

    #[test]
    fn escapes_and_control_characters_do_not_get_into_messages() {
        assert_eq!(printable("\u{1b}[1;31mred\u{1b}[0m\u{7} ok\tx\r"), "red ok x");
        assert!(printable(&"x".repeat(10_000)).len() <= 204);
    }

    #[test]
    fn a_panic_is_told_from_an_orderly_end() {
        let dir = tempfile::tempdir().unwrap();
        let console = dir.path().join("console.log");
        std::fs::write(&console, "[    1.0] hello\n[    2.0] reboot: Restarting system\n").unwrap();
        assert_eq!(
            ending(&exit(ProcessRole::Vmm, Exit::Code(0)), &console),
            Ending::Orderly
        );
        assert!(matches!(
            ending(&exit(ProcessRole::Vmm, Exit::Signal(9)), &console),
            Ending::Bad(_)
        ));
        assert!(matches!(
            ending(&exit(ProcessRole::VsockDevice, Exit::Code(0)), &console),
            Ending::Bad(_)
        ));
        std::fs::write(
            &console,
            "[    2.0] Kernel panic - not syncing: sysrq\n---[ end\n",
        )
        .unwrap();
        let expected = Ending::Bad(Failure {
            reason: "guest kernel panic: Kernel panic - not syncing: sysrq".to_owned(),
            console: vec![
                "[    2.0] Kernel panic - not syncing: sysrq".to_owned(),
                "---[ end".to_owned(),
            ],
        });
        assert_eq!(ending(&exit(ProcessRole::Vmm, Exit::Code(0)), &console), expected);
        assert_eq!(unseen_ending(&console), expected);
    }

    #[test]
    fn the_last_lines_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
        for (lines, expected) in [
            (0, ""),
            (1, "three\n"),
            (2, "two\nthree\n"),
            (3, "one\ntwo\nthree\n"),
            (9, "one\ntwo\nthree\n"),
        ] {
            let at = usize::try_from(start_of_last(&path, lines).unwrap()).unwrap();
            assert_eq!(
                &std::fs::read_to_string(&path).unwrap()[at..],
                expected,
                "{lines}"
            );
        }
    }

    #[test]
    fn a_talkative_guest_is_bounded_and_its_writer_goes_on() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut writer = File::options().create(true).append(true).open(&path).unwrap();
        let line = [b'x'; 1024];
        for _ in 0..=(LIMIT / 1024) {
            writer.write_all(&line).unwrap();
        }
        rotate(&path).unwrap();
        writer.write_all(b"after").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"after");
        assert_eq!(std::fs::metadata(beside(&path, ".old")).unwrap().len(), LIMIT);
    }

    #[test]
    fn a_new_run_begins_with_an_empty_console() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        begin_run(&path).unwrap();
        std::fs::write(&path, "first").unwrap();
        begin_run(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        assert_eq!(std::fs::read(beside(&path, ".previous")).unwrap(), b"first");
    }

    #[tokio::test]
    async fn who_follows_a_start_sees_the_new_runs_console() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        std::fs::write(&path, "before\n").unwrap();
        let (shows, view) = watch::channel(View {
            row: crate::vm::change::tests::row(),
            phase: crate::vm::state::Phase::Starting,
            generation: 0,
            guest: None,
            machine: None,
            restarts_at: None,
        });
        let (out, mut chunks) = mpsc::channel(4);
        let following = tokio::spawn(send(path.clone(), None, true, view, out));
        let mut next = async || {
            let chunk = tokio::time::timeout(std::time::Duration::from_secs(10), chunks.recv());
            chunk
                .await
                .expect("nothing was sent")
                .map(|chunk| String::from_utf8(chunk).unwrap())
        };
        assert_eq!(next().await.as_deref(), Some("before\n"));
        begin_run(&path).unwrap();
        std::fs::write(&path, "a longer line of the run\n").unwrap();
        assert_eq!(next().await.as_deref(), Some("a longer line of the run\n"));
        shows.send_modify(|view| view.phase = crate::vm::state::Phase::Stopped);
        assert_eq!(next().await, None);
        following.await.unwrap().unwrap();
    }
}
