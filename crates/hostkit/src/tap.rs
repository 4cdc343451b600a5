//! Taps: network interfaces whose other end is a program's (`linux/if_tun.h`, `Documentation/networking/tuntap.rst`).
//!
//! A tap is made here, persistent, and opened later by name by the VMM that runs the guest. Up, in a bridge and so on it
//! becomes by [`crate::link`]. In use by two at once it never is: the kernel refuses the second.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use rustix::thread::CapabilitySet;

use crate::link::{self, LinkError};

const DEVICE: &str = "/dev/net/tun";

/// How QEMU and Firecracker open theirs: frames without a header of the tun driver's, but with that of virtio, so that
/// checksums and segmentation are left to whoever can do them.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Why a tap could not be dealt with.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// A name that no interface can have.
    #[error("use a tap's name")]
    Name {
        /// What is wrong with it.
        source: LinkError,
    },
    /// The kernel has no TUN driver, or its device is not there.
    #[error("open {DEVICE}: this host has no TUN device (is the kernel's module `tun` there?)")]
    NoDevice {
        /// The kernel's word.
        source: io::Error,
    },
    /// It takes `CAP_NET_ADMIN`, and the right to open the device.
    #[error("{action}: this takes the capability CAP_NET_ADMIN and access to {DEVICE}")]
    Permission {
        /// `open /dev/net/tun`, `make the tap NAME` …
        action: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// Somebody has it open.
    #[error("{action}: it is in use")]
    InUse {
        /// `make the tap NAME`, `remove the tap NAME`.
        action: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// The name is taken by an interface that is no tap, or by a tap of another sort.
    #[error("{action}: another interface has that name")]
    Taken {
        /// `make the tap NAME`, `remove the tap NAME`.
        action: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// The kernel refused for another reason.
    #[error("{action}")]
    Refused {
        /// What was asked of it.
        action: String,
        /// Its word.
        source: io::Error,
    },
}

/// Whether taps can be made here: there is a device, it opens, and we have the capability. Makes none.
pub fn usable() -> Result<(), TapError> {
    drop(open()?);
    let refused = |source| TapError::Permission {
        action: "make taps".to_owned(),
        source,
    };
    let capabilities = rustix::thread::capabilities(None).map_err(|errno| refused(errno.into()))?;
    if capabilities.effective.contains(CapabilitySet::NET_ADMIN) {
        Ok(())
    } else {
        Err(refused(io::Error::from_raw_os_error(libc::EPERM)))
    }
}

/// Makes a persistent tap, down and in no bridge. One that is there already and not in use is fine. With an owner, that
/// user may open it without privileges. Takes the kernel's lock for links, so it may block for milliseconds.
pub fn make(name: &str, owner: Option<u32>) -> Result<(), TapError> {
    let action = || format!("make the tap {name}");
    let tap = attach(name, action)?;
    if let Some(owner) = owner {
        tell(&tap, libc::TUNSETOWNER, owner.into(), action)?;
    }
    tell(&tap, libc::TUNSETPERSIST, 1, action)
}

/// Removes a tap that nobody uses; one that is gone already is fine.
pub fn remove(name: &str) -> Result<(), TapError> {
    let action = || format!("remove the tap {name}");
    // Makes it where there is none; without persistence it goes when it is closed.
    let tap = attach(name, action)?;
    tell(&tap, libc::TUNSETPERSIST, 0, action)
}

fn open() -> Result<File, TapError> {
    let opened = File::options().read(true).write(true).open(DEVICE);
    opened.map_err(|source| match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoDevice { source },
        Some(_) | None => sort(format!("open {DEVICE}"), source),
    })
}

/// Opens the tap of this name, which is made if there is none.
fn attach(name: &str, action: impl Fn() -> String) -> Result<File, TapError> {
    link::check_name(name).map_err(|source| TapError::Name { source })?;
    let tap = open()?;
    // SAFETY: plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The name has been checked: it leaves the last byte zero.
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte.cast_signed();
    }
    // The highest flag is IFF_VNET_HDR, 0x4000: it fits.
    request.ifr_ifru.ifru_flags = i16::try_from(FLAGS).unwrap_or_default();
    // SAFETY: TUNSETIFF takes a whole `struct ifreq`, which it fills in.
    let outcome = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    match outcome {
        0.. => Ok(tap),
        _ => Err(sort(action(), io::Error::last_os_error())),
    }
}

/// A request whose argument is a plain number.
fn tell(
    tap: &File,
    request: libc::Ioctl,
    argument: libc::c_ulong,
    action: impl Fn() -> String,
) -> Result<(), TapError> {
    // SAFETY: TUNSETPERSIST and TUNSETOWNER, the only ones asked for here, take a number and touch no memory of ours.
    let outcome = unsafe { libc::ioctl(tap.as_raw_fd(), request, argument) };
    match outcome {
        0.. => Ok(()),
        _ => Err(sort(action(), io::Error::last_os_error())),
    }
}

fn sort(action: String, source: io::Error) -> TapError {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TapError::Permission { action, source },
        Some(libc::EBUSY) => TapError::InUse { action, source },
        // tun_set_iff() of the kernel's drivers/net/tun.c.
        Some(libc::EINVAL | libc::EEXIST) => TapError::Taken { action, source },
        Some(_) | None => TapError::Refused { action, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Links;

    fn in_namespace(work: impl AsyncFnOnce(Links) + Send) {
        testkit::in_network_namespace_async(async || work(Links::connect().unwrap()).await);
    }

    #[test]
    fn made_found_again_and_removed() {
        in_namespace(async |links| {
            usable().unwrap();
            make("bgrt1", Some(1000)).unwrap();
            make("bgrt1", None).unwrap();
            let tap = links.get("bgrt1").await.unwrap().unwrap();
            assert_eq!((tap.kind.as_str(), tap.up, tap.carrier), ("tun", false, false));
            links.set_up(tap.index).await.unwrap();
            // In use: neither made nor removed, and told by its carrier.
            let held = attach("bgrt1", String::new).unwrap();
            assert!(links.get("bgrt1").await.unwrap().unwrap().carrier);
            assert!(matches!(make("bgrt1", None), Err(TapError::InUse { .. })));
            assert!(matches!(remove("bgrt1"), Err(TapError::InUse { .. })));
            drop(held);
            assert!(links.get("bgrt1").await.unwrap().is_some());
            remove("bgrt1").unwrap();
            assert_eq!(links.get("bgrt1").await.unwrap(), None);
            remove("bgrt1").unwrap();
        });
    }

    #[test]
    fn a_name_that_is_taken_or_none() {
        in_namespace(async |links| {
            links.make_bridge("bgr0", "test").await.unwrap();
            assert!(matches!(make("bgr0", None), Err(TapError::Taken { .. })));
            assert!(matches!(remove("bgr0"), Err(TapError::Taken { .. })));
            assert!(links.get("bgr0").await.unwrap().is_some());
        });
        for name in ["", "bgr%d", "sixteen-letters-"] {
            assert!(matches!(make(name, None), Err(TapError::Name { .. })), "{name}");
        }
    }
}
