//! Typed access to Linux host facilities, one file per facility.

pub mod copy;
pub mod cpio;
pub mod deb;
pub mod decompress;
pub mod delta;
pub mod digest;
pub mod dm;
pub mod elf;
pub mod exec;
pub mod ext4;
pub mod inside;
pub mod link;
pub mod loopdev;
pub mod modules;
mod netlink;
pub mod nft;
pub mod process;
pub mod reflink;
pub mod resolved;
pub mod rootfs_tar;
pub mod sockets;
pub mod space;
pub mod sysctl;
pub mod tap;
pub mod vmlinuz;
