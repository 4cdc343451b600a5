//! A command at a terminal of its own (pty(7)), as a person has it.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::Pid;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::Winsize;

use crate::command::{Banger, Stream, ends_within};

const DEADLINE: Duration = Duration::from_secs(60);

/// How long to wait for the end of what a command that has ended has written.
const AFTER: Duration = Duration::from_secs(5);

/// A command with a controlling terminal.
#[derive(Debug)]
pub struct Pty {
    child: Child,
    master: File,
    screen: Stream,
}

impl Pty {
    /// Runs a command at a new terminal of that size.
    #[must_use]
    pub fn spawn(banger: Banger, rows: u16, columns: u16) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("open a terminal");
        grantpt(&master).expect("grant the terminal");
        unlockpt(&master).expect("unlock the terminal");
        let name = ptsname(&master, Vec::new()).expect("name the terminal");
        let slave = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().expect("ASCII"))
            .expect("open it");
        let master = File::from(master);

        let mut command = banger.into_command();
        command.stdin(slave.try_clone().expect("share the terminal"));
        command.stdout(slave.try_clone().expect("share the terminal"));
        command.stderr(Stdio::from(slave));
        // SAFETY: setsid and ioctl are async-signal-safe (signal-safety(7)) and the closure allocates nothing.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
                Ok(())
            });
        }
        resize(&master, rows, columns);
        let child = command.spawn().expect("run at a terminal");
        // The command holds our copies of the terminal's other end; only when it is gone does the reader see the end.
        drop(command);
        let screen = Stream::of(Some(master.try_clone().expect("share the terminal")));
        Self {
            child,
            master,
            screen,
        }
    }

    /// Types.
    pub fn send(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("type");
    }

    /// Changes the terminal's size.
    pub fn resize(&self, rows: u16, columns: u16) {
        resize(&self.master, rows, columns);
    }

    /// Waits until the screen has shown that text; returns all it has shown.
    pub fn wait(&self, text: &str) -> String {
        let good = self
            .screen
            .wait(DEADLINE, |seen| String::from_utf8_lossy(seen).contains(text));
        let seen = String::from_utf8_lossy(&self.screen.bytes()).into_owned();
        assert!(good, "the terminal never showed {text:?}, but:\n{seen}");
        seen
    }

    /// Waits for the command's end; returns its exit code and all that the screen has shown.
    #[must_use]
    pub fn finish(mut self) -> (Option<i32>, String) {
        let ended = ends_within(Pid::from_child(&self.child), DEADLINE);
        let seen = String::from_utf8_lossy(&self.screen.bytes()).into_owned();
        assert!(
            ended,
            "the command at the terminal did not end; it showed:\n{seen}"
        );
        let status = self.child.wait().expect("wait for a child");
        // What it has written last may still be on its way; its end is not seen where it has left somebody at the terminal.
        self.screen.wait_end(AFTER);
        (
            status.code(),
            String::from_utf8_lossy(&self.screen.bytes()).into_owned(),
        )
    }

    /// The terminal's settings: what a command in raw mode must have put back.
    #[must_use]
    pub fn is_canonical(&self) -> bool {
        let settings = rustix::termios::tcgetattr(&self.master).expect("read the terminal's settings");
        settings
            .local_modes
            .contains(rustix::termios::LocalModes::ICANON | rustix::termios::LocalModes::ECHO)
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

fn resize(master: &File, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(master, size).expect("size the terminal");
}
