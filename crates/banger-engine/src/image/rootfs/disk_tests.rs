//! Disks as `sfdisk` and `qemu-img` make them, of file systems by `mke2fs`.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::process::{Command, Stdio};

use super::*;
use crate::image::rootfs::FILE;

const MIB: u64 = 1 << 20;
const ROOT: &str = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709";
const LINUX: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";

struct Bench {
    directory: tempfile::TempDir,
    tools: Vec<PathBuf>,
    sfdisk: PathBuf,
    qemu_img: PathBuf,
    mke2fs: PathBuf,
}

impl Bench {
    fn new() -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let tools = std::env::split_paths(&path);
        Some(Self {
            directory: tempfile::tempdir().unwrap(),
            tools: tools.chain(["/usr/sbin", "/sbin"].map(PathBuf::from)).collect(),
            sfdisk: testkit::program("BANGER_TEST_SFDISK", "sfdisk")?,
            qemu_img: testkit::program("BANGER_TEST_QEMU_IMG", "qemu-img")?,
            mke2fs: testkit::program("BANGER_TEST_MKE2FS", "mke2fs")?,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self, program: &Path, arguments: &[&str]) {
        let mut command = Command::new(program);
        let ran = command.args(arguments).current_dir(&self.directory).status();
        assert!(ran.unwrap().success(), "{arguments:?}");
    }

    /// An ext4 file system of 8 MiB, which says what it is where it is a system.
    fn ext4(&self, system: Option<&str>) -> Vec<u8> {
        let tree = self.path("tree");
        fs::create_dir_all(tree.join("etc")).unwrap();
        if let Some(id) = system {
            fs::write(tree.join("etc/os-release"), format!("ID={id}\nVERSION_ID=1\n")).unwrap();
        }
        self.run(&self.mke2fs, &["-q", "-t", "ext4", "-d", "tree", "part", "8M"]);
        let made = fs::read(self.path("part")).unwrap();
        fs::remove_file(self.path("part")).unwrap();
        fs::remove_dir_all(tree).unwrap();
        made
    }

    /// A disk of 64 MiB with partitions of 10 MiB each, one after the other, by type and contents.
    fn disk(&self, label: &str, parts: &[(&str, Option<&[u8]>)]) -> PathBuf {
        let path = self.path("disk.raw");
        drop(fs::remove_file(&path));
        let file = File::create_new(&path).unwrap();
        file.set_len(64 * MIB).unwrap();
        let mut script = format!("label: {label}\n");
        let places = (0..).map(|index| MIB + index * 10 * MIB);
        for ((kind, contents), start) in parts.iter().zip(places) {
            script += &format!("start={}, size=10MiB, type={kind}\n", start / 512);
            file.write_all_at(contents.unwrap_or_default(), start).unwrap();
        }
        let mut made = Command::new(&self.sfdisk)
            .arg("-q")
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        made.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(made.wait().unwrap().success());
        path
    }

    async fn make(&self, source: &Path, partition: Option<u32>) -> Result<Rootfs, RootfsError> {
        let target = self.path("images/one");
        drop(fs::remove_dir_all(&target));
        let form = form(source);
        let made = from_disk(&target, source, form, partition, &self.tools, &Reporter::silent()).await;
        let left = fs::read_dir(self.path("images")).unwrap().count();
        assert_eq!(left, usize::from(made.is_ok()), "no unfinished work");
        assert_eq!(made.is_ok(), target.join(FILE).is_file());
        made
    }

    /// What it says it is.
    async fn made(&self, source: &Path, partition: Option<u32>) -> String {
        let made = self.make(source, partition).await.unwrap();
        assert_eq!(made.size, 10 * MIB);
        made.os.id
    }

    async fn refused(&self, source: &Path, partition: Option<u32>) -> String {
        let error = self.make(source, partition).await.unwrap_err();
        assert!(error.is_unusable_input(), "{error:?}");
        error.problem()
    }
}

#[tokio::test]
async fn the_partition_that_says_it_is_the_root() {
    let Some(bench) = Bench::new() else { return };
    let (root, other) = (bench.ext4(Some("right")), bench.ext4(Some("wrong")));
    let parts = [(LINUX, Some(&other[..])), (ROOT, Some(&root)), (LINUX, None)];
    let disk = bench.disk("gpt", &parts);
    assert_eq!(form(&disk), Form::Disk);
    assert_eq!(bench.made(&disk, None).await, "right");
    assert_eq!(bench.made(&disk, Some(1)).await, "wrong");
    let refused = bench.refused(&disk, Some(3)).await;
    assert_eq!(refused, "its partition 3 is no ext4 file system");
    let refused = bench.refused(&disk, Some(9)).await;
    assert!(
        refused.starts_with(
            "it has no partition 9: 1 (10MiB, type 0fc63daf-8483-4772-8e79-3d69d8477de4), 2 (10MiB, root), 3"
        ),
        "{refused}"
    );
    // Two that say so are none that does.
    let disk = bench.disk("gpt", &[(ROOT, Some(&root)), (ROOT, Some(&other))]);
    assert!(bench.refused(&disk, None).await.contains("--partition N"));
    // One that says so and is not is no reason to take another.
    let disk = bench.disk("gpt", &[(ROOT, None), (LINUX, Some(&other))]);
    assert_eq!(
        bench.refused(&disk, None).await,
        "its partition 1 is no ext4 file system"
    );
}

#[tokio::test]
async fn the_only_one_that_can_be_the_root() {
    let Some(bench) = Bench::new() else { return };
    let (system, data) = (bench.ext4(Some("system")), bench.ext4(None));
    for parts in [
        &[("0c", None), ("83", Some(&system[..]))][..],
        &[("83", Some(&data)), ("83", Some(&system))],
    ] {
        let disk = bench.disk("dos", parts);
        assert_eq!(bench.made(&disk, None).await, "system");
    }
    let disk = bench.disk("dos", &[("83", Some(&data)), ("83", None)]);
    assert_eq!(bench.made(&disk, None).await, "");
    let disk = bench.disk("dos", &[("83", Some(&data)), ("83", Some(&data))]);
    let refused = bench.refused(&disk, None).await;
    assert!(
        refused.contains("1 (10MiB, type 0x83), 2 (10MiB, type 0x83)"),
        "{refused}"
    );
    let disk = bench.disk("dos", &[("83", None), ("82", None)]);
    let refused = bench.refused(&disk, None).await;
    assert!(
        refused.contains("none of its partitions is a usable ext4"),
        "{refused}"
    );
    // Of a file that is cut short the table still says what it was.
    let disk = bench.disk("dos", &[("83", Some(&data)), ("83", Some(&system))]);
    File::options()
        .write(true)
        .open(&disk)
        .unwrap()
        .set_len(12 * MIB)
        .unwrap();
    assert!(
        bench
            .refused(&disk, Some(1))
            .await
            .contains("ends after the disk")
    );
    let file = bench.path("plain");
    fs::write(&file, [7; 4096]).unwrap();
    assert_eq!(form(&file), Form::Other);
    assert!(
        bench
            .refused(&file, Some(1))
            .await
            .contains("nor a disk with partitions")
    );
}

#[tokio::test]
async fn a_qcow2_by_itself() {
    let Some(bench) = Bench::new() else { return };
    let system = bench.ext4(Some("system"));
    bench.disk("gpt", &[(ROOT, Some(&system))]);
    let convert = |from: &str, options: &[&str], to: &str| {
        let arguments = [&["convert", "-f", "raw", "-O", "qcow2"], options, &[from, to]].concat();
        bench.run(&bench.qemu_img, &arguments);
        bench.path(to)
    };
    for options in [&[][..], &["-c"], &["-o", "compat=0.10"]] {
        let disk = convert("disk.raw", options, "disk.qcow2");
        assert_eq!(form(&disk), Form::Qcow2);
        let writes = writes(&disk, &bench.tools).await.unwrap();
        assert!((64 << 10..64 * MIB).contains(&writes), "{writes}");
        assert_eq!(bench.made(&disk, None).await, "system");
    }
    // Of one file system alone.
    fs::write(bench.path("whole.raw"), &system).unwrap();
    let whole = convert("whole.raw", &[], "whole.qcow2");
    assert_eq!(bench.make(&whole, None).await.unwrap().size, 8 * MIB);
    assert!(bench.refused(&whole, Some(1)).await.contains("--partition"));

    let make = |arguments: &[&str]| {
        bench.run(
            &bench.qemu_img,
            &[&["create", "-q", "-f", "qcow2"], arguments].concat(),
        );
    };
    make(&["-b", "/etc/shadow", "-F", "raw", "-u", "over.qcow2", "64M"]);
    let refused = bench.refused(&bench.path("over.qcow2"), None).await;
    assert!(refused.contains("backing file"), "{refused}");
    make(&["-o", "data_file=disk.raw,data_file_raw=on", "beside.qcow2", "64M"]);
    let refused = bench.refused(&bench.path("beside.qcow2"), None).await;
    assert!(refused.contains("in another file"), "{refused}");
    make(&["huge.qcow2", "60T"]);
    let refused = bench.refused(&bench.path("huge.qcow2"), None).await;
    assert!(refused.contains("larger than is read"), "{refused}");
    let bytes = fs::read(bench.path("disk.qcow2")).unwrap();
    for cut in [4, 80, 4096, bytes.len() / 2] {
        let short = bench.path("short.qcow2");
        fs::write(&short, &bytes[..cut]).unwrap();
        bench.make(&short, None).await.unwrap_err();
    }
}

#[test]
fn guids_are_written_as_people_do() {
    let Kind::Gpt(root) = Kind::ROOT else {
        panic!("a GUID")
    };
    assert_eq!(guid(&root), ROOT.to_lowercase());
}
