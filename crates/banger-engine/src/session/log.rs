//! A session's log on the host: what it wrote, in two files that take turns, bounded.
//!
//! ```text
//! $STATE/vms/bgrID/sessions/SESSION/log.1    the older half
//! $STATE/vms/bgrID/sessions/SESSION/log      the newer one, appended to
//! ```
//!
//! Each file is a row of records, little-endian: length of the bytes (u32), 1 for standard error (u32), the session's bytes
//! before these (u64), milliseconds since 1970 by the guest's clock (u64), the bytes. A record that a crash has cut off is
//! dropped when the log is opened to be written, and from there the guest is asked again.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;

/// A file grows to this before the next begins, bytes. There are two.
const LIMIT: u64 = 8 << 20;
const HEADER: usize = 24;
/// Bytes of one record; the protocol's own limit.
const MOST: usize = 64 << 10;

/// What was written at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// Bytes of the session before these.
    pub(super) offset: u64,
    /// Milliseconds since 1970.
    pub(super) time_ms: u64,
    /// On standard error.
    pub(super) error: bool,
    pub(super) data: Bytes,
}

impl Record {
    fn end(&self) -> u64 {
        self.offset.saturating_add(length(self.data.len()))
    }
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn newer(directory: &Path) -> PathBuf {
    directory.join("log")
}

fn older(directory: &Path) -> PathBuf {
    directory.join("log.1")
}

/// The record at a place of a file; none, where it is not there as a whole.
fn record_at(file: &File, at: u64) -> io::Result<Option<Record>> {
    let mut header = [0; HEADER];
    if !read_whole(file, &mut header, at)? {
        return Ok(None);
    }
    let number = |from: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&header[from..from + 8]);
        u64::from_le_bytes(bytes)
    };
    let first = number(0);
    let (size, error) = (first & u64::from(u32::MAX), first >> 32);
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if size == 0 || size > MOST || error > 1 {
        return Ok(None);
    }
    let mut data = vec![0; size];
    if !read_whole(file, &mut data, at + length(HEADER))? {
        return Ok(None);
    }
    Ok(Some(Record {
        offset: number(8),
        time_ms: number(16),
        error: error == 1,
        data: data.into(),
    }))
}

fn read_whole(file: &File, buffer: &mut [u8], at: u64) -> io::Result<bool> {
    match file.read_exact_at(buffer, at) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

fn step(record: &Record) -> u64 {
    length(HEADER + record.data.len())
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Where the whole records of a file end, and the session's bytes there.
fn ends(file: &File) -> io::Result<(u64, Option<u64>)> {
    let (mut at, mut offset) = (0, None);
    while let Some(record) = record_at(file, at)? {
        at += step(&record);
        offset = Some(record.end());
    }
    Ok((at, offset))
}

/// The one end that writes.
#[derive(Debug)]
pub(super) struct Writer {
    directory: PathBuf,
    file: File,
    length: u64,
    /// The session's bytes that are in it, or were.
    offset: u64,
}

impl Writer {
    /// Opens a log, and makes it where there is none.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let path = newer(directory);
        let file = File::options().create(true).append(true).read(true).open(path)?;
        let (length, offset) = ends(&file)?;
        file.set_len(length)?;
        let offset = match (offset, open(&older(directory))?) {
            (Some(offset), _) => offset,
            (None, Some(before)) => ends(&before)?.1.unwrap_or(0),
            (None, None) => 0,
        };
        Ok(Self {
            directory: directory.to_owned(),
            file,
            length,
            offset,
        })
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn append(&mut self, record: &Record) -> io::Result<()> {
        if self.length >= LIMIT {
            self.turn()?;
        }
        let size = u32::try_from(record.data.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(HEADER + record.data.len());
        bytes.extend(size.to_le_bytes());
        bytes.extend(u32::from(record.error).to_le_bytes());
        bytes.extend(record.offset.to_le_bytes());
        bytes.extend(record.time_ms.to_le_bytes());
        bytes.extend_from_slice(&record.data);
        if let Err(e) = self.file.write_all(&bytes) {
            // What is half there would be in the way of all that follows.
            self.file.set_len(self.length)?;
            return Err(e);
        }
        self.length += length(bytes.len());
        self.offset = record.end();
        Ok(())
    }

    /// What is written goes to a new file from here on.
    fn turn(&mut self) -> io::Result<()> {
        let path = newer(&self.directory);
        std::fs::rename(&path, older(&self.directory))?;
        self.file = File::options()
            .create_new(true)
            .append(true)
            .read(true)
            .open(path)?;
        self.length = 0;
        Ok(())
    }
}

/// Reads a log from its beginning, while it may be written to.
#[derive(Debug)]
pub(super) struct Reader {
    directory: PathBuf,
    file: Option<File>,
    at: u64,
}

impl Reader {
    pub(super) fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            file: None,
            at: 0,
        }
    }

    /// The next record; none, where there is none yet.
    pub(super) fn next(&mut self) -> io::Result<Option<Record>> {
        loop {
            let Some(file) = &self.file else {
                self.file = match open(&older(&self.directory))? {
                    Some(file) => Some(file),
                    None => open(&newer(&self.directory))?,
                };
                if self.file.is_none() {
                    return Ok(None);
                }
                continue;
            };
            // Whether it still is the newer one is asked before it is read: what is written after the answer is "no" is
            // in another.
            let following = self.following(file)?;
            if let Some(record) = record_at(file, self.at)? {
                self.at += step(&record);
                return Ok(Some(record));
            }
            match following {
                Some(following) => (self.file, self.at) = (Some(following), 0),
                None => return Ok(None),
            }
        }
    }

    /// The file after this one, where it is not the newest.
    fn following(&self, file: &File) -> io::Result<Option<File>> {
        let inode = file.metadata()?.ino();
        let Some(newer) = open(&newer(&self.directory))? else {
            return Ok(None);
        };
        if newer.metadata()?.ino() == inode {
            return Ok(None);
        }
        match open(&older(&self.directory))? {
            Some(older) if older.metadata()?.ino() != inode => Ok(Some(older)),
            Some(_) | None => Ok(Some(newer)),
        }
    }
}

/// How many lines are in what a reader would give.
pub(super) fn lines(directory: &Path, since_ms: u64) -> io::Result<u64> {
    let mut reader = Reader::new(directory);
    let (mut lines, mut is_open) = (0, false);
    while let Some(record) = reader.next()? {
        if record.time_ms < since_ms {
            continue;
        }
        lines += length(record.data.iter().filter(|byte| **byte == b'\n').count());
        is_open = !record.data.ends_with(b"\n");
    }
    Ok(lines + u64::from(is_open))
}

/// Leaves out the first so many lines.
#[derive(Debug)]
pub(super) struct Skip(pub(super) u64);

impl Skip {
    /// What is left of these bytes.
    pub(super) fn rest(&mut self, mut data: Bytes) -> Bytes {
        while self.0 > 0 {
            let Some(newline) = data.iter().position(|byte| *byte == b'\n') else {
                return Bytes::new();
            };
            drop(data.split_to(newline + 1));
            self.0 -= 1;
        }
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: u64, data: &[u8]) -> Record {
        Record {
            offset,
            time_ms: offset + 1,
            error: offset % 2 == 1,
            data: Bytes::copy_from_slice(data),
        }
    }

    fn all(reader: &mut Reader) -> Vec<Record> {
        std::iter::from_fn(|| reader.next().unwrap()).collect()
    }

    #[test]
    fn what_is_written_is_read_also_after_a_cut() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(all(&mut Reader::new(dir.path())), []);
        let records = [record(0, b"one\n"), record(4, b"two"), record(7, b"\nthree\n")];
        let mut reader = Reader::new(dir.path());
        let mut writer = Writer::open(dir.path()).unwrap();
        for written in &records {
            writer.append(written).unwrap();
            assert_eq!(all(&mut reader), std::slice::from_ref(written));
        }
        assert_eq!((writer.offset(), lines(dir.path(), 0).unwrap()), (14, 3));
        assert_eq!(lines(dir.path(), 8).unwrap(), 2);
        let path = newer(dir.path());
        let whole = std::fs::read(&path).unwrap();
        let second = HEADER + 4;
        let third = second + HEADER + 3;
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let kept = [second, third, whole.len()]
                .iter()
                .filter(|end| **end <= cut)
                .count();
            assert_eq!(all(&mut Reader::new(dir.path())), records[..kept], "{cut}");
            let mut writer = Writer::open(dir.path()).unwrap();
            assert_eq!(writer.offset(), [0, 4, 7][kept], "{cut}");
            // What comes is read behind what was kept.
            let next = record(writer.offset(), b"again");
            writer.append(&next).unwrap();
            assert_eq!(all(&mut Reader::new(dir.path())).last(), Some(&next), "{cut}");
        }
    }

    #[test]
    fn it_is_bounded_and_whoever_reads_along_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path()).unwrap();
        let mut along = Reader::new(dir.path());
        let data = vec![b'x'; MOST];
        let (mut offset, mut read) = (0, 0);
        while offset < 5 * LIMIT {
            writer.append(&record(offset, &data)).unwrap();
            offset += length(MOST);
            for record in all(&mut along) {
                assert_eq!(record.offset, read);
                read = record.end();
            }
        }
        assert_eq!(read, offset);
        let sizes = [newer(dir.path()), older(dir.path())].map(|path| std::fs::metadata(path).unwrap().len());
        assert!(
            sizes.iter().all(|size| *size <= LIMIT + length(MOST + HEADER)),
            "{sizes:?}"
        );
        let kept = all(&mut Reader::new(dir.path()));
        assert!(kept.windows(2).all(|pair| pair[0].end() == pair[1].offset));
        assert_eq!(kept.last().unwrap().end(), offset);
        drop(writer);
        assert_eq!(Writer::open(dir.path()).unwrap().offset(), offset);
        // The turn was made and nothing was written after it.
        std::fs::rename(newer(dir.path()), older(dir.path())).unwrap();
        assert_eq!(Writer::open(dir.path()).unwrap().offset(), offset);
    }

    #[test]
    fn the_first_lines_are_left_out() {
        for (skip, expected) in [(0, "a\nb\nc"), (1, "b\nc"), (2, "c"), (3, "")] {
            let mut skip = Skip(skip);
            let rest: Vec<u8> = ["a\nb", "", "\nc"]
                .iter()
                .flat_map(|text| skip.rest(Bytes::from(*text)))
                .collect();
            assert_eq!(rest, expected.as_bytes());
        }
    }
}
