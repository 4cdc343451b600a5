//! Answers of the daemon's server for names, against a bare echo of datagrams beside it on the same address.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use e2e::{Daemon, Guest};

use crate::network::settled;
use crate::pairs::Pairs;
use crate::report::{Budget, Report, ms};
use crate::rows::MACHINE;

const ROUNDS: usize = 15;
const QUERIES: usize = 20_000;
/// Queries under way at once.
const AT_ONCE: usize = 16;
/// For an answer; one that does not come is not asked for again.
const PATIENCE: Duration = Duration::from_secs(10);
/// Room for any datagram that is sent here.
const ROOM: usize = 512;

pub(crate) fn answers(report: &mut Report, daemon: &Daemon) {
    // Its address, and so its name, is there before it runs.
    let guest = Guest::create_with(daemon, "named", "busybox", &MACHINE);
    let address: Ipv4Addr = guest.show()["address"]
        .as_str()
        .and_then(|address| address.parse().ok())
        .expect("an address");
    let status = settled(daemon);
    let gateway: Ipv4Addr = status["gateway"]
        .as_str()
        .and_then(|address| address.parse().ok())
        .expect("an address");
    let query = query("named.vm");

    let echo = UdpSocket::bind((gateway, 0)).expect("a socket for the echo");
    echo.set_read_timeout(Some(Duration::from_millis(100)))
        .expect("a timeout");
    let port = echo.local_addr().expect("its address").port();
    let over = AtomicBool::new(false);
    let mut pairs = Pairs::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; ROOM];
            while !over.load(Ordering::Relaxed) {
                if let Ok((length, from)) = echo.recv_from(&mut buffer) {
                    echo.send_to(&buffer[..length], from).expect("an echo sent");
                }
            }
        });
        let is_answer = |bytes: &[u8]| answers_with(bytes, address);
        let is_echo = |bytes: &[u8]| bytes[2..] == query[2..];
        for round in 0..=ROUNDS {
            pairs.take(
                round,
                || ask((gateway, 53), &query, is_answer),
                || ask((gateway, port), &query, is_echo),
            );
        }
        over.store(true, Ordering::Relaxed);
    });
    guest.banger("rm").ok();
    let column = |samples: &[Served], of: fn(&Served) -> f64| samples.iter().map(of).collect::<Vec<_>>();
    for (name, unit, of) in [
        (
            "DNS answers, 16 at once (raw: UDP echo)",
            "/s",
            (|served| served.rate) as fn(&Served) -> f64,
        ),
        ("DNS p99, 16 at once (raw: UDP echo)", "ms", |served| served.p99),
    ] {
        let (ours, raw) = (column(&pairs.ours, of), column(&pairs.raw, of));
        report.add(name, unit, ours, raw, Budget::Compared);
    }
}

/// What a round came to.
struct Served {
    /// Answers a second.
    rate: f64,
    /// Milliseconds within which 99 of 100 answers came.
    p99: f64,
}

/// Asks many times, so that always as many are under way; every answer must be a good one.
fn ask(server: (Ipv4Addr, u16), query: &[u8], good: impl Fn(&[u8]) -> bool) -> Served {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
    socket.connect(server).expect("a way to the server");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let (mut query, mut buffer) = (query.to_vec(), [0; ROOM]);
    let mut asked = Vec::with_capacity(QUERIES);
    let mut took = Vec::with_capacity(QUERIES);
    let began = Instant::now();
    while took.len() < QUERIES {
        while asked.len() < QUERIES && asked.len() - took.len() < AT_ONCE {
            // Its number, by which the answer is known (RFC 1035, 4.1.1).
            let id = u16::try_from(asked.len()).expect("fewer than there are numbers");
            query[..2].copy_from_slice(&id.to_be_bytes());
            asked.push(Instant::now());
            socket.send(&query).expect("a query sent");
        }
        let length = socket.recv(&mut buffer).unwrap_or_else(|e| {
            panic!(
                "{server:?} leaves {} of {QUERIES} unanswered: {e}",
                QUERIES - took.len()
            )
        });
        let answer = &buffer[..length];
        assert!(good(answer), "{server:?} answers with {answer:?}");
        let id = usize::from(u16::from_be_bytes([answer[0], answer[1]]));
        took.push(ms(asked[id].elapsed()));
    }
    took.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, reason = "some thousands")]
    let rate = QUERIES as f64 / began.elapsed().as_secs_f64();
    Served {
        rate,
        p99: took[QUERIES * 99 / 100],
    }
}

/// A question for a name's IPv4 address (RFC 1035, 4.1), with the number 0.
fn query(name: &str) -> Vec<u8> {
    let mut query = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).expect("a short label"));
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    query
}

/// Whether a message is an answer without an error, and its one record ends with that address.
fn answers_with(message: &[u8], address: Ipv4Addr) -> bool {
    message.len() > 12
        && message[2] & 0x80 != 0
        && message[3] & 0x0f == 0
        && message[6..8] == [0, 1]
        && message.ends_with(&address.octets())
}
