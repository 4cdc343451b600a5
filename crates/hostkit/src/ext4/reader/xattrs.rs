//! Extended attributes: those in an inode, behind its fields, and those in a block of their own.
//!
//! Source: the kernel's `Documentation/filesystems/ext4/attributes.rst`; access lists as `fs/ext4/acl.h` and
//! `include/uapi/linux/posix_acl_xattr.h` have them.

use super::{Inode, ReadError, Reader, u16_at, u32_at};

const MAGIC: u32 = 0xea02_0000;
/// An entry without its name.
const ENTRY: usize = 16;
/// What a block begins with.
const HEADER: usize = 32;

type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// All of an inode, by name, as listxattr(2) and getxattr(2) would give them.
pub(super) fn read(reader: &Reader, inode: &Inode) -> Result<Attributes, ReadError> {
    let mut found = Vec::new();
    if inode.bytes.len() > 128 {
        let at = 128 + usize::from(u16_at(&inode.bytes, 0x80));
        let area = inode.bytes.get(at..).unwrap_or_default();
        if area.len() > 4 && u32_at(area, 0) == MAGIC {
            // Values are counted from the first entry.
            let area = area.get(4..).unwrap_or_default();
            entries(reader, inode.ino, area, area, &mut found)?;
        }
    }
    let block = u64::from(u16_at(&inode.bytes, 0x76)) << 32 | u64::from(u32_at(&inode.bytes, 0x68));
    if block != 0 {
        let block = reader.block(block)?;
        if u32_at(&block, 0) != MAGIC || u32_at(&block, 8) != 1 {
            return Err(damaged(reader, inode.ino));
        }
        // Here they are counted from the block's beginning.
        entries(
            reader,
            inode.ino,
            block.get(HEADER..).unwrap_or_default(),
            &block,
            &mut found,
        )?;
    }
    found.sort();
    found.dedup_by(|a, b| a.0 == b.0);
    Ok(found)
}

fn damaged(reader: &Reader, ino: u32) -> ReadError {
    reader.damaged(format!("the attributes of inode {ino} contradict themselves"))
}

/// Entries until one that is all zeros; what they say is in `values`. Each takes its part of a block, so they are few.
fn entries(
    reader: &Reader,
    ino: u32,
    mut entries: &[u8],
    values: &[u8],
    found: &mut Attributes,
) -> Result<(), ReadError> {
    let wrong = || damaged(reader, ino);
    while entries.len() >= 4 && u32_at(entries, 0) != 0 {
        let head = entries.get(..ENTRY).ok_or_else(wrong)?;
        let (len, index) = (usize::from(head[0]), head[1]);
        if u32_at(head, 4) != 0 {
            return Err(reader.unsupported(format!("inode {ino} has an attribute in an inode of its own")));
        }
        let name = entries.get(ENTRY..ENTRY + len).ok_or_else(wrong)?;
        let at = usize::from(u16_at(head, 2));
        let size = usize::try_from(u32_at(head, 8)).map_err(|_| wrong())?;
        let value = match size {
            0 => &[],
            size => at
                .checked_add(size)
                .and_then(|end| values.get(at..end))
                .ok_or_else(wrong)?,
        };
        let prefix: &[u8] = match index {
            0 => b"",
            1 => b"user.",
            2 => b"system.posix_acl_access",
            3 => b"system.posix_acl_default",
            4 => b"trusted.",
            6 => b"security.",
            7 => b"system.",
            8 => b"system.richacl",
            _ => return Err(wrong()),
        };
        let name = [prefix, name].concat();
        if name.is_empty() || name.contains(&0) {
            return Err(wrong());
        }
        let value = match index {
            2 | 3 => access_list(value).ok_or_else(wrong)?,
            _ => value.to_vec(),
        };
        found.push((name, value));
        entries = entries
            .get((ENTRY + len).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(())
}

/// From an access list as it is on the disk to what getxattr(2) gives: every entry has an id there.
fn access_list(value: &[u8]) -> Option<Vec<u8>> {
    const NAMED: [u16; 2] = [2, 8];
    const UNNAMED: [u16; 4] = [1, 4, 0x10, 0x20];
    let (version, mut rest) = value.split_at_checked(4)?;
    if u32_at(version, 0) != 1 {
        return None;
    }
    let mut list = 2_u32.to_le_bytes().to_vec();
    while !rest.is_empty() {
        let (entry, after) = rest.split_at_checked(4)?;
        let tag = u16_at(entry, 0);
        list.extend_from_slice(entry);
        rest = if NAMED.contains(&tag) {
            let (id, after) = after.split_at_checked(4)?;
            list.extend_from_slice(id);
            after
        } else if UNNAMED.contains(&tag) {
            list.extend_from_slice(&u32::MAX.to_le_bytes());
            after
        } else {
            return None;
        };
    }
    Some(list)
}
