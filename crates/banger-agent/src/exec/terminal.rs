//! A pseudo-terminal for one command.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Gid, Mode, Uid, fchmod, fchown};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};
use std::io;

/// What a terminal takes for "end of file" from its keyboard: `VEOF` as the kernel sets it up (^D).
pub(crate) const END_OF_FILE: &[u8] = &[4];

/// A new pseudo-terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    /// The agent's side.
    pub(crate) master: OwnedFd,
    /// The command's side.
    pub(crate) slave: OwnedFd,
}

impl Terminal {
    /// Opens a terminal of the given size which belongs to `uid`, as login(1) leaves it.
    ///
    /// The command's side is opened through the master (`TIOCGPTPEER`), not by name: no path of the guest is trusted.
    pub(crate) fn open(rows: u16, cols: u16, uid: u32) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        resize(&master, rows, cols)?;
        let mut modes = tcgetattr(&slave)?;
        // Erasing takes back a character, not a byte.
        modes.input_modes |= InputModes::IUTF8;
        tcsetattr(&slave, OptionalActions::Now, &modes)?;
        // The group stays devpts's own (tty, where the mount says so).
        fchown(&slave, Some(Uid::from_raw(uid)), None::<Gid>)?;
        fchmod(&slave, Mode::RUSR | Mode::WUSR | Mode::WGRP)?;
        Ok(Self { master, slave })
    }
}

/// Sets the size; the kernel sends SIGWINCH where it changed. Zero rows or columns mean "unknown".
pub(crate) fn resize(master: impl AsFd, rows: u16, cols: u16) -> io::Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(master, size)?)
}
