//! When tasks look at the clock. All of them at the same moments, so that a thousand machines wake the daemon as often
//! as one does.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// How often a machine that expires looks at the clock: the wall clock may be set while a timer runs on.
pub(crate) const WATCH: Duration = Duration::from_secs(30);

/// The next multiple of `every` after `now`, counted from `epoch`.
pub(crate) fn next_tick(epoch: Instant, now: Instant, every: Duration) -> Instant {
    let since = now.saturating_duration_since(epoch).as_nanos();
    let ticks = since / every.as_nanos().max(1) + 1;
    let ahead = u64::try_from(ticks * every.as_nanos()).unwrap_or(u64::MAX);
    epoch + Duration::from_nanos(ahead)
}

/// How long until a time comes; `None` when it has come.
pub(crate) fn until(now: Timestamp, time: Timestamp) -> Option<Duration> {
    Duration::try_from(time.duration_since(now))
        .ok()
        .filter(|left| !left.is_zero())
}

/// How long ago a time was; nothing for one to come, as after the clock was set back.
pub(crate) fn since(now: Timestamp, time: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(time)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_time_comes_once() {
        assert_eq!(until(at(10), at(12)), Some(Duration::from_secs(2)));
        assert_eq!(until(at(12), at(12)), None);
        assert_eq!(until(at(13), at(12)), None);
        // As far as timestamps go.
        assert!(until(Timestamp::MIN, Timestamp::MAX).is_some());
        assert_eq!(until(Timestamp::MAX, Timestamp::MIN), None);
        assert_eq!(since(at(5), at(3)), Duration::from_secs(2));
        assert_eq!(since(at(3), at(5)), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn ticks_are_the_same_for_all() {
        let epoch = Instant::now();
        let every = Duration::from_secs(30);
        for (now, next) in [(0, 30), (1, 30), (29, 30), (30, 60), (61, 90)] {
            assert_eq!(
                next_tick(epoch, epoch + Duration::from_secs(now), every),
                epoch + Duration::from_secs(next),
                "{now}"
            );
        }
    }
}
