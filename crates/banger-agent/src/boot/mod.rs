//! From the kernel's hand-over to the image's init: what process 1 does, in order, once.
//!
//! ```text
//! kernel's file systems → command line → modules → root (plain or overlay) → work disk → name, loopback, network
//!   → switch root
//!   → agent as init: supervise the server, reap
//!   → image's init:  fork the supervisor, execve init
//! ```
//!
//! Everything is synchronous: there is one process and nothing to wait for but disks. What the guest cannot do without
//! ends the boot: one line on the console (`banger-agent: failed to …`), then a reboot, which ends the VMM, so that the
//! daemon can show the line. What it can do without (a module, the network) is only logged.

mod cmdline;
pub(crate) mod etc;
mod identity;
mod init;
mod modules;
mod mounts;
mod net;
mod seed;
mod work;

use crate::log;
use crate::supervise;
use cmdline::{BootSpec, CommandLineError};
use rustix::fd::OwnedFd;
use rustix::system::{RebootCommand, reboot};
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Who is process 1 once the boot is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InitMode {
    Agent,
    Systemd,
    Other,
}

/// The disks of the machine that can grow while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disks {
    /// What is written of the root: the overlay's upper layer, or the root itself.
    pub(crate) system: PathBuf,
    pub(crate) work: Option<PathBuf>,
}

impl BootSpec {
    fn disks(&self) -> Disks {
        Disks {
            system: self.overlay.as_ref().unwrap_or(&self.root).clone(),
            work: self.work.as_ref().map(|work| work.device.clone()),
        }
    }
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
    #[error(
        "find the disk {} within {} s: a kernel from a file needs virtio_blk and virtio_pci (QEMU) or virtio_mmio \
         (Firecracker) built in",
        device.display(), waited.as_secs()
    )]
    NoDisk { device: PathBuf, waited: Duration },
    #[error(transparent)]
    CommandLine(CommandLineError),
    #[error("fill the work disk {} from the image's home", device.display())]
    WorkDisk {
        device: PathBuf,
        source: seed::SeedError,
    },
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
    let mut layers: Vec<OwnedFd> = mounts::mount_root(&spec)?.into_iter().collect();
    if let Some(work) = &spec.work {
        layers.push(work::mount(work)?);
    }
    configure(&spec)?;
    mounts::hide_layers();
    mounts::switch_root()?;
    etc::show();

    match init::choose(&spec.init) {
        (mode, None) => supervise::supervise(mode, layers, spec.disks()),
        (mode, Some(path)) => {
            // The image's init unmounts in its own way.
            drop(layers);
            supervise::supervise_aside(mode, spec.disks()).map_err(|source| BootError::Io {
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
    let memory = Path::new(match spec.overlay {
        Some(_) => mounts::MEMORY,
        None => mounts::MEMORY_IN_ROOT,
    });
    if let Some(name) = &spec.hostname {
        match spec.traceless {
            true => identity::name_only(name)?,
            false => identity::set_name(name, memory)?,
        }
    }
    let mut network = net::loopback();
    if let Some(net) = &spec.net {
        network = network.and_then(|()| net::configure(net));
        if let Some(dns) = net.dns {
            match spec.traceless {
                true => etc::keep(
                    Path::new("/run"),
                    "resolv.conf",
                    &identity::resolver_text(dns, net.search.as_deref()),
                ),
                false => identity::set_resolver(dns, net.search.as_deref(), memory),
            }
        }
    }
    if let Err(error) = network {
        log::line(format_args!("failed to {}", log::Chain(&error)));
    }
    Ok(())
}
