//! Where the agent's own words go: the console while it boots, the kernel's log afterwards.
//!
//! The daemon shows the console's last lines when a guest does not come up, so a failed boot must be readable there.
//! Once the image's init owns the console (getty hangs it up), lines go to `/dev/kmsg`: into dmesg and the journal.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;

/// The kernel's log, once [`to_kernel`] has opened it.
static KERNEL: OnceLock<File> = OnceLock::new();

/// From now on lines go to the kernel's log. Where that cannot be opened they stay on standard error.
pub(crate) fn to_kernel() {
    if let Ok(file) = File::options().write(true).open("/dev/kmsg") {
        // A second call keeps the first file.
        let _already_there = KERNEL.set(file);
    }
}

/// Writes one line. Failing to log is never an error.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    let _unwritable = match KERNEL.get() {
        // One write is one record; 4 is the level "warning" (syslog(2)).
        Some(file) => (&*file).write_all(format!("<4>banger-agent: {text}\n").as_bytes()),
        None => std::io::stderr().write_all(format!("banger-agent: {text}\n").as_bytes()),
    };
}

/// An error with all its causes on one line.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
