//! The other end of a tap, for tests: a card that sends and hears frames, as a VMM's guest would.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// The header of virtio before each frame (`linux/virtio_net.h`): nothing is left to be done to ours.
const HEADER: usize = 10;

/// See the module. The tap must be there.
#[derive(Debug)]
pub struct Card(File);

impl Card {
    /// Opens a tap by name, in this thread's network namespace. Where the tap is a port of a bridge, waits until that
    /// forwards: the kernel tells the bridge of the carrier some time after the open, and drops frames until then.
    ///
    /// # Panics
    ///
    /// When it cannot be opened, and when the bridge does not take the port up.
    #[must_use]
    pub fn open(tap: &str) -> Self {
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .expect("taps");
        // SAFETY: plain data, for which zeros are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (slot, byte) in request.ifr_name.iter_mut().zip(tap.bytes()) {
            *slot = byte.cast_signed();
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap_or_default();
        // SAFETY: TUNSETIFF (linux/if_tun.h) takes a whole `struct ifreq`, which it fills in.
        let outcome = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        assert!(outcome >= 0, "{tap}: {}", std::io::Error::last_os_error());
        rustix::fs::fcntl_setfl(&device, rustix::fs::OFlags::NONBLOCK).expect("its flags");
        await_forwarding(tap);
        Self(device)
    }

    /// Sends a frame.
    ///
    /// # Panics
    ///
    /// When the kernel does not take it.
    pub fn send(&mut self, frame: &[u8]) {
        let mut whole = vec![0; HEADER];
        whole.extend_from_slice(frame);
        self.0.write_all(&whole).expect("a frame sent");
    }

    /// Whether a frame with these bytes in it is among those that have come, or come within that time.
    ///
    /// # Panics
    ///
    /// When the tap is gone.
    pub fn hears(&mut self, bytes: &[u8], within: Duration) -> bool {
        self.hears_first(&[bytes], within).is_some()
    }

    /// Which of these comes first, in a frame that has come or comes within that time.
    ///
    /// # Panics
    ///
    /// When the tap is gone.
    pub fn hears_first(&mut self, any: &[&[u8]], within: Duration) -> Option<usize> {
        let end = Instant::now() + within;
        let mut frame = vec![0; 65536];
        loop {
            match self.0.read(&mut frame) {
                Ok(length) => {
                    let has = |bytes: &&[u8]| {
                        frame[..length]
                            .windows(bytes.len())
                            .any(|window| window == *bytes)
                    };
                    if let Some(index) = any.iter().position(has) {
                        return Some(index);
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    if Instant::now() >= end {
                        return None;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(e) => panic!("{e}"),
            }
        }
    }
}

/// See [`Card::open`]. The states are those of `linux/if_bridge.h`.
fn await_forwarding(tap: &str) {
    const FORWARDING: &str = "3";
    let state = format!("/sys/class/net/{tap}/brport/state");
    let end = Instant::now() + Duration::from_secs(60);
    while let Ok(now) = std::fs::read_to_string(&state) {
        if now.trim() == FORWARDING {
            return;
        }
        assert!(
            Instant::now() < end,
            "{tap}: its bridge leaves it in state {}",
            now.trim()
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}
