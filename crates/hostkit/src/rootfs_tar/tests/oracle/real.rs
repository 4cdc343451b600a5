//! Images made by the tools that people make them with: GNU tar in two formats, `umoci repack`, `skopeo copy`.

use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use super::*;

/// A tree with one of everything.
fn make_base(top: &Path, xattrs: bool) {
    let at = |name: &str| top.join(name);
    for name in ["etc", "usr/lib/deep/er", "dev", "doomed/sub", "opaque/sub"] {
        fs::create_dir_all(at(name)).unwrap();
    }
    std::os::unix::fs::symlink("usr/lib", at("lib")).unwrap();
    for (name, text) in [
        ("etc/passwd", "root"),
        ("usr/lib/program", "elf"),
        ("doomed/sub/file", "x"),
        ("opaque/sub/file", "x"),
        ("opaque/file", "x"),
        ("kept", "kept"),
    ] {
        fs::write(at(name), text).unwrap();
    }
    fs::hard_link(at("usr/lib/program"), at("usr/lib/deep/other")).unwrap();
    fs::hard_link(at("usr/lib/program"), at("program")).unwrap();
    let long = format!("usr/lib/{}/{}", "d".repeat(120), "n".repeat(200));
    fs::create_dir(at(&long).parent().unwrap()).unwrap();
    fs::write(at(&long), "long").unwrap();
    let sparse = fs::File::create(at("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    for offset in [
        0_u64,
        1 << 20,
        3 << 20,
        4 << 20,
        5 << 20,
        6 << 20,
        (8 << 20) - 4096,
    ] {
        std::os::unix::fs::FileExt::write_all_at(&sparse, &[7; 4096], offset).unwrap();
    }
    let mode = Mode::from_raw_mode(0o640);
    let device = rustix::fs::makedev(8, 300);
    rustix::fs::mknodat(CWD, at("dev/sda"), FileType::BlockDevice, mode, device).unwrap();
    rustix::fs::mknodat(
        CWD,
        at("dev/null"),
        FileType::CharacterDevice,
        mode,
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    rustix::fs::mkfifoat(CWD, at("dev/pipe"), mode).unwrap();
    std::os::unix::fs::chown(at("etc/passwd"), Some(70_000), Some(42)).unwrap();
    fs::set_permissions(at("kept"), fs::Permissions::from_mode(0o4711)).unwrap();
    if xattrs {
        let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let set = |name, key, value: &[u8]| rustix::fs::setxattr(at(name), key, value, XattrFlags::empty());
        set("usr/lib/program", "security.capability", &capability).unwrap();
        set("etc", "user.note", b"a\nb").unwrap();
    }
}

#[test]
fn layers_of_real_tools_give_the_tree_that_umoci_gives() {
    let (Some(umoci_tool), Some(skopeo), Some(tar_tool)) = (tool("umoci"), tool("skopeo"), tool("tar"))
    else {
        return;
    };
    if !testkit::is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let text = |name: &str| at(name).to_str().unwrap().to_owned();
    let since = now();
    fs::create_dir(at("base")).unwrap();
    make_base(&at("base"), has_xattrs(dir.path()));
    let set_times = |tree: &str| {
        // So that times tell whether they were kept.
        let find = tool("find").unwrap();
        let touch = ["-depth", "-exec", "touch", "-h", "-d", "@1500000000", "{}", "+"];
        run(&find, &[&[text(tree).as_str()], touch.as_slice()].concat()).unwrap();
    };
    set_times("base");

    // The bottom in one format, the same once more with another's on top of it.
    let bottom = text("bottom.tar");
    let again = text("again.tar");
    let base = text("base");
    let common = ["-C", &base, "-S", "--xattrs", "--xattrs-include=*", "."];
    // (`umoci` knows nothing of sparse files in GNU's own format.)
    let gnu = [
        "-c",
        "--format=gnu",
        "--exclude=./sparse",
        "-f",
        &bottom,
        "-C",
        &base,
        ".",
    ];
    run(&tar_tool, &gnu).unwrap();
    run(
        &tar_tool,
        &[
            &["-c", "--format=posix", "--sparse-version=1.0", "-f", &again][..],
            &common,
        ]
        .concat(),
    )
    .unwrap();
    let zero = text("zero.tar");
    run(
        &tar_tool,
        &[
            &["-c", "--format=posix", "--sparse-version=0.1", "-f", &zero][..],
            &["-C", &base, "-S", "sparse"],
        ]
        .concat(),
    )
    .unwrap();
    let layers: Vec<_> = [&bottom, &again, &zero]
        .map(|path| fs::read(path).unwrap())
        .into();
    write_layout(&at("layout"), &layers);

    // Changes that a tool turns into a layer by itself.
    let image = format!("{}:latest", text("layout"));
    run(&umoci_tool, &["unpack", "--image", &image, &text("bundle")]).unwrap();
    let rootfs = at("bundle/rootfs");
    fs::remove_dir_all(rootfs.join("doomed")).unwrap();
    fs::remove_file(rootfs.join("usr/lib/program")).unwrap();
    fs::remove_file(rootfs.join("etc/passwd")).unwrap();
    fs::create_dir(rootfs.join("etc/passwd")).unwrap();
    fs::remove_dir_all(rootfs.join("opaque")).unwrap();
    fs::write(rootfs.join("opaque"), "now a file").unwrap();
    fs::write(rootfs.join("lib/added"), "through the link").unwrap();
    fs::hard_link(rootfs.join("kept"), rootfs.join("kept-too")).unwrap();
    run(&umoci_tool, &["repack", "--image", &image, &text("bundle")]).unwrap();

    // The way of images that are pulled: compressed.
    let (from, to) = (
        format!("oci:{image}"),
        format!("oci:{}:latest", text("compressed")),
    );
    run(&skopeo, &["copy", "--dest-compress", &from, &to]).unwrap();
    let blobs = at("compressed/blobs/sha256");
    let manifest = run(&skopeo, &["inspect", "--raw", &to]).unwrap();
    let layers: Vec<Vec<u8>> = manifest
        .split("\"layers\"")
        .nth(1)
        .unwrap()
        .split("sha256:")
        .skip(1)
        .map(|rest| fs::read(blobs.join(&rest[..64])).unwrap())
        .collect();
    assert_eq!(layers.len(), 4);
    assert!(layers.iter().all(|layer| decompress::detect(layer).is_some()));

    let theirs = umoci(&umoci_tool, &at("compressed"), &at("theirs")).unwrap();
    let ours = ours(&layers, &at("ours")).unwrap();
    let found = differences(&theirs, &ours, since);
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(ours["opaque"].kind == "file" && !ours.contains_key("doomed"));
    assert_eq!(
        ours["usr/lib/deep/other"].first, "program",
        "linked, and a name less"
    );
    let sparse = fs::metadata(at("ours/sparse")).unwrap();
    assert!(sparse.blocks() * 512 < sparse.len() / 8, "{}", sparse.blocks());
}

#[test]
fn sparse_files_of_tar_are_read_in_all_its_formats() {
    let Some(tar_tool) = tool("tar") else { return };
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().to_str().unwrap();
    let path = dir.path().join("sparse");
    let file = fs::File::create(&path).unwrap();
    file.set_len((4 << 20) + 5).unwrap();
    for at in 0..60_u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, &at.to_le_bytes(), at << 16).unwrap();
    }
    let wanted = fs::read(&path).unwrap();
    let formats: [&[&str]; 4] = [
        &["--format=gnu"],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ];
    for (number, format) in formats.into_iter().enumerate() {
        let archive = dir.path().join(format!("{number}.tar"));
        let command = ["-c", "-S", "-f", archive.to_str().unwrap(), "-C", top, "sparse"];
        run(&tar_tool, &[format, command.as_slice()].concat()).unwrap();
        let archive = fs::read(archive).unwrap();
        assert!(archive.len() < 1 << 20, "{format:?} is sparse");
        let (unpacked, result) = try_unpack(&archive, &Limits::default());
        result.unwrap();
        let found = unpacked.path().join("tree/sparse");
        assert!(fs::read(&found).unwrap() == wanted, "{format:?}");
        assert!(
            fs::metadata(&found).unwrap().blocks() * 512 < 1 << 20,
            "{format:?}"
        );
    }
}
