//! Tests with real children; none of them sleeps and hopes.

use std::ffi::OsStr;

use proptest::prelude::*;

use super::*;

fn spawn(program: &str, args: &[&str]) -> Process {
    let mut spec = Detached::new(program);
    spec.args = args.iter().map(OsString::from).collect();
    spawn_detached(spec).unwrap()
}

#[test]
fn stat_with_hostile_names() {
    let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 987654 20 21 22";
    for name in ["cat", "a b", "x) S 1 (", ") ) )", "(((", "new\nline) 1 2 3", ""] {
        let stat = Stat::parse(format!("42 ({name}) {tail}").as_bytes()).unwrap();
        assert_eq!(
            stat,
            Stat {
                state: b'S',
                user_ticks: 11,
                system_ticks: 12,
                start_time: 987_654,
                resident_pages: 21
            }
        );
    }
    assert_eq!(Stat::parse(b"42 (cat) S 1 2"), None);
    assert_eq!(Stat::parse(b"42 (cat"), None);
    assert_eq!(Stat::parse(b""), None);
}

#[tokio::test]
async fn a_stopped_process_is_told_from_a_sleeping_one() {
    let process = spawn("/bin/sleep", &["1000"]);
    assert!(!process.is_stopped().unwrap());
    process.kill(Signal::STOP).unwrap();
    // The stop takes effect when its thread runs next.
    let stopped = async {
        while !process.is_stopped().unwrap() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), stopped)
        .await
        .unwrap();
    process.kill(Signal::KILL).unwrap();
    process.exited().await;
    assert!(matches!(process.is_stopped(), Err(ProcessError::Gone { .. })));
}

#[test]
fn arguments_split_like_the_kernel_joins() {
    assert_eq!(split_arguments(b""), Vec::<OsString>::new());
    assert_eq!(split_arguments(b"a\0"), ["a"]);
    assert_eq!(split_arguments(b"a\0\0b\0"), ["a", "", "b"]);
    assert_eq!(
        split_arguments(b"setproctitle: without end"),
        ["setproctitle: without end"]
    );
}

#[test]
fn token_is_a_whole_word() {
    let found = |argument: &str| has_token(OsStr::new(argument), "bgrabc0123456");
    assert!(found("bgrabc0123456"));
    assert!(found("/run/banger/bgrabc0123456/qmp.sock"));
    assert!(found("xbgrabc0123456 path=/bgrabc0123456,server=on"));
    assert!(!found("bgrabc01234567"));
    assert!(!found("xbgrabc0123456"));
    assert!(!found("bgrabc012345"));
    assert!(!has_token(OsStr::new("anything"), ""));
}

proptest! {
    #[test]
    fn stat_never_panics(text in proptest::collection::vec(any::<u8>(), 0..300)) {
        Stat::parse(&text);
    }

    #[test]
    fn token_found_exactly_between_boundaries(before in "[a-z/,= ]{0,6}", after in "[0-9/,= ]{0,6}") {
        let bounded = !before.ends_with(|c: char| c.is_ascii_alphanumeric())
            && !after.starts_with(|c: char| c.is_ascii_alphanumeric());
        let argument = format!("{before}bgrTOKEN{after}");
        prop_assert_eq!(has_token(OsStr::new(&argument), "bgrTOKEN"), bounded);
    }
}

#[tokio::test]
async fn exit_code_and_signal_of_a_child() {
    let process = spawn("/bin/sh", &["-c", "exit 7"]);
    assert_eq!(process.exited().await, Exit::Code(7));
    assert_eq!(process.exited().await, Exit::Code(7), "asked again");
    assert!(
        !process.kill(Signal::TERM).unwrap(),
        "a signal after the end reaches nobody"
    );
    // Reaped: the number is free again, so it cannot be a zombie of ours.
    assert!(matches!(
        Process::open(process.id()),
        Err(ProcessError::Gone { .. })
    ));

    let process = spawn("/bin/sleep", &["1000"]);
    assert_eq!(process.try_exited(), None);
    assert!(process.kill(Signal::TERM).unwrap());
    assert_eq!(process.exited().await, Exit::Signal(libc::SIGTERM));
}

#[tokio::test]
async fn many_waiters_and_cancelled_waiters() {
    let process = std::sync::Arc::new(spawn("/bin/sleep", &["1000"]));
    let waiters: Vec<_> = (0..8)
        .map(|_| {
            let process = process.clone();
            tokio::spawn(async move { process.exited().await })
        })
        .collect();
    // One that is dropped while waiting takes nothing away.
    assert!(
        tokio::time::timeout(Duration::from_millis(20), process.exited())
            .await
            .is_err()
    );
    process.kill(Signal::KILL).unwrap();
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap(), Exit::Signal(libc::SIGKILL));
    }
}

#[tokio::test]
async fn a_stopped_process_can_be_killed() {
    let process = spawn("/bin/sleep", &["1000"]);
    process.kill(Signal::STOP).unwrap();
    process.kill(Signal::KILL).unwrap();
    assert_eq!(process.exited().await, Exit::Signal(libc::SIGKILL));
}

#[tokio::test]
async fn a_reused_number_is_another_process() {
    let process = spawn("/bin/sleep", &["1000"]);
    let id = process.id();
    let earlier = ProcessId {
        start_time: id.start_time - 1,
        ..id
    };
    assert!(matches!(Process::open(earlier), Err(ProcessError::Gone { .. })));
    assert!(command_line(earlier).is_none());
    for pid in [0, u32::MAX, i32::MAX.cast_unsigned()] {
        assert!(matches!(
            Process::open(ProcessId { pid, start_time: 1 }),
            Err(ProcessError::Gone { .. })
        ));
    }
    let adopted = Process::open(id).unwrap();
    adopted.kill(Signal::KILL).unwrap();
    assert_eq!(process.exited().await, Exit::Signal(libc::SIGKILL));
    // The other handle saw it end, but the status can be collected only once.
    assert_eq!(adopted.exited().await, Exit::Unknown);
}

/// An adopted process is nobody's child here: its parent has ended before we look.
#[tokio::test]
async fn adopting_a_stranger() {
    let dir = tempfile::tempdir().unwrap();
    let out = File::create(dir.path().join("pid")).unwrap();
    let mut spec = Detached::new("/bin/sh");
    spec.args = ["-c", "/bin/sleep 1000 >/dev/null & echo $!"]
        .map(OsString::from)
        .to_vec();
    spec.stdout = Some(out);
    assert!(spawn_detached(spec).unwrap().exited().await.success());
    let pid = std::fs::read_to_string(dir.path().join("pid"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let stranger = Process::open(id_of(pid).unwrap()).unwrap();
    assert_eq!(stranger.try_exited(), None);
    stranger.kill(Signal::KILL).unwrap();
    assert_eq!(stranger.exited().await, Exit::Unknown);
}

#[tokio::test]
async fn usage_of_a_process() {
    let ourselves = Process::open(id_of(std::process::id()).unwrap()).unwrap();
    let usage = ourselves.usage().unwrap();
    assert!((1 << 20..1 << 32).contains(&usage.resident), "{usage:?}");
    let process = spawn("/bin/true", &[]);
    process.exited().await;
    assert!(matches!(process.usage(), Err(ProcessError::Gone { .. })));
}

#[tokio::test]
async fn detached_means_detached() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    let kept = OwnedFd::from(File::open("/dev/null").unwrap());
    let kept_number = kept.as_raw_fd();
    // A descriptor that a careless library left inheritable.
    let leaked = File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let mut spec = Detached::new("/bin/sh");
    spec.args = [
        "-c",
        "echo $$; cut -d' ' -f6 /proc/self/stat; pwd; umask; ls /proc/$$/fd; \
         grep -E '^Sig(Blk|Ign)' /proc/self/status; cat /proc/$$/oom_score_adj; env | grep -c INHERITED",
    ]
    .map(OsString::from)
    .to_vec();
    spec.env = vec![
        ("PATH".into(), "/usr/bin:/bin".into()),
        ("GIVEN".into(), "1".into()),
    ];
    spec.stdout = Some(File::create(&path).unwrap());
    spec.inherit = vec![kept];
    spec.oom_score_adj = Some(500);
    let process = spawn_detached(spec).unwrap();
    let pid = process.id().pid;
    process.exited().await;
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], pid.to_string());
    assert_eq!(lines[1], pid.to_string(), "leads its own session");
    assert_eq!(lines[2..4], ["/", "0077"]);
    let mut descriptors: Vec<RawFd> = lines[4..lines.len() - 4]
        .iter()
        .map(|fd| fd.parse().unwrap())
        .collect();
    descriptors.sort_unstable();
    assert_eq!(descriptors, [0, 1, 2, kept_number], "{text}");
    let tail = &lines[lines.len() - 4..];
    assert_eq!(tail[0], "SigBlk:\t0000000000000000", "{text}");
    assert_eq!(tail[2..], ["500", "0"], "{text}");
    // Signals 32 and 33 are libc's own: it lets nobody change them.
    let ignored = u64::from_str_radix(tail[1].rsplit('\t').next().unwrap(), 16).unwrap();
    assert_eq!(ignored & 0x7fff_ffff, 0, "{text}");
    drop(leaked);
}

#[tokio::test]
async fn missing_program_is_its_own_error() {
    let error = spawn_detached(Detached::new("/nonexistent/program")).unwrap_err();
    assert!(matches!(error, SpawnError::NotFound { .. }), "{error}");
    let error = spawn_detached(Detached::new("/dev/null")).unwrap_err();
    assert!(matches!(error, SpawnError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn processes_betrayed_by_their_arguments() {
    let token = format!("bgrtest{}", std::process::id());
    // A shell that stops itself: it stays without a child of its own.
    let process = spawn(
        "/bin/sh",
        &["-c", "kill -STOP $$; exit", &format!("/run/{token}/x.sock")],
    );
    let found = find_by_token(&token).unwrap();
    assert_eq!(
        found.iter().map(|line| line.id).collect::<Vec<_>>(),
        [process.id()]
    );
    assert_eq!(found[0].args[0], "/bin/sh");
    assert_eq!(find_by_token(&format!("{token}x")).unwrap(), []);
    process.kill(Signal::KILL).unwrap();
    assert_eq!(process.exited().await, Exit::Signal(libc::SIGKILL));
}
