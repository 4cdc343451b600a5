//! The context: what sources mean, what `.dockerignore` leaves out, what an archive and a digest hold, and that there is no
//! way out.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{self, Read as _, Write};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use banger_recipe::{Attributes, Compression, Context, ContextError, Selection};

/// A directory with these files; a name with a slash at its end is a directory.
fn tree(files: &[&str]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for file in files {
        let path = directory.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match file.ends_with('/') {
            true => fs::create_dir_all(&path).unwrap(),
            false => fs::write(&path, format!("content of {file}")).unwrap(),
        }
    }
    directory
}

fn names(selection: &Selection<'_>) -> Vec<String> {
    selection
        .entries()
        .iter()
        .map(|entry| entry.name.to_str().unwrap().to_owned())
        .collect()
}

/// What sources select, or why not.
fn select(directory: &Path, sources: &[&str]) -> Result<Vec<String>, ContextError> {
    let sources: Vec<String> = sources.iter().map(|source| (*source).to_owned()).collect();
    let context = Context::open(directory, None)?;
    let selection = context.select(&sources, 7)?;
    Ok(names(&selection))
}

#[test]
fn sources_mean_what_docker_means() {
    let tree = tree(&[
        "a.txt",
        "b.txt",
        "c.md",
        "d/e.txt",
        "d/f/g",
        "d/.hidden",
        "d/f/empty/",
        "x y",
        "arr[0].txt",
    ]);
    let cases: &[(&[&str], &[&str])] = &[
        (&["a.txt"], &["a.txt"]),
        (&["/a.txt", "./b.txt"], &["a.txt", "b.txt"]),
        (&["*.txt"], &["a.txt", "arr[0].txt", "b.txt"]),
        (&["?.txt"], &["a.txt", "b.txt"]),
        (&["[ac].*"], &["a.txt", "c.md"]),
        (&["[^ac].txt"], &["b.txt"]),
        (&["arr[[]0].txt"], &["arr[0].txt"]),
        (&["d"], &[".hidden", "e.txt", "f", "f/empty", "f/g"]),
        (&["d/"], &[".hidden", "e.txt", "f", "f/empty", "f/g"]),
        (&["d/f", "a.txt"], &["a.txt", "empty", "g"]),
        (&["d/*"], &[".hidden", "e.txt", "empty", "g"]),
        (&["*/e.txt"], &["e.txt"]),
        (&["d/f/../e.txt"], &["e.txt"]),
        (&["x y"], &["x y"]),
        (&["d/f/empty"], &[]),
    ];
    for (sources, expected) in cases {
        assert_eq!(select(tree.path(), sources).unwrap(), *expected, "{sources:?}");
    }
    let context = Context::open(tree.path(), None).unwrap();
    let single = |source: &str| context.select(&[source.to_owned()], 1).unwrap().is_single_file();
    assert!(single("a.txt") && !single("a*.txt") && single("c*") && !single("d") && !single("?.txt"));
}

#[test]
fn what_is_not_there_is_said() {
    let tree = tree(&["a/b", "secret", "kept/secret", "x"]);
    fs::write(tree.path().join(".dockerignore"), "secret\na\n").unwrap();
    let error = |source: &str| select(tree.path(), &["x", source]).unwrap_err().to_string();
    assert_eq!(
        error("nothing"),
        "line 7: nothing in the context directory is `nothing`"
    );
    assert_eq!(
        error("*.none"),
        "line 7: nothing in the context directory is `*.none`"
    );
    assert_eq!(error("x/y"), "line 7: nothing in the context directory is `x/y`");
    let ignored = "line 7: nothing in the context directory is `secre*` (.dockerignore leaves it out)";
    assert_eq!(error("secre*"), ignored);
    assert!(error("a").ends_with("(.dockerignore leaves it out)"));
    assert!(error("a/b").ends_with("(.dockerignore leaves it out)"));
    assert_eq!(select(tree.path(), &["kept"]).unwrap(), ["secret"]);
    assert_eq!(error("[a"), "line 7: `[a` is not a pattern that can be used");
    assert_eq!(
        error("[z-a]"),
        "line 7: `[z-a]` is not a pattern that can be used"
    );
}

#[test]
fn there_is_no_way_out() {
    let outside = tree(&["secret", "d/secret"]);
    let tree = tree(&["a", "d/e"]);
    let link = |target: &Path, name: &str| symlink(target, tree.path().join(name)).unwrap();
    link(outside.path(), "absolute");
    link(Path::new("../../../../../../../etc"), "relative");
    link(Path::new("d/../../x"), "through");
    link(Path::new("loop"), "loop");
    link(Path::new("d"), "inside");
    link(Path::new("nothing"), "dangling");
    link(Path::new("../a"), "d/up");
    for source in [
        "../x",
        "d/../../x",
        "..",
        "absolute",
        "absolute/secret",
        "relative/passwd",
        "relative/*",
        "through",
    ] {
        let error = select(tree.path(), &[source]).unwrap_err();
        assert!(
            matches!(error, ContextError::Outside { line: 7, .. }),
            "{source}: {error}"
        );
    }
    assert!(matches!(
        select(tree.path(), &["loop"]),
        Err(ContextError::Links { .. })
    ));
    assert!(matches!(
        select(tree.path(), &["dangling"]),
        Err(ContextError::NoMatch { .. })
    ));
    // Links within are followed where a source goes through them, and kept where they are found.
    assert_eq!(select(tree.path(), &["inside"]).unwrap(), ["e", "up"]);
    assert_eq!(select(tree.path(), &["inside/e", "d/up"]).unwrap(), ["e", "up"]);
    let all = select(tree.path(), &["."]).unwrap();
    assert_eq!(
        all,
        [
            "a", "absolute", "d", "d/e", "d/up", "dangling", "inside", "loop", "relative", "through"
        ]
    );
}

#[test]
fn special_files_are_refused_by_name() {
    let tree = tree(&["d/a"]);
    let _socket = UnixListener::bind(tree.path().join("d/socket")).unwrap();
    let error = select(tree.path(), &["."]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot copy d/socket out of the context: it is a socket"
    );
    fs::write(tree.path().join(".dockerignore"), "**/socket\n.dockerignore").unwrap();
    assert_eq!(select(tree.path(), &["."]).unwrap(), ["d", "d/a"]);
}

#[test]
fn names_that_cannot_be_in_one_place() {
    let tree = tree(&["a/x", "b/x/y", "c/x"]);
    assert!(matches!(
        select(tree.path(), &["a", "b"]),
        Err(ContextError::Clash { .. })
    ));
    let context = Context::open(tree.path(), None).unwrap();
    let selection = context.select(&["a".to_owned(), "c".to_owned()], 1).unwrap();
    assert_eq!(selection.entries()[0].path, Path::new("c/x"));
}

/// Docker's documentation, line by line, and what its pattern matcher does besides.
#[test]
fn ignore_rules_are_dockers() {
    let files = [
        "README.md",
        "README-secret.md",
        "a.go",
        "d/b.go",
        "d/temp",
        "d/tempa",
        "d/e/temp",
        "temp",
        "tempa",
        "tempabc",
        "node_modules/x/y.js",
        "d/node_modules/z.js",
        "keep/this/file",
        "keep/that/file",
        "#file",
        "d/.git/config",
        "foo[1]",
    ];
    let cases: &[(&str, &[&str])] = &[
        ("# comment\n*/temp*\n", &["d/temp", "d/tempa"]),
        ("*/*/temp*\n", &["d/e/temp"]),
        ("temp?\n", &["tempa"]),
        ("**/*.go\n", &["a.go", "d/b.go"]),
        ("*.md\n!README.md\n", &["README-secret.md"]),
        ("*.md\n!README*.md\nREADME-secret.md\n", &["README-secret.md"]),
        ("*.md\nREADME-secret.md\n!README*.md\n", &[]),
        ("/temp\n", &["temp"]),
        ("temp/\n", &["temp"]),
        ("  temp  \n", &["temp"]),
        ("./d/../temp\n", &["temp"]),
        ("node_modules\n", &["node_modules/x/y.js"]),
        (
            "**/node_modules\n",
            &["d/node_modules/z.js", "node_modules/x/y.js"],
        ),
        ("**/node_modules/\n!node_modules/x\n", &["d/node_modules/z.js"]),
        ("keep\n!keep/this\n", &["keep/that/file"]),
        ("keep/**\n!keep/this/file\n", &["keep/that/file"]),
        ("keep/*\n!keep/this\n", &["keep/that/file"]),
        ("!keep\nkeep/that\n", &["keep/that/file"]),
        ("#file\n", &[]),
        ("\\#file\n", &["#file"]),
        ("**/.git\n", &["d/.git/config"]),
        ("foo[[]1]\n", &["foo[1]"]),
        ("[a-b].go\n", &["a.go"]),
        ("[^a-b].go\n", &[]),
        ("d/**/temp\n", &["d/e/temp", "d/temp"]),
        ("**/e/**\n", &["d/e/temp"]),
        ("**.md\n", &["README-secret.md", "README.md"]),
        (
            "d\n!d/e/temp\n",
            &[
                "d/.git/config",
                "d/b.go",
                "d/node_modules/z.js",
                "d/temp",
                "d/tempa",
            ],
        ),
        ("\u{feff}temp\r\ntempa\r\n", &["temp", "tempa"]),
        (".\n/\n\n", &[]),
    ];
    let tree = tree(&files);
    let recipe = tempfile::tempdir().unwrap();
    let recipe = recipe.path().join("Dockerfile");
    for (rules, left_out) in cases {
        fs::write(recipe.with_file_name("Dockerfile.dockerignore"), rules).unwrap();
        let context = Context::open(tree.path(), Some(&recipe)).unwrap();
        let selection = context.select(&[".".to_owned()], 1).unwrap();
        let kept = names(&selection);
        let mut missing: Vec<&str> = files
            .into_iter()
            .filter(|file| !kept.iter().any(|name| name == file))
            .collect();
        missing.sort_unstable();
        assert_eq!(missing, *left_out, "{rules:?}");
    }
    for rules in ["!\n", "[a\n", "a\\\n", "a\n! \n"] {
        fs::write(recipe.with_file_name("Dockerfile.dockerignore"), rules).unwrap();
        let error = Context::open(tree.path(), Some(&recipe)).unwrap_err();
        assert!(
            matches!(error, ContextError::IgnorePattern { .. }),
            "{rules:?}: {error}"
        );
    }
    fs::write(recipe.with_file_name("Dockerfile.dockerignore"), "*\n!d/e\n").unwrap();
    let context = Context::open(tree.path(), Some(&recipe)).unwrap();
    let selection = context.select(&[".".to_owned()], 1).unwrap();
    assert_eq!(names(&selection), ["d", "d/e", "d/e/temp"]);
}

/// Name, kind, mode, owner, content or link target.
type Packed = (PathBuf, tar::EntryType, u32, u64, String);

fn unpacked(archive: &[u8]) -> Vec<Packed> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        if let Some(target) = entry.link_name().unwrap() {
            target.to_str().unwrap().clone_into(&mut content);
        }
        let header = entry.header();
        let (kind, mode, uid) = (header.entry_type(), header.mode().unwrap(), header.uid().unwrap());
        (entry.path().unwrap().into_owned(), kind, mode, uid, content)
    });
    entries.collect()
}

#[test]
fn archives_hold_what_was_selected() {
    let long = "n".repeat(150);
    let tree = tree(&["d/run", &format!("d/{long}/{long}")]);
    let target = "t".repeat(200);
    symlink(&target, tree.path().join("d/link")).unwrap();
    fs::set_permissions(tree.path().join("d/run"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::set_permissions(
        tree.path().join("d").join(&long),
        fs::Permissions::from_mode(0o700),
    )
    .unwrap();
    fs::set_permissions(
        tree.path().join(format!("d/{long}/{long}")),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    let context = Context::open(tree.path(), None).unwrap();
    let selection = context.select(&["d".to_owned()], 1).unwrap();
    let mut archive = Vec::new();
    let attributes = Attributes {
        uid: 3_000_000_000,
        gid: 5,
        mode: None,
    };
    let written = selection
        .write_tar(&mut archive, Path::new("top"), &attributes)
        .unwrap();
    assert_eq!(written, selection.digest().unwrap());
    use tar::EntryType::{Directory, Regular, Symlink};
    let uid = 3_000_000_000;
    let expected: Vec<Packed> = vec![
        ("top/link".into(), Symlink, 0o777, uid, target),
        (format!("top/{long}").into(), Directory, 0o700, uid, String::new()),
        (
            format!("top/{long}/{long}").into(),
            Regular,
            0o600,
            uid,
            format!("content of d/{long}/{long}"),
        ),
        (
            "top/run".into(),
            Regular,
            0o751,
            uid,
            "content of d/run".to_owned(),
        ),
    ];
    assert_eq!(unpacked(&archive), expected);
    archive.clear();
    let attributes = Attributes {
        mode: Some(0o4711),
        ..Attributes::default()
    };
    selection
        .write_tar(&mut archive, Path::new(""), &attributes)
        .unwrap();
    let modes: Vec<u32> = unpacked(&archive).iter().map(|entry| entry.2).collect();
    assert_eq!(modes, [0o777, 0o4711, 0o4711, 0o4711]);
}

#[test]
fn digests_are_of_what_counts() {
    let digest = |directory: &Path| {
        let context = Context::open(directory, None).unwrap();
        context.select(&[".".to_owned()], 1).unwrap().digest().unwrap()
    };
    let make = || {
        let tree = tree(&["a", "d/b"]);
        symlink("a", tree.path().join("l")).unwrap();
        for (name, mode) in [("a", 0o644), ("d", 0o755), ("d/b", 0o644)] {
            fs::set_permissions(tree.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        tree
    };
    let first = make();
    let before = digest(first.path());
    assert_eq!(digest(make().path()), before, "times do not count");
    type Change = fn(&Path);
    let changes: [(&str, Change); 7] = [
        ("content", |path| {
            fs::write(path.join("a"), "content of A").unwrap();
        }),
        ("mode", |path| {
            fs::set_permissions(path.join("a"), fs::Permissions::from_mode(0o755)).unwrap();
        }),
        ("directory's mode", |path| {
            fs::set_permissions(path.join("d"), fs::Permissions::from_mode(0o700)).unwrap();
        }),
        ("name", |path| {
            fs::rename(path.join("a"), path.join("b")).unwrap();
        }),
        ("place", |path| {
            fs::rename(path.join("d/b"), path.join("b")).unwrap();
        }),
        ("another", |path| {
            fs::create_dir(path.join("e")).unwrap();
        }),
        ("link", |path| {
            fs::remove_file(path.join("l")).unwrap();
            symlink("b", path.join("l")).unwrap();
        }),
    ];
    for (what, change) in changes {
        let tree = make();
        change(tree.path());
        assert_ne!(digest(tree.path()), before, "{what}");
    }
}

#[test]
fn files_that_change_meanwhile_are_an_error() {
    for (content, grown) in [("", false), ("content of a and more", true)] {
        let tree = tree(&["a"]);
        let context = Context::open(tree.path(), None).unwrap();
        let selection = context.select(&["a".to_owned()], 1).unwrap();
        fs::write(tree.path().join("a"), content).unwrap();
        let written = selection.write_tar(&mut io::sink(), Path::new(""), &Attributes::default());
        assert!(
            matches!(written, Err(ContextError::Changed { .. })),
            "grown: {grown}, {written:?}"
        );
        assert!(
            matches!(selection.digest(), Err(ContextError::Changed { .. })),
            "grown: {grown}"
        );
    }
    // A link in place of the file, or of the directory that it is in, leads nowhere.
    let outside = tree(&["a"]);
    let tree = tree(&["a", "d/a"]);
    let context = Context::open(tree.path(), None).unwrap();
    let selection = context.select(&["d".to_owned()], 1).unwrap();
    fs::remove_dir_all(tree.path().join("d")).unwrap();
    symlink(outside.path(), tree.path().join("d")).unwrap();
    assert!(matches!(selection.digest(), Err(ContextError::Read { .. })));
    let selection = context.select(&["a".to_owned()], 1).unwrap();
    fs::remove_file(tree.path().join("a")).unwrap();
    symlink(outside.path().join("a"), tree.path().join("a")).unwrap();
    assert!(matches!(selection.digest(), Err(ContextError::Read { .. })));
}

#[test]
fn a_failing_taker_is_told_apart() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::other("full"))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let tree = tree(&["a"]);
    let context = Context::open(tree.path(), None).unwrap();
    let selection = context.select(&["a".to_owned()], 1).unwrap();
    let written = selection.write_tar(&mut Full, Path::new(""), &Attributes::default());
    assert!(matches!(written, Err(ContextError::Write(_))), "{written:?}");
}

#[test]
fn archives_to_unpack_are_those_that_are_named() {
    let tree = tree(&["plain", "d/x.tar"]);
    let mut builder = tar::Builder::new(Vec::new());
    builder
        .append_path_with_name(tree.path().join("plain"), "plain")
        .unwrap();
    fs::write(tree.path().join("x.tar"), builder.into_inner().unwrap()).unwrap();
    fs::copy(tree.path().join("x.tar"), tree.path().join("d/x.tar")).unwrap();
    for (name, head) in [
        ("x.gz", &[0x1f, 0x8b, 8][..]),
        ("x.xz", b"\xfd7zXZ\0"),
        ("x.bz2", b"BZh9"),
        ("x.zst", b"\x28\xb5\x2f\xfd"),
    ] {
        fs::write(tree.path().join(name), head).unwrap();
    }
    let context = Context::open(tree.path(), None).unwrap();
    let mut selection = context
        .select(&["d".to_owned(), "x.*".to_owned(), "plain".to_owned()], 1)
        .unwrap();
    let archives = selection.take_archives().unwrap();
    let archives: Vec<(&str, Compression)> = archives
        .iter()
        .map(|(entry, how)| (entry.path.to_str().unwrap(), *how))
        .collect();
    let expected = [
        ("x.bz2", Compression::Bzip2),
        ("x.gz", Compression::Gzip),
        ("x.tar", Compression::None),
        ("x.xz", Compression::Xz),
        ("x.zst", Compression::Zstd),
    ];
    assert_eq!(archives, expected);
    assert_eq!(names(&selection), ["plain"]);
}
