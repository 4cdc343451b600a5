//! Taking over contents, in as few and as long pieces as they come in.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::copy_file_range;
use rustix::io::Errno;

use super::BLOCK;

/// Copied at once: in a moment, so that a caller can stop it.
const PIECE: u64 = 16 << 20;

/// Blocks that are one behind the other in both files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) count: u64,
}

impl Copy {
    /// Whether these blocks come next in both files.
    pub(super) fn continues(&self, from: u64, to: u64) -> bool {
        self.from + self.count == from && self.to + self.count == to
    }
}

/// Copies, or has the two files share these blocks where they can (copy_file_range(2) does that by itself). `watch` is called
/// with the bytes copied so far.
pub(super) fn copy(
    from: &File,
    to: &File,
    copies: &[Copy],
    watch: &mut dyn FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut done = 0;
    let mut by_kernel = true;
    let mut buffer = Vec::new();
    for copy in copies {
        let (mut source, mut target) = (copy.from * BLOCK, copy.to * BLOCK);
        let mut left = copy.count * BLOCK;
        while left > 0 {
            let want = usize::try_from(left.min(PIECE)).unwrap_or(0);
            let (mut at, mut into) = (source, target);
            let copied = match by_kernel {
                true => copy_file_range(from, Some(&mut at), to, Some(&mut into), want),
                false => Ok(0),
            };
            let copied = match copied {
                Ok(copied) if copied > 0 => copied,
                Err(Errno::INTR) => continue,
                // Some file systems cannot, and some say so by having copied nothing.
                Ok(_) | Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::XDEV | Errno::PERM) => {
                    by_kernel = false;
                    let len = want.min(1 << 20);
                    buffer.resize(len, 0);
                    from.read_exact_at(&mut buffer, source)?;
                    to.write_all_at(&buffer, target)?;
                    len
                }
                Err(error) => return Err(error.into()),
            } as u64;
            source += copied;
            target += copied;
            left = left.saturating_sub(copied);
            done += copied;
            watch(done)?;
        }
    }
    Ok(())
}
