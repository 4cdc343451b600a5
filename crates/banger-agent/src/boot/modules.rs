//! Kernel modules, from the initramfs: `/banger/modules` names the files below `/lib/modules` in load order.

use super::cmdline;
use crate::log;
use rustix::io::Errno;
use rustix::system::finit_module;
use std::fs::File;
use std::io;
use std::path::Path;

const LIST: &str = "/banger/modules";
const DIRECTORY: &str = "/lib/modules";

/// `MODULE_INIT_COMPRESSED_FILE` of finit_module(2): the kernel decompresses.
const COMPRESSED: i32 = 4;

/// Loads every listed module. One that fails is named on the console and left out: what misses it will say so too, and
/// a kernel may have built in what its list still names. No list means that nothing is needed.
pub(super) fn load_all(command_line: &str) {
    let list = match std::fs::read_to_string(LIST) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => {
            log::line(format_args!("failed to read {LIST}: {error}"));
            return;
        }
    };
    for file in list.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Err(error) = load(file, command_line) {
            log::line(format_args!("failed to load the kernel module {file}: {error}"));
        }
    }
}

fn load(file: &str, command_line: &str) -> io::Result<()> {
    let (module, flags) = split_name(file).ok_or(io::ErrorKind::InvalidFilename)?;
    let parameters = cmdline::module_parameters(command_line, module);
    let file = File::open(Path::new(DIRECTORY).join(file))?;
    match finit_module(&file, &parameters, flags) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The module's name and finit_module's flags for a plain file name: `NAME.ko`, or compressed as `NAME.ko.zst`.
fn split_name(file: &str) -> Option<(&str, i32)> {
    let (name, suffix) = file.split_once(".ko")?;
    let flags = match suffix {
        "" => 0,
        ".xz" | ".zst" | ".gz" => COMPRESSED,
        _ => return None,
    };
    (!name.is_empty() && !name.contains('/')).then_some((name, flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_module_files() {
        assert_eq!(split_name("virtio_blk.ko"), Some(("virtio_blk", 0)));
        assert_eq!(
            split_name("crc32c-intel.ko.xz"),
            Some(("crc32c-intel", COMPRESSED))
        );
        for wrong in ["virtio_blk", ".ko", "../evil.ko", "a.ko.bz2", ""] {
            assert_eq!(split_name(wrong), None, "{wrong}");
        }
    }
}
