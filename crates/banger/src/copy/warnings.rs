//! What a copy left out: said as it happens, the first few in full, the rest as a number.

use crate::error::printable;
use crate::stdio::say;

/// Said in full.
const FULL: u64 = 10;

/// Counts and says what was left out.
#[derive(Debug, Default)]
pub(crate) struct Warnings {
    count: u64,
}

impl Warnings {
    pub(crate) fn add(&mut self, text: &str) {
        self.count += 1;
        if self.count <= FULL {
            say!("warning: {}", printable(text));
        }
    }

    /// How many there were.
    #[cfg(test)]
    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}

impl Drop for Warnings {
    fn drop(&mut self) {
        if self.count > FULL {
            say!("warning: and {} more", self.count - FULL);
        }
    }
}
