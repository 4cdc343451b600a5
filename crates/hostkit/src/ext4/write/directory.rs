//! Directories: names one behind the other, in blocks of which each ends with a checksum. Without an index, as `mke2fs -d`
//! makes them; a kernel that adds to one that has several blocks leaves it so.
//!
//! Source: the kernel's `Documentation/filesystems/ext4/directory.rst`.

use super::{BLOCK_LEN, put};
use crate::ext4::crc32c;

/// The checksum, made to look like an entry without a name.
const TAIL: usize = 12;
const TAIL_KIND: u8 = 0xde;
const ROOM: usize = BLOCK_LEN - TAIL;
/// An entry without its name.
const ENTRY: usize = 8;
/// What an entry says that it is.
pub(super) const FILE: u8 = 1;
pub(super) const DIRECTORY: u8 = 2;
pub(super) const CHAR_DEVICE: u8 = 3;
pub(super) const BLOCK_DEVICE: u8 = 4;
pub(super) const FIFO: u8 = 5;
pub(super) const SYMLINK: u8 = 7;

/// A name of an inode.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name<'a> {
    /// At most 255 bytes.
    pub(super) name: &'a [u8],
    pub(super) ino: u32,
    pub(super) kind: u8,
}

/// Finds out how many blocks names take, given one by one.
#[derive(Debug)]
pub(super) struct Measure {
    blocks: u64,
    at: usize,
}

impl Measure {
    pub(super) fn new() -> Self {
        let mut measure = Self { blocks: 1, at: 0 };
        measure.add(b".");
        measure.add(b"..");
        measure
    }

    pub(super) fn add(&mut self, name: &[u8]) {
        let len = len(name);
        if self.at + len > ROOM {
            self.blocks += 1;
            self.at = 0;
        }
        self.at += len;
    }

    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }
}

/// The blocks of a directory, at least so many. `seed` is what the checksums of its inode start with.
pub(super) fn build(ino: u32, above: u32, names: &[Name<'_>], at_least: u64, seed: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let dots = [(b".".as_slice(), ino), (b"..", above)].map(|(name, ino)| Name {
        name,
        ino,
        kind: DIRECTORY,
    });
    let mut block = Block::new();
    for name in dots.iter().chain(names) {
        if block.at + len(name.name) > ROOM {
            bytes.extend_from_slice(&block.seal(seed));
            block = Block::new();
        }
        block.add(name);
    }
    bytes.extend_from_slice(&block.seal(seed));
    let at_least = usize::try_from(at_least).unwrap_or(0).saturating_mul(BLOCK_LEN);
    while bytes.len() < at_least {
        bytes.extend_from_slice(&Block::new().seal(seed));
    }
    bytes
}

struct Block {
    bytes: [u8; BLOCK_LEN],
    /// The end of the last entry, and where it begins.
    at: usize,
    last: usize,
}

impl Block {
    fn new() -> Self {
        Self {
            bytes: [0; BLOCK_LEN],
            at: 0,
            last: 0,
        }
    }

    fn add(&mut self, name: &Name<'_>) {
        let len = len(name.name);
        let at = self.at;
        put(&mut self.bytes, at, &name.ino.to_le_bytes());
        let name_len = u8::try_from(name.name.len()).unwrap_or(0);
        put(&mut self.bytes, at + 6, &[name_len, name.kind]);
        put(&mut self.bytes, at + ENTRY, name.name);
        self.set_len(at, len);
        (self.last, self.at) = (at, at + len);
    }

    fn set_len(&mut self, entry: usize, len: usize) {
        put(
            &mut self.bytes,
            entry + 4,
            &u16::try_from(len).unwrap_or(0).to_le_bytes(),
        );
    }

    /// The last entry takes what is left; where there is none, one that is not in use does.
    fn seal(mut self, seed: u32) -> [u8; BLOCK_LEN] {
        self.set_len(self.last, ROOM - self.last);
        let sum = crc32c(seed, self.bytes.get(..ROOM).unwrap_or_default());
        put(&mut self.bytes, ROOM + 4, &[12, 0, 0, TAIL_KIND]);
        put(&mut self.bytes, ROOM + 8, &sum.to_le_bytes());
        self.bytes
    }
}

fn len(name: &[u8]) -> usize {
    (ENTRY + name.len()).next_multiple_of(4)
}
