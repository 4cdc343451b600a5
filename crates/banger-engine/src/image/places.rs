//! Where images, kernels and what belongs to them are in the state directory.

use std::path::{Path, PathBuf};

use super::kernel::KernelFiles;

pub(crate) fn images_dir(state: &Path) -> PathBuf {
    state.join("images")
}

pub(crate) fn kernels_dir(state: &Path) -> PathBuf {
    state.join("kernels")
}

/// What images came as.
pub(super) fn blobs_dir(state: &Path) -> PathBuf {
    state.join("blobs")
}

/// Where initramfs archives are cached.
pub(crate) fn initramfs_dir(state: &Path) -> PathBuf {
    state.join("initramfs")
}

/// Where work seeds are, by image.
pub(crate) fn seeds_dir(state: &Path) -> PathBuf {
    state.join("seeds")
}

/// All directories that the engine expects in the state directory.
pub(crate) fn directories(state: &Path) -> [PathBuf; 6] {
    [
        images_dir(state),
        kernels_dir(state),
        initramfs_dir(state),
        super::build::cache::directory(state),
        super::build::log::directory(state),
        crate::vm::state::machines_dir(state),
    ]
}

pub(super) fn image_dir(state: &Path, id: &str) -> PathBuf {
    images_dir(state).join(id)
}

/// An image's root file system.
pub(crate) fn rootfs_path(state: &Path, id: &str) -> PathBuf {
    image_dir(state, id).join("rootfs.ext4")
}

/// A kernel's files.
pub(crate) fn kernel_files(state: &Path, name: &str) -> KernelFiles {
    KernelFiles::new(kernels_dir(state).join(name))
}
