//! What is said of a machine whose agent is of the release before: that, and all that can be known without it.

use super::*;
use crate::doctor::Outcome;
use crate::host::tests::host;
use crate::older_agent::{UPTIME, Vmm, guest};

const OLDER: &str = "its agent is of an older release; restart the machine to give it this one's";

fn subject(client: AgentClient) -> Subject {
    Subject {
        machine: Some(Arc::new(Vmm)),
        guest: Some(client),
        ..health::tests::subject(banger_vmm::VmmKind::Qemu, false)
    }
}

#[tokio::test]
async fn a_later_call_is_said_to_be_unsupported_and_the_connection_goes_on() {
    let (_directory, client) = guest();
    assert_eq!(client.ping(ANSWER).await.unwrap(), UPTIME);
    let stats = client.stats(ANSWER).await.unwrap_err();
    let booted = client.wait_booted(ANSWER).await.unwrap_err();
    for (error, name) in [(stats, "stats"), (booted, "wait booted")] {
        assert!(
            matches!(error, AgentError::Unsupported { method } if method == name),
            "{error:?}"
        );
        assert_eq!(agent_problem(&error), OLDER);
    }
    assert_eq!(client.ping(ANSWER).await.unwrap(), UPTIME);
}

#[tokio::test]
async fn stats_are_the_hosts_alone() {
    let (directory, client) = guest();
    let host = host(directory.path()).await;
    let stats = stats::of_one(&host, subject(client)).await;
    assert_eq!(stats.guest, Some(Err(OLDER.to_owned())));
    assert!(stats.host.is_some());
}

#[tokio::test]
async fn health_is_what_can_be_known_without_it() {
    let (directory, client) = guest();
    let host = host(directory.path()).await;
    let checks = health::running(&host, &subject(client)).await;
    let named = |name: &str| {
        let check = checks.iter().find(|check| check.name == name);
        check.unwrap_or_else(|| panic!("no {name} in {checks:#?}"))
    };
    // It answers: an agent that cannot say how full its disks are is no broken one.
    assert_eq!(named("agent").outcome, Outcome::Fine);
    let disks = named("filesystems");
    assert_eq!(
        (disks.outcome, disks.reason.as_str()),
        (Outcome::Warning, format!("not known: {OLDER}").as_str())
    );
    assert!(
        checks.iter().all(|check| check.outcome != Outcome::Failure),
        "{checks:#?}"
    );
}
