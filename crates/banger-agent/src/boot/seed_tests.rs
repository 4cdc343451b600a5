use super::*;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

/// A home as images have them, and a disk beside it.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        for name in ["image", "disk", "disk/lost+found"] {
            fs::create_dir(dir.path().join(name)).expect("directory");
        }
        Self { dir }
    }

    fn image(&self, name: &str) -> PathBuf {
        self.dir.path().join("image").join(name)
    }

    fn disk(&self, name: &str) -> PathBuf {
        self.dir.path().join("disk").join(name)
    }

    fn fill(&self) -> Result<bool, SeedError> {
        let source = openat(CWD, self.image(""), DIRECTORY, Mode::empty()).expect("the image's home");
        let skeleton = openat(CWD, self.dir.path().join("skel"), DIRECTORY, Mode::empty()).ok();
        fill(&source, skeleton.as_ref(), &self.disk(""))
    }

    /// Writes files, with the directories that they are in.
    fn write(&self, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = self.dir.path().join(path);
            fs::create_dir_all(path.parent().expect("in a directory")).expect("directories");
            fs::write(path, text).expect("file");
        }
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.disk("home").join(path)).ok()
    }
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().expect("metadata").mode() & 0o7777
}

#[test]
fn everything_about_a_home_is_kept() {
    let bench = Bench::new();
    fs::create_dir_all(bench.image("src/deep")).expect("directories");
    fs::write(bench.image("src/deep/file"), "contents").expect("file");
    fs::write(bench.image("tool"), "#!/bin/sh").expect("file");
    fs::set_permissions(bench.image("tool"), fs::Permissions::from_mode(0o4755)).expect("mode");
    fs::set_permissions(bench.image("src"), fs::Permissions::from_mode(0o2750)).expect("mode");
    fs::set_permissions(bench.image(""), fs::Permissions::from_mode(0o710)).expect("mode");
    fs::hard_link(bench.image("tool"), bench.image("src/tool")).expect("link");
    // Neither link may be followed: the first leads out of the home, the second nowhere.
    symlink("/etc", bench.image("etc")).expect("symbolic link");
    symlink("nowhere", bench.image("dangling")).expect("symbolic link");
    rustix::fs::mkfifoat(CWD, bench.image("pipe"), Mode::from_raw_mode(0o600)).expect("pipe");
    let _listens = std::os::unix::net::UnixListener::bind(bench.image("socket")).expect("socket");
    let sparse = File::create(bench.image("sparse")).expect("file");
    sparse.set_len(8 << 20).expect("a hole");
    let value = b"kept";
    let supported = match lsetxattr(bench.image("tool"), c"user.banger", value, XattrFlags::empty()) {
        Ok(()) => true,
        Err(Errno::OPNOTSUPP) => false,
        Err(error) => panic!("{error}"),
    };
    let old = Timespec {
        tv_sec: 1_000_000,
        tv_nsec: 5,
    };
    let times = Timestamps {
        last_access: old,
        last_modification: old,
    };
    for name in ["src/deep/file", "src/deep", "etc"] {
        utimensat(CWD, bench.image(name), &times, AtFlags::SYMLINK_NOFOLLOW).expect("times");
    }
    let root = rustix::process::geteuid().is_root();
    if root {
        for name in ["src", "src/deep/file", "etc"] {
            let (uid, gid) = (Uid::from_raw(1234), Gid::from_raw(5678));
            let path = bench.image(name);
            chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).expect("owner");
        }
        // Taken away by the change of owner, as by the copy's own.
        fs::set_permissions(bench.image("src"), fs::Permissions::from_mode(0o2750)).expect("mode");
    }

    assert!(bench.fill().expect("a copy"));
    let home = |name: &str| bench.disk("home").join(name);
    assert_eq!(fs::read(home("src/deep/file")).expect("copied"), b"contents");
    assert_eq!(mode(&home("")), 0o710);
    assert_eq!(mode(&home("src")), 0o2750);
    assert_eq!(mode(&home("tool")), 0o4755);
    assert_eq!(fs::read_link(home("etc")).expect("a link"), Path::new("/etc"));
    assert_eq!(
        fs::read_link(home("dangling")).expect("a link"),
        Path::new("nowhere")
    );
    let inode = |name: &str| fs::metadata(home(name)).expect("metadata").ino();
    assert_eq!(inode("tool"), inode("src/tool"));
    assert!(
        fs::metadata(home("pipe"))
            .expect("metadata")
            .file_type()
            .is_fifo()
    );
    assert!(!home("socket").exists());
    let sparse = fs::metadata(home("sparse")).expect("metadata");
    assert_eq!((sparse.len(), sparse.blocks() < 64), (8 << 20, true));
    if supported {
        let mut found = [0; 16];
        let length = lgetxattr(home("tool"), c"user.banger", &mut found).expect("kept");
        assert_eq!(&found[..length], value);
    }
    for name in ["src/deep/file", "src/deep", "etc"] {
        let metadata = home(name).symlink_metadata().expect("metadata");
        assert_eq!(
            (metadata.mtime(), metadata.mtime_nsec()),
            (1_000_000, 5),
            "{name}"
        );
    }
    if root {
        for name in ["src", "src/deep/file", "etc"] {
            let metadata = home(name).symlink_metadata().expect("metadata");
            assert_eq!((metadata.uid(), metadata.gid()), (1234, 5678), "{name}");
        }
    }
    assert!(!bench.disk(FRESH).exists());
}

#[test]
fn a_disk_that_has_a_home_keeps_it() {
    let bench = Bench::new();
    fs::write(bench.image("from-image"), "").expect("file");
    assert!(bench.fill().expect("a copy"));
    fs::write(bench.disk("home/mine"), "mine").expect("file");
    fs::remove_file(bench.disk("home/from-image")).expect("the user's choice");
    assert!(!bench.fill().expect("nothing to do"));
    assert!(bench.disk("home/mine").exists());
    assert!(!bench.disk("home/from-image").exists());
}

#[test]
fn a_copy_that_was_cut_off_starts_over() {
    let bench = Bench::new();
    fs::write(bench.image("file"), "whole").expect("file");
    // What a crash leaves: half a file, one that the image no longer has, a directory nobody may enter.
    fs::create_dir_all(bench.disk("home.new/closed")).expect("directory");
    fs::write(bench.disk("home.new/file"), "wh").expect("file");
    fs::write(bench.disk("home.new/gone"), "").expect("file");
    fs::set_permissions(bench.disk("home.new"), fs::Permissions::from_mode(0o700)).expect("mode");
    assert!(bench.fill().expect("a copy"));
    assert_eq!(fs::read(bench.disk("home/file")).expect("copied"), b"whole");
    assert!(!bench.disk("home/gone").exists());
    assert!(!bench.disk("home/closed").exists());
    assert!(!bench.disk(FRESH).exists());
}

#[test]
fn a_failure_leaves_no_home() {
    let bench = Bench::new();
    let mut deep = bench.image("");
    for _ in 0..=MAX_DEPTH {
        deep.push("d");
    }
    fs::create_dir_all(&deep).expect("directories");
    let error = bench.fill().expect_err("too deep");
    assert!(error.to_string().starts_with("copy d/d/d"), "{error}");
    assert!(!bench.disk("home").exists());
    // With the cause gone, the next boot starts over.
    fs::remove_dir_all(bench.image("d")).expect("removed");
    assert!(bench.fill().expect("a copy"));
}

#[test]
fn what_the_image_has_wins_over_the_template_and_that_over_the_set_up() {
    let bench = Bench::new();
    bench.write(&[
        ("image/.profile", "image"),
        ("image/.config/a", "image"),
        ("disk/seed/template/.profile", "template"),
        ("disk/seed/template/.config/a", "template"),
        ("disk/seed/template/.config/b", "template"),
        ("disk/seed/template/.bashrc", "template"),
        ("disk/seed/setup/.bashrc", "set-up"),
        ("disk/seed/setup/.ssh/authorized_keys", "set-up"),
        ("skel/.from-skel", "skel"),
    ]);
    fs::set_permissions(bench.image(".config"), fs::Permissions::from_mode(0o700)).expect("mode");
    fs::set_permissions(bench.disk("seed/setup/.ssh"), fs::Permissions::from_mode(0o700)).expect("mode");
    assert!(bench.fill().expect("a copy"));
    let is = |path: &str, text: Option<&str>| assert_eq!(bench.read(path).as_deref(), text, "{path}");
    is(".profile", Some("image"));
    is(".config/a", Some("image"));
    is(".config/b", Some("template"));
    is(".bashrc", Some("template"));
    is(".ssh/authorized_keys", Some("set-up"));
    is(".from-skel", None);
    assert_eq!(mode(&bench.disk("home/.config")), 0o700, "the first one's");
    assert_eq!(mode(&bench.disk("home/.ssh")), 0o700);
    assert!(!bench.disk("seed").exists());
}

#[test]
fn without_a_template_the_images_skeleton_takes_its_place() {
    let bench = Bench::new();
    bench.write(&[
        ("image/.profile", "image"),
        ("skel/.profile", "skel"),
        ("skel/.bashrc", "skel"),
        ("disk/seed/setup/.bashrc", "set-up"),
        ("disk/seed/setup/.vimrc", "set-up"),
    ]);
    assert!(bench.fill().expect("a copy"));
    let read = |path| bench.read(path).expect("copied");
    assert_eq!(
        [read(".profile"), read(".bashrc"), read(".vimrc")],
        ["image", "skel", "set-up"]
    );
}

#[test]
fn a_disk_without_a_seed_gets_the_images_home_alone() {
    let bench = Bench::new();
    bench.write(&[("image/file", "image"), ("skel/.profile", "skel")]);
    assert!(bench.fill().expect("a copy"));
    assert_eq!(
        (bench.read("file").as_deref(), bench.read(".profile")),
        (Some("image"), None)
    );
}

#[test]
fn a_link_of_the_images_is_not_written_through() {
    let bench = Bench::new();
    bench.write(&[
        ("outside/keys", "others"),
        ("disk/seed/setup/.ssh/authorized_keys", "set-up"),
    ]);
    symlink(bench.dir.path().join("outside"), bench.image(".ssh")).expect("link");
    bench.write(&[("disk/seed/template/both/file", "template")]);
    bench.write(&[("image/both", "a file of that name")]);
    assert!(bench.fill().expect("a copy"));
    assert!(!bench.dir.path().join("outside/authorized_keys").exists());
    assert_eq!(bench.read("both").as_deref(), Some("a file of that name"));
}

#[test]
fn links_of_two_names_within_the_template_stay_one_file() {
    let bench = Bench::new();
    bench.write(&[("image/a", "image"), ("disk/seed/template/a", "template")]);
    for name in ["b", "c"] {
        fs::hard_link(
            bench.disk("seed/template/a"),
            bench.disk("seed/template").join(name),
        )
        .expect("link");
    }
    assert!(bench.fill().expect("a copy"));
    assert_eq!(bench.read("a").as_deref(), Some("image"));
    assert_eq!(bench.read("b").as_deref(), Some("template"));
    let inode = |name: &str| {
        fs::metadata(bench.disk("home").join(name))
            .expect("metadata")
            .ino()
    };
    assert_eq!(inode("b"), inode("c"));
}

#[test]
fn a_seed_that_a_crash_left_goes_at_the_next_boot() {
    let bench = Bench::new();
    bench.write(&[
        ("disk/home/mine", "mine"),
        ("disk/seed/setup/mine", "set-up"),
        ("disk/seed/setup/new", "set-up"),
    ]);
    assert!(!bench.fill().expect("nothing to do"));
    assert!(!bench.disk("seed").exists());
    assert_eq!(
        (bench.read("mine").as_deref(), bench.read("new")),
        (Some("mine"), None)
    );
}
