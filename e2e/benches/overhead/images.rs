//! Making images: of an archive of large files and of one of many small ones, against what cannot be done without, unpacking it
//! (`tar -x`) and copying that into a file system (`mke2fs -d`); building one again that was built before; and the disk that
//! ten images of one base take.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use e2e::{Banger, Daemon, Settings, Testbed, testbed};

use crate::report::{Budget, Report};
use crate::rows::time;

const ROUNDS: usize = 3;
const REBUILDS: usize = 5;
const MIB: u64 = 1 << 20;
/// GiB of the archive of large files.
const LARGE: &str = "BANGER_BENCH_IMAGE_GIB";
const SMALL_FILES: u64 = 200_000;
/// The images that share a base, and what each of them has of it and of its own.
const SHARING: u64 = 10;
const BASE: u64 = 200 * MIB;
const OWN: u64 = 2 * MIB;
const PATIENCE: Duration = Duration::from_secs(1800);

/// Imports, against `tar -x` and `mke2fs -d`.
pub(crate) fn import(report: &mut Report, daemon: &Daemon) {
    let gib = std::env::var(LARGE).ok().and_then(|gib| gib.parse::<u64>().ok());
    let gib = gib.unwrap_or(1);
    let directory = daemon.state().join("bench-images");
    std::fs::create_dir(&directory).expect("make a directory");
    let large: fn(&mut Archive, u64) = |archive, gib| {
        for number in 0..gib * 4 {
            archive.file(&format!("usr/large-{number}"), 256 * MIB, number);
        }
    };
    let small: fn(&mut Archive, u64) = |archive, files| {
        const SIZES: [u64; 7] = [100, 200, 1000, 2000, 3000, 6000, 10_000];
        for number in 0..files {
            let size = SIZES.iter().cycle().nth(usize::try_from(number % 7).unwrap_or(0));
            let path = format!("usr/d{}/file-{number}", number / 100);
            archive.file(&path, *size.expect("it goes round"), number);
        }
    };
    for (what, count, fill) in [
        (format!("{gib} GiB in files of 256 MiB"), gib, large),
        (format!("{SMALL_FILES} small files"), SMALL_FILES, small),
    ] {
        let path = directory.join("archive.tar");
        let mut archive = Archive::new(&path);
        fill(&mut archive, count);
        archive.finish();
        let (mut ours, mut raw) = (vec![], vec![]);
        for round in 0..ROUNDS {
            if round % 2 == 0 {
                ours.push(register(daemon, &path));
                raw.push(unpacked(&directory, &path));
            } else {
                raw.push(unpacked(&directory, &path));
                ours.push(register(daemon, &path));
            }
        }
        let name = format!("import of {what} (raw: tar, mke2fs -d)");
        report.add(&name, "ms", ours, raw, Budget::Ratio(1.0));
    }
    std::fs::remove_dir_all(directory).expect("remove a directory");
}

/// Milliseconds of an image's making, which is removed again.
fn register(daemon: &Daemon, archive: &Path) -> f64 {
    settle(archive);
    let register = daemon
        .banger(["image", "register", "--quiet", "imported"])
        .args([archive]);
    let took = time(register.deadline(PATIENCE));
    daemon.banger(["image", "rm", "imported"]).deadline(PATIENCE).ok();
    took
}

/// Milliseconds of the same without Banger; what it made is removed again.
fn unpacked(directory: &Path, archive: &Path) -> f64 {
    settle(archive);
    let (tree, image) = (directory.join("tree"), directory.join("image"));
    std::fs::create_dir(&tree).expect("make a directory");
    let packed = std::fs::metadata(archive).expect("the archive").len();
    // Room for blocks that are not full, and for the inodes.
    let size = format!("{}M", packed / MIB * 2 + 256);
    let mke2fs = testbed::find_program("mke2fs").expect("mke2fs");
    let script = r#"tar -xf "$1" -C "$2" && "$3" -q -t ext4 -N 250000 -d "$2" "$4" "$5""#;
    let raw = Banger::new("sh")
        .args(["-c", script, "sh"])
        .args([archive, &tree, &mke2fs, &image])
        .args([&size]);
    let took = time(raw.deadline(PATIENCE));
    std::fs::remove_dir_all(tree).expect("remove a tree");
    std::fs::remove_file(image).expect("remove a file");
    took
}

/// Has the archive in memory and nothing to be written, as after its download.
fn settle(archive: &Path) {
    std::io::copy(
        &mut File::open(archive).expect("open the archive"),
        &mut std::io::sink(),
    )
    .expect("read the archive");
    assert!(Command::new("sync").status().expect("run sync").success());
}

/// Building again what was built before.
pub(crate) fn rebuild(report: &mut Report, daemon: &Daemon) {
    let directory = daemon.state().join("bench-build");
    std::fs::create_dir(&directory).expect("make a directory");
    let recipe = "FROM busybox\nCOPY file /file\nRUN for n in 1 2 3; do echo $n > /made-$n; done\nRUN rm /made-2\nENV A=b\n";
    std::fs::write(directory.join("Dockerfile"), recipe).expect("write a recipe");
    std::fs::write(directory.join("file"), vec![7; 1 << 20]).expect("write a file");
    let build = || {
        daemon
            .banger(["image", "build", "--quiet", "--name", "built"])
            .args([&directory])
            .deadline(PATIENCE)
    };
    let first = time(build());
    let again: Vec<f64> = (0..REBUILDS).map(|_| time(build())).collect();
    let raw = vec![first; again.len()];
    report.add(
        "build again, all cached (raw: at first)",
        "ms",
        again,
        raw,
        Budget::Ratio(0.5),
    );
    daemon.banger(["image", "rm", "built"]).ok();
    std::fs::remove_dir_all(directory).expect("remove a directory");
}

/// What ten images of one base take, on a file system that shares blocks and on the one that there is.
pub(crate) fn sharing(report: &mut Report, bed: &Testbed, daemon: &Daemon) {
    let (one, ten) = ten(daemon, false);
    let name = "disk of 10 images of a base, no sharing (raw: 1)";
    report.add(name, "MiB", vec![ten], vec![one], Budget::Compared);
    if !testbed::mounts("xfs") {
        report.left_out(
            "images that share blocks",
            "no XFS can be mounted here, see above",
        );
        return;
    }
    let daemon = Daemon::start(bed, Settings::prepared().file_system("xfs"));
    let (one, ten) = self::ten(&daemon, true);
    let name = "disk of 10 images of a base, XFS (raw: 1)";
    report.add(name, "MiB", vec![ten], vec![one], Budget::Ratio(1.5));
    daemon.finish();
}

/// MiB that one takes, and that ten take.
fn ten(daemon: &Daemon, alone: bool) -> (f64, f64) {
    let archive = daemon.state().join("bench.tar");
    let before = used(daemon, alone);
    let mut one = 0.0;
    for number in 0..SHARING {
        let mut made = Archive::new(&archive);
        for part in 0..BASE / MIB {
            made.file(&format!("usr/base-{part}"), MIB, part);
        }
        made.file("usr/own", OWN, 1_000_000 + number);
        made.finish();
        let name = format!("sharing-{number}");
        let register = daemon.banger(["image", "register", "--quiet", &name]);
        register.args([&archive]).deadline(PATIENCE).ok();
        std::fs::remove_file(&archive).expect("remove a file");
        if number == 0 {
            one = used(daemon, alone) - before;
        }
    }
    let ten = used(daemon, alone) - before;
    for number in 0..SHARING {
        daemon.banger(["image", "rm", &format!("sharing-{number}")]).ok();
    }
    (one, ten)
}

/// MiB that the images' directory takes, or, where that is the only one on it, its file system: what files share is counted for
/// each of them otherwise.
fn used(daemon: &Daemon, alone: bool) -> f64 {
    assert!(Command::new("sync").status().expect("run sync").success());
    let images = daemon.state().join("images");
    let script = match alone {
        true => r#"df -B1 --output=used "$1" | tail -n 1"#,
        false => r#"du -s -B1 "$1" | cut -f1"#,
    };
    let asked = Banger::new("sh").args(["-c", script, "sh"]).args([images]).ok();
    let bytes = asked.trim().parse::<f64>();
    bytes.expect("a number of bytes") / f64::from(1 << 20)
}

/// A plain tar archive that is being written.
struct Archive {
    out: BufWriter<File>,
    path: PathBuf,
}

impl Archive {
    fn new(path: &Path) -> Self {
        let file = File::create(path).expect("make an archive");
        let mut archive = Self {
            out: BufWriter::with_capacity(1 << 20, file),
            path: path.to_owned(),
        };
        archive.file("etc/hostname", 5, 0);
        archive
    }

    /// Adds a file of so many bytes, which are noise and the same each time.
    fn file(&mut self, path: &str, size: u64, seed: u64) {
        let mut header = [0_u8; 512];
        let mut put = |at: usize, text: &str| {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        put(0, path);
        put(100, "0000644\0");
        put(108, "0000000\0");
        put(116, "0000000\0");
        put(124, &format!("{size:011o}\0"));
        put(136, "14524624000\0");
        put(156, "0");
        put(257, "ustar\x0000");
        put(148, "        ");
        let sum: u32 = header.iter().copied().map(u32::from).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.write(&header);
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut left = size;
        while left > 0 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let bytes = state.to_le_bytes();
            let len = usize::try_from(left).unwrap_or(8).min(8);
            self.write(&bytes[..len]);
            left -= len as u64;
        }
        let padding = usize::try_from(size.next_multiple_of(512) - size).unwrap_or(0);
        self.write(&[0; 512][..padding]);
    }

    fn write(&mut self, bytes: &[u8]) {
        let written = self.out.write_all(bytes);
        written.unwrap_or_else(|error| panic!("write {}: {error}", self.path.display()));
    }

    fn finish(mut self) {
        self.write(&[0; 1024]);
        self.out.flush().expect("write an archive");
    }
}
