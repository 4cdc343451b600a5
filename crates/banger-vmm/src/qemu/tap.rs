//! What the network card of a machine under QEMU has moved: the kernel's counters of its tap, since QEMU has none.
//!
//! A tap serves one machine after the other and its counters go on, so that what it had moved before is kept in a file
//! for as long as the machine runs, where a daemon that adopts the machine finds it.

use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use hostkit::link::{LinkError, Links};
use serde::{Deserialize, Serialize};

use crate::figures::Moved;

/// The file's only line.
#[derive(Debug, Serialize, Deserialize)]
struct Before {
    tap: String,
    in_bytes: u64,
    out_bytes: u64,
}

/// A tap in use by one machine.
#[derive(Debug)]
pub(super) struct TapCounter {
    tap: String,
    before: Moved,
    /// As of the last look: the counters go with the tap.
    last: Mutex<Moved>,
}

impl TapCounter {
    /// Before the machine is launched: counts from now on, and says so in `file`.
    pub(super) async fn begin(tap: &str, file: &Path) -> io::Result<Self> {
        let before = counters(tap).await.unwrap_or_default().unwrap_or_default();
        let line = serde_json::to_string(&Before {
            tap: tap.to_owned(),
            in_bytes: before.in_bytes,
            out_bytes: before.out_bytes,
        })?;
        std::fs::write(file, line + "\n")?;
        Ok(Self::new(tap, before))
    }

    /// Goes on counting for a machine that runs. Without a word in `file` about this tap, everything counts.
    pub(super) fn adopt(tap: &str, file: &Path) -> Self {
        let kept = std::fs::read(file)
            .ok()
            .and_then(|text| serde_json::from_slice::<Before>(&text).ok())
            .filter(|kept| kept.tap == tap);
        let before = kept.map_or_else(Moved::default, |kept| Moved {
            in_bytes: kept.in_bytes,
            out_bytes: kept.out_bytes,
        });
        Self::new(tap, before)
    }

    fn new(tap: &str, before: Moved) -> Self {
        Self {
            tap: tap.to_owned(),
            before,
            last: Mutex::default(),
        }
    }

    /// What has been moved so far.
    pub(super) async fn moved(&self) -> Moved {
        let now = counters(&self.tap).await;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(Some(now)) = now {
            let moved = Moved {
                in_bytes: now.in_bytes.saturating_sub(self.before.in_bytes),
                out_bytes: now.out_bytes.saturating_sub(self.before.out_bytes),
            };
            *last = moved.at_least(*last);
        }
        *last
    }
}

/// The tap's counters, seen from the guest: what the host has sent into it, the guest receives.
async fn counters(tap: &str) -> Result<Option<Moved>, LinkError> {
    let link = Links::connect()?.get(tap).await?;
    Ok(link.map(|link| Moved {
        in_bytes: link.sent,
        out_bytes: link.received,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_before_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("metrics");
        testkit::in_network_namespace_async(async || {
            // Loopback sends what it receives.
            let send = |bytes: usize| {
                let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
                let to = socket.local_addr().unwrap();
                assert_eq!(socket.send_to(&vec![0; bytes], to).unwrap(), bytes);
            };
            send(5000);
            let counter = TapCounter::begin("lo", &file).await.unwrap();
            assert_eq!(counter.moved().await, Moved::default());
            send(3000);
            // With the headers of IPv4 and UDP.
            let moved = Moved {
                in_bytes: 3028,
                out_bytes: 3028,
            };
            assert_eq!(counter.moved().await, moved);
            assert_eq!(TapCounter::adopt("lo", &file).moved().await, moved);
            let other = TapCounter::adopt("none", &file);
            assert_eq!((other.before, other.moved().await), Default::default());
        });
    }
}
