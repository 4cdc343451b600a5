//! `cargo xtask test`: the whole suite in one run of the test runner, then what was skipped and what was left behind.
//!
//! Unit and integration tests are compiled in the dev profile; the end-to-end tests drive the staged release, which is
//! what users run. The runner is cargo-nextest where it is installed (it limits how many guests run at once and ends
//! what hangs), else `cargo test`.

use std::fs;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use crate::fuzz;
use crate::host;
use crate::layout;
use crate::leftovers;
use crate::sh::{self, Result};
use crate::stage;
use crate::testbed::{self, Testbed};

/// Runs everything; the result is the runner's, or failure when something stays behind.
pub(crate) fn test(arguments: &[String]) -> Result<ExitCode> {
    let bed = testbed::prepare()?;
    let skips = layout::testbed().join("skipped");
    // Absent on the first run. What a run that was killed left of its daemons' state goes as well.
    drop(fs::remove_file(&skips));
    drop(fs::remove_dir_all(layout::testbed().join("runs")));
    crash_daemon()?;
    let this_run = leftovers::Run::begin()?;

    let nextest = sh::read(Command::new("cargo").args(["nextest", "--version"])).is_ok();
    let mut runner = Command::new("cargo");
    if nextest {
        runner.args(["nextest", "run", "--locked", "--workspace", "--profile", "full"]);
    } else {
        println!("test: cargo-nextest is not installed, using cargo test");
        // Two at a time, as in nextest.toml: each guest takes a processor.
        runner.args(["test", "--locked", "--workspace", "--no-fail-fast"]);
    }
    runner.args(arguments);
    if !nextest && !arguments.iter().any(|a| a == "--") {
        runner.args(["--", "--test-threads=2"]);
    }
    environment(&mut runner, &bed, &skips);
    let binaries = std::env::join_paths(host::test_binaries()?)?;
    runner.env("BANGER_TEST_HOSTKIT", binaries);
    runner.env("TMPDIR", &this_run.directory);
    // Beside the tests, at the lowest priority; a run of chosen tests is without. Its error as text: it crosses threads.
    let fuzzing = arguments
        .is_empty()
        .then(|| std::thread::spawn(|| fuzz::fuzz(&[]).map_err(|error| error.to_string())));
    let outcome = run(&mut runner, nextest);
    let fuzzed = match fuzzing.map(std::thread::JoinHandle::join) {
        None => true,
        Some(Ok(result)) => result?,
        Some(Err(_)) => return Err("the fuzzer's thread panicked".into()),
    };
    let (passed, closing) = outcome?;

    report_skips(&bed, &skips);
    let left = this_run.end();
    // Last, so that whoever reads only the end of a log sees the outcome.
    if let Some(line) = closing {
        println!("{line}");
    }
    if !fuzzed {
        eprintln!("error: fuzzing found something (above), kept under target/fuzz/crashes");
    }
    if !left.is_empty() {
        eprintln!("error: the tests left behind:");
        for line in &left {
            eprintln!("  {line}");
        }
    }
    Ok(if passed && fuzzed && left.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The daemon that can be made to die at each of its steps. In the dev profile, whose dependencies the tests compile
/// anyway; beside the stage, since no release has it.
fn crash_daemon() -> Result {
    let mut build = Command::new("cargo");
    build.args([
        "build",
        "--locked",
        "--package",
        "bangerd",
        "--features",
        "crash-points",
    ]);
    sh::run(&mut build)?;
    stage::put(
        &layout::target().join("debug/bangerd"),
        &layout::crash_daemon(),
        0o755,
    )
}

/// Where the tests find what they need. Crates below the end-to-end level know only these variables.
fn environment(runner: &mut Command, bed: &Testbed, skips: &Path) {
    runner.env("BANGER_TEST_STAGE", layout::stage());
    runner.env("BANGER_TEST_BED", layout::testbed());
    runner.env("BANGER_TEST_SKIPS", skips);
    runner.env("BANGER_TEST_CRASH_DAEMON", layout::crash_daemon());
    // In a full run the parts that set-up installs must be there: their absence is a fault and no reason to skip.
    runner.env("BANGER_TEST_REQUIRE", "1");
    // Minutes of work, which a developer's own run of one crate leaves out.
    runner.env("BANGER_TEST_BOOTSTRAP", "1");
    let stage = layout::stage().join("libexec/banger");
    runner.env("BANGER_TEST_VHOST_DEVICE_VSOCK", stage.join("vhost-device-vsock"));
    runner.env("BANGER_TEST_AGENT", stage.join("banger-agent"));
    let parts = [
        ("BANGER_TEST_FIRECRACKER", &bed.firecracker),
        ("BANGER_TEST_FIRECRACKER_KERNEL", &bed.firecracker_kernel),
        ("BANGER_TEST_DEBIAN_KERNEL", &bed.debian_kernel),
        ("BANGER_TEST_RESOLVED", &bed.resolved),
        ("BANGER_TEST_DOCKER_REGISTRY", &bed.docker_registry),
        ("BANGER_TEST_FIREWALLS", &bed.firewalls),
        ("BANGER_TEST_HOST", &bed.host),
    ];
    for (name, path) in parts {
        if let Some(path) = path {
            runner.env(name, path);
        }
    }
}

/// Runs the runner, its standard error line by line through us to catch the closing line.
fn run(runner: &mut Command, nextest: bool) -> Result<(bool, Option<String>)> {
    if std::io::stderr().is_terminal() && std::env::var_os("CARGO_TERM_COLOR").is_none() {
        runner.env("CARGO_TERM_COLOR", "always");
    }
    // nextest reports on standard error, libtest on standard output.
    if nextest {
        runner.stderr(Stdio::piped());
    } else {
        runner.stdout(Stdio::piped());
    }
    let mut child = runner.spawn().map_err(|e| format!("failed to run cargo: {e}"))?;
    let stream: Option<Box<dyn std::io::Read>> = if nextest {
        child.stderr.take().map(|s| Box::new(s) as _)
    } else {
        child.stdout.take().map(|s| Box::new(s) as _)
    };
    let mut closing = None;
    for line in stream.into_iter().flat_map(|s| BufReader::new(s).split(b'\n')) {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        if line.contains("Summary [") || line.starts_with("test result:") {
            closing = Some(line);
        }
    }
    Ok((child.wait()?.success(), closing))
}

fn report_skips(bed: &Testbed, skips: &Path) {
    let skipped = fs::read_to_string(skips).unwrap_or_default();
    let mut skipped: Vec<_> = skipped.lines().collect();
    skipped.sort_unstable();
    if skipped.is_empty() && bed.missing.is_empty() {
        println!("test: nothing was skipped");
        return;
    }
    for missing in &bed.missing {
        println!("test: the test bed is without {missing}");
    }
    for line in skipped {
        println!("test: skipped {line}");
    }
}
