//! `cargo xtask fuzz`: builds the targets of fuzz/ with coverage and runs them under libFuzzer for a bounded time.
//!
//! On the stable compiler, without cargo-fuzz: what libFuzzer needs of it is one pass and a few of LLVM's options. There is
//! no sanitizer, which stable does not have; panics, overflows, assertions, time and memory are what is watched. What is
//! learnt about interesting inputs stays under target/fuzz/corpus, what breaks a target under target/fuzz/crashes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use crate::layout;
use crate::sh::{self, Result};

/// As in fuzz/Cargo.toml.
const TARGETS: [&str; 9] = [
    "tar",
    "layers",
    "dockerfile",
    "recipe",
    "manifest",
    "ext4",
    "delta",
    "agent_frames",
    "disk",
];
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// What SanitizerCoverage is to leave in the code: counters, where they belong to, and what was compared.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";
/// Seconds that each target gets where nothing else is said.
const SECONDS: u32 = 15;
/// How many run at once.
const AT_ONCE: usize = 2;
/// Bytes of an input that is shown.
const SHOWN: usize = 8 << 10;

/// `cargo xtask fuzz [TARGET…] [--seconds N]`: true where nothing was found.
pub(crate) fn fuzz(arguments: &[String]) -> Result<bool> {
    let mut seconds = SECONDS;
    let mut targets = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--seconds" {
            let value = arguments.next().and_then(|value| value.parse().ok());
            seconds = value
                .filter(|value| *value > 0)
                .ok_or("--seconds needs a number")?;
        } else if let Some(target) = TARGETS.iter().find(|target| *target == argument) {
            targets.push(*target);
        } else {
            return Err(format!("no target {argument:?}; there are {}", TARGETS.join(", ")).into());
        }
    }
    if targets.is_empty() {
        targets = TARGETS.to_vec();
    }
    let binaries = build()?;
    let scratch = Scratch::new()?;
    run(&targets, &binaries, &scratch.0, seconds)
}

/// Where everything of the fuzzer's is kept.
fn directory() -> PathBuf {
    layout::target().join("fuzz")
}

/// The targets' binaries, with the versions of dependencies that the product has.
fn build() -> Result<PathBuf> {
    let package = layout::root().join("fuzz");
    fs::copy(layout::root().join("Cargo.lock"), package.join("Cargo.lock"))?;
    let mut cargo = Command::new("nice");
    // With --target, build scripts and macros are compiled without these flags.
    cargo
        .args([
            "-n",
            "19",
            "cargo",
            "build",
            "--quiet",
            "--release",
            "--bins",
            "--target",
            TRIPLE,
        ])
        .arg("--manifest-path")
        .arg(package.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(directory())
        .env("RUSTFLAGS", FLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    let begun = Instant::now();
    sh::run(&mut cargo)?;
    println!("fuzz: built in {} s", begun.elapsed().as_secs());
    Ok(directory().join(TRIPLE).join("release"))
}

/// A directory for the targets' files, in memory; gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() {
            memory.to_owned()
        } else {
            directory()
        };
        let scratch = Self(parent.join(format!("banger-fuzz-{}", std::process::id())));
        fs::create_dir(&scratch.0)?;
        scratch.bases()?;
        Ok(scratch)
    }

    /// Images by the tools that make real ones, for targets whose inputs are changes to them.
    fn bases(&self) -> Result {
        let bases = self.0.join("bases");
        let tree = self.0.join("tree");
        fs::create_dir_all(tree.join("d"))?;
        fs::create_dir(&bases)?;
        fs::write(tree.join("d/f"), "hello\n".repeat(1000))?;
        fs::hard_link(tree.join("d/f"), tree.join("hard"))?;
        std::os::unix::fs::symlink("d/f", tree.join("s"))?;
        std::os::unix::fs::symlink("x/".repeat(100), tree.join("long"))?;
        for number in 0..30 {
            fs::write(tree.join(format!("d/{number:020}")), "x")?;
        }
        let sparse = File::create(tree.join("sparse"))?;
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 50_000)?;
        for (name, features) in [
            (
                "ext4-old.img",
                "^has_journal,^metadata_csum,^64bit,^resize_inode,^extent",
            ),
            (
                "ext4-new.img",
                "^has_journal,metadata_csum,64bit,^resize_inode,extent,inline_data",
            ),
        ] {
            sh::read(
                Command::new("mke2fs")
                    .args([
                        "-q", "-F", "-t", "ext4", "-b", "1024", "-N", "64", "-O", features, "-d",
                    ])
                    .arg(&tree)
                    .arg(bases.join(name))
                    .arg("128"),
            )?;
        }
        for (name, table) in [
            (
                "gpt.img",
                "label: gpt\nfirst-lba: 34\ngrain: 512\n\nstart=40, size=8\nstart=48, size=8\n",
            ),
            (
                "mbr.img",
                "label: dos\ngrain: 512\n\nstart=8, size=8\nstart=16, size=64, type=5\nstart=18, size=8\n",
            ),
        ] {
            let image = bases.join(name);
            File::create(&image)?.set_len(128 << 10)?;
            let script = self.0.join("table");
            fs::write(&script, table)?;
            sh::read(
                Command::new("sh")
                    .args([
                        "-c",
                        "exec sfdisk --quiet --no-reread --no-tell-kernel \"$1\" <\"$2\"",
                        "sh",
                    ])
                    .arg(&image)
                    .arg(&script),
            )?;
        }
        sh::read(
            Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-o", "cluster_size=512"])
                .arg(bases.join("disk.qcow2"))
                .arg("1M"),
        )?;
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("fuzz: failed to remove {}: {error}", self.0.display());
        }
    }
}

/// A target at work.
struct Running {
    target: &'static str,
    child: Child,
    log: PathBuf,
    artifacts: PathBuf,
}

fn run(targets: &[&'static str], binaries: &Path, scratch: &Path, seconds: u32) -> Result<bool> {
    let mut clean = true;
    for together in targets.chunks(AT_ONCE) {
        let mut running = Vec::new();
        for target in together {
            match begin(target, binaries, scratch, seconds) {
                Ok(one) => running.push(one),
                Err(error) => {
                    // They end by themselves within the time; nobody is left behind.
                    for mut one in running {
                        one.child.kill()?;
                        one.child.wait()?;
                    }
                    return Err(error);
                }
            }
        }
        for mut one in running {
            let status = one.child.wait()?;
            clean &= report(&one, status)?;
        }
    }
    Ok(clean)
}

fn begin(target: &'static str, binaries: &Path, scratch: &Path, seconds: u32) -> Result<Running> {
    let corpus = directory().join("corpus").join(target);
    let artifacts = directory().join("crashes").join(target);
    // Crashes of earlier runs stay; this one's are told apart by being in a directory of their own until it has ended.
    let now = scratch.join(format!("crashes-{target}"));
    for directory in [&corpus, &artifacts, &now] {
        fs::create_dir_all(directory)?;
    }
    let package = layout::root().join("fuzz");
    let log = directory().join(format!("{target}.log"));
    let output = File::create(&log)?;
    // The lowest priority: what runs beside it has deadlines.
    let mut command = Command::new("nice");
    command
        .args(["-n", "19"])
        .arg(binaries.join(target))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", now.display()))
        .args([
            "-timeout=25",
            "-rss_limit_mb=2048",
            "-max_len=16384",
            "-print_final_stats=1",
        ])
        .env("BANGER_FUZZ_SCRATCH", scratch)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    let dictionary = package.join(format!("dictionaries/{target}.dict"));
    if dictionary.exists() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    command.arg(corpus).arg(package.join("corpus").join(target));
    let child = command
        .spawn()
        .map_err(|e| format!("failed to run {target}: {e}"))?;
    Ok(Running {
        target,
        child,
        log,
        artifacts: now,
    })
}

/// One line of figures; with what was found, if anything was.
fn report(one: &Running, status: ExitStatus) -> Result<bool> {
    let log = String::from_utf8_lossy(&fs::read(&one.log)?).into_owned();
    let figure = |name: &str| {
        let line = log.lines().rev().find_map(|line| line.strip_prefix(name));
        line.map_or("?", str::trim).to_owned()
    };
    let coverage = log.lines().rev().find_map(|line| {
        let (_, rest) = line.split_once("cov: ")?;
        rest.split(' ').next()
    });
    println!(
        "fuzz: {:<12} {:>9} executions, {:>6}/s, {} edges covered{}",
        one.target,
        figure("stat::number_of_executed_units:"),
        figure("stat::average_exec_per_sec:"),
        coverage.unwrap_or("?"),
        if status.success() { "" } else { ", FAILED" },
    );
    if status.success() {
        return Ok(true);
    }
    let tail: Vec<_> = log.lines().rev().take(30).collect();
    for line in tail.iter().rev() {
        eprintln!("  {line}");
    }
    for found in fs::read_dir(&one.artifacts)? {
        let found = found?;
        let kept = directory()
            .join("crashes")
            .join(one.target)
            .join(found.file_name());
        fs::copy(found.path(), &kept)?;
        let length = fs::metadata(&kept)?.len();
        eprintln!(
            "error: fuzz: {} fails on an input of {length} bytes: {}",
            one.target,
            kept.display()
        );
        if length <= SHOWN as u64 {
            let text = sh::read(Command::new("base64").arg("--wrap=0").arg(&kept))?;
            eprintln!("  base64: {text}");
        }
        eprintln!(
            "  again: cp {} fuzz/corpus/{}/ && cargo xtask fuzz {}",
            kept.display(),
            one.target,
            one.target
        );
    }
    eprintln!(
        "error: fuzz: {} ended with {status}; all it said is in {}",
        one.target,
        one.log.display()
    );
    Ok(false)
}
