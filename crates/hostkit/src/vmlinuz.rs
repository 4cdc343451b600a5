//! Linux kernel images for x86-64: telling them apart, and unpacking a `bzImage` to the ELF `vmlinux` inside it.
//!
//! Firecracker boots an ELF `vmlinux` only, while distributions ship a `bzImage`, whose compressed payload is that ELF
//! file. Source of the layout: the kernel's `Documentation/arch/x86/boot.rst`. Everything is bounds-checked, since the
//! file may be damaged or something else altogether; no kernel is run or verified here.

use crate::decompress;
use crate::elf::{self, EM_X86_64, Elf, PT_LOAD, PT_NOTE};

/// The largest kernel that is unpacked, in bytes; distributions' are 30 to 100 MiB.
pub const VMLINUX_LIMIT: u64 = 512 << 20;

/// `payload_offset` and `payload_length` exist from this version of the boot protocol on (Linux 2.6.26).
const MIN_PROTOCOL: u16 = 0x0208;

/// The form a kernel image is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// An uncompressed ELF `vmlinux`.
    Elf,
    /// A compressed `bzImage`, usually called `vmlinuz`.
    BzImage,
}

/// What is wrong with a kernel image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither of the two forms.
    #[error("not a Linux kernel image for x86-64 (neither an ELF vmlinux nor a bzImage)")]
    NotAKernel,
    /// A `bzImage` older than Linux 2.6.26.
    #[error("kernel image uses boot protocol {:x}.{:02x}, at least 2.08 is needed", protocol >> 8, protocol & 0xff)]
    TooOld {
        /// The version of the boot protocol, major in the high byte.
        protocol: u16,
    },
    /// The setup header points outside the file.
    #[error("kernel image is cut short: its payload ends at byte {end} of {len}")]
    Truncated {
        /// Where the payload ends, in bytes from the start of the file.
        end: u64,
        /// The length of the file, in bytes.
        len: u64,
    },
    /// The payload starts with no known magic number.
    #[error("kernel payload is in an unknown format (it starts with {head:02x?})")]
    UnknownPayload {
        /// Its first bytes.
        head: Vec<u8>,
    },
    /// The payload does not decompress.
    #[error("failed to decompress the kernel payload")]
    Payload(#[source] decompress::Error),
    /// The ELF file, on its own or inside, is malformed.
    #[error("malformed vmlinux")]
    Elf(#[source] elf::Error),
    /// A kernel for another processor.
    #[error("vmlinux is for another processor (ELF machine {machine}, x86-64 is 62)")]
    WrongMachine {
        /// `e_machine`.
        machine: u16,
    },
    /// An ELF file without anything to load.
    #[error("vmlinux has no loadable segment")]
    NothingToLoad,
    /// A program, not a kernel.
    #[error("not a Linux kernel image: it is an ELF program for user space")]
    Program,
}

/// What an ELF kernel can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElfKernel {
    /// It has a PVH entry point (`CONFIG_PVH`), without which QEMU cannot boot the ELF file.
    pub pvh: bool,
}

/// Tells what form of kernel this is, without checking that it is whole.
pub fn detect(image: &[u8]) -> Result<Format, Error> {
    if image.starts_with(b"\x7fELF") {
        Ok(Format::Elf)
    } else if image.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) && image.get(0x202..0x206) == Some(b"HdrS") {
        Ok(Format::BzImage)
    } else {
        Err(Error::NotAKernel)
    }
}

/// Checks an ELF `vmlinux`: for x86-64, something to load, and every segment inside the file.
pub fn check_elf(image: &[u8]) -> Result<ElfKernel, Error> {
    let elf = Elf::parse(image).map_err(Error::Elf)?;
    let machine = elf.machine().map_err(Error::Elf)?;
    if machine != EM_X86_64 {
        return Err(Error::WrongMachine { machine });
    }
    let segments = elf.segments().map_err(Error::Elf)?;
    if !segments.iter().any(|segment| segment.kind == PT_LOAD) {
        return Err(Error::NothingToLoad);
    }
    // The kernel is linked to the upper half of the address space, which no program may use
    // (Documentation/arch/x86/x86_64/mm.rst).
    if !segments
        .iter()
        .any(|segment| segment.kind == PT_LOAD && segment.address >= 1 << 63)
    {
        return Err(Error::Program);
    }
    let pvh = segments
        .iter()
        .any(|segment| segment.kind == PT_NOTE && has_pvh_note(segment.contents));
    Ok(ElfKernel { pvh })
}

/// Unpacks the ELF `vmlinux` from a `bzImage` and checks it with [`check_elf`].
pub fn extract(image: &[u8]) -> Result<Vec<u8>, Error> {
    if detect(image)? != Format::BzImage {
        return Err(Error::NotAKernel);
    }
    let payload = payload(image)?;
    let vmlinux = if payload.starts_with(b"\x7fELF") {
        payload.to_vec()
    } else {
        let format = decompress::detect(payload).ok_or_else(|| Error::UnknownPayload {
            head: payload.iter().take(6).copied().collect(),
        })?;
        decompress::to_vec(format, payload, VMLINUX_LIMIT).map_err(Error::Payload)?
    };
    check_elf(&vmlinux)?;
    Ok(vmlinux)
}

/// The kernel's release, such as `6.1.0-18-cloud-amd64`, where the image tells.
#[must_use]
pub fn release(image: &[u8]) -> Option<String> {
    let text = match detect(image).ok()? {
        // `kernel_version`: an offset from the end of the boot sector to "RELEASE (builder) #1 …".
        Format::BzImage => image.get(usize::from(u16_at(image, 0x20e)?) + 0x200..)?,
        // `linux_banner` in the read-only data; `linux_proc_banner` has a `%s` in that place.
        Format::Elf => {
            const BANNER: &[u8] = b"Linux version ";
            let mut rest = image;
            loop {
                let at = rest.windows(BANNER.len()).position(|window| window == BANNER)?;
                rest = rest.get(at + BANNER.len()..)?;
                if rest.first().is_some_and(u8::is_ascii_digit) {
                    break rest;
                }
            }
        }
    };
    let release: Vec<u8> = text
        .iter()
        .copied()
        .take(128)
        .take_while(u8::is_ascii_graphic)
        .collect();
    String::from_utf8(release)
        .ok()
        .filter(|release| release.starts_with(|c: char| c.is_ascii_digit()))
}

fn payload(image: &[u8]) -> Result<&[u8], Error> {
    let len = image.len() as u64;
    let cut = |end: u64| Error::Truncated { end, len };
    let protocol = u16_at(image, 0x206).ok_or_else(|| cut(0x208))?;
    if protocol < MIN_PROTOCOL {
        return Err(Error::TooOld { protocol });
    }
    // "For backwards compatibility, if the setup_sects field contains 0, the real value is 4."
    let setup_sectors = match image.get(0x1f1) {
        Some(0) | None => 4,
        Some(sectors) => u64::from(*sectors),
    };
    let offset = u32_at(image, 0x248).ok_or_else(|| cut(0x24c))?;
    let length = u32_at(image, 0x24c).ok_or_else(|| cut(0x250))?;
    let start = (setup_sectors + 1) * 512 + u64::from(offset);
    let end = start + u64::from(length);
    usize::try_from(start)
        .ok()
        .zip(usize::try_from(end).ok())
        .and_then(|(start, end)| image.get(start..end))
        .ok_or_else(|| cut(end))
}

/// Looks for `XEN_ELFNOTE_PHYS32_ENTRY` (18) of the owner `Xen` among ELF notes, aligned to four bytes as Linux has it.
fn has_pvh_note(mut notes: &[u8]) -> bool {
    while let (Some(name_len), Some(data_len), Some(kind)) =
        (u32_at(notes, 0), u32_at(notes, 4), u32_at(notes, 8))
    {
        let padded = |len: u32| usize::try_from(len).unwrap_or(usize::MAX).saturating_add(3) & !3;
        let name = notes.get(12..).unwrap_or_default();
        if kind == 18 && name.starts_with(b"Xen\0") {
            return true;
        }
        let next = 12_usize
            .saturating_add(padded(name_len))
            .saturating_add(padded(data_len));
        notes = notes.get(next..).unwrap_or_default();
    }
    false
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|chunk| u16::from_le_bytes(*chunk))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|chunk| u32::from_le_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x314].copy_from_slice(b"6.1.0-9-test (a@b) #");
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend_from_slice(&[0xcc; 16]);
        image.extend_from_slice(payload);
        image
    }

    fn vmlinux() -> Vec<u8> {
        elf::tests::build(
            EM_X86_64,
            &[(".rodata", b"Linux version %s\0Linux version 6.9.1 (x)")],
        )
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn payloads_unpack_whatever_they_are_compressed_with() {
        let lz4 = {
            let block = lz4_flex::block::compress(&vmlinux());
            let size = u32::try_from(block.len()).unwrap().to_le_bytes();
            let whole = u32::try_from(vmlinux().len()).unwrap().to_le_bytes();
            [b"\x02\x21\x4c\x18".as_slice(), &size, &block, &whole].concat()
        };
        let zstd = ruzstd::encoding::compress_to_vec(
            vmlinux().as_slice(),
            ruzstd::encoding::CompressionLevel::Fastest,
        );
        for payload in [gzip(&vmlinux()), lz4, zstd, vmlinux()] {
            let image = bzimage(&payload);
            assert_eq!(detect(&image).unwrap(), Format::BzImage);
            assert_eq!(extract(&image).unwrap(), vmlinux());
        }
    }

    #[test]
    fn releases_are_read_from_both_forms() {
        assert_eq!(release(&bzimage(b"")).as_deref(), Some("6.1.0-9-test"));
        assert_eq!(release(&vmlinux()).as_deref(), Some("6.9.1"));
        assert_eq!(release(b"text"), None);
    }

    #[test]
    fn other_files_and_damage_are_told_apart() {
        assert!(matches!(detect(b"hello"), Err(Error::NotAKernel)));
        assert!(matches!(extract(&vmlinux()), Err(Error::NotAKernel)));
        let whole = bzimage(&gzip(&vmlinux()));
        assert!(matches!(
            extract(&whole[..whole.len() - 1]),
            Err(Error::Truncated { .. })
        ));
        let mut old = whole.clone();
        old[0x206] = 2;
        assert_eq!(
            extract(&old).unwrap_err().to_string(),
            "kernel image uses boot protocol 2.02, at least 2.08 is needed"
        );
        let mut corrupt = whole.clone();
        corrupt[1060] ^= 0xff;
        assert!(matches!(
            extract(&corrupt),
            Err(Error::Payload(_) | Error::Elf(_))
        ));
        assert!(matches!(
            extract(&bzimage(b"\0\0\0\0")),
            Err(Error::UnknownPayload { .. })
        ));
        assert!(matches!(
            extract(&bzimage(b"BZh9")),
            Err(Error::Payload(decompress::Error::Unsupported { .. }))
        ));
        let arm = elf::tests::build(183, &[]);
        assert!(matches!(
            check_elf(&arm),
            Err(Error::WrongMachine { machine: 183 })
        ));
    }

    #[test]
    fn a_program_is_no_kernel() {
        let this_test = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(matches!(check_elf(&this_test), Err(Error::Program)));
        assert!(check_elf(&vmlinux()).is_ok());
    }

    #[test]
    fn a_pvh_note_is_seen() {
        let note = |owner: &[u8], kind: u32| {
            [
                &4_u32.to_le_bytes(),
                &4_u32.to_le_bytes(),
                &kind.to_le_bytes(),
                owner,
                &[0; 4],
            ]
            .concat()
        };
        assert!(has_pvh_note(&[note(b"GNU\0", 3), note(b"Xen\0", 18)].concat()));
        assert!(!has_pvh_note(&[note(b"GNU\0", 18), note(b"Xen\0", 6)].concat()));
        assert!(!has_pvh_note(&[0xff; 40]));
    }

    /// `BANGER_TEST_DEBIAN_KERNEL` names the distribution's.
    #[test]
    fn a_real_kernel_unpacks() {
        let Some(path) = testkit::file("BANGER_TEST_DEBIAN_KERNEL") else {
            return;
        };
        let image = std::fs::read(path).unwrap();
        let vmlinux = extract(&image).unwrap();
        assert_eq!(release(&vmlinux), release(&image));
        assert!(check_elf(&vmlinux).unwrap().pvh);
    }
}
