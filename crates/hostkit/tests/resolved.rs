//! Against the real systemd-resolved, on a bus and a network of the test's own.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hostkit::resolved::{Resolved, ResolvedError, Routing};
use testkit::Resolver;

const BRIDGE: &str = "bgr0";

fn in_a_network<F: Future<Output = ()>>(test: impl FnOnce(Resolver, u32) -> F + Send) {
    testkit::in_network_namespace_async(async || {
        let Some(resolver) = Resolver::start() else { return };
        for arguments in [
            "link add bgr0 type bridge",
            "addr add 10.209.0.1/20 dev bgr0",
            "link set bgr0 up",
        ] {
            let status = Command::new("ip").args(arguments.split(' ')).status();
            assert!(status.expect("ip").success(), "{arguments}");
        }
        let index = std::fs::read_to_string("/sys/class/net/bgr0/ifindex").expect("an interface");
        let index = index.trim().parse().expect("a number");
        let whole = Duration::from_secs(60);
        tokio::time::timeout(whole, test(resolver, index))
            .await
            .expect("an end");
    });
}

fn routing() -> Routing {
    Routing {
        server: Ipv4Addr::new(10, 209, 0, 1),
        domains: vec!["vm".to_owned(), "0.209.10.in-addr.arpa".to_owned()],
    }
}

/// What resolved says of the bridge.
fn shown(resolver: &Resolver) -> String {
    let output = resolver.resolvectl(&["status", BRIDGE, "--no-pager"]);
    let text = String::from_utf8(output.stdout).expect("text");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn names_are_routed_and_no_longer() {
    in_a_network(|resolver, bridge| async move {
        let resolved = Resolved::connect(Some(resolver.bus())).await.unwrap();
        assert!(resolved.runs().await.unwrap());
        resolved.route(bridge, &routing()).await.unwrap();
        // The same again is fine.
        resolved.route(bridge, &routing()).await.unwrap();
        let routed = shown(&resolver);
        for part in [
            "-DefaultRoute",
            "-LLMNR",
            "-mDNS",
            "DNSSEC=no",
            "DNS Servers: 10.209.0.1",
            "~vm",
            "~0.209.10.in-addr.arpa",
        ] {
            assert!(routed.contains(part), "{part}: {routed}");
        }
        resolved.revert(bridge).await.unwrap();
        resolved.revert(bridge).await.unwrap();
        assert!(!shown(&resolver).contains("10.209.0.1"));
        // An interface that is gone.
        resolved.revert(4711).await.unwrap();
        let error = resolved.route(4711, &routing()).await.unwrap_err();
        assert!(matches!(error, ResolvedError::Failed { .. }), "{error:?}");
    });
}

#[test]
fn a_restart_is_told_and_a_resolved_that_is_gone_is_an_error_of_its_own() {
    in_a_network(|mut resolver, bridge| async move {
        let resolved = Resolved::connect(Some(resolver.bus())).await.unwrap();
        let mut starts = resolved.starts().await.unwrap();
        resolved.route(bridge, &routing()).await.unwrap();
        resolver.kill();
        while resolved.runs().await.unwrap() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let error = resolved.route(bridge, &routing()).await.unwrap_err();
        assert!(matches!(error, ResolvedError::NotRunning), "{error:?}");
        resolved.revert(bridge).await.unwrap();
        resolver.run();
        starts.next().await.expect("word of its start");
        resolved.route(bridge, &routing()).await.unwrap();
        assert!(shown(&resolver).contains("~vm"));
    });
}

#[test]
fn without_a_bus_there_is_an_error_that_says_so() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let error = runtime
        .unwrap()
        .block_on(Resolved::connect(Some(Path::new("/nonexistent/bus"))))
        .unwrap_err();
    assert!(matches!(error, ResolvedError::NoBus { .. }), "{error:?}");
}
