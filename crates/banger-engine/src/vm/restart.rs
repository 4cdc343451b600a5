//! When a machine is started again after it ended by itself, and how soon. Plain arithmetic; the task keeps the time.

use std::time::Duration;

/// A run of this long was none that failed at its start: the next end waits as if it were the first.
const SOUND: Duration = Duration::from_secs(60);
/// The longest wait.
const LONGEST: u64 = 60;

/// The policy. Stored by its name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// When its VMM died or its kernel panicked.
    OnFailure,
    /// Also when the guest shut itself down.
    Always,
}

impl Restart {
    const ALL: [Self; 3] = [Self::No, Self::OnFailure, Self::Always];

    /// Its name, in the store and for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::OnFailure => "on-failure",
            Self::Always => "always",
        }
    }

    /// By its name. A row of a newer release may have one that we do not know: then never.
    pub fn of(name: &str) -> Self {
        Self::ALL
            .into_iter()
            .find(|policy| policy.as_str() == name)
            .unwrap_or_default()
    }

    /// Whether an end that nobody asked for is followed by a start.
    pub(crate) fn wants(self, bad: bool) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure => bad,
            Self::Always => true,
        }
    }
}

/// How long to wait before the next start, by the number of starts in a row that came to nothing: 1 s, 2 s, 4 s … 60 s.
pub(crate) fn delay(streak: u32) -> Duration {
    Duration::from_secs(1_u64.checked_shl(streak).map_or(LONGEST, |s| s.min(LONGEST)))
}

/// The number of starts in a row that came to nothing, when a run of this length has ended.
pub(crate) fn streak_after(streak: u32, ran: Duration) -> u32 {
    if ran >= SOUND { 0 } else { streak }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute() {
        let waits: Vec<u64> = (0..9).map(|streak| delay(streak).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        for streak in [63, 64, 65, u32::MAX] {
            assert_eq!(delay(streak).as_secs(), 60);
        }
    }

    #[test]
    fn a_sound_run_begins_anew() {
        assert_eq!(streak_after(5, Duration::from_secs(59)), 5);
        assert_eq!(streak_after(5, Duration::from_secs(60)), 0);
    }

    #[test]
    fn policies() {
        for (policy, after_failure, after_shutdown) in [
            (Restart::No, false, false),
            (Restart::OnFailure, true, false),
            (Restart::Always, true, true),
        ] {
            assert_eq!(
                (policy.wants(true), policy.wants(false)),
                (after_failure, after_shutdown)
            );
            assert_eq!(Restart::of(policy.as_str()), policy);
        }
        assert_eq!(Restart::of("sometimes"), Restart::No);
    }
}
