//! The little of ELF that kernels, modules and programs need: a bounds-checked look at headers, segments and sections.
//!
//! Source: System V ABI, "Object Files", 64-bit little-endian only. Serves [`crate::vmlinuz`] and [`crate::modules`];
//! nothing is relocated, linked or executed here. Every offset comes from a file that may be damaged or hostile.

/// `e_machine` of x86-64.
pub(crate) const EM_X86_64: u16 = 62;
pub(crate) const PT_LOAD: u32 = 1;
pub(crate) const PT_NOTE: u32 = 4;
const PT_INTERP: u32 = 3;

/// What is wrong with an ELF file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The magic number is missing.
    #[error("not an ELF file")]
    NotElf,
    /// Another word size or byte order.
    #[error("not a 64-bit little-endian ELF file")]
    WrongClass,
    /// A header points outside the file.
    #[error("ELF file is cut short: {what} ends at byte {end} of {len}")]
    Truncated {
        /// What is outside.
        what: &'static str,
        /// Where it would end.
        end: u64,
        /// The length of the file.
        len: u64,
    },
    /// A table's entries have a size that the format does not know.
    #[error("malformed ELF header: {what}")]
    Malformed {
        /// The field.
        what: &'static str,
    },
}

/// What matters about a program before it is started somewhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    /// It is for x86-64.
    pub x86_64: bool,
    /// It needs a dynamic loader, and so shared libraries.
    pub interpreter: bool,
}

/// Looks at an executable file in memory.
pub fn program(bytes: &[u8]) -> Result<Program, Error> {
    let elf = Elf::parse(bytes)?;
    Ok(Program {
        x86_64: elf.machine()? == EM_X86_64,
        interpreter: elf.segments()?.iter().any(|segment| segment.kind == PT_INTERP),
    })
}

/// A 64-bit little-endian ELF file in memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Elf<'a> {
    bytes: &'a [u8],
}

pub(crate) struct Segment<'a> {
    pub(crate) kind: u32,
    /// Virtual address.
    pub(crate) address: u64,
    pub(crate) contents: &'a [u8],
}

impl<'a> Elf<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        if !bytes.starts_with(b"\x7fELF") {
            return Err(Error::NotElf);
        }
        let elf = Self { bytes };
        elf.slice("header", 0, 64)?;
        if bytes.get(4..6) != Some(&[2, 1]) {
            return Err(Error::WrongClass);
        }
        Ok(elf)
    }

    pub(crate) fn machine(&self) -> Result<u16, Error> {
        self.u16("machine", 18)
    }

    /// Every program header, its contents checked to lie inside the file.
    pub(crate) fn segments(&self) -> Result<Vec<Segment<'a>>, Error> {
        let (offset, count) = (self.u64("header", 32)?, self.u16("header", 56)?);
        if count > 0 && self.u16("header", 54)? != 56 {
            return Err(Error::Malformed {
                what: "program header size",
            });
        }
        (0..u64::from(count))
            .map(|index| {
                let at = offset.saturating_add(index * 56);
                let kind = self.u32("program headers", at)?;
                let start = self.u64("program headers", at.saturating_add(8))?;
                let address = self.u64("program headers", at.saturating_add(16))?;
                let len = self.u64("program headers", at.saturating_add(32))?;
                Ok(Segment {
                    kind,
                    address,
                    contents: self.slice("segment", start, len)?,
                })
            })
            .collect()
    }

    /// The contents of the first section of that name, if there is one.
    pub(crate) fn section(&self, name: &str) -> Result<Option<&'a [u8]>, Error> {
        let (offset, count) = (self.u64("header", 40)?, self.u16("header", 60)?);
        if count > 0 && self.u16("header", 58)? != 64 {
            return Err(Error::Malformed {
                what: "section header size",
            });
        }
        let contents = |index: u16| {
            let at = offset.saturating_add(u64::from(index) * 64);
            let start = self.u64("section headers", at.saturating_add(24))?;
            let len = self.u64("section headers", at.saturating_add(32))?;
            self.slice("section", start, len)
        };
        if count == 0 {
            return Ok(None);
        }
        self.slice("section headers", offset, u64::from(count) * 64)?;
        let names = contents(self.u16("header", 62)?)?;
        for index in 0..count {
            let at = offset.saturating_add(u64::from(index) * 64);
            let start = self.u32("section headers", at)? as usize;
            let found = names
                .get(start..)
                .and_then(|rest| rest.split(|byte| *byte == 0).next());
            if found == Some(name.as_bytes()) {
                return contents(index).map(Some);
            }
        }
        Ok(None)
    }

    fn slice(&self, what: &'static str, start: u64, len: u64) -> Result<&'a [u8], Error> {
        let end = start.saturating_add(len);
        usize::try_from(start)
            .ok()
            .zip(usize::try_from(end).ok())
            .and_then(|(start, end)| self.bytes.get(start..end))
            .ok_or(Error::Truncated {
                what,
                end,
                len: self.bytes.len() as u64,
            })
    }

    fn field<const N: usize>(&self, what: &'static str, at: u64) -> Result<[u8; N], Error> {
        let mut field = [0; N];
        field.copy_from_slice(self.slice(what, at, N as u64)?);
        Ok(field)
    }

    fn u16(&self, what: &'static str, at: u64) -> Result<u16, Error> {
        self.field(what, at).map(u16::from_le_bytes)
    }

    fn u32(&self, what: &'static str, at: u64) -> Result<u32, Error> {
        self.field(what, at).map(u32::from_le_bytes)
    }

    fn u64(&self, what: &'static str, at: u64) -> Result<u64, Error> {
        self.field(what, at).map(u64::from_le_bytes)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An ELF file with the given sections and one `PT_LOAD` segment that covers the first 64 bytes.
    pub(crate) fn build(machine: u16, sections: &[(&str, &[u8])]) -> Vec<u8> {
        let mut names = vec![0];
        let mut data = Vec::new();
        let mut headers = vec![[0_u8; 64]];
        let base = 64 + 56;
        let mut section = |name: &str, contents: &[u8], names: &mut Vec<u8>| {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&u32::try_from(names.len()).unwrap().to_le_bytes());
            names.extend_from_slice(name.as_bytes());
            names.push(0);
            header[24..32].copy_from_slice(&((base + data.len()) as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(contents.len() as u64).to_le_bytes());
            data.extend_from_slice(contents);
            headers.push(header);
        };
        for (name, contents) in sections {
            section(name, contents, &mut names);
        }
        names.extend_from_slice(b".shstrtab\0");
        let table = names.clone();
        names.truncate(names.len() - 10);
        section(".shstrtab", &table, &mut names);

        let mut elf = vec![0; base];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[16] = 2;
        elf[18..20].copy_from_slice(&machine.to_le_bytes());
        elf[32] = 64; // program headers follow the header
        elf[54] = 56;
        elf[56] = 1;
        elf[40..48].copy_from_slice(&((base + data.len()) as u64).to_le_bytes());
        elf[58] = 64;
        elf[60..62].copy_from_slice(&u16::try_from(headers.len()).unwrap().to_le_bytes());
        elf[62..64].copy_from_slice(&u16::try_from(headers.len() - 1).unwrap().to_le_bytes());
        elf[64] = 1; // PT_LOAD, where the kernel's text is linked to
        elf[80..88].copy_from_slice(&0xffff_ffff_8100_0000_u64.to_le_bytes());
        elf[64 + 32] = 64;
        elf.extend_from_slice(&data);
        elf.extend(headers.concat());
        elf
    }

    #[test]
    fn sections_are_found_by_name() {
        let file = build(EM_X86_64, &[(".text", b"code"), (".modinfo", b"a=b\0")]);
        let elf = Elf::parse(&file).unwrap();
        assert_eq!(elf.machine(), Ok(EM_X86_64));
        assert_eq!(elf.section(".modinfo").unwrap(), Some(b"a=b\0".as_slice()));
        assert_eq!(elf.section(".none").unwrap(), None);
        assert_eq!(elf.segments().unwrap().len(), 1);
        assert_eq!(
            program(&file),
            Ok(Program {
                x86_64: true,
                interpreter: false
            })
        );
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error_and_never_a_panic() {
        let file = build(EM_X86_64, &[(".modinfo", b"a=b\0")]);
        for len in 0..file.len() {
            let result = Elf::parse(&file[..len]).and_then(|elf| elf.section(".modinfo"));
            assert!(result.is_err(), "{len}");
        }
    }

    #[test]
    fn any_damaged_byte_is_survived() {
        let file = build(EM_X86_64, &[(".modinfo", b"a=b\0")]);
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] = 0xff;
            if let Ok(elf) = Elf::parse(&damaged) {
                drop((elf.section(".modinfo"), elf.segments().map(|s| s.len())));
            }
        }
    }
}
