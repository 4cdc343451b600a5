//! Figures and health, from the engine's and the guest's types to the wire's.

use std::time::Duration;

use banger_agent_api::{BootState, FileSystem, GuestStats};
use banger_api::types;
use banger_engine::figures::health::{Health, VmHealth};
use banger_engine::figures::stats::{HostFigures, VmStats};
use banger_vmm::MachineFigures;

use super::{check, state};

pub(crate) fn stats(stats: VmStats) -> types::VmStats {
    let VmStats {
        vm,
        id,
        phase,
        time,
        host,
        guest,
    } = stats;
    let (guest, guest_problem) = match guest {
        Some(Ok(guest)) => (Some(guest_figures(guest)), None),
        Some(Err(problem)) => (None, Some(problem)),
        None => (None, None),
    };
    types::VmStats {
        vm,
        id,
        state: state(&phase),
        time,
        host: host.map(host_figures),
        guest,
        guest_problem,
    }
}

fn host_figures(figures: HostFigures) -> types::HostFigures {
    let HostFigures {
        uptime,
        machine:
            MachineFigures {
                cpu,
                resident,
                disk,
                network,
            },
        vcpus,
        memory,
        disk_used,
    } = figures;
    types::HostFigures {
        uptime_microseconds: microseconds(uptime),
        cpu_microseconds: microseconds(cpu),
        vcpus,
        memory: resident,
        memory_limit: memory,
        disk_read: disk.in_bytes,
        disk_written: disk.out_bytes,
        network_received: network.map(|moved| moved.in_bytes),
        network_sent: network.map(|moved| moved.out_bytes),
        disk_used,
    }
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn guest_figures(stats: GuestStats) -> types::GuestFigures {
    let GuestStats {
        uptime,
        load,
        processes,
        memory_total,
        memory_available,
        swap_total,
        swap_free,
        file_systems,
        // Seen by health.
        file_systems_incomplete: _,
        interfaces: _,
    } = stats;
    types::GuestFigures {
        uptime_seconds: uptime.as_secs(),
        load,
        processes,
        memory_total,
        memory_available,
        swap_total,
        swap_free,
        filesystems: file_systems.into_iter().map(file_system).collect(),
    }
}

fn file_system(found: FileSystem) -> types::FilesystemFigures {
    let FileSystem {
        mount,
        kind,
        size,
        used,
        available,
        inodes: _,
        inodes_free,
        read_only: _,
    } = found;
    types::FilesystemFigures {
        mount,
        kind,
        size,
        used,
        available,
        inodes_free,
    }
}

pub(crate) fn health(found: VmHealth) -> types::VmHealth {
    let VmHealth {
        vm,
        phase,
        health,
        checks,
    } = found;
    types::VmHealth {
        vm,
        state: state(&phase),
        health: match health {
            Health::Healthy => types::HealthState::Healthy,
            Health::Degraded => types::HealthState::Degraded,
            Health::Unhealthy => types::HealthState::Unhealthy,
            Health::Stopped => types::HealthState::Stopped,
        },
        checks: checks.into_iter().map(check).collect(),
    }
}

pub(crate) fn boot_state(state: BootState) -> types::BootState {
    match state {
        BootState::Unknown => types::BootState::Unknown,
        BootState::Starting => types::BootState::Starting,
        BootState::Running => types::BootState::Running,
        BootState::Degraded => types::BootState::Degraded,
        BootState::Maintenance => types::BootState::Maintenance,
        BootState::Stopping => types::BootState::Stopping,
    }
}
