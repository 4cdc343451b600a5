//! Machines' names: on the host through systemd-resolved, in guests through the daemon's own server. In a network
//! namespace of the test's own, with a bus and a resolved that run there alone.

use std::process::Command;
use std::time::Duration;

use e2e::{Daemon, Guest, Settings, Testbed, wait_for};
use testkit::Resolver;

/// How long names may take to follow: a bridge's carrier is told by the kernel within a second.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn names_resolve_on_the_host_and_among_guests() {
    let Some(bed) = Testbed::find() else { return };
    let settings = Settings::prepared().config("[network]\nmode = \"bridge\"\n");
    let mut daemon = Daemon::ready(&bed, settings);
    testkit::in_network_namespace(move || {
        let Some(mut resolver) = Resolver::start() else {
            return;
        };
        resolver.ask_by_libc();
        daemon.launch();
        let small = ["--memory", "160M", "--vcpus", "1"];
        let seeing = [&small[..], &["--allow", "guests"]].concat();
        let web = Guest::start_with(&daemon, "web", "busybox", &seeing);
        let db = Guest::start_with(&daemon, "db", "busybox", &seeing);
        let alone = Guest::start_with(&daemon, "alone", "busybox", &small);
        let address = |guest: &Guest<'_>| guest.show()["address"].as_str().expect("an address").to_owned();

        // On the host, as any of its programs asks, and the other way round.
        for guest in [&web, &db, &alone] {
            let name = format!("{}.vm", guest.name);
            let found = wait_for(SOON, || {
                let said = host(&["getent", "ahostsv4", &name])?;
                said.starts_with(&address(guest)).then_some(())
            });
            assert!(found.is_some(), "{name}: {:?}", resolver.resolvectl(&["status"]));
            let ping = ["busybox", "ping", "-c", "1", "-W", "5", &name];
            let pinged = wait_for(SOON, || host(&ping));
            pinged.expect("an answer to a ping by name");
        }
        let reverse = resolver.resolvectl(&["query", &address(&db)]);
        assert!(
            String::from_utf8_lossy(&reverse.stdout).contains("db.vm"),
            "{reverse:?}"
        );
        assert_eq!(host(&["getent", "ahostsv4", "nobody.vm"]), None);

        // In guests: those that may see each other, by the full name and by the short one.
        assert!(web.sh("cat /etc/resolv.conf").contains("search vm"));
        assert!(web.sh("nslookup db.vm").contains(&address(&db)));
        let pinged = wait_for(SOON, || {
            (web.exec(["ping", "-c", "1", "-W", "5", "db"]).run().code() == 0).then_some(())
        });
        assert!(pinged.is_some(), "no answer to a ping by name");
        alone.exec(["nslookup", "web.vm"]).fails(1);
        web.exec(["nslookup", "alone.vm"]).fails(1);
        // What is not ours goes to the host's resolver, which knows this one without asking anybody.
        assert!(alone.sh("nslookup some.localhost.").contains("127.0.0.1"));
        // A single label nobody is asked for.
        alone.exec(["nslookup", "localhost."]).fails(1);

        // A new name is known at once, and the old one is nobody's.
        daemon.banger(["vm", "rename", "db", "store"]).ok();
        let renamed = wait_for(SOON, || host(&["getent", "ahostsv4", "store.vm"]));
        assert!(renamed.is_some_and(|said| said.starts_with(&address(&Guest::of(&daemon, "store")))));
        let forgotten = wait_for(SOON, || {
            host(&["getent", "ahostsv4", "db.vm"]).is_none().then_some(())
        });
        assert!(forgotten.is_some());

        // resolved forgets with its death, and is told again.
        resolver.kill();
        resolver.run();
        assert!(wait_for(SOON, || host(&["getent", "ahostsv4", "web.vm"])).is_some());

        // With the bridge everything of it goes.
        daemon.finish();
        let shown = resolver.resolvectl(&["domain"]);
        assert!(
            !String::from_utf8_lossy(&shown.stdout).contains("~vm"),
            "{shown:?}"
        );
        assert!(!std::path::Path::new("/sys/class/net/bgr0").exists());
    });
}

/// Runs a command on the host; its standard output where it succeeds.
#[expect(clippy::disallowed_methods, reason = "its failure is an answer as well")]
fn host(command: &[&str]) -> Option<String> {
    let output = Command::new(command[0]).args(&command[1..]).output();
    let output = output.unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then_some(text)
}
