//! Others' rules as `nft --stateless list table` shows them, shortened: of firewalld 1.3, ufw 0.36 and Docker 20.10.

use super::*;

const FIREWALLD: &str = r#"table inet firewalld {
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		jump filter_FORWARD_ZONES
		reject with icmpx admin-prohibited
	}
	chain filter_FORWARD_ZONES {
		goto filter_FWD_public
	}
}
"#;

const UFW: &str = r#"table ip filter {
	chain INPUT {
		type filter hook input priority filter; policy drop;
		jump ufw-before-input
	}

	chain FORWARD {
		type filter hook forward priority filter; policy drop;
		jump ufw-before-logging-forward
		jump ufw-before-forward
	}

	chain ufw-user-input {
	}

	chain ufw-user-forward {
	}
}
"#;

const DOCKER: &str = r#"table ip filter {
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
		jump DOCKER-USER
		oifname "docker0"  accept
	}

	chain DOCKER-USER {
		return
	}
}
"#;

fn reasons(others: &Others) -> Vec<String> {
    let found = others.findings("bgr0");
    assert!(found.iter().all(|(_, fix)| fix.contains("bgr0")), "{found:?}");
    found.into_iter().map(|(reason, _)| reason).collect()
}

fn iptables(text: impl Into<String>) -> Others {
    Others {
        iptables: Some(Rules(text.into())),
        ..Others::default()
    }
}

fn firewalld(text: impl Into<String>) -> Others {
    Others {
        firewalld: Some(Rules(text.into())),
        ..Others::default()
    }
}

#[test]
fn who_drops_is_named() {
    assert_eq!(reasons(&Others::default()), [""; 0]);
    let said = [
        firewalld(FIREWALLD),
        iptables(UFW),
        iptables(DOCKER),
        iptables(DOCKER.replace("DOCKER", "OTHER")),
    ]
    .map(|others| reasons(&others).join(", "));
    insta::assert_snapshot!(said.join("\n"), @r"
    firewalld drops what guests send through this host
    ufw drops what guests send through this host
    Docker drops what guests send through this host (the fix is to be repeated after a boot)
    iptables drops what guests send through this host (the fix is to be repeated after a boot)
    ");
}

#[test]
fn nobody_is_named_once_the_fix_was_followed() {
    let zone = "goto filter_FWD_public";
    let trusted = format!("iifname \"bgr0\" goto filter_FWD_trusted\n\t\t{zone}");
    let rules = FIREWALLD.replace(zone, &trusted);
    assert_eq!(reasons(&firewalld(rules)), [""; 0]);

    let forward = UFW.replace(
        "ufw-user-forward {",
        "ufw-user-forward {\n\t\tiifname \"bgr0\" accept",
    );
    assert_eq!(
        reasons(&iptables(forward.clone())).len(),
        1,
        "guests resolve no names"
    );
    let both = forward.replace(
        "ufw-user-input {",
        "ufw-user-input {\n\t\tiifname \"bgr0\" udp dport 53 accept",
    );
    assert_eq!(reasons(&iptables(both)), [""; 0]);

    let accepts = "DOCKER-USER {\n\t\toifname \"bgr0\" ct state related,established accept\n\t\tiifname \"bgr0\" accept";
    let rules = DOCKER.replace("DOCKER-USER {", accepts);
    assert_eq!(reasons(&iptables(rules)), [""; 0]);
}

#[test]
fn rules_that_drop_nothing_are_nobodys_fault() {
    // As Docker leaves it on a host that forwarded before.
    assert_eq!(
        reasons(&iptables(DOCKER.replace("policy drop", "policy accept"))),
        [""; 0]
    );
    // Another bridge's name that begins like ours.
    let other = DOCKER.replace("DOCKER-USER {", "DOCKER-USER {\n\t\tiifname \"bgr01\" accept");
    assert_eq!(reasons(&iptables(other)).len(), 1);
    // What cannot be seen is suspected where its owner is about.
    let legacy = Others {
        legacy: true,
        docker: true,
        ufw: true,
        ..Others::default()
    };
    assert_eq!(reasons(&legacy).len(), 2);
    let none = Others {
        legacy: false,
        ..legacy
    };
    assert_eq!(reasons(&none), [""; 0]);
}
