//! The host's own DNS servers, as its `/etc/resolv.conf` names them now (resolv.conf(5)).
//!
//! Read again when the file is another than before, which a look at its metadata tells: name servers change with the
//! network that the host is in, and nobody says so in a way that all hosts share.

use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::net::subnet::Subnet;

/// As many as libc uses (MAXNS).
const SERVERS: usize = 3;

/// Enough for any such file; the rest of a longer one is not read.
const LONGEST: u64 = 64 << 10;

const PORT: u16 = 53;

/// See the module.
#[derive(Debug)]
pub(crate) struct Upstreams {
    file: PathBuf,
    /// Whose servers are left out: nobody is asked who would ask us.
    ours: Subnet,
    read: Mutex<Known>,
}

/// What the file said when it was last read.
#[derive(Debug, Default)]
struct Known {
    version: Option<Version>,
    servers: Arc<[SocketAddr]>,
}

/// Which file it was: device, inode, size, change of its contents.
type Version = (u64, u64, u64, i64, i64);

impl Upstreams {
    /// Of a file, usually `/etc/resolv.conf`. Nothing is read yet.
    pub(crate) fn new(file: &Path, ours: Subnet) -> Self {
        Self {
            file: file.to_owned(),
            ours,
            read: Mutex::default(),
        }
    }

    /// The servers now, in the file's order; empty where there are none or the file cannot be read.
    pub(crate) fn now(&self) -> Arc<[SocketAddr]> {
        let version = fs::metadata(&self.file)
            .ok()
            .map(|m| (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()));
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if version.is_none() || read.version != version {
            let text = self.text().unwrap_or_default();
            *read = Known {
                version,
                servers: parse(&text, self.ours).into(),
            };
        }
        Arc::clone(&read.servers)
    }

    fn text(&self) -> std::io::Result<String> {
        let mut bytes = Vec::new();
        File::open(&self.file)?.take(LONGEST).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn parse(text: &str, ours: Subnet) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let address = words
            .next()
            .filter(|word| *word == "nameserver")
            .and(words.next())?;
        // With a scope (`fe80::1%eth0`), which the standard library's addresses do not know by name: such a server is
        // left out.
        let address: IpAddr = address.parse().ok()?;
        let own = match address {
            IpAddr::V4(address) => ours.contains(address),
            IpAddr::V6(_) => false,
        };
        (!own).then_some(SocketAddr::new(address, PORT))
    });
    servers.take(SERVERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_libc_reads_them_and_never_ourselves() {
        let text = "# made by hand\n; nameserver 192.0.2.9\nsearch example.com\nnameserver 10.209.0.1\n\
                    nameserver\t192.0.2.1  # first\n nameserver 2001:db8::1\nnameserver fe80::1%eth0\nnameserver nonsense\n\
                    nameserver 127.0.0.53\nnameserver 192.0.2.4\n";
        let expected = ["192.0.2.1:53", "[2001:db8::1]:53", "127.0.0.53:53"];
        let expected: Vec<SocketAddr> = expected.iter().map(|s| s.parse().unwrap()).collect();
        assert_eq!(parse(text, Subnet::DEFAULT), expected);
    }

    #[test]
    fn a_file_that_changes_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        let upstreams = Upstreams::new(&file, Subnet::DEFAULT);
        assert!(upstreams.now().is_empty());
        fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(upstreams.now()[0], "192.0.2.1:53".parse().unwrap());
        // As it is usually replaced.
        let new = dir.path().join("new");
        fs::write(&new, "nameserver 192.0.2.2\n").unwrap();
        fs::rename(&new, &file).unwrap();
        assert_eq!(upstreams.now()[0], "192.0.2.2:53".parse().unwrap());
        fs::remove_file(&file).unwrap();
        assert!(upstreams.now().is_empty());
    }
}
