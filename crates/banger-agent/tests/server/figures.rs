//! Figures, disks and the boot's end, of an agent that serves on a machine which it has not booted.

use crate::common::{Agent, DEADLINE, failure};
use banger_agent_api::{BootState, DiskRole, FailureKind};
use std::time::{Duration, Instant};

#[tokio::test]
async fn stats_are_this_machine_s() {
    let agent = Agent::start().await;
    let client = agent.client();
    let stats = client.stats(DEADLINE).await.expect("figures");
    let total = std::fs::read_to_string("/proc/meminfo").expect("memory");
    let total: u64 = total
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.parse().ok())
        .expect("MemTotal");
    assert_eq!(stats.memory_total, total * 1024);
    assert!(stats.memory_available > 0 && stats.memory_available <= stats.memory_total);
    assert!(stats.processes >= 2, "{stats:?}");
    assert!(stats.file_systems.len() <= 64, "{stats:?}");
    assert!(stats.file_systems.iter().all(|found| found.used <= found.size));
    assert!(stats.interfaces.iter().all(|found| found.name != "lo"));

    // Figures of now, not of the first call.
    let later = client.stats(DEADLINE).await.expect("figures");
    assert!(later.uptime >= stats.uptime);
}

#[tokio::test]
async fn no_disk_of_a_foreign_machine_is_touched() {
    let agent = Agent::start().await;
    for role in [DiskRole::System, DiskRole::Work] {
        let refused = agent.client().grow_disk(role, 1 << 30, DEADLINE).await;
        assert_eq!(failure(refused), FailureKind::InvalidRequest, "{role:?}");
    }
}

#[tokio::test]
async fn an_unknown_init_is_not_waited_for() {
    let agent = Agent::start().await;
    let began = Instant::now();
    let state = agent.client().wait_booted(Duration::from_secs(3600)).await;
    assert_eq!(state.expect("an answer"), BootState::Unknown);
    assert!(began.elapsed() < DEADLINE);
}
