//! The guest's interfaces, by the ioctls of netdevice(7) and rtnetlink's older sibling: few enough to need no library.
//!
//! Loopback comes up with its addresses by itself. The one interface of `banger.net` gets an address, a default route, an
//! MTU if the host names one, and nothing else. Where the host carries no IPv6, it is switched off before the interface is
//! up, so that nothing in the guest waits for it.

use super::cmdline::Net;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

/// For the interface to appear.
const INTERFACE_TIME: Duration = Duration::from_secs(5);
const INTERFACE_LOOK: Duration = Duration::from_millis(5);

/// What could not be done, and why.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {interface}")]
pub(super) struct NetError {
    doing: &'static str,
    interface: String,
    source: io::Error,
}

/// Brings the loopback interface up.
pub(super) fn loopback() -> Result<(), NetError> {
    Interface::open("lo")?.up()
}

/// Configures the interface of `banger.net`.
pub(super) fn configure(net: &Net) -> Result<(), NetError> {
    let interface = Interface::open(&net.interface)?;
    let end = Instant::now() + INTERFACE_TIME;
    let sysfs = Path::new("/sys/class/net").join(&net.interface);
    while !sysfs.exists() && Instant::now() < end {
        std::thread::sleep(INTERFACE_LOOK);
    }
    if !net.inet6 {
        inet6_off(&net.interface)?;
    }
    if let Some(mtu) = net.mtu {
        interface.mtu(mtu)?;
    }
    let mask = Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(net.prefix)).unwrap_or(0));
    interface.address(libc::SIOCSIFADDR, "set the address of", net.address)?;
    interface.address(libc::SIOCSIFNETMASK, "set the network mask of", mask)?;
    interface.up()?;
    match net.gateway {
        Some(gateway) => interface.default_route(gateway),
        None => Ok(()),
    }
}

/// Keeps an interface without IPv6 addresses (the kernel's Documentation/networking/ip-sysctl.rst).
fn inet6_off(interface: &str) -> Result<(), NetError> {
    // The command line's parser has seen to it that this is one name and no way up.
    let setting = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    match std::fs::write(setting, "1\n") {
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(NetError {
            doing: "switch off IPv6 on",
            interface: interface.to_owned(),
            source,
        }),
        Ok(()) => Ok(()),
    }
}

/// An interface by name, and a socket to ask the kernel through.
struct Interface<'a> {
    name: &'a str,
    socket: OwnedFd,
}

impl<'a> Interface<'a> {
    fn open(name: &'a str) -> Result<Self, NetError> {
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
        match socket {
            Ok(socket) => Ok(Self { name, socket }),
            Err(errno) => Err(NetError {
                doing: "open a socket for",
                interface: name.to_owned(),
                source: errno.into(),
            }),
        }
    }

    fn request(&self) -> libc::ifreq {
        // SAFETY: plain data, for which zeros are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // The command line's parser has bounded the name; the last byte stays zero in any case.
        let room = request.ifr_name.len() - 1;
        for (slot, byte) in request.ifr_name[..room].iter_mut().zip(self.name.bytes()) {
            *slot = byte.cast_signed();
        }
        request
    }

    fn ioctl<T>(&self, request: libc::Ioctl, doing: &'static str, argument: &mut T) -> Result<(), NetError> {
        // SAFETY: each caller passes the structure which netdevice(7) names for its request, alive during the call.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), request, std::ptr::from_mut(argument)) };
        if result < 0 {
            let source = io::Error::last_os_error();
            return Err(NetError {
                doing,
                interface: self.name.to_owned(),
                source,
            });
        }
        Ok(())
    }

    fn up(&self) -> Result<(), NetError> {
        let mut request = self.request();
        self.ioctl(libc::SIOCGIFFLAGS, "read the flags of", &mut request)?;
        let up = libc::IFF_UP | libc::IFF_RUNNING;
        // SAFETY: the union's flags were just filled in by the kernel.
        unsafe {
            request.ifr_ifru.ifru_flags |= i16::try_from(up).unwrap_or_default();
        }
        self.ioctl(libc::SIOCSIFFLAGS, "bring up", &mut request)
    }

    fn mtu(&self, mtu: u16) -> Result<(), NetError> {
        let mut request = self.request();
        request.ifr_ifru.ifru_mtu = mtu.into();
        self.ioctl(libc::SIOCSIFMTU, "set the MTU of", &mut request)
    }

    fn address(&self, what: libc::Ioctl, doing: &'static str, address: Ipv4Addr) -> Result<(), NetError> {
        let mut request = self.request();
        request.ifr_ifru.ifru_addr = socket_address(address);
        self.ioctl(what, doing, &mut request)
    }

    fn default_route(&self, gateway: Ipv4Addr) -> Result<(), NetError> {
        // SAFETY: plain data, for which zeros are valid; a null device name lets the kernel choose by the gateway.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = socket_address(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        self.ioctl(libc::SIOCADDRT, "set the default route of", &mut route)
    }
}

/// A `sockaddr_in` in the clothes of a `sockaddr`: family, port, address in network order, padding.
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (slot, byte) in data[2..6].iter_mut().zip(address.octets()) {
        *slot = byte.cast_signed();
    }
    libc::sockaddr {
        sa_family: libc::AF_INET.try_into().unwrap_or_default(),
        sa_data: data,
    }
}
