//! Much data and many commands: byte-exact, bounded memory, no leak.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use e2e::{Daemon, Guest, Settings, Testbed, processes, wait_for};

/// What goes through: the promise is 1 GiB.
const BULK: u64 = 1 << 30;

/// A stream of bytes that does not repeat within what we send (xorshift64*), so that a lost, doubled or moved block
/// shows.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_exact_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            word.copy_from_slice(&self.0.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
        }
    }
}

/// The highest resident memory of a process so far, in bytes.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .expect("a peak");
    line.trim()
        .trim_end_matches(" kB")
        .parse::<u64>()
        .expect("a number")
        << 10
}

#[test]
fn a_gibibyte_each_way_is_byte_exact() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "bulk", "busybox");
    let mut command = guest.exec_with(&["-i"]).args(["--", "cat"]).into_command();
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run banger");
    let mut stdin = child.stdin.take().expect("stdin");
    let writer = std::thread::spawn(move || {
        let (mut noise, mut buffer) = (Noise(1), vec![0; 256 << 10]);
        for _ in 0..BULK / (256 << 10) {
            noise.fill(&mut buffer);
            stdin.write_all(&buffer).expect("write to the guest");
        }
    });
    let mut stdout = child.stdout.take().expect("stdout");
    let mut client = 0;
    let (mut noise, mut expected, mut got) = (Noise(1), vec![0; 256 << 10], vec![0; 256 << 10]);
    for block in 0..BULK / (256 << 10) {
        noise.fill(&mut expected);
        stdout
            .read_exact(&mut got)
            .unwrap_or_else(|e| panic!("the stream ended in block {block}: {e}"));
        assert!(expected == got, "block {block} differs");
        // While it lives: a process that has ended has no figures any more.
        if block % 512 == 0 {
            client = peak(child.id());
        }
    }
    assert_eq!(
        stdout.read(&mut got).expect("read"),
        0,
        "more came back than was sent"
    );
    writer.join().expect("the writer");
    let took = began.elapsed();
    assert!(child.wait().expect("wait").success());
    println!("{} MiB there and back in {took:.1?}", BULK >> 20);
    for (who, bytes) in [("the daemon", peak(daemon.pid())), ("the command line", client)] {
        assert!(bytes < 96 << 20, "{who} took up to {} MiB", bytes >> 20);
    }
    daemon.finish();
}

#[test]
fn thousands_of_commands_leak_nothing() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "many", "busybox");
    let agent_files = || -> usize { guest.sh("ls /proc/1/fd | wc -l").parse().expect("a number") };
    let processes_there = || -> usize { guest.sh("ls -d /proc/[0-9]* | wc -l").parse().expect("a number") };
    // Some of each kind first, so that what is made once and kept is there already.
    burst(&guest, 16);
    let before = (
        agent_files(),
        processes_there(),
        processes::open_files(daemon.pid()),
    );
    let memory = resident(daemon.pid());
    let began = Instant::now();
    burst(&guest, 2000);
    println!("2000 commands in {:.1?}", began.elapsed());
    let settled = wait_for(Duration::from_secs(60), || {
        let after = (
            agent_files(),
            processes_there(),
            processes::open_files(daemon.pid()),
        );
        (after.0 <= before.0 && after.1 <= before.1 && after.2 <= before.2).then_some(())
    });
    let after = (
        agent_files(),
        processes_there(),
        processes::open_files(daemon.pid()),
    );
    assert!(
        settled.is_some(),
        "agent's files, guest's processes, daemon's files: {before:?} before, {after:?} after"
    );
    let grown = resident(daemon.pid()).saturating_sub(memory);
    assert!(grown < 8 << 20, "the daemon grew by {} KiB", grown >> 10);
    daemon.finish();
}

fn resident(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("its statm");
    let pages: u64 = statm
        .split(' ')
        .nth(1)
        .expect("a second field")
        .parse()
        .expect("a number");
    pages * u64::try_from(rustix::param::page_size()).expect("a page's size")
}

/// Commands from four callers at once, each kind of end among them.
fn burst(guest: &Guest<'_>, count: usize) {
    std::thread::scope(|scope| {
        for caller in 0..4 {
            scope.spawn(move || {
                for number in (caller..count).step_by(4) {
                    match number % 8 {
                        0 => {
                            let text = number.to_string();
                            let echo = guest.exec_with(&["-i"]).args(["--", "cat"]).input(text.clone());
                            assert_eq!(echo.ok(), text);
                        }
                        1 => drop(guest.exec(["no-such-command"]).fails(127)),
                        _ => assert_eq!(guest.exec(["echo", &number.to_string()]).ok(), number.to_string()),
                    }
                }
            });
        }
    });
}
