//! Figures and names for people.

use std::collections::BTreeSet;

use jiff::Timestamp;

use banger_api::types::{
    BootState, HealthState, NetworkCarrier, OperationState, Reach, RestartPolicy, SystemDisk, UserNetwork,
    VmState, VmmKind,
};

/// The largest unit that says enough: `5s`, `3m`, `7h`, `2d`, `8w`, `3y`. A clock that went back reads as `0s`.
pub(crate) fn format_seconds(seconds: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let (unit, letter) = match seconds {
        0..MINUTE => (1, 's'),
        MINUTE..HOUR => (MINUTE, 'm'),
        HOUR..DAY => (HOUR, 'h'),
        _ if seconds < 14 * DAY => (DAY, 'd'),
        _ if seconds < 730 * DAY => (7 * DAY, 'w'),
        _ => (365 * DAY, 'y'),
    };
    format!("{}{letter}", seconds / unit)
}

/// Age of `then` as of `now`.
pub(crate) fn format_age(then: Timestamp, now: Timestamp) -> String {
    format_seconds(seconds_between(then, now))
}

/// Whole seconds from `then` to `now`, 0 where the clock went back.
pub(crate) fn seconds_between(then: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(now.as_second().saturating_sub(then.as_second())).unwrap_or(0)
}

/// How long it is until `then` as of `now`: `in 5m`, or that it has come.
pub(crate) fn format_until(then: Timestamp, now: Timestamp) -> String {
    match seconds_between(now, then) {
        0 => "now".to_owned(),
        seconds => format!("in {}", format_seconds(seconds)),
    }
}

/// A time in UTC, to the second.
pub(crate) fn format_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// The word for a machine's state.
pub(crate) fn vm_state(state: VmState) -> &'static str {
    match state {
        VmState::Creating => "creating",
        VmState::Stopped => "stopped",
        VmState::Starting => "starting",
        VmState::Running => "running",
        VmState::Stopping => "stopping",
        VmState::Resetting => "resetting",
        VmState::Failed => "failed",
        VmState::Removing => "removing",
    }
}

/// What a guest may reach on the bridge.
pub(crate) fn allow(reach: &BTreeSet<Reach>) -> String {
    let words = reach.iter().map(|reach| match reach {
        Reach::Guests => "guests",
        Reach::Host => "host",
        Reach::Lan => "lan",
    });
    let words: Vec<_> = words.collect();
    match words.is_empty() {
        true => "none".to_owned(),
        false => words.join(", "),
    }
}

/// `yes` or `no`.
pub(crate) fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

/// The word for a machine's health.
pub(crate) fn health(health: HealthState) -> &'static str {
    match health {
        HealthState::Healthy => "healthy",
        HealthState::Degraded => "degraded",
        HealthState::Unhealthy => "unhealthy",
        HealthState::Stopped => "stopped",
    }
}

/// The word for how far a guest has come.
pub(crate) fn boot_state(boot: BootState) -> &'static str {
    match boot {
        BootState::Unknown => "unknown",
        BootState::Starting => "starting",
        BootState::Running => "running",
        BootState::Degraded => "degraded",
        BootState::Maintenance => "maintenance",
        BootState::Stopping => "stopping",
    }
}

/// The word for a way to make a system disk.
pub(crate) fn system_disk(kind: SystemDisk) -> &'static str {
    match kind {
        SystemDisk::Overlay => "overlay",
        SystemDisk::Reflink => "reflink",
        SystemDisk::Dm => "dm",
    }
}

/// The word for a restart policy.
pub(crate) fn restart(policy: RestartPolicy) -> &'static str {
    match policy {
        RestartPolicy::No => "no",
        RestartPolicy::OnFailure => "on-failure",
        RestartPolicy::Always => "always",
    }
}

/// The word for an operation's state.
pub(crate) fn operation_state(state: OperationState) -> &'static str {
    match state {
        OperationState::Running => "running",
        OperationState::Cancelling => "cancelling",
        OperationState::Succeeded => "succeeded",
        OperationState::Failed => "failed",
        OperationState::Cancelled => "cancelled",
    }
}

/// The name of a VMM.
pub(crate) fn vmm(kind: VmmKind) -> &'static str {
    match kind {
        VmmKind::Firecracker => "firecracker",
        VmmKind::Qemu => "qemu",
    }
}

/// Who carries the packets of a machine in user mode.
pub(crate) fn user_network(network: &UserNetwork) -> String {
    let whose = match network.carrier {
        NetworkCarrier::Passt => "passt",
        NetworkCarrier::Slirp => "QEMU's own",
    };
    match &network.note {
        Some(note) => format!("{whose} ({note})"),
        None => whose.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3599, "59m"),
            (3600, "1h"),
            (86_400, "1d"),
            (13 * 86_400, "13d"),
            (14 * 86_400, "2w"),
            (800 * 86_400, "2y"),
        ] {
            assert_eq!(format_seconds(seconds), text);
        }
        let earlier: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let later: Timestamp = "2026-01-01T00:05:00Z".parse().unwrap();
        assert_eq!(format_age(earlier, later), "5m");
        assert_eq!(format_age(later, earlier), "0s");
        assert_eq!(format_until(later, earlier), "in 5m");
        assert_eq!(format_until(earlier, later), "now");
        assert_eq!(format_time(later), "2026-01-01 00:05:00 UTC");
    }
}
