//! From the kernel's hand-over to the image's init: what process 1 does, in order, once.
//!
//! ```text
//! kernel's file systems → command line → modules → root (plain or overlay) → name, loopback, network → switch root
//!   → agent as init: supervise the server, reap
//!   → image's init:  fork the supervisor, execve init
//! ```
//!
//! Everything is synchronous: there is one process and nothing to wait for but disks. What the guest cannot do without
//! ends the boot: one line on the console (`banger-agent: failed to …`), then a reboot, which ends the VMM, so that the
//! daemon can show the line. What it can do without (a module, the network) is only logged.

mod cmdline;
mod identity;
mod init;
mod modules;
mod mounts;
mod net;

use crate::log;
use crate::supervise;
use cmdline::{BootSpec, CommandLineError};
use rustix::system::{RebootCommand, reboot};
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Who is process 1 once the boot is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InitMode {
    Agent,
    Systemd,
    Other,
}

/// Why a guest does not come up.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error("mount {what} ({kind}) on {}{}", target.display(), mount_hint(kind, source))]
    Mount {
        what: String,
        kind: String,
        target: PathBuf,
        source: io::Error,
    },
    #[error("find the disk {} within {} s", device.display(), waited.as_secs())]
    NoDisk { device: PathBuf, waited: Duration },
    #[error(transparent)]
    CommandLine(CommandLineError),
    #[error("{doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// What errno alone does not tell.
fn mount_hint(kind: &str, source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENODEV) => " (does the kernel have the module?)",
        Some(libc::EINVAL) if kind == "ext4" => " (is it an ext4 file system?)",
        Some(libc::EROFS) if kind == "ext4" => " (was it cleanly unmounted?)",
        Some(_) | None => "",
    }
}

/// Boots. Never returns: process 1 must not end.
pub(crate) fn run() -> ! {
    let error = match boot() {
        Ok(never) => match never {},
        Err(error) => error,
    };
    log::line(format_args!("cannot boot: failed to {}", log::Chain(&error)));
    // The console may be a slow serial line; what is lost now, nobody ever reads.
    // SAFETY: a system call with a plain number.
    unsafe {
        libc::tcdrain(2);
    }
    rustix::fs::sync();
    loop {
        let _not_permitted = reboot(RebootCommand::Restart);
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn boot() -> Result<Infallible, BootError> {
    mounts::mount_kernel()?;
    init::open_console();
    let path = "/proc/cmdline";
    let command_line = std::fs::read_to_string(path).map_err(|source| BootError::Io {
        doing: "read",
        path: path.into(),
        source,
    })?;
    let spec = cmdline::parse(&command_line).map_err(BootError::CommandLine)?;
    for parameter in &spec.unknown {
        log::line(format_args!(
            "ignored {parameter} on the kernel command line: this agent does not know it"
        ));
    }
    modules::load_all(&command_line);
    let upper = mounts::mount_root(&spec)?;
    configure(&spec)?;
    mounts::hide_layers();
    mounts::switch_root()?;

    match init::choose(&spec.init) {
        (mode, None) => supervise::supervise(mode, upper),
        (mode, Some(path)) => {
            // The image's init unmounts in its own way.
            drop(upper);
            supervise::supervise_aside(mode).map_err(|source| BootError::Io {
                doing: "fork the supervisor of",
                path: path.clone(),
                source,
            })?;
            Err(init::become_init(&path))
        }
    }
}

/// The guest's name and network.
fn configure(spec: &BootSpec) -> Result<(), BootError> {
    let overlay = spec.overlay.is_some();
    if let Some(name) = &spec.hostname {
        identity::set_name(name, overlay)?;
    }
    let mut network = net::loopback();
    if let Some(net) = &spec.net {
        network = network.and_then(|()| net::configure(net));
        if let Some(dns) = net.dns {
            identity::set_resolver(dns, overlay);
        }
    }
    if let Err(error) = network {
        log::line(format_args!("failed to {}", log::Chain(&error)));
    }
    Ok(())
}
