//! Images and kernels: what machines are made of.

pub(crate) mod blobs;
pub mod build;
pub mod busybox;
pub mod config;
pub mod debian;
pub mod export;
pub mod import;
pub mod initramfs;
pub mod kernel;
pub mod kernels;
pub mod make;
mod oci;
pub mod os_release;
pub(crate) mod places;
pub mod promote;
pub(crate) mod pull;
pub mod registered;
pub mod registry;
pub mod rootfs;
pub mod seed;
pub(crate) mod verify;
pub mod work;

pub(crate) use places::{initramfs_dir, kernel_files, rootfs_path};
