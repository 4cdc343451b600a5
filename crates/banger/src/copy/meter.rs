//! How a copy gets on: bytes and their rate on standard error, for who sits at a terminal.
//!
//! It counts what passes through the connection, which is an archive: a little more than what is in the files. How much
//! there will be is known to nobody before the end, so there is no bar.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::args::format_size;
use crate::stdio::say;
use crate::terminal;

/// When progress appears: quick copies show none.
const AFTER: Duration = Duration::from_secs(1);

/// Checked by a test; a broken one would leave indicatif's default.
const TEMPLATE: &str = "{spinner} {msg} {elapsed}";

/// Counts the bytes of a copy. Dropping it clears what it drew.
#[derive(Debug)]
pub(crate) struct Meter {
    /// Somebody sees it.
    seen: bool,
    began: Instant,
    bytes: u64,
    bar: Option<ProgressBar>,
}

impl Meter {
    /// Begins to count. Draws only on a terminal, and not where it is to be `quiet`.
    pub(crate) fn new(quiet: bool) -> Self {
        Self {
            seen: !quiet && terminal::stderr_is_terminal(),
            began: Instant::now(),
            bytes: 0,
            bar: None,
        }
    }

    /// Takes in that so much has passed.
    pub(crate) fn add(&mut self, bytes: usize) {
        self.bytes = self
            .bytes
            .saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        let elapsed = self.began.elapsed();
        if !self.seen || elapsed < AFTER {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let target = ProgressDrawTarget::stderr_with_hz(10);
            let bar = ProgressBar::with_draw_target(None, target).with_elapsed(elapsed);
            if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
                bar.set_style(style);
            }
            // The clock goes on where nothing comes any more.
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        bar.set_message(amount(self.bytes, elapsed));
    }

    /// Says what it came to.
    pub(crate) fn done(mut self, verb: &str) {
        self.clear();
        if self.seen {
            let elapsed = self.began.elapsed();
            say!(
                "{verb} {} in {:.1} s",
                amount(self.bytes, elapsed),
                elapsed.as_secs_f64()
            );
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.clear();
    }
}

/// `12MiB (4MiB/s)`; without the rate where the time is too short to tell one.
fn amount(bytes: u64, elapsed: Duration) -> String {
    let size = format_size(bytes);
    let milliseconds = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    if milliseconds < 100 {
        return size;
    }
    let rate = u128::from(bytes) * 1000 / u128::from(milliseconds);
    let rate = format_size(u64::try_from(rate).unwrap_or(u64::MAX));
    format!("{size} ({rate}/s)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
        assert_eq!(amount(12 << 20, Duration::from_secs(3)), "12MiB (4MiB/s)");
        assert_eq!(amount(2048, Duration::from_millis(20)), "2KiB");
        assert_eq!(amount(0, Duration::from_secs(2)), "0B (0B/s)");
    }
}
