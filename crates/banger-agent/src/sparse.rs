//! Writing a file's contents so that zeros take no room.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

/// Bytes of a file that are read before they are written.
const BUFFER: usize = 64 * 1024;

/// Zeros in units of this become holes: the block size of ext4.
const BLOCK: usize = 4096;

/// Which side of a copy failed.
pub(crate) enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

/// Copies exactly `size` bytes into a new file, leaving holes where whole blocks are zero.
pub(crate) fn write_sparse(mut reader: impl Read, file: &File, size: u64) -> Result<(), CopyError> {
    let mut buffer = vec![0; BUFFER];
    let mut offset = 0u64;
    while offset < size {
        let length = fill(&mut reader, &mut buffer).map_err(CopyError::Read)?;
        if length == 0 {
            return Err(CopyError::Read(io::Error::other("a file's contents are cut off")));
        }
        let mut at = offset;
        // Neighbouring blocks of one kind together, so that data is written in as few calls as possible.
        let blocks: Vec<&[u8]> = buffer[..length].chunks(BLOCK).collect();
        for run in blocks.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
            let run_length: usize = run.iter().map(|block| block.len()).sum();
            if !run.first().is_some_and(|block| is_zero(block)) {
                let start = usize::try_from(at - offset).unwrap_or_default();
                file.write_all_at(&buffer[start..start + run_length], at)
                    .map_err(CopyError::Write)?;
            }
            at += run_length as u64;
        }
        offset += length as u64;
    }
    // Also where the file ends in a hole.
    file.set_len(size).map_err(CopyError::Write)
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

/// Reads until the buffer is full or the source ends.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match reader.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::MetadataExt;

    proptest! {
        #[test]
        fn contents_are_kept(
            runs in prop::collection::vec((any::<bool>(), 1usize..3 * BLOCK), 0..12),
            cut in 1usize..5000,
        ) {
            let mut contents = Vec::new();
            for (data, length) in runs {
                contents.resize(contents.len() + length, if data { b'x' } else { 0 });
            }
            let file = tempfile::tempfile().expect("temporary file");
            let size = contents.len() as u64;
            // A source which gives little at a time, as a network does.
            let source = Dribble { rest: &contents, most: cut };
            prop_assert!(write_sparse(source, &file, size).is_ok());
            let mut written = vec![1; contents.len()];
            file.read_exact_at(&mut written, 0).expect("as long");
            prop_assert_eq!(written, contents);
            prop_assert_eq!(file.metadata().expect("metadata").len(), size);
        }
    }

    struct Dribble<'a> {
        rest: &'a [u8],
        most: usize,
    }

    impl Read for Dribble<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let most = buffer.len().min(self.most);
            (&mut self.rest).take(most as u64).read(buffer)
        }
    }

    #[test]
    fn a_hole_takes_no_room() {
        let file = tempfile::tempfile().expect("temporary file");
        assert!(write_sparse(io::repeat(0), &file, 10 * 1024 * 1024).is_ok());
        assert!(file.metadata().expect("metadata").blocks() < 64);
    }

    #[test]
    fn contents_that_are_cut_off_are_the_reader_s_fault() {
        let file = tempfile::tempfile().expect("temporary file");
        assert!(matches!(
            write_sparse(&b"short"[..], &file, 6),
            Err(CopyError::Read(_))
        ));
    }
}
