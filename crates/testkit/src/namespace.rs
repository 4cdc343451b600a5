//! Network namespaces for tests: interfaces, rules and settings that the host never sees.

use std::panic::resume_unwind;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::UnshareFlags;

/// Runs `test` in a network namespace of its own, which is empty but for a loopback interface that is up. `None`, said
/// aloud, where we are not root.
///
/// It runs on a thread of its own, and what that thread starts is in the namespace as well: programs, threads, and so a
/// Tokio runtime that is built in it (one that was built before is not). `/sys` shows the namespace's interfaces; for
/// `/proc/net`, which would show the process's, use `/proc/thread-self/net`.
///
/// The namespace goes when all that is in it has ended.
///
/// # Panics
///
/// When `test` does, and when the namespace cannot be made.
pub fn in_network_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> Option<T> {
    if !crate::is_root() {
        return None;
    }
    let current = std::thread::current();
    let name = current.name().unwrap_or("a test").to_owned();
    std::thread::scope(|scope| {
        // With the test's name, by which its skips go.
        let thread = std::thread::Builder::new().name(name).spawn_scoped(scope, || {
            enter().expect("failed to enter a network namespace of its own");
            test()
        });
        match thread.expect("failed to start a thread").join() {
            Ok(result) => Some(result),
            Err(panic) => resume_unwind(panic),
        }
    })
}

/// The same for work that needs a runtime (Tokio's, on the one thread, with timers and sockets).
///
/// # Panics
///
/// As [`in_network_namespace`].
pub fn in_network_namespace_async<T: Send>(work: impl AsyncFnOnce() -> T + Send) -> Option<T> {
    in_network_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("failed to make a runtime").block_on(work())
    })
}

fn enter() -> std::io::Result<()> {
    // SAFETY: changes what this thread alone sees of the network and of mounts; its directories and file descriptors stay.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS)? };
    // Mounts made here are not seen elsewhere.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    // A sysfs shows the interfaces of the namespace in which it was mounted.
    mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None)?;
    loopback_up()
}

fn loopback_up() -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *slot = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).unwrap_or_default();
    // SAFETY: netdevice(7): SIOCSIFFLAGS takes a whole `struct ifreq`, which it only reads.
    let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) };
    if outcome < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}
