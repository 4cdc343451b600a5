//! What the targets share: a place for files, and files that an input changes.
//!
//! Place: between libFuzzer, which makes up inputs and learns from the coverage which of them are interesting, and the
//! product's readers, one for each file of targets/. `cargo xtask fuzz` builds and runs them and says through the
//! environment where files may go. It does not look for what is wrong with the outcome beyond panics: that is for the
//! targets to assert.

pub mod recipe;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// An empty directory of this process's own, in memory where the caller has seen to it; what was in it is gone.
///
/// # Panics
/// Where `BANGER_FUZZ_SCRATCH` does not name a directory that can be written.
#[must_use]
pub fn scratch() -> PathBuf {
    let root = std::env::var_os("BANGER_FUZZ_SCRATCH").expect("run by cargo xtask fuzz");
    let directory = PathBuf::from(root).join(format!("work-{}", std::process::id()));
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            panic!("failed to empty {directory:?}: {error}")
        }
        _ => fs::create_dir(&directory).expect("a directory in BANGER_FUZZ_SCRATCH"),
    }
    directory
}

/// One of the images that real tools have made, which inputs change.
///
/// # Panics
/// Where it is not in `BANGER_FUZZ_SCRATCH`.
#[must_use]
pub fn base(name: &str) -> Vec<u8> {
    let root = std::env::var_os("BANGER_FUZZ_SCRATCH").expect("run by cargo xtask fuzz");
    fs::read(Path::new(&root).join("bases").join(name)).expect("an image that cargo xtask fuzz has made")
}

/// A file in memory that has the bytes.
///
/// # Panics
/// Where there is no room.
#[must_use]
pub fn file(path: &Path, bytes: &[u8]) -> File {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .expect("a file in the scratch directory");
    file.write_all_at(bytes, 0).expect("room for the file");
    file
}

/// Changes an image as an input says: records of an offset (u32, little-endian, modulo the length), how many bytes
/// (u8, modulo 64) and those bytes. Small inputs that way change large images in the places that matter.
pub fn change(image: &mut [u8], mut input: &[u8]) {
    while let Some(([a, b, c, d, count], rest)) = input.split_first_chunk() {
        let at = u32::from_le_bytes([*a, *b, *c, *d]) as usize % image.len().max(1);
        let bytes = &rest[..rest.len().min(usize::from(count % 64))];
        let end = image.len().min(at + bytes.len());
        image[at..end].copy_from_slice(&bytes[..end - at]);
        input = &rest[bytes.len()..];
    }
}

/// CRC-32 by its reflected polynomial, from `seed` on, not inverted at the end: for mending checksums that would hide
/// everything behind them.
#[must_use]
pub fn crc32(polynomial: u32, seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { polynomial } else { 0 }
        })
    })
}
