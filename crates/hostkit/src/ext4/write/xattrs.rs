//! Extended attributes: in the inode, behind its fields, where all of them fit there, else in a block of their own.
//!
//! Source: the kernel's `Documentation/filesystems/ext4/attributes.rst`.

use super::{BLOCK_LEN, put};
use crate::ext4::crc32c;

const MAGIC: u32 = 0xea02_0000;
/// Of an inode of 256 bytes, behind the 160 in use.
pub(super) const IN_INODE: usize = 96;
/// An entry without its name.
const ENTRY: usize = 16;
/// What a block begins with.
const HEADER: usize = 32;

type Attribute = (Vec<u8>, Vec<u8>);

/// Where an inode's attributes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Nowhere,
    Inode,
    Block,
}

/// Where these are to be, or the name of one that cannot be stored.
pub(super) fn place(attributes: &[Attribute]) -> Result<Place, &[u8]> {
    if attributes.is_empty() {
        return Ok(Place::Nowhere);
    }
    let mut len = 4;
    for (name, value) in attributes {
        let (_, rest) = split(name).ok_or(name.as_slice())?;
        if rest.is_empty() || rest.len() > 255 {
            return Err(name);
        }
        len += ENTRY + rest.len().next_multiple_of(4) + value.len().next_multiple_of(4);
    }
    match (len + 4 <= IN_INODE, HEADER + len <= BLOCK_LEN, attributes) {
        (true, _, _) => Ok(Place::Inode),
        (false, true, _) => Ok(Place::Block),
        (false, false, [.., (name, _)]) => Err(name),
        (false, false, []) => Ok(Place::Nowhere),
    }
}

/// What is behind the fields of an inode.
pub(super) fn in_inode(attributes: &[Attribute]) -> [u8; IN_INODE] {
    let mut area = [0; IN_INODE];
    let (magic, entries) = area.split_at_mut(4);
    magic.copy_from_slice(&MAGIC.to_le_bytes());
    // Values are counted from the first entry.
    write(attributes, entries, 0);
    area
}

/// The block with the number `at`, of one inode. `seed` is what the file system's checksums start with.
pub(super) fn block(attributes: &[Attribute], at: u64, seed: u32) -> Vec<u8> {
    let mut block = vec![0; BLOCK_LEN];
    let hash = write(attributes, &mut block, HEADER);
    put(&mut block, 0, &MAGIC.to_le_bytes());
    // Inodes that share it, blocks that it takes.
    put(&mut block, 4, &1_u32.to_le_bytes());
    put(&mut block, 8, &1_u32.to_le_bytes());
    put(&mut block, 12, &hash.to_le_bytes());
    let sum = crc32c(crc32c(seed, &at.to_le_bytes()), &block);
    put(&mut block, 16, &sum.to_le_bytes());
    block
}

/// Entries from `at` on, in the order in which the kernel looks for them, and their values from the end backwards; returns the
/// hash of all.
fn write(attributes: &[Attribute], area: &mut [u8], mut at: usize) -> u32 {
    let mut sorted: Vec<_> = attributes
        .iter()
        .filter_map(|(name, value)| split(name).map(|(index, rest)| (index, rest, value)))
        .collect();
    sorted.sort_by_key(|(index, name, _)| (*index, name.len(), *name));
    let (mut end, mut all) = (area.len(), 0_u32);
    for (index, name, value) in sorted {
        end -= value.len().next_multiple_of(4);
        put(area, end, value);
        let offset = if value.is_empty() {
            0
        } else {
            u16::try_from(end).unwrap_or(0)
        };
        put(area, at, &[u8::try_from(name.len()).unwrap_or(0), index]);
        put(area, at + 2, &offset.to_le_bytes());
        put(
            area,
            at + 8,
            &u32::try_from(value.len()).unwrap_or(0).to_le_bytes(),
        );
        let hash = hash(name, value);
        put(area, at + 12, &hash.to_le_bytes());
        put(area, at + ENTRY, name);
        all = all.rotate_left(16) ^ hash;
        at += ENTRY + name.len().next_multiple_of(4);
    }
    all
}

/// `ext4_xattr_hash_entry`: of the name by its bytes, of the value by words.
fn hash(name: &[u8], value: &[u8]) -> u32 {
    let named = name
        .iter()
        .fold(0_u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
    value.chunks(4).fold(named, |hash, chunk| {
        let mut word = [0; 4];
        put(&mut word, 0, chunk);
        hash.rotate_left(16) ^ u32::from_le_bytes(word)
    })
}

/// The number that stands for the beginning of a name, and the rest. Access lists have a form of their own on the disk, and
/// nobody asks for them here.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    [(1, b"user.".as_slice()), (4, b"trusted."), (6, b"security.")]
        .into_iter()
        .find_map(|(index, prefix)| Some((index, name.strip_prefix(prefix)?)))
}
