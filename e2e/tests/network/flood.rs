//! A guest that sends whatever it can as fast as it can: the host, its daemon and the other guests go on.

use std::time::Duration;

use e2e::{Daemon, Guest, Settings, wait_for};

use crate::world::{
    CONFIG, GATEWAY, HOST, INTERNET, World, answer, eventually, host_reaches, objects, reaches, resolves, sh,
    status, wait_taps,
};

/// Four processes: questions for names, well-formed and not; connections to ever other ports and addresses; broadcasts, ARP
/// for and from everybody, frames of invented senders; large datagrams for the host.
const FLOOD: &str = r#"
use Socket;
sub udp { socket(my $s, PF_INET, SOCK_DGRAM, 17) or die; $s }
my $host = inet_aton("10.209.0.1");
my @way = (
    sub {
        my ($s, $n) = (udp(), 0);
        while (1) {
            my $id = pack("n", $n++ & 65535);
            my $name = "x$n.example.org";
            my $labels = join("", map { chr(length) . $_ } split(/\./, $name)) . "\0";
            send($s, $id . pack("n5", 0x0100, 1, 0, 0, 0) . $labels . pack("n2", 1, 1), 0, sockaddr_in(53, $host));
            send($s, $id . ("\xff" x ($n % 600)), 0, sockaddr_in(53, $host));
        }
    },
    sub {
        my ($s, $n) = (udp(), 0);
        while (1) { $n++; send($s, "x", 0, sockaddr_in(1 + $n % 65535, inet_aton("203.0.113." . ($n >> 16) % 250))); }
    },
    sub {
        open(my $f, "<", "/sys/class/net/eth0/ifindex"); my $index = <$f>;
        socket(my $s, 17, 3, 0) or die;
        my $to = pack("SnlSCCa8", 17, 3, $index, 0, 0, 6, "\xff" x 6);
        while (1) {
            my $mac = pack("CCN", 2, 0, int(rand(2**32)));
            my $ip = pack("C4", 10, 209, int(rand(16)), int(rand(256)));
            send($s, ("\xff" x 6) . $mac . "\x08\x06" . pack("n2C2n", 1, 2048, 6, 4, 1) . $mac . $ip . ("\0" x 6) . $ip, 0, $to);
            send($s, ("\xff" x 6) . $mac . "\x08\x00" . ("\x45" x 1000), 0, $to);
        }
    },
    sub { my $s = udp(); while (1) { send($s, "x" x 1400, 0, sockaddr_in(9, $host)); } },
);
for my $way (@way) { fork or $way->(); }
wait;
"#;

#[test]
fn a_guest_that_floods() {
    let Some((bed, _world)) = World::enter() else {
        return;
    };
    let daemon = Daemon::start(&bed, Settings::prepared().config(CONFIG));
    let quiet = Guest::start(&daemon, "quiet", "busybox");
    // Perl is in every Debian.
    let loud = Guest::start(&daemon, "loud", "debian");
    let keep = loud
        .exec_with(&["-i"])
        .args(["--", "sh", "-c", "cat > /root/flood.pl"]);
    keep.input(FLOOD).ok();
    loud.sh("perl -c /root/flood.pl");
    loud.sh("setsid perl /root/flood.pl >/dev/null 2>&1 </dev/null &");
    let before = dropped(&daemon);
    let began = wait_for(Duration::from_secs(60), || {
        // Questions beyond a guest's share are dropped: that they come is seen by it.
        (dropped(&daemon) > before + 1000).then_some(())
    });
    assert!(began.is_some(), "no flood: {:#}", status(&daemon));

    for _round in 0..3 {
        reaches(&quiet, GATEWAY);
        eventually("a name", || {
            resolves(&quiet, "quiet.vm", "10.209.0.2").then_some(())
        });
        assert_eq!(answer(&quiet, INTERNET), HOST);
        host_reaches("10.209.0.2");
        let now = status(&daemon);
        assert!(
            now["problem"].is_null() && now["rules_current"] == true,
            "{now:#}"
        );
    }
    // Neither more connections than are a guest's share, nor neighbours that it made up.
    let connections: u64 = sh("cat /proc/sys/net/netfilter/nf_conntrack_count")
        .parse()
        .expect("a number");
    assert!(connections < 10_000, "{connections}");
    let neighbours = sh("ip neigh show dev bgr0 | wc -l");
    assert!(neighbours.parse::<u32>().expect("a number") <= 16, "{neighbours}");
    // A machine starts beside it, and the loud one can be had as any.
    let late = Guest::start(&daemon, "late", "busybox");
    reaches(&late, GATEWAY);
    loud.banger("stop").ok();
    daemon
        .banger(["vm", "rm", "--force", "quiet", "loud", "late"])
        .ok();
    wait_taps(2);
    daemon.finish();
    assert_eq!(objects(), [""; 0]);
}

fn dropped(daemon: &Daemon) -> u64 {
    status(daemon)["names"]["dropped"].as_u64().expect("a number")
}
