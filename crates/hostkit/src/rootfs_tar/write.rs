//! Writing the archive of a root file system: the way back of [`super::unpack`].
//!
//! ustar, with pax records (POSIX.1-2001, `pax` "Extended Header") for what does not fit into its fields, extended
//! attributes as `SCHILY.xattr.*`, and sparse files as GNU's 1.0 (GNU tar's manual, appendix D.2.3). The same tree gives the
//! same bytes: nothing is in them but what the tree says.

use std::io::{self, Write};
use std::ops::Range;

use super::{Kind, Node, RECORD};

/// What fits into an octal field of so many bytes, the last of which ends it.
const OCTAL_7: u64 = 0o777_7777;
const OCTAL_11: u64 = 0o777_7777_7777;
const NAME: usize = 100;

/// Writes entries; [`Writer::finish`] ends the archive.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
}

/// The contents of a file that is being written.
pub trait Source {
    /// What is no hole, in order: neither overlapping nor beyond the end.
    fn data(&self) -> Vec<Range<u64>>;
    /// Reads at an offset; nothing only where there is nothing more.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;
}

impl<W: Write> Writer<W> {
    /// Begins an archive.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Writes an entry; `contents` is a file's and not looked at for anything else. `watch` is called with the bytes written
    /// of it about once a megabyte; its error ends the writing.
    pub fn entry(
        &mut self,
        path: &[u8],
        node: &Node,
        contents: Option<&dyn Source>,
        mut watch: impl FnMut(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut header = Header::new(node)?;
        let mut name = match path {
            b"" => b"./".to_vec(),
            path if matches!(node.kind, Kind::Directory) => [path, b"/"].concat(),
            path => path.to_vec(),
        };
        let mut pieces = Vec::new();
        let mut map = Vec::new();
        match &node.kind {
            Kind::File { size, .. } => {
                header.kind(b'0');
                pieces = contents.map(Source::data).unwrap_or_default();
                let data: u64 = pieces.iter().map(|piece| piece.end - piece.start).sum();
                if data < *size {
                    map = sparse_map(&pieces, *size);
                    header.record(b"GNU.sparse.major", b"1");
                    header.record(b"GNU.sparse.minor", b"0");
                    header.record(b"GNU.sparse.name", path);
                    header.record(b"GNU.sparse.realsize", size.to_string().as_bytes());
                    // What tools that know nothing of this unpack it as.
                    let at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
                    let (directory, file) = path.split_at(at);
                    name = [directory, b"GNUSparseFile.0/", file].concat();
                }
                header.size(data + map.len() as u64);
            }
            Kind::Directory => header.kind(b'5'),
            Kind::Symlink { target } => {
                header.kind(b'2');
                header.link(target);
            }
            Kind::Link { to } => {
                header.kind(b'1');
                header.link(to);
            }
            Kind::CharDevice { major, minor } => {
                header.kind(b'3');
                header.device(*major, *minor);
            }
            Kind::BlockDevice { major, minor } => {
                header.kind(b'4');
                header.device(*major, *minor);
            }
            Kind::Fifo => header.kind(b'6'),
        }
        header.name(&name);
        header.write(&mut self.out)?;
        self.out.write_all(&map)?;
        let Some(contents) = contents.filter(|_| matches!(node.kind, Kind::File { .. })) else {
            return Ok(());
        };
        let (mut buffer, mut done) = (vec![0; 1 << 20], 0_u64);
        for piece in pieces {
            let mut at = piece.start;
            while at < piece.end {
                let want = usize::try_from(piece.end - at)
                    .unwrap_or(usize::MAX)
                    .min(buffer.len());
                let read = contents.read_at(buffer.get_mut(..want).unwrap_or_default(), at)?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.out.write_all(buffer.get(..read).unwrap_or_default())?;
                at += read as u64;
                done += read as u64;
                watch(done)?;
            }
        }
        pad(&mut self.out, done)
    }

    /// Ends the archive: two empty records.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * RECORD])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

fn pad(out: &mut impl Write, len: u64) -> io::Result<()> {
    let over = usize::try_from(len % RECORD as u64).unwrap_or(0);
    match over {
        0 => Ok(()),
        over => out.write_all([0; RECORD].get(over..).unwrap_or_default()),
    }
}

/// Numbers in decimal, a line each: how many pieces, then offset and length of each; whole records. A hole at the end is an
/// empty piece there.
fn sparse_map(pieces: &[Range<u64>], size: u64) -> Vec<u8> {
    let ends_in_hole = pieces.last().is_none_or(|last| last.end < size);
    let mut text = format!("{}\n", pieces.len() + usize::from(ends_in_hole)).into_bytes();
    for piece in pieces {
        text.extend(format!("{}\n{}\n", piece.start, piece.end - piece.start).into_bytes());
    }
    if ends_in_hole {
        text.extend(format!("{size}\n0\n").into_bytes());
    }
    text.resize(text.len().next_multiple_of(RECORD), 0);
    text
}

/// A header, with the pax records of what does not fit into it.
struct Header {
    fields: [u8; RECORD],
    records: Vec<u8>,
}

impl Header {
    fn new(node: &Node) -> io::Result<Self> {
        let mut header = Self {
            fields: [0; RECORD],
            records: Vec::new(),
        };
        header.octal(100, 8, u64::from(node.mode));
        header.number(108, 8, OCTAL_7, b"uid", node.uid.into());
        header.number(116, 8, OCTAL_7, b"gid", node.gid.into());
        header.size(0);
        header.number(136, 12, OCTAL_11, b"mtime", node.mtime);
        header.put(257, b"ustar\x0000");
        for (name, value) in &node.xattrs {
            // It ends a key there, and nothing else is said to.
            if name.contains(&b'=') {
                let name = String::from_utf8_lossy(name);
                let problem = format!("an archive cannot hold the extended attribute {name:?}");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
            }
            header.record(&[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        Ok(header)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(field) = self.fields.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    }

    fn octal(&mut self, at: usize, len: usize, value: u64) {
        self.put(at, format!("{value:0width$o}", width = len - 1).as_bytes());
    }

    /// A number in its field, or as a record where it is too large for that.
    fn number(&mut self, at: usize, len: usize, limit: u64, key: &[u8], value: u64) {
        if value > limit {
            self.record(key, value.to_string().as_bytes());
        }
        self.octal(at, len, if value > limit { 0 } else { value });
    }

    fn size(&mut self, size: u64) {
        self.number(124, 12, OCTAL_11, b"size", size);
    }

    fn kind(&mut self, kind: u8) {
        self.put(156, &[kind]);
    }

    fn device(&mut self, major: u32, minor: u32) {
        self.octal(329, 8, major.into());
        self.octal(337, 8, minor.into());
    }

    fn name(&mut self, name: &[u8]) {
        self.text(0, b"path", name);
    }

    fn link(&mut self, target: &[u8]) {
        self.text(157, b"linkpath", target);
    }

    fn text(&mut self, at: usize, key: &[u8], text: &[u8]) {
        if text.len() > NAME {
            self.record(key, text);
        }
        self.put(at, text.get(..NAME).unwrap_or(text));
    }

    /// `LENGTH KEY=VALUE\n`, where the length counts itself.
    fn record(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut len = rest;
        while rest + len.to_string().len() != len {
            len = rest + len.to_string().len();
        }
        self.records.extend(len.to_string().into_bytes());
        for part in [b" ", key, b"=", value, b"\n"] {
            self.records.extend_from_slice(part);
        }
    }

    fn seal(&mut self) {
        self.put(148, b"        ");
        let sum: u64 = self.fields.iter().copied().map(u64::from).sum();
        self.put(148, format!("{sum:06o}\0 ").as_bytes());
    }

    fn write(mut self, out: &mut impl Write) -> io::Result<()> {
        if !self.records.is_empty() {
            let mut extended = Self {
                fields: [0; RECORD],
                records: Vec::new(),
            };
            extended.put(0, b"PaxHeaders/0");
            extended.octal(100, 8, 0o644);
            extended.octal(108, 8, 0);
            extended.octal(116, 8, 0);
            extended.octal(124, 12, self.records.len() as u64);
            extended.octal(136, 12, 0);
            extended.kind(b'x');
            extended.put(257, b"ustar\x0000");
            extended.seal();
            out.write_all(&extended.fields)?;
            out.write_all(&self.records)?;
            pad(out, self.records.len() as u64)?;
        }
        self.seal();
        out.write_all(&self.fields)
    }
}
