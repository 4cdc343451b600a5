//! The rules as text, and that the real `nft` takes them.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::*;

fn port(number: u8, nat: bool, allow: &str) -> Port {
    Port {
        tap: format!("bgr0t{number}"),
        mac: [2, 0, 0, 0, 0, number],
        address: Ipv4Addr::new(10, 209, 0, number),
        nat,
        allow: allow.parse().unwrap(),
    }
}

fn state() -> State {
    State {
        bridge: "bgr0".to_owned(),
        owner: "banger 0123456789abcdef".to_owned(),
        subnet: Subnet::DEFAULT,
        ports: vec![
            port(4, false, "guests,host,lan"),
            port(2, true, "none"),
            port(3, true, "guests"),
        ],
        on_link: vec![
            (Ipv4Addr::new(203, 0, 113, 9), 24),
            (Ipv4Addr::new(192, 168, 1, 7), 24),
            (Ipv4Addr::new(0, 0, 0, 0), 0),
            (Ipv4Addr::new(198, 51, 100, 7), 32),
        ],
    }
}

#[test]
fn the_rules_of_three_machines() {
    insta::assert_snapshot!(render(&state()));
}

#[test]
fn the_order_of_machines_changes_nothing() {
    let mut other = state();
    other.ports.reverse();
    assert_eq!(render(&other), render(&state()));
}

/// Feeds a script to the real program in a network namespace that ends with it.
fn nft(arguments: &str, script: &str) -> Option<Result<(), String>> {
    if !testkit::is_root() {
        return None;
    }
    let mut child = Command::new("unshare")
        .args([
            "--net",
            "sh",
            "-c",
            &format!("PATH=$PATH:/usr/sbin:/sbin; {arguments}"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("nft: not found") {
        return testkit::missing("nft is missing: apt-get install nftables");
    }
    Some(if output.status.success() {
        Ok(())
    } else {
        Err(said)
    })
}

#[test]
fn the_real_program_takes_them() {
    let many = State {
        ports: (2..=250)
            .map(|n| {
                port(
                    n,
                    n % 2 == 0,
                    ["none", "guests", "host", "lan"][usize::from(n) % 4],
                )
            })
            .collect(),
        ..state()
    };
    let empty = State {
        ports: Vec::new(),
        on_link: Vec::new(),
        ..state()
    };
    let odd = |bridge: &str| State {
        bridge: bridge.to_owned(),
        ports: vec![Port {
            tap: format!("{bridge}t9999"),
            ..port(2, true, "guests")
        }],
        ..state()
    };
    for state in [
        state(),
        many,
        empty,
        odd("a"),
        odd("b-_9-_9-_9"),
        odd("set"),
        odd("drop-"),
        odd("table"),
    ] {
        // Twice: also where the tables are there already.
        let script = render(&state);
        match nft("nft -c -f -", &script) {
            None => return,
            Some(Ok(())) => {}
            Some(Err(said)) => panic!("{said}\n{script}"),
        }
        let twice = format!("{script}{script}");
        nft("nft -f -", &twice)
            .unwrap()
            .unwrap_or_else(|said| panic!("{said}\n{script}"));
    }
}
