//! The encodings of `linux/dm-ioctl.h`: a header (`struct dm_ioctl`) that every request and answer begins with, and after
//! it a table's targets (`struct dm_target_spec`) or a list of names (`struct dm_name_list`). Native byte order.

use super::DmError;

/// Bytes of `struct dm_ioctl`.
pub(super) const HEADER: usize = DATA_START as usize;
/// The same, as the field that says so.
const DATA_START: u32 = 312;
/// Longest name of a device in bytes: `DM_NAME_LEN` without the terminating zero.
pub const NAME: usize = 127;
/// `DM_UUID_LEN` without the terminating zero.
const UUID: usize = 128;
/// Bytes of `struct dm_target_spec`.
const SPEC: usize = 40;
/// `DM_MAX_TYPE_NAME` without the terminating zero.
const TYPE: usize = 15;

/// `DM_*_FLAG`.
pub(super) mod flags {
    pub(in super::super) const READONLY: u32 = 1 << 0;
    pub(in super::super) const SUSPEND: u32 = 1 << 1;
    pub(in super::super) const STATUS_TABLE: u32 = 1 << 4;
    pub(in super::super) const ACTIVE_PRESENT: u32 = 1 << 5;
    pub(in super::super) const BUFFER_FULL: u32 = 1 << 8;
    pub(in super::super) const NOFLUSH: u32 = 1 << 11;
}

/// A line of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// First sector, of 512 bytes.
    pub start: u64,
    /// Sectors.
    pub length: u64,
    /// `linear`, `zero`, `snapshot` …
    pub kind: &'a str,
    /// What that kind wants to know.
    pub parameters: &'a str,
}

/// A line of a status or of a table, as the kernel tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub length: u64,
    /// Target's kind.
    pub kind: String,
    /// What it says.
    pub text: String,
}

/// `struct dm_ioctl`, without what nobody reads here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Header {
    pub(super) version: [u32; 3],
    pub(super) target_count: u32,
    pub(super) open_count: i32,
    pub(super) flags: u32,
    pub(super) dev: u64,
    pub(super) name: String,
    pub(super) uuid: String,
}

impl Header {
    /// A request's. The kernel wants its own major version, 4, and a minor no newer than its own.
    pub(super) fn new(name: &str, uuid: &str) -> Result<Self, DmError> {
        for (what, value, most) in [("name", name, NAME), ("uuid", uuid, UUID)] {
            if value.len() > most || !value.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/') {
                return Err(DmError::Invalid {
                    what,
                    value: value.to_owned(),
                });
            }
        }
        Ok(Self {
            version: [4, 0, 0],
            name: name.to_owned(),
            uuid: uuid.to_owned(),
            ..Self::default()
        })
    }

    /// Header and data, with room for an answer of so many bytes.
    pub(super) fn encode(&self, data: &[u8], room: usize) -> Vec<u8> {
        let size = HEADER + data.len().max(room);
        let mut bytes = Vec::with_capacity(size);
        for number in self.version {
            bytes.extend(number.to_ne_bytes());
        }
        let size_field = u32::try_from(size).unwrap_or(u32::MAX);
        bytes.extend(size_field.to_ne_bytes());
        bytes.extend(DATA_START.to_ne_bytes());
        bytes.extend(self.target_count.to_ne_bytes());
        bytes.extend(self.open_count.to_ne_bytes());
        bytes.extend(self.flags.to_ne_bytes());
        // event_nr, which a removal hands to udev as a cookie, and padding.
        bytes.extend([0; 8]);
        bytes.extend(self.dev.to_ne_bytes());
        for (text, field) in [(&self.name, NAME + 1), (&self.uuid, UUID + 1)] {
            let end = bytes.len() + field;
            bytes.extend(text.bytes());
            bytes.resize(end, 0);
        }
        bytes.resize(HEADER, 0);
        bytes.extend(data);
        bytes.resize(size, 0);
        bytes
    }

    /// An answer's header, and its data.
    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, Vec<u8>), DmError> {
        let fields = Fields(bytes);
        let size = fields.u32(12)? as usize;
        let start = fields.u32(16)? as usize;
        let header = Self {
            version: [fields.u32(0)?, fields.u32(4)?, fields.u32(8)?],
            target_count: fields.u32(20)?,
            open_count: fields.u32(24)?.cast_signed(),
            flags: fields.u32(28)?,
            dev: fields.u64(40)?,
            name: fields.text(48, NAME + 1)?,
            uuid: fields.text(48 + NAME + 1, UUID + 1)?,
        };
        // Requests without data in their answer leave both as they were, or say the header alone.
        let data = bytes.get(start..size.min(bytes.len())).unwrap_or_default();
        Ok((header, data.to_vec()))
    }
}

/// The data of a table that is to be loaded. Each `next` counts from its own target.
pub(super) fn encode_table(table: &[Target<'_>]) -> Result<Vec<u8>, DmError> {
    let mut bytes = Vec::new();
    for target in table {
        let invalid = target.kind.is_empty()
            || target.kind.len() > TYPE
            || target.kind.contains('\0')
            || target.parameters.contains('\0');
        if invalid {
            return Err(DmError::Invalid {
                what: "target",
                value: format!("{} {}", target.kind, target.parameters),
            });
        }
        let length = (SPEC + target.parameters.len() + 1).next_multiple_of(8);
        let end = bytes.len() + length;
        let next = u32::try_from(length).map_err(|_| DmError::Malformed)?;
        bytes.extend(target.start.to_ne_bytes());
        bytes.extend(target.length.to_ne_bytes());
        bytes.extend(0_i32.to_ne_bytes());
        bytes.extend(next.to_ne_bytes());
        let kind_end = bytes.len() + TYPE + 1;
        bytes.extend(target.kind.bytes());
        bytes.resize(kind_end, 0);
        bytes.extend(target.parameters.bytes());
        bytes.resize(end, 0);
    }
    Ok(bytes)
}

/// The data of a status or a table. Each `next` counts from the first target. It is rounded up, and the answer ends
/// with the last text's zero: the last `next` lies beyond the answer.
pub(super) fn decode_lines(data: &[u8], count: u32) -> Result<Vec<Line>, DmError> {
    let fields = Fields(data);
    let mut lines = Vec::new();
    let mut at = 0;
    for _ in 0..count {
        let next = fields.u32(at + 20)? as usize;
        let text_end = if next > at {
            next.min(data.len())
        } else {
            data.len()
        };
        let room = text_end.checked_sub(at + SPEC).ok_or(DmError::Malformed)?;
        lines.push(Line {
            start: fields.u64(at)?,
            length: fields.u64(at + 8)?,
            kind: fields.text(at + 24, TYPE + 1)?,
            text: fields.text(at + SPEC, room)?,
        });
        at = next;
    }
    Ok(lines)
}

/// The data of a list of devices. Each `next` counts from its own entry; the last one's is 0.
pub(super) fn decode_names(data: &[u8]) -> Result<Vec<String>, DmError> {
    let fields = Fields(data);
    let mut names = Vec::new();
    let mut at = 0;
    // No devices at all: one entry of zeros.
    if data.len() < 12 || fields.u64(0)? == 0 {
        return Ok(names);
    }
    loop {
        let next = fields.u32(at + 8)? as usize;
        let room = data.len().saturating_sub(at + 12).min(NAME + 1);
        names.push(fields.text(at + 12, room)?);
        if next == 0 {
            return Ok(names);
        }
        at += next;
    }
}

/// Fields of an answer, each looked for within it.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], DmError> {
        let end = at.checked_add(N).ok_or(DmError::Malformed)?;
        let bytes = self.0.get(at..end).ok_or(DmError::Malformed)?;
        bytes.try_into().map_err(|_| DmError::Malformed)
    }

    fn u32(&self, at: usize) -> Result<u32, DmError> {
        self.array(at).map(u32::from_ne_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, DmError> {
        self.array(at).map(u64::from_ne_bytes)
    }

    /// Text up to its terminating zero, which is within the field.
    fn text(&self, at: usize, field: usize) -> Result<String, DmError> {
        let end = at.checked_add(field).ok_or(DmError::Malformed)?;
        let bytes = self.0.get(at..end).ok_or(DmError::Malformed)?;
        let length = bytes
            .iter()
            .position(|byte| *byte == 0)
            .ok_or(DmError::Malformed)?;
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }
}
