//! The rules for layers, one by one.

use super::*;
use crate::digest::Digest;

/// A tree and the directory that it is in.
struct Applied {
    dir: tempfile::TempDir,
    result: Result<Tree, Error>,
}

fn apply_with(layers: &[Vec<Vec<u8>>], limits: &Limits) -> Applied {
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("spool");
    fs::create_dir(&spool).unwrap();
    let result = (|| {
        let mut applied = Layers::new(&spool, limits);
        for entries in layers {
            let bytes = archive(entries);
            let digest = applied.apply(bytes.as_slice(), bytes.len() as u64, |_| Ok(()))?;
            assert_eq!(digest, Digest::of_bytes(&bytes));
        }
        applied.finish()
    })();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    if let Ok(tree) = &result {
        disk::lay_out(tree, &dir.path().join("tree"));
        agrees(tree, &dir.path().join("tree"));
    }
    Applied { dir, result }
}

/// The tree and the disk have the same names, of the same kinds and with the same links.
pub(super) fn agrees(tree: &Tree, disk: &Path) {
    let mut names = vec![Vec::new()];
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        for entry in fs::read_dir(disk.join(OsStr::from_bytes(&path))).unwrap() {
            let entry = entry.unwrap();
            let child = tree::join(&path, entry.file_name().as_bytes());
            if entry.file_type().unwrap().is_dir() {
                pending.push(child.clone());
            }
            names.push(child);
        }
    }
    names.sort();
    let listed: Vec<_> = tree.iter().map(|(path, _)| path.to_vec()).collect();
    assert_eq!(listed, names);
    let mut bytes = 0;
    for (path, node) in tree.iter() {
        let metadata = |path: &[u8]| fs::symlink_metadata(disk.join(OsStr::from_bytes(path))).unwrap();
        let found = metadata(path);
        let kind = found.file_type();
        let name = String::from_utf8_lossy(path);
        match &node.kind {
            Kind::File { size, .. } => {
                assert!(kind.is_file() && found.len() == *size, "{name}");
                bytes += size;
            }
            Kind::Directory => assert!(kind.is_dir(), "{name}"),
            Kind::Symlink { .. } => assert!(kind.is_symlink(), "{name}"),
            Kind::Link { to } => {
                assert_eq!(found.ino(), metadata(to).ino(), "{name}");
                let first = tree.get(to).unwrap();
                assert!(
                    !matches!(first.kind, Kind::Link { .. } | Kind::Directory),
                    "{name}"
                );
                continue;
            }
            Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => {
                assert!(kind.is_fifo(), "{name}");
            }
        }
        assert_eq!(found.mtime(), i64::try_from(node.mtime).unwrap(), "{name}");
        let links = tree
            .iter()
            .filter(|(_, other)| matches!(&other.kind, Kind::Link { to } if to == path));
        if node.kind != Kind::Directory {
            assert_eq!(found.nlink(), 1 + links.count() as u64, "{name}");
        }
    }
    assert_eq!(tree.bytes(), bytes);
}

impl Applied {
    /// Everything but the top: names, with an ending that tells the kind, contents and targets.
    fn list(&self) -> Vec<String> {
        let tree = self.result.as_ref().unwrap();
        let mut list = Vec::new();
        for (path, node) in tree.iter().filter(|(path, _)| !path.is_empty()) {
            let name = String::from_utf8(path.to_vec()).unwrap();
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            list.push(match &node.kind {
                Kind::File { .. } => {
                    format!(
                        "{name}={}",
                        fs::read_to_string(self.dir.path().join("tree").join(&name)).unwrap()
                    )
                }
                Kind::Directory => format!("{name}/"),
                Kind::Symlink { target } => format!("{name}->{}", text(target)),
                Kind::Link { to } => format!("{name}=={}", text(to)),
                Kind::CharDevice { .. } => format!("{name} c"),
                Kind::BlockDevice { .. } => format!("{name} b"),
                Kind::Fifo => format!("{name}|"),
            });
        }
        list
    }

    fn node(&self, path: &str) -> &Node {
        self.result.as_ref().unwrap().get(path.as_bytes()).unwrap()
    }
}

fn apply(layers: &[Vec<Vec<u8>>]) -> Applied {
    apply_with(layers, &Limits::default())
}

fn dir(name: &str) -> Vec<u8> {
    raw(name.as_bytes(), b'5', b"", b"")
}

fn link(name: &str, to: &str) -> Vec<u8> {
    raw(name.as_bytes(), b'2', to.as_bytes(), b"")
}

fn hard(name: &str, to: &str) -> Vec<u8> {
    raw(name.as_bytes(), b'1', to.as_bytes(), b"")
}

fn refusal(layers: &[Vec<Vec<u8>>]) -> String {
    apply(layers).result.map(|_| ()).unwrap_err().to_string()
}

#[test]
fn any_kind_replaces_any_kind() {
    let kinds: [(&str, Vec<u8>, &str); 7] = [
        ("file", file("x", b"new"), "x=new"),
        ("directory", dir("x"), "x/"),
        ("symlink", link("x", "t"), "x->t"),
        ("link", hard("x", "other"), "x==other"),
        ("character device", raw(b"x", b'3', b"", b""), "x c"),
        ("block device", raw(b"x", b'4', b"", b""), "x b"),
        ("fifo", raw(b"x", b'6', b"", b""), "x|"),
    ];
    for (old, first, _) in &kinds {
        for (new, second, wanted) in &kinds {
            let mut lower = vec![file("other", b"o"), first.clone()];
            if *old == "directory" {
                lower.extend([dir("x/d"), file("x/d/f", b"f"), link("x/l", "d")]);
            }
            let mut all = vec!["other=o".to_owned()];
            if (*old, *new) == ("directory", "directory") {
                all.extend(["x/", "x/d/", "x/d/f=f", "x/l->d"].map(str::to_owned));
            } else {
                all.push((*wanted).to_owned());
            }
            // From layer to layer, and within one.
            let apart = apply(&[lower.clone(), vec![second.clone()]]);
            assert_eq!(apart.list(), all, "{old} by {new}");
            lower.push(second.clone());
            assert_eq!(apply(&[lower]).list(), all, "{old} by {new} in one layer");
        }
    }
}

#[test]
fn a_directory_takes_the_attributes_of_the_later_entry_and_keeps_its_contents() {
    let with = |uid: &[u8], records: &[(&str, &[u8])], entry: Vec<u8>| {
        let mut all = vec![("uid", uid)];
        all.extend_from_slice(records);
        vec![pax(&all), entry]
    };
    let lower = [
        with(b"5", &[("SCHILY.xattr.user.a", b"1"), ("mtime", b"77")], dir("d")),
        vec![file("d/f", b"f")],
    ]
    .concat();
    let upper = with(b"6", &[("SCHILY.xattr.user.b", b"2")], dir("d"));
    let both = apply(&[lower.clone(), upper]);
    assert_eq!(both.list(), ["d/", "d/f=f"]);
    let d = both.node("d");
    assert_eq!((d.uid, d.mtime), (6, 3));
    assert_eq!(d.xattrs, [(b"user.b".to_vec(), b"2".to_vec())], "and no others");

    // An entry below changes nothing of it, neither does one that goes.
    let below = apply(&[lower, vec![file("d/g", b"g"), file("d/.wh.f", b"")]]);
    assert_eq!(below.list(), ["d/", "d/g=g"]);
    assert_eq!((below.node("d").uid, below.node("d").mtime), (5, 77));
}

#[test]
fn whiteouts_hide_lower_layers_alone_wherever_they_come() {
    let lower = vec![
        dir("a"),
        file("a/f", b"1"),
        dir("a/d"),
        file("a/d/g", b"1"),
        file("a/d/h", b"1"),
        file("b", b"1"),
    ];
    let cases: Vec<(Vec<Vec<u8>>, &[&str])> = vec![
        (
            vec![file(".wh.b", b"")],
            &["a/", "a/d/", "a/d/g=1", "a/d/h=1", "a/f=1"],
        ),
        (vec![file(".wh.a", b"")], &["b=1"]),
        (vec![file("a/.wh.d", b"")], &["a/", "a/f=1", "b=1"]),
        // What there is no such thing of does not matter, be it the directory.
        (
            vec![
                file(".wh.none", b""),
                file("none/.wh.x", b""),
                file("b/.wh.x", b""),
            ],
            &["a/", "a/d/", "a/d/g=1", "a/d/h=1", "a/f=1", "b=1"],
        ),
        // Nor does what is on the way to an entry, at any depth.
        (
            vec![file("a/d/x/y/new", b"2"), file(".wh..wh..opq", b"")],
            &["a/", "a/d/", "a/d/x/", "a/d/x/y/", "a/d/x/y/new=2"],
        ),
        // Its own layer's entry of the name stays, before and after.
        (
            vec![file("a/f", b"2"), file("a/.wh.f", b"")],
            &["a/", "a/d/", "a/d/g=1", "a/d/h=1", "a/f=2", "b=1"],
        ),
        (
            vec![file("a/.wh.f", b""), file("a/f", b"2")],
            &["a/", "a/d/", "a/d/g=1", "a/d/h=1", "a/f=2", "b=1"],
        ),
        // And what it has below.
        (
            vec![file("a/d/new", b"2"), file("a/.wh.d", b"")],
            &["a/", "a/d/", "a/d/new=2", "a/f=1", "b=1"],
        ),
        (
            vec![file("a/.wh.d", b""), file("a/d/new", b"2")],
            &["a/", "a/d/", "a/d/new=2", "a/f=1", "b=1"],
        ),
        // All that is in a directory, but not itself.
        (vec![file("a/.wh..wh..opq", b"")], &["a/", "b=1"]),
        (vec![file(".wh..wh..opq", b"")], &[]),
        (
            vec![file("a/.wh..wh..opq", b""), file("a/d/new", b"2")],
            &["a/", "a/d/", "a/d/new=2", "b=1"],
        ),
        (
            vec![
                dir("a/d"),
                file("a/d/new", b"2"),
                dir("a"),
                file("a/.wh..wh..opq", b""),
            ],
            &["a/", "a/d/", "a/d/new=2", "b=1"],
        ),
        // Whatever they are made of.
        (
            vec![
                raw(b"a/.wh.f", b'6', b"", b""),
                link("a/.wh.d", "/x"),
                file(".wh.b", b"contents"),
            ],
            &["a/"],
        ),
        // Those of file systems that could not be otherwise (aufs) hide nothing.
        (
            vec![file(".wh..wh.aufs", b""), dir(".wh..wh.plnk")],
            &["a/", "a/d/", "a/d/g=1", "a/d/h=1", "a/f=1", "b=1"],
        ),
    ];
    for (upper, wanted) in cases {
        assert_eq!(apply(&[lower.clone(), upper.clone()]).list(), wanted);
        // Twice is once; and a third layer without entries changes nothing.
        let twice = [upper.clone(), upper].concat();
        assert_eq!(apply(&[lower.clone(), twice, vec![]]).list(), wanted);
    }
    // A third layer sees what the second has left.
    let third = apply(&[
        lower,
        vec![file("a/.wh.f", b""), file("a/n", b"2")],
        vec![file("a/f", b"3"), file("a/.wh..wh..opq", b"")],
    ]);
    assert_eq!(third.list(), ["a/", "a/f=3", "b=1"]);
}

#[test]
fn a_directory_that_was_hidden_is_made_anew_whatever_comes_first() {
    let lower = vec![
        pax(&[("uid", b"5"), ("SCHILY.xattr.user.a", b"1")]),
        dir("d"),
        file("d/f", b"1"),
    ];
    for hide in [".wh.d", ".wh..wh..opq"] {
        let hide = file(hide, b"");
        for upper in [
            vec![hide.clone(), file("d/g", b"2")],
            vec![file("d/g", b"2"), hide],
        ] {
            let both = apply(&[lower.clone(), upper]);
            assert_eq!(both.list(), ["d/", "d/g=2"]);
            assert_eq!(*both.node("d"), Node::implied());
        }
    }
}

#[test]
fn hard_links_reach_lower_layers_and_outlive_the_name_they_were_made_to() {
    let capability = [1_u8, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let lower = vec![
        pax(&[("uid", b"7"), ("SCHILY.xattr.security.capability", &capability)]),
        file("m", b"1"),
        hard("z", "m"),
    ];
    let capable = |tree: &Applied, path: &str| {
        let node = tree.node(path);
        assert_eq!(node.uid, 7);
        assert_eq!(
            node.xattrs,
            [(b"security.capability".to_vec(), capability.to_vec())]
        );
    };
    let across = apply(&[lower.clone(), vec![hard("a", "m")]]);
    assert_eq!(across.list(), ["a==m", "m=1", "z==m"]);
    // The name that goes is the inode's own: another takes its place, with all that is known of it.
    let gone = apply(&[lower.clone(), vec![hard("a", "m")], vec![file(".wh.m", b"")]]);
    assert_eq!(gone.list(), ["a==z", "z=1"]);
    capable(&gone, "z");
    // Replaced: the old contents stay under the other names.
    let replaced = apply(&[lower.clone(), vec![file("m", b"2")]]);
    assert_eq!(replaced.list(), ["m=2", "z=1"]);
    capable(&replaced, "z");
    assert_eq!(replaced.node("m").uid, 1);
    // A link is replaced alone, and one to what is new is to the new.
    let newer = apply(&[
        lower.clone(),
        vec![file("z", b"2"), hard("y", "z"), hard("x", "m")],
    ]);
    assert_eq!(newer.list(), ["m=1", "x==m", "y==z", "z=2"]);
    // Made again to the same inode.
    let again = apply(&[lower.clone(), vec![hard("m", "z")]]);
    assert_eq!(again.list(), ["m==z", "z=1"]);
    capable(&again, "z");
    // The directory of the first name goes, in three layers.
    let moved = apply(&[
        vec![file("d/f", b"1"), hard("d/g", "d/f"), hard("e", "/d/g")],
        vec![file("d", b"2")],
        vec![hard("n", "./e"), file(".wh.e", b"")],
    ]);
    assert_eq!(moved.list(), ["d=2", "n=1"]);
    // Of every kind but directories.
    let kinds = apply(&[
        vec![
            raw(b"c", b'3', b"", b""),
            raw(b"p", b'6', b"", b""),
            link("s", "t"),
        ],
        vec![
            hard("c2", "c"),
            hard("p2", "p"),
            hard("s2", "s"),
            file(".wh.c", b""),
        ],
    ]);
    assert_eq!(kinds.list(), ["c2 c", "p|", "p2==p", "s->t", "s2==s"]);
}

#[test]
fn bad_hard_links_are_refused() {
    let lower = vec![dir("d"), file("d/f", b"1"), file("f", b"1")];
    for (upper, reason) in [
        (vec![hard("a", "none")], "it links to an entry that is not there"),
        (vec![hard("a", "d")], "it links to a directory"),
        (vec![hard("f", "f")], "it links to what it replaces"),
        (vec![hard("d", "d/f")], "it links to what it replaces"),
        (
            vec![file(".wh.f", b""), hard("a", "f")],
            "it links to an entry that is not there",
        ),
        (vec![hard("a", "../f")], "its name leads upwards"),
        (
            vec![hard("a", "f/x")],
            "it is below something that is no directory",
        ),
    ] {
        let said = refusal(&[lower.clone(), upper]);
        assert!(
            said.starts_with("refused archive entry \"") && said.ends_with(reason),
            "{said}"
        );
    }
}

#[test]
fn names_lead_through_symbolic_links_inside_the_tree_alone() {
    let lower = vec![
        dir("usr"),
        dir("usr/lib"),
        link("lib", "usr/lib"),
        link("usr/up", "../../../usr"),
        link("abs", "/usr/lib"),
        link("etc", "/etc"),
        link("gone", "new/place"),
        link("passwd", "/etc/passwd"),
        file("usr/lib/f", b"1"),
    ];
    let upper = vec![
        file("lib/a", b"2"),
        file("abs/b", b"2"),
        file("usr/up/lib/c", b"2"),
        file("gone/d", b"2"),
        hard("lib/h", "abs/f"),
        file("lib/.wh.f", b""),
        // At the end of a name, a link is replaced and never followed.
        file("passwd", b"2"),
        dir("etc"),
        file("etc/passwd", b"2"),
    ];
    let both = apply(&[lower.clone(), upper.clone()]);
    let wanted = [
        "abs->/usr/lib",
        "etc/",
        "etc/passwd=2",
        "gone->new/place",
        "lib->usr/lib",
        "new/",
        "new/place/",
        "new/place/d=2",
        "passwd=2",
        "usr/",
        "usr/lib/",
        "usr/lib/a=2",
        "usr/lib/b=2",
        "usr/lib/c=2",
        "usr/lib/h=1",
        "usr/up->../../../usr",
    ];
    assert_eq!(both.list(), wanted);
    // In one layer it is no different, but that its whiteout hides nothing of its own.
    let mut one = lower.clone();
    one.extend(upper.into_iter().filter(|entry| !entry.starts_with(b"lib/.wh.f")));
    let one = apply(&[one]);
    assert!(
        one.list().contains(&"usr/lib/a=2".to_owned()) && one.list().contains(&"etc/passwd=2".to_owned())
    );

    for (links, entry, reason) in [
        (
            vec![link("a", "b"), link("b", "a")],
            "a/f",
            "too many symbolic links",
        ),
        (
            vec![link("a", "f"), file("f", b"")],
            "a/f",
            "below something that is no directory",
        ),
        (vec![link("a", "/x/.wh.y")], "a/f", "its name is a whiteout's"),
        (
            vec![link("a", &"b/".repeat(49)), link("b/b", &"/c".repeat(40))],
            &"a/".repeat(45),
            "its name is too long",
        ),
    ] {
        let said = refusal(&[links.clone(), vec![dir(entry)]]);
        assert!(said.contains(reason), "{said}");
        let said = refusal(&[[links, vec![dir(entry)]].concat()]);
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn tricks_with_names_are_refused() {
    for (entry, reason) in [
        (file(".wh.", b""), "it is a whiteout of no name"),
        (file("d/.wh.", b""), "it is a whiteout of no name"),
        (file(".wh..", b""), "it is a whiteout of no name"),
        (file("d/.wh...", b""), "it is a whiteout of no name"),
        (file(".wh.d/f", b""), "its name is a whiteout's"),
        (file(".wh.d/.wh.f", b""), "its name is a whiteout's"),
        (dir(".wh..wh..opq/x"), "its name is a whiteout's"),
        (file("../f", b""), "its name leads upwards"),
        (file("/../f", b""), "its name leads upwards"),
        (file("d/../.wh.f", b""), "its name leads upwards"),
        (file("", b""), "it has no proper name"),
        (file(".", b""), "it would replace the top"),
        (link("./", "/etc"), "it would replace the top"),
    ] {
        let said = refusal(&[vec![dir("d"), file("d/f", b"")], vec![entry]]);
        assert!(
            said.starts_with("refused archive entry \"") && said.ends_with(reason),
            "{said}"
        );
    }
    // Nothing of that is refused which is only a name.
    let names = apply(&[vec![
        file("/abs", b"1"),
        file(".whale", b"1"),
        file("...", b"1"),
        dir("/"),
    ]]);
    assert_eq!(names.list(), ["...=1", ".whale=1", "abs=1"]);
}

#[test]
fn bounds_hold_over_all_layers() {
    let limits = Limits {
        entries: 6,
        bytes: 1000,
        ..Limits::default()
    };
    let big = |name: &str| vec![file(name, &[b'x'; 600])];
    // What was replaced or hidden does not count any more; what is linked to counts once.
    apply_with(
        &[big("a"), big("a"), vec![file(".wh.a", b""), hard("b", "a")]],
        &limits,
    )
    .result
    .unwrap_err();
    apply_with(
        &[
            big("a"),
            big("a"),
            vec![hard("b", "a")],
            vec![file("c", &[0; 400])],
        ],
        &limits,
    )
    .result
    .unwrap();
    let two = apply_with(&[big("a"), big("b")], &limits).result;
    assert!(matches!(two, Err(Error::TooLarge { entry, limit: 1000 }) if entry == "b"));
    let kept = apply_with(
        &[big("a"), vec![hard("b", "a"), file(".wh.a", b"")], big("c")],
        &limits,
    )
    .result;
    assert!(matches!(kept, Err(Error::TooLarge { .. })));
    let seven = apply_with(&[vec![dir("a"); 3], vec![dir("b"); 4]], &limits).result;
    assert!(matches!(seven, Err(Error::TooManyEntries { limit: 6 })));
}

#[test]
fn a_layer_that_unpacks_to_too_much_is_refused() {
    let limits = Limits {
        ratio: 10,
        ratio_floor: 5000,
        ..Limits::default()
    };
    let apply = |bytes: &[u8], packed| {
        let dir = tempfile::tempdir().unwrap();
        Layers::new(dir.path(), &limits).apply(bytes, packed, |_| Ok(()))
    };
    let bytes = archive(&[file("a", &[0; 4000]), file("b", &[0; 4000])]);
    assert_eq!(
        apply(&bytes, 900).unwrap_err().to_string(),
        r#"layer of 900 bytes unpacks to more than 9000 bytes (at entry "b")"#
    );
    // Below the floor anything goes, and so does what is packed as large as it should be.
    let small = archive(&[file("small", b"")]);
    apply(&small, 1).unwrap();
    apply(&bytes, 1024).unwrap();
    // Contents of a whiteout are skipped and count, and so does what follows the end.
    let hidden = archive(&[file(".wh.x", &[0; 9000])]);
    assert!(matches!(apply(&hidden, 100), Err(Error::Expands { .. })));
    let padded = [small, vec![0; 9000]].concat();
    assert!(matches!(apply(&padded, 100), Err(Error::Expands { .. })));
}

#[test]
fn a_layer_need_not_have_an_end_mark_but_must_end_after_an_entry() {
    let dir = tempfile::tempdir().unwrap();
    let mut layers = Layers::new(dir.path(), &Limits::default());
    let entry = file("a", b"1");
    let bare = [entry.clone(), vec![0; 512]].concat();
    for bytes in [&b""[..], &entry, &bare, &[bare.as_slice(), b"junk"].concat()] {
        let digest = layers.apply(bytes, 100, |_| Ok(())).unwrap();
        assert_eq!(digest, Digest::of_bytes(bytes), "of all that there is");
    }
    for len in [1, 511, 600] {
        assert!(matches!(
            layers.apply(&entry[..len], 100, |_| Ok(())),
            Err(Error::Truncated { .. })
        ));
    }
    assert!(matches!(
        layers.apply(pax(&[("path", b"x")]).as_slice(), 100, |_| Ok(())),
        Err(Error::Truncated { .. })
    ));
}

#[test]
fn whoever_watches_can_stop_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut layers = Layers::new(dir.path(), &Limits::default());
    let bytes = archive(&[file("a", &[0; 3 << 20]), file("b", b"")]);
    let mut seen = Vec::new();
    layers
        .apply(bytes.as_slice(), 1 << 20, |done| {
            seen.push(done);
            Ok(())
        })
        .unwrap();
    assert_eq!(seen.last(), Some(&(3 << 20)));
    let stop = |done| {
        if done > 4 << 20 {
            Err(io::Error::other("stop"))
        } else {
            Ok(())
        }
    };
    let error = layers.apply(bytes.as_slice(), 1 << 20, stop).unwrap_err();
    assert!(matches!(error, Error::Read { .. }));
}

#[test]
fn many_links_and_whiteouts_at_one_place_are_right_too() {
    const MANY: usize = 5_000;
    let name = |at: usize| format!("d/{at:05}");
    let links: Vec<_> = std::iter::once(file("d/first", b"1"))
        .chain((0..MANY).map(|at| hard(&name(at), "d/first")))
        .collect();
    let limits = Limits::default();
    let dir_ = tempfile::tempdir().unwrap();
    let mut layers = Layers::new(dir_.path(), &limits);
    let mut apply = |entries: Vec<Vec<u8>>| {
        layers
            .apply(archive(&entries).as_slice(), 1 << 20, |_| Ok(()))
            .unwrap()
    };
    apply(links);
    // The inode's own name goes again and again.
    apply(
        std::iter::once(file("d/.wh.first", b""))
            .chain((0..MANY - 1).map(|at| file(&format!("d/.wh.{at:05}"), b"")))
            .collect(),
    );
    // Whiteouts that hide nothing of their own layer's entries.
    let mut entries: Vec<_> = (0..MANY).map(|at| file(&name(at), b"")).collect();
    entries.extend((0..MANY).map(|_| file("d/.wh..wh..opq", b"")));
    apply(entries);
    let tree = layers.finish().unwrap();
    assert_eq!(tree.iter().count(), MANY + 2);
}
