//! Bounded decompression of the formats that kernels, modules and archives come in.
//!
//! Used by [`crate::vmlinuz`], [`crate::modules`] and [`crate::rootfs_tar`]. Everything decompressed here may come
//! from a stranger, so the output is bounded by the caller and the decoders' dictionaries are bounded here; none of
//! the decoders used contains unsafe code that depends on the input. Compression is not done here.

use std::fmt;
use std::io::{self, BufRead, Read};

use ruzstd::decoding::StreamingDecoder;

/// The most memory a decoder's dictionary may take, in KiB. `xz -9` needs 64 MiB, kernels' `zstd --ultra -22` 128 MiB.
const DICTIONARY_LIMIT_KIB: u32 = 192 * 1024;

/// A block of the legacy LZ4 frame decompresses to at most this many bytes (`lz4.h`, `LEGACY_BLOCKSIZE`).
const LZ4_LEGACY_BLOCK: usize = 8 << 20;

/// A compression format, recognised by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// RFC 1952.
    Gzip,
    /// The `.xz` container with LZMA2 and, in kernels, the x86 BCJ filter.
    Xz,
    /// The older `.lzma` format ("LZMA alone").
    Lzma,
    /// The legacy LZ4 frame, as written by `lz4 -l` and used by Linux.
    Lz4Legacy,
    /// RFC 8878.
    Zstd,
    /// Recognised so that it can be named, but not decompressed.
    Bzip2,
    /// Recognised so that it can be named, but not decompressed.
    Lzop,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Lz4Legacy => "lz4",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Lzop => "lzo",
        })
    }
}

/// Why something could not be decompressed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The format is known but not one that this program reads.
    #[error("{format} compression is not supported")]
    Unsupported {
        /// What the data is compressed with.
        format: Format,
    },
    /// The data is damaged or cut short.
    #[error("damaged {format} data")]
    Damaged {
        /// What the data is compressed with.
        format: Format,
        /// What the decoder said.
        #[source]
        source: io::Error,
    },
    /// The output would be larger than the caller allows.
    #[error("{format} data decompresses to more than {limit} bytes")]
    TooLarge {
        /// What the data is compressed with.
        format: Format,
        /// The bound, in bytes.
        limit: u64,
    },
}

/// Recognises a format by the first bytes of the data; `None` where nothing matches (so perhaps it is not compressed).
#[must_use]
pub fn detect(head: &[u8]) -> Option<Format> {
    // The same magic numbers as Linux' lib/decompress.c, with lz4's and lzop's from scripts/extract-vmlinux.
    const MAGIC: [(&[u8], Format); 7] = [
        (b"\x1f\x8b\x08", Format::Gzip),
        (b"\xfd7zXZ\0", Format::Xz),
        (b"\x02\x21\x4c\x18", Format::Lz4Legacy),
        (b"\x28\xb5\x2f\xfd", Format::Zstd),
        (b"BZh", Format::Bzip2),
        (b"\x89LZO\0", Format::Lzop),
        (b"\x5d\0\0", Format::Lzma),
    ];
    MAGIC
        .iter()
        .find(|(magic, _)| head.starts_with(magic))
        .map(|(_, format)| *format)
}

/// Decompresses the first stream in `data` and ignores what follows it: Linux appends the size to a kernel's payload.
pub fn to_vec(format: Format, data: &[u8], limit: u64) -> Result<Vec<u8>, Error> {
    let damaged = |source| Error::Damaged { format, source };
    let decoder: Box<dyn Read + '_> = match format {
        Format::Gzip => Box::new(flate2::bufread::GzDecoder::new(data)),
        Format::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(
            data,
            false,
            DICTIONARY_LIMIT_KIB,
        )),
        Format::Lzma => Box::new(
            lzma_rust2::LzmaReader::new_mem_limit(data, DICTIONARY_LIMIT_KIB, None).map_err(damaged)?,
        ),
        Format::Lz4Legacy => return lz4_legacy(data, limit),
        Format::Zstd => {
            Box::new(StreamingDecoder::new(data).map_err(|error| damaged(io::Error::other(error)))?)
        }
        Format::Bzip2 | Format::Lzop => return Err(Error::Unsupported { format }),
    };
    let mut out = Vec::new();
    let read = decoder
        .take(limit.saturating_add(1))
        .read_to_end(&mut out)
        .map_err(damaged)?;
    if read as u64 > limit {
        Err(Error::TooLarge { format, limit })
    } else {
        Ok(out)
    }
}

/// A reader over everything in a compressed file, concatenated streams included (as `gzip`, `xz` and `zstd` read them).
/// The caller bounds what it reads.
pub fn reader<'a>(
    format: Format,
    input: impl BufRead + Send + 'a,
) -> Result<Box<dyn Read + Send + 'a>, Error> {
    match format {
        Format::Gzip => Ok(Box::new(GzipMembers {
            state: GzipState::Between(input),
        })),
        Format::Xz => Ok(Box::new(lzma_rust2::XzReader::new_mem_limit(
            input,
            true,
            DICTIONARY_LIMIT_KIB,
        ))),
        Format::Zstd => Ok(Box::new(ZstdFrames {
            state: ZstdState::Between(input),
        })),
        Format::Lzma | Format::Lz4Legacy | Format::Bzip2 | Format::Lzop => Err(Error::Unsupported { format }),
    }
}

/// A legacy frame is the magic, then blocks of `le32 size` and raw LZ4 block data until the end of the file. Linux
/// appends the uncompressed size as four more bytes, which therefore look like the header of a block that is not there.
fn lz4_legacy(data: &[u8], limit: u64) -> Result<Vec<u8>, Error> {
    const FORMAT: Format = Format::Lz4Legacy;
    let damaged = |message: String| Error::Damaged {
        format: FORMAT,
        source: io::Error::new(io::ErrorKind::InvalidData, message),
    };
    let mut rest = data.get(4..).unwrap_or_default();
    let mut out = Vec::new();
    let mut block = vec![0_u8; LZ4_LEGACY_BLOCK];
    while let Some((head, tail)) = rest.split_first_chunk::<4>() {
        let size = u32::from_le_bytes(*head) as usize;
        if tail.is_empty() {
            // The appended size: it is what the whole must come to, modulo 2^32.
            if out.len() & 0xffff_ffff != size {
                return Err(damaged(format!("{} bytes where {size} were promised", out.len())));
            }
            return Ok(out);
        }
        let Some((compressed, tail)) = tail.split_at_checked(size) else {
            return Err(damaged(format!(
                "a block of {size} bytes is cut short at {}",
                tail.len()
            )));
        };
        let written = lz4_flex::block::decompress_into(compressed, &mut block)
            .map_err(|error| damaged(error.to_string()))?;
        out.extend_from_slice(block.get(..written).unwrap_or_default());
        if out.len() as u64 > limit {
            return Err(Error::TooLarge {
                format: FORMAT,
                limit,
            });
        }
        rest = tail;
    }
    if rest.is_empty() {
        Ok(out)
    } else {
        Err(damaged(format!("{} stray bytes at the end", rest.len())))
    }
}

/// Reads zstd frames one after another; the decoder itself stops after the first. Frames to be skipped, in which some
/// writers of layers put an index, are (RFC 8878, section 3.1.2).
struct ZstdFrames<R: Read> {
    state: ZstdState<R>,
}

enum ZstdState<R: Read> {
    Between(R),
    Inside(Box<StreamingDecoder<Begun<R>, ruzstd::decoding::FrameDecoder>>),
    Done,
}

/// A frame of which the magic number has been read.
struct Begun<R> {
    magic: io::Cursor<[u8; 4]>,
    rest: R,
}

impl<R: Read> Read for Begun<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.magic.read(buf)? {
            0 => self.rest.read(buf),
            read => Ok(read),
        }
    }
}

impl<R: BufRead> ZstdFrames<R> {
    /// Begins the next frame that holds something; `None` at the end.
    fn begin(mut input: R) -> io::Result<Option<Begun<R>>> {
        loop {
            if input.fill_buf()?.is_empty() {
                return Ok(None);
            }
            let mut magic = [0; 4];
            input.read_exact(&mut magic)?;
            if u32::from_le_bytes(magic) & 0xffff_fff0 != 0x184d_2a50 {
                return Ok(Some(Begun {
                    magic: io::Cursor::new(magic),
                    rest: input,
                }));
            }
            let mut len = [0; 4];
            input.read_exact(&mut len)?;
            let len = u64::from(u32::from_le_bytes(len));
            if io::copy(&mut input.by_ref().take(len), &mut io::sink())? < len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.state, ZstdState::Done) {
                ZstdState::Between(input) => {
                    let Some(frame) = Self::begin(input)? else {
                        return Ok(0);
                    };
                    let decoder = StreamingDecoder::new(frame).map_err(io::Error::other)?;
                    self.state = ZstdState::Inside(Box::new(decoder));
                }
                ZstdState::Inside(mut decoder) => {
                    let read = decoder.read(buf)?;
                    if read > 0 {
                        self.state = ZstdState::Inside(decoder);
                        return Ok(read);
                    }
                    self.state = ZstdState::Between(decoder.into_inner().rest);
                }
                ZstdState::Done => return Ok(0),
            }
        }
    }
}

/// Reads gzip members one after another, and the zeros that some writers fill the last record of a tape with, which
/// gzip(1) ignores as well.
struct GzipMembers<R> {
    state: GzipState<R>,
}

enum GzipState<R> {
    Between(R),
    Inside(flate2::bufread::GzDecoder<R>),
    Padding(R),
    Done,
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.state, GzipState::Done) {
                GzipState::Between(mut input) => {
                    self.state = match input.fill_buf()? {
                        [] => return Ok(0),
                        [0, ..] => GzipState::Padding(input),
                        _ => GzipState::Inside(flate2::bufread::GzDecoder::new(input)),
                    };
                }
                GzipState::Inside(mut decoder) => {
                    let read = decoder.read(buf)?;
                    if read > 0 {
                        self.state = GzipState::Inside(decoder);
                        return Ok(read);
                    }
                    self.state = GzipState::Between(decoder.into_inner());
                }
                GzipState::Padding(mut input) => {
                    let padding = input.fill_buf()?;
                    let len = padding.len();
                    if len == 0 {
                        return Ok(0);
                    }
                    if padding.iter().any(|byte| *byte != 0) {
                        return Err(io::Error::new(
                            io::ErrorKind::InvalidData,
                            "something follows the padding after the end",
                        ));
                    }
                    input.consume(len);
                    self.state = GzipState::Padding(input);
                }
                GzipState::Done => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf hello | gzip -n`.
    const GZIP: &[u8] = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xcb\x48\xcd\xc9\xc9\x07\0\x86\xa6\x10\x36\x05\0\0\0";

    fn lz4(blocks: &[&[u8]], trailer: Option<u32>) -> Vec<u8> {
        let mut data = b"\x02\x21\x4c\x18".to_vec();
        for block in blocks {
            let compressed = lz4_flex::block::compress(block);
            data.extend_from_slice(&u32::try_from(compressed.len()).unwrap().to_le_bytes());
            data.extend_from_slice(&compressed);
        }
        if let Some(trailer) = trailer {
            data.extend_from_slice(&trailer.to_le_bytes());
        }
        data
    }

    #[test]
    fn formats_are_recognised_by_their_first_bytes() {
        assert_eq!(detect(GZIP), Some(Format::Gzip));
        assert_eq!(detect(b"\xfd7zXZ\0rest"), Some(Format::Xz));
        assert_eq!(detect(b"\x28\xb5\x2f\xfd"), Some(Format::Zstd));
        assert_eq!(detect(b"\x7fELF"), None);
        assert_eq!(detect(b""), None);
    }

    #[test]
    fn gzip_ignores_what_follows_and_respects_the_bound() {
        let mut data = GZIP.to_vec();
        data.extend_from_slice(&[5, 0, 0, 0]);
        assert_eq!(to_vec(Format::Gzip, &data, 5).unwrap(), b"hello");
        assert!(matches!(
            to_vec(Format::Gzip, &data, 4),
            Err(Error::TooLarge { limit: 4, .. })
        ));
        assert!(matches!(
            to_vec(Format::Gzip, &data[..20], 5),
            Err(Error::Damaged { .. })
        ));
    }

    #[test]
    fn lz4_blocks_are_joined_and_the_appended_size_is_checked() {
        let blocks: [&[u8]; 2] = [&[7; 1000], b"end"];
        assert_eq!(
            to_vec(Format::Lz4Legacy, &lz4(&blocks, None), 2000)
                .unwrap()
                .len(),
            1003
        );
        assert_eq!(
            to_vec(Format::Lz4Legacy, &lz4(&blocks, Some(1003)), 2000)
                .unwrap()
                .len(),
            1003
        );
        for wrong in [lz4(&blocks, Some(1004)), lz4(&blocks, None)[..20].to_vec()] {
            assert!(matches!(
                to_vec(Format::Lz4Legacy, &wrong, 2000),
                Err(Error::Damaged { .. })
            ));
        }
        let bomb = lz4(&[&[0; 8 << 20], &[0; 8 << 20]], None);
        assert!(matches!(
            to_vec(Format::Lz4Legacy, &bomb, 9 << 20),
            Err(Error::TooLarge { .. })
        ));
    }

    #[test]
    fn readers_go_on_to_the_next_stream() {
        let twice = [GZIP, GZIP].concat();
        let mut text = String::new();
        reader(Format::Gzip, twice.as_slice())
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "hellohello");
        let padded = [GZIP, &[0; 1000]].concat();
        let mut text = String::new();
        reader(Format::Gzip, padded.as_slice())
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "hello");
        for after in [b"\0x".as_slice(), b"x"] {
            let damaged = [GZIP, after].concat();
            assert!(
                reader(Format::Gzip, damaged.as_slice())
                    .unwrap()
                    .read_to_string(&mut text)
                    .is_err()
            );
        }

        let frame = ruzstd::encoding::compress_to_vec(
            b"hello".as_slice(),
            ruzstd::encoding::CompressionLevel::Fastest,
        );
        let skipped = b"\x5e\x2a\x4d\x18\x05\0\0\0index";
        let twice = [frame.as_slice(), skipped, &frame, skipped].concat();
        let mut text = String::new();
        reader(Format::Zstd, twice.as_slice())
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "hellohello");
        assert_eq!(
            to_vec(Format::Zstd, &[frame.as_slice(), &[5, 0, 0, 0]].concat(), 5).unwrap(),
            b"hello"
        );
        assert!(
            reader(Format::Zstd, &twice[..twice.len() - 1])
                .unwrap()
                .read_to_string(&mut text)
                .is_err()
        );
        assert!(
            reader(Format::Zstd, &frame[..frame.len() - 2])
                .unwrap()
                .read_to_string(&mut text)
                .is_err()
        );
    }

    #[test]
    fn unsupported_formats_are_named() {
        let error = to_vec(Format::Bzip2, b"BZh9", 10).unwrap_err();
        assert_eq!(error.to_string(), "bzip2 compression is not supported");
    }
}
