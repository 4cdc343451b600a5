//! A look at the head of a kernel image, so that a VMM is not started with something it cannot boot.
//!
//! Reads the headers only, not the image: this runs before every start. Whether the rest is whole is for whoever
//! brought the kernel onto the host. Sources: the kernel's Documentation/arch/x86/boot.rst (bzImage), the System V ABI
//! (ELF), Xen's public/elfnote.h (PVH).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// `XEN_ELFNOTE_PHYS32_ENTRY`: the entry point of a kernel built with `CONFIG_PVH`.
const PVH_NOTE: u32 = 18;
const PT_NOTE: u32 = 4;
const EM_X86_64: u16 = 62;
/// Program headers and notes beyond these are not looked at; kernels have five headers and a few hundred bytes of notes.
const MAX_PROGRAM_HEADERS: usize = 64;
const MAX_NOTES: u64 = 64 * 1024;

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// An uncompressed ELF kernel for x86-64.
    Elf {
        /// It can be entered the PVH way, which is how QEMU starts an ELF kernel.
        pvh: bool,
    },
    /// A compressed kernel with its own decompressor.
    BzImage,
    /// None of these.
    Unknown,
}

/// Reads what `path` is.
pub(crate) fn sniff(path: &Path) -> io::Result<Kernel> {
    let file = File::open(path)?;
    let mut head = [0; 0x300];
    let length = read_up_to(&file, &mut head, 0)?;
    let head = head.get(..length).unwrap_or_default();
    if head.get(0x202..0x206) == Some(b"HdrS") && head.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) {
        return Ok(Kernel::BzImage);
    }
    // 64-bit, little-endian, for x86-64.
    if head.get(..6) == Some(b"\x7fELF\x02\x01") && number::<2>(head, 18) == Some(u64::from(EM_X86_64)) {
        return Ok(Kernel::Elf {
            pvh: has_pvh_note(&file, head)?,
        });
    }
    Ok(Kernel::Unknown)
}

fn has_pvh_note(file: &File, head: &[u8]) -> io::Result<bool> {
    let (Some(table), Some(size), Some(count)) = (
        number::<8>(head, 32),
        number::<2>(head, 54),
        number::<2>(head, 56),
    ) else {
        return Ok(false);
    };
    // 56 bytes: the size of an ELF64 program header; no other is in use.
    if size != 56 {
        return Ok(false);
    }
    let count = usize::try_from(count)
        .unwrap_or(usize::MAX)
        .min(MAX_PROGRAM_HEADERS);
    let mut headers = vec![0; count * 56];
    let length = read_up_to(file, &mut headers, table)?;
    headers.truncate(length);
    for header in headers.chunks_exact(56) {
        let (Some(kind), Some(offset), Some(size)) = (
            number::<4>(header, 0),
            number::<8>(header, 8),
            number::<8>(header, 32),
        ) else {
            continue;
        };
        if kind == u64::from(PT_NOTE) {
            let mut notes = vec![0; usize::try_from(size.min(MAX_NOTES)).unwrap_or(0)];
            let length = read_up_to(file, &mut notes, offset)?;
            notes.truncate(length);
            if note_kinds(&notes).any(|(name, kind)| name == b"Xen\0" && kind == PVH_NOTE) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Owner and kind of each note in a segment: three 4-byte numbers, then the name and the contents, each padded to 4.
fn note_kinds(mut notes: &[u8]) -> impl Iterator<Item = (&[u8], u32)> {
    std::iter::from_fn(move || {
        let name_size = usize::try_from(number::<4>(notes, 0)?).ok()?;
        let size = usize::try_from(number::<4>(notes, 4)?).ok()?;
        let kind = u32::try_from(number::<4>(notes, 8)?).ok()?;
        let name = notes.get(12..12usize.checked_add(name_size)?)?;
        let contents = 12usize.checked_add(name_size.checked_next_multiple_of(4)?)?;
        let next = contents.checked_add(size.checked_next_multiple_of(4)?)?;
        notes = notes.get(next..).unwrap_or_default();
        Some((name, kind))
    })
}

/// A little-endian number of `N` bytes at `offset`.
fn number<const N: usize>(bytes: &[u8], offset: usize) -> Option<u64> {
    let field = bytes.get(offset..offset.checked_add(N)?)?;
    Some(
        field
            .iter()
            .rev()
            .fold(0, |sum, &byte| sum << 8 | u64::from(byte)),
    )
}

fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = offset
            .checked_add(u64::try_from(done).unwrap_or(u64::MAX))
            .ok_or(io::ErrorKind::InvalidData)?;
        match file.read_at(rest, at) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // An offset beyond what files can have: the header lies, so there is nothing there.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The head of an ELF kernel, with the note or without.
    pub(crate) fn elf(pvh: bool) -> Vec<u8> {
        let mut image = vec![0; 64];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[18] = 62;
        image[32] = 64;
        image[54] = 56;
        image[56] = 1;
        let mut header = vec![0; 56];
        header[0] = 4;
        header[8] = 120;
        header[32] = 64;
        image.extend(header);
        for kind in [6u8, if pvh { 18 } else { 17 }] {
            image.extend([4, 0, 0, 0, 6, 0, 0, 0, kind, 0, 0, 0]);
            image.extend(b"Xen\0linux\0\0\0");
        }
        image.resize(4096, 0);
        image
    }

    fn sniffed(image: &[u8]) -> Kernel {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), image).unwrap();
        sniff(file.path()).unwrap()
    }

    #[test]
    fn kinds_of_images() {
        assert_eq!(sniffed(&elf(true)), Kernel::Elf { pvh: true });
        assert_eq!(sniffed(&elf(false)), Kernel::Elf { pvh: false });
        let mut image = vec![0; 0x400];
        image[0x1fe..0x206].copy_from_slice(b"\x55\xaa\x00\x00HdrS");
        assert_eq!(sniffed(&image), Kernel::BzImage);
        let mut other = elf(true);
        other[18] = 183;
        assert_eq!(sniffed(&other), Kernel::Unknown, "arm64");
        for image in [&b""[..], b"\x7fELF", b"#!/bin/sh\n", &[0; 1000]] {
            assert_eq!(sniffed(image), Kernel::Unknown);
        }
        assert!(sniff(Path::new("/nonexistent")).is_err());
        assert!(sniff(Path::new("/")).is_err(), "a directory");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn damaged_headers_do_not_panic(changes in proptest::collection::vec((0usize..200, any::<u8>()), 0..20), cut in 0usize..200) {
            let mut image = elf(true);
            for (at, byte) in changes {
                image[at] = byte;
            }
            image.truncate(cut.max(64));
            sniffed(&image);
        }
    }
}
