//! A file system that `mke2fs` has just made: which blocks are free, where inodes go, and the sums that are kept of both.
//!
//! Only the groups that are looked at are held in memory, since a disk may have a hundred thousand of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{BLOCK, BLOCK_LEN, LOST_AND_FOUND, ROOT, halves, put, u16_at, u32_at};
use crate::ext4::{Error, crc32c};

const SUPERBLOCK: u64 = 1024;
const DESCRIPTOR: usize = 64;
pub(super) const INODE: usize = 256;
const BLOCKS_PER_GROUP: u32 = 32_768;
/// Flags of a descriptor: this bitmap, or that, is not on the disk, since nothing but what is implied is taken.
const INODES_UNINITIALISED: u16 = 1;
const BLOCKS_UNINITIALISED: u16 = 2;
/// Written at once.
const BUFFER: usize = 1 << 20;

/// A run of blocks: the first one's number, and how many.
pub(super) type Blocks = (u64, u64);

pub(super) struct Volume {
    file: File,
    path: PathBuf,
    superblock: Vec<u8>,
    descriptors: Vec<u8>,
    /// What all checksums start with.
    seed: u32,
    blocks: u64,
    inodes_per_group: u32,
    inodes: u32,
    bitmaps: BTreeMap<u32, Bitmap>,
    /// Every block before it has been given out or was taken.
    cursor: u64,
    /// What is to be written next, and where it goes.
    buffer: Vec<u8>,
    buffer_at: u64,
}

struct Bitmap {
    bits: Vec<u8>,
    /// Blocks of the group: the last one may have fewer than the others.
    len: u32,
    free: u32,
    changed: bool,
}

impl Bitmap {
    fn is_taken(&self, at: u32) -> bool {
        let byte = usize::try_from(at / 8).ok().and_then(|byte| self.bits.get(byte));
        byte.is_none_or(|byte| byte >> (at % 8) & 1 == 1)
    }

    /// Takes or frees a block.
    fn set(&mut self, at: u32, taken: bool) {
        let byte = usize::try_from(at / 8)
            .ok()
            .and_then(|byte| self.bits.get_mut(byte));
        if let Some(byte) = byte {
            let bit = 1 << (at % 8);
            *byte = if taken { *byte | bit } else { *byte & !bit };
        }
    }
}

impl Volume {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Fill {
            path: path.to_owned(),
            source,
        };
        let odd = || Error::Layout {
            path: path.to_owned(),
            what: "its layout is another one".to_owned(),
        };
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(failed)?;
        let mut superblock = vec![0; 1024];
        file.read_exact_at(&mut superblock, SUPERBLOCK).map_err(failed)?;
        let inodes_per_group = u32_at(&superblock, 0x28);
        let blocks = u64::from(u32_at(&superblock, 0x150)) << 32 | u64::from(u32_at(&superblock, 0x4));
        let groups = blocks.div_ceil(BLOCKS_PER_GROUP.into());
        let as_asked_for = u32_at(&superblock, 0x18) == 2
            && u32_at(&superblock, 0x20) == BLOCKS_PER_GROUP
            && usize::from(u16_at(&superblock, 0x58)) == INODE
            && usize::from(u16_at(&superblock, 0xfe)) == DESCRIPTOR
            // The first that is not reserved, and how much of an inode of that size is in use.
            && u32_at(&superblock, 0x54) == LOST_AND_FOUND
            && u16_at(&superblock, 0x15e) == 32
            // Checksums of metadata, and what they start with.
            && u32_at(&superblock, 0x64) & 0x400 != 0
            && u32_at(&superblock, 0x60) & 0x2000 == 0;
        if !as_asked_for || inodes_per_group < 16 || !inodes_per_group.is_multiple_of(8) {
            return Err(odd());
        }
        let groups = u32::try_from(groups).map_err(|_| odd())?;
        // They begin in the block after the superblock's.
        let mut descriptors = vec![0; usize::try_from(groups).unwrap_or(0) * DESCRIPTOR];
        file.read_exact_at(&mut descriptors, BLOCK).map_err(failed)?;
        let seed = crc32c(u32::MAX, superblock.get(0x68..0x78).unwrap_or_default());
        let mut volume = Self {
            file,
            path: path.to_owned(),
            descriptors,
            seed,
            blocks,
            inodes_per_group,
            inodes: u32_at(&superblock, 0),
            superblock,
            bitmaps: BTreeMap::new(),
            cursor: 0,
            buffer: Vec::new(),
            buffer_at: 0,
        };
        // Both are written anew.
        for ino in [ROOT, LOST_AND_FOUND] {
            volume.free_contents(ino)?;
        }
        Ok(volume)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn seed(&self) -> u32 {
        self.seed
    }

    pub(super) fn inodes(&self) -> u32 {
        self.inodes
    }

    /// The group that an inode is in.
    pub(super) fn group_of(&self, ino: u32) -> u32 {
        (ino - 1) / self.inodes_per_group
    }

    /// The next free blocks, in as few runs as there are.
    pub(super) fn allocate(&mut self, mut count: u64) -> Result<Vec<Blocks>, Error> {
        let mut runs = Vec::new();
        while count > 0 {
            let (start, len) = self.next_free(count)?;
            runs.push((start, len));
            count -= len;
        }
        Ok(runs)
    }

    /// The next run of free blocks, at most `limit` of them, which are taken from now on.
    fn next_free(&mut self, limit: u64) -> Result<Blocks, Error> {
        let per_group = u64::from(BLOCKS_PER_GROUP);
        while self.cursor < self.blocks {
            let group = u32::try_from(self.cursor / per_group).unwrap_or(u32::MAX);
            let mut at = u32::try_from(self.cursor % per_group).unwrap_or(0);
            let bitmap = self.bitmap(group)?;
            while at < bitmap.len && bitmap.is_taken(at) {
                at += 1;
            }
            let start = at;
            let limit = u32::try_from(limit).unwrap_or(u32::MAX);
            while at < bitmap.len && at - start < limit && !bitmap.is_taken(at) {
                bitmap.set(at, true);
                at += 1;
            }
            let (len, end) = (at - start, at >= bitmap.len);
            bitmap.free -= len;
            bitmap.changed |= len > 0;
            let first = u64::from(group) * per_group;
            self.cursor = match end {
                true => first + per_group,
                false => first + u64::from(at),
            };
            if len > 0 {
                return Ok((first + u64::from(start), len.into()));
            }
        }
        Err(self.full())
    }

    pub(super) fn full(&self) -> Error {
        Error::Full {
            path: self.path.clone(),
        }
    }

    fn bitmap(&mut self, group: u32) -> Result<&mut Bitmap, Error> {
        if !self.bitmaps.contains_key(&group) {
            let bitmap = self.read_bitmap(group)?;
            self.bitmaps.insert(group, bitmap);
        }
        let odd = self.odd(format!("there is no group {group}"));
        self.bitmaps.get_mut(&group).ok_or(odd)
    }

    fn read_bitmap(&self, group: u32) -> Result<Bitmap, Error> {
        let descriptor = self.descriptor(group)?;
        let flags = u16_at(descriptor, 0x12);
        let first = u64::from(group) * u64::from(BLOCKS_PER_GROUP);
        let left = self.blocks.saturating_sub(first).min(BLOCKS_PER_GROUP.into());
        let mut bitmap = Bitmap {
            bits: vec![0; BLOCK_LEN],
            len: u32::try_from(left).unwrap_or(0),
            free: u32::from(u16_at(descriptor, 0xc)) | u32::from(u16_at(descriptor, 0x2c)) << 16,
            changed: false,
        };
        if flags & BLOCKS_UNINITIALISED == 0 {
            let place = u64::from(u32_at(descriptor, 0x20)) << 32 | u64::from(u32_at(descriptor, 0));
            self.read(place * BLOCK, &mut bitmap.bits)?;
        } else {
            // A copy of the superblock and of the descriptors, with room for those of a larger file system.
            let copies = match has_superblock(group) {
                true => {
                    let descriptors = self.descriptors.len().div_ceil(BLOCK_LEN);
                    1 + u32::try_from(descriptors).unwrap_or(0) + u32::from(u16_at(&self.superblock, 0xce))
                }
                false => 0,
            };
            for at in (0..copies).chain(bitmap.len..BLOCKS_PER_GROUP) {
                bitmap.set(at, true);
            }
        }
        let taken: u32 = bitmap.bits.iter().map(|byte| byte.count_ones()).sum();
        let beyond = BLOCKS_PER_GROUP - bitmap.len;
        match taken.checked_sub(beyond) {
            Some(taken) if taken + bitmap.free == bitmap.len => Ok(bitmap),
            Some(_) | None => Err(self.odd(format!("the free blocks of group {group} are others"))),
        }
    }

    /// Frees what a directory has that is written anew.
    fn free_contents(&mut self, ino: u32) -> Result<(), Error> {
        let mut inode = [0; INODE];
        self.read(self.inode_at(ino)?, &mut inode)?;
        let map = inode.get(0x28..0x64).unwrap_or_default();
        let (magic, entries, depth) = (u16_at(map, 0), usize::from(u16_at(map, 2)), u16_at(map, 6));
        if magic != super::extents::MAGIC || entries > 4 || depth != 0 {
            return Err(self.odd(format!("inode {ino} is no small directory")));
        }
        for entry in map.chunks_exact(12).skip(1).take(entries) {
            let start = u64::from(u16_at(entry, 6)) << 32 | u64::from(u32_at(entry, 8));
            for block in start..start + u64::from(u16_at(entry, 4)) {
                let group = u32::try_from(block / u64::from(BLOCKS_PER_GROUP)).unwrap_or(u32::MAX);
                let at = u32::try_from(block % u64::from(BLOCKS_PER_GROUP)).unwrap_or(0);
                let bitmap = self.bitmap(group)?;
                if !bitmap.is_taken(at) {
                    return Err(self.odd(format!("inode {ino} has free blocks")));
                }
                bitmap.set(at, false);
                bitmap.free += 1;
                bitmap.changed = true;
            }
        }
        Ok(())
    }

    fn descriptor(&self, group: u32) -> Result<&[u8], Error> {
        let at = usize::try_from(group)
            .unwrap_or(usize::MAX)
            .saturating_mul(DESCRIPTOR);
        let found = self.descriptors.get(at..at.saturating_add(DESCRIPTOR));
        found.ok_or_else(|| self.odd(format!("there is no group {group}")))
    }

    /// Where an inode is, in bytes from the beginning.
    pub(super) fn inode_at(&self, ino: u32) -> Result<u64, Error> {
        let index = (ino - 1) % self.inodes_per_group;
        let descriptor = self.descriptor(self.group_of(ino))?;
        let table = u64::from(u32_at(descriptor, 0x28)) << 32 | u64::from(u32_at(descriptor, 0x8));
        Ok(table * BLOCK + u64::from(index) * INODE as u64)
    }

    /// Writes somewhere; what follows on what was written before is collected.
    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), Error> {
        if self.buffer_at + self.buffer.len() as u64 != at || self.buffer.len() >= BUFFER {
            self.flush()?;
            self.buffer_at = at;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        let written = self.file.write_all_at(&self.buffer, self.buffer_at);
        written.map_err(|source| self.failed(source))?;
        self.buffer.clear();
        Ok(())
    }

    /// Writes bitmaps, descriptors and the superblock: `inodes` is the last that is in use, and all before it are;
    /// `directories` are how many of them are directories, in each group.
    pub(super) fn finish(mut self, inodes: u32, directories: &BTreeMap<u32, u32>) -> Result<(), Error> {
        let mut taken = 0_i64;
        let bitmaps = std::mem::take(&mut self.bitmaps);
        let mut changed: Vec<u32> = Vec::new();
        for (group, bitmap) in bitmaps.into_iter().filter(|(_, bitmap)| bitmap.changed) {
            let before = self.descriptor(group)?;
            taken += i64::from(u32::from(u16_at(before, 0xc)) | u32::from(u16_at(before, 0x2c)) << 16);
            taken -= i64::from(bitmap.free);
            let place = u64::from(u32_at(before, 0x20)) << 32 | u64::from(u32_at(before, 0));
            self.write(place * BLOCK, &bitmap.bits)?;
            let sum = crc32c(self.seed, &bitmap.bits);
            self.change(group, |descriptor| {
                put_split(descriptor, 0xc, 0x2c, bitmap.free);
                put_split(descriptor, 0x18, 0x38, sum);
                clear_flag(descriptor, BLOCKS_UNINITIALISED);
            })?;
            changed.push(group);
        }
        let reserved_before = LOST_AND_FOUND;
        for group in 0..=self.group_of(inodes) {
            let used = (inodes - group * self.inodes_per_group).min(self.inodes_per_group);
            self.take_inodes(group, used, directories.get(&group).copied().unwrap_or(0))?;
            changed.push(group);
        }
        changed.sort_unstable();
        changed.dedup();
        for group in changed {
            let seed = crc32c(self.seed, &group.to_le_bytes());
            self.change(group, |descriptor| {
                put(descriptor, 0x1e, &[0, 0]);
                let (sum, _) = halves(crc32c(seed, descriptor));
                put(descriptor, 0x1e, &sum);
            })?;
            let descriptor = self.descriptor(group)?.to_vec();
            self.write(BLOCK + u64::from(group) * DESCRIPTOR as u64, &descriptor)?;
        }
        let free =
            u64::from(u32_at(&self.superblock, 0x158)) << 32 | u64::from(u32_at(&self.superblock, 0xc));
        let free = free.checked_add_signed(-taken);
        let free = free.ok_or_else(|| self.odd("it has fewer free blocks than were taken".to_owned()))?;
        let ([a, b, c, d], high) = super::low_high(free);
        put(&mut self.superblock, 0xc, &[a, b, c, d]);
        let [e, f] = high;
        put(&mut self.superblock, 0x158, &[e, f, 0, 0]);
        let free_inodes = u32_at(&self.superblock, 0x10);
        let free_inodes = free_inodes
            .checked_sub(inodes - reserved_before)
            .ok_or_else(|| self.full())?;
        put(&mut self.superblock, 0x10, &free_inodes.to_le_bytes());
        let sum = crc32c(u32::MAX, self.superblock.get(..0x3fc).unwrap_or_default());
        put(&mut self.superblock, 0x3fc, &sum.to_le_bytes());
        let superblock = std::mem::take(&mut self.superblock);
        self.write(SUPERBLOCK, &superblock)?;
        self.flush()
    }

    /// Marks the first `used` inodes of a group as in use, of which so many are directories.
    fn take_inodes(&mut self, group: u32, used: u32, directories: u32) -> Result<(), Error> {
        let per_group = self.inodes_per_group;
        let mut bits = vec![0_u8; BLOCK_LEN];
        for at in (0..used).chain(per_group..BLOCKS_PER_GROUP) {
            if let Some(byte) = usize::try_from(at / 8).ok().and_then(|byte| bits.get_mut(byte)) {
                *byte |= 1 << (at % 8);
            }
        }
        let descriptor = self.descriptor(group)?;
        let place = u64::from(u32_at(descriptor, 0x24)) << 32 | u64::from(u32_at(descriptor, 0x4));
        self.write(place * BLOCK, &bits)?;
        let len = usize::try_from(per_group / 8).unwrap_or(0);
        let sum = crc32c(self.seed, bits.get(..len).unwrap_or_default());
        self.change(group, |descriptor| {
            put_split(descriptor, 0xe, 0x2e, per_group - used);
            put_split(descriptor, 0x10, 0x30, directories);
            // Those at the end that were never used.
            put_split(descriptor, 0x1c, 0x32, per_group - used);
            put_split(descriptor, 0x1a, 0x3a, sum);
            clear_flag(descriptor, INODES_UNINITIALISED);
        })
    }

    fn change(&mut self, group: u32, change: impl FnOnce(&mut [u8])) -> Result<(), Error> {
        let odd = self.odd(format!("there is no group {group}"));
        let at = usize::try_from(group)
            .unwrap_or(usize::MAX)
            .saturating_mul(DESCRIPTOR);
        let descriptor = self.descriptors.get_mut(at..at.saturating_add(DESCRIPTOR));
        change(descriptor.ok_or(odd)?);
        Ok(())
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let read = self.file.read_exact_at(bytes, at);
        read.map_err(|source| self.failed(source))
    }

    pub(super) fn odd(&self, what: String) -> Error {
        Error::Layout {
            path: self.path.clone(),
            what,
        }
    }

    pub(super) fn failed(&self, source: io::Error) -> Error {
        Error::Fill {
            path: self.path.clone(),
            source,
        }
    }
}

/// Of which groups there is a copy in (`sparse_super`): the first two, and powers of 3, 5 and 7.
fn has_superblock(group: u32) -> bool {
    let mut powers = [3_u32, 5, 7]
        .into_iter()
        .flat_map(|of| std::iter::successors(Some(of), move |n| n.checked_mul(of)));
    group <= 1 || powers.any(|n| n == group)
}

fn put_split(descriptor: &mut [u8], low: usize, high: usize, value: u32) {
    let halves = halves(value);
    put(descriptor, low, &halves.0);
    put(descriptor, high, &halves.1);
}

fn clear_flag(descriptor: &mut [u8], flag: u16) {
    let flags = u16_at(descriptor, 0x12) & !flag;
    put(descriptor, 0x12, &flags.to_le_bytes());
}
