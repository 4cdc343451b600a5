use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

const KEY: &str = "ssh-ed25519 AAAAC3Nz";

/// A template as users have them.
fn template() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("bin")).unwrap();
    fs::write(at("bin/tool"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(at("bin/tool"), fs::Permissions::from_mode(0o750)).unwrap();
    symlink("/etc/passwd", at("users")).unwrap();
    fs::write(at(".vimrc"), "set ai").unwrap();
    dir
}

fn gather(template: Option<&Path>, key: Option<&str>) -> Contents {
    Contents::gather(template, key).unwrap()
}

/// The archive's entries: path, mode, contents or target.
fn entries(contents: &Contents) -> Vec<(String, u32, String)> {
    let archive = contents.archive().unwrap();
    let mut archive = tar::Archive::new(archive.as_slice());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        assert_eq!(
            (entry.header().uid().unwrap(), entry.header().gid().unwrap()),
            (0, 0)
        );
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        if let Some(target) = entry.link_name().unwrap() {
            text = format!("-> {}", target.display());
        }
        let path = entry.path().unwrap().display().to_string();
        (path, entry.header().mode().unwrap(), text)
    });
    entries.collect()
}

fn of(contents: &Contents, path: &str) -> Option<(u32, String)> {
    let found = entries(contents).into_iter().find(|(name, _, _)| name == path)?;
    Some((found.1, found.2))
}

#[test]
fn a_template_arrives_with_its_modes_and_links_are_links() {
    let dir = template();
    let contents = gather(Some(dir.path()), Some(KEY));
    let is = |path: &str, mode, text: &str| {
        assert_eq!(of(&contents, path), Some((mode, text.to_owned())), "{path}");
    };
    is("seed/template/bin/tool", 0o750, "#!/bin/sh\n");
    is("seed/template/.vimrc", 0o644, "set ai");
    is("seed/template/users", 0o777, "-> /etc/passwd");
    is("seed/setup/.profile", 0o644, PROFILE);
    is(
        "seed/setup/.ssh/authorized_keys",
        0o600,
        "ssh-ed25519 AAAAC3Nz banger\n",
    );
}

#[test]
fn without_template_and_key_there_is_the_set_up_alone() {
    let names: Vec<_> = entries(&gather(None, None))
        .into_iter()
        .map(|entry| entry.0)
        .collect();
    assert_eq!(
        names,
        [
            "./",
            "seed",
            "seed/setup",
            "seed/setup/.profile",
            "seed/setup/.bashrc"
        ]
    );
}

#[test]
fn the_key_is_added_to_the_templates_once() {
    let dir = template();
    fs::create_dir(dir.path().join(".ssh")).unwrap();
    let keys = dir.path().join(KEYS);
    fs::write(&keys, "ssh-rsa BBBB me").unwrap();
    let path = "seed/template/.ssh/authorized_keys";
    let (_, text) = of(&gather(Some(dir.path()), Some(KEY)), path).unwrap();
    assert_eq!(text, "ssh-rsa BBBB me\nssh-ed25519 AAAAC3Nz banger\n");
    fs::write(&keys, format!("{KEY} mine\n")).unwrap();
    let (_, text) = of(&gather(Some(dir.path()), Some(KEY)), path).unwrap();
    assert_eq!(text, "ssh-ed25519 AAAAC3Nz mine\n");
}

#[test]
fn a_fingerprint_covers_what_is_in_it_and_no_times() {
    let dir = template();
    let fingerprint = |key| gather(Some(dir.path()), key).fingerprint();
    let first = fingerprint(Some(KEY));
    assert_eq!(Fingerprint::parse(&first.to_string()), Some(first.clone()));
    assert_eq!(first.changes(&first), [""; 0]);

    let old = fs::File::options()
        .append(true)
        .open(dir.path().join(".vimrc"))
        .unwrap();
    old.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(fingerprint(Some(KEY)), first, "a time is nothing of it");

    assert_eq!(
        fingerprint(Some("ssh-ed25519 BBBB")).changes(&first),
        ["the ssh key is another"]
    );
    assert_eq!(fingerprint(None).changes(&first), ["the ssh key is another"]);
    let without = gather(None, Some(KEY)).fingerprint();
    assert_eq!(without.changes(&first), ["there is no template any more"]);
    assert_eq!(first.changes(&without), ["there is a template now"]);

    let mut seen = vec![first.clone()];
    let changes: [&dyn Fn(); 5] = [
        &|| fs::write(dir.path().join(".vimrc"), "set noai").unwrap(),
        &|| fs::set_permissions(dir.path().join(".vimrc"), fs::Permissions::from_mode(0o600)).unwrap(),
        &|| fs::rename(dir.path().join(".vimrc"), dir.path().join(".virc")).unwrap(),
        &|| {
            fs::remove_file(dir.path().join("users")).unwrap();
            symlink("/etc/group", dir.path().join("users")).unwrap();
        },
        &|| fs::create_dir(dir.path().join("empty")).unwrap(),
    ];
    for change in changes {
        change();
        let now = fingerprint(Some(KEY));
        assert_eq!(now.changes(&first), ["the template has changed"]);
        assert!(!seen.contains(&now));
        seen.push(now);
    }
}

#[test]
fn only_its_own_words_are_a_fingerprint() {
    let part = "0123456789abcdef";
    assert!(Fingerprint::parse(&format!("none-none-{part}")).is_some());
    for bad in [
        "",
        "none-none-none",
        "none-none",
        "x-none-0123456789abcdef",
        "none-none-0123456789ABCDEF",
    ] {
        assert_eq!(Fingerprint::parse(bad), None, "{bad}");
    }
    assert_eq!(Fingerprint::parse(&format!("none-none-{part}-{part}")), None);
}

#[test]
fn what_cannot_be_a_template_is_named() {
    let problem = |path: &Path| {
        let refused = Contents::gather(Some(path), None).unwrap_err();
        let Error::BadFile {
            path: named, problem, ..
        } = refused
        else {
            panic!("{refused}");
        };
        assert_eq!(named, path);
        problem
    };
    let dir = template();
    assert!(problem(&dir.path().join("nowhere")).contains("No such file"));
    assert!(problem(&dir.path().join(".vimrc")).contains("Not a directory"));

    let at = |name: &str| dir.path().join(name);
    let big = fs::File::create(at("big")).unwrap();
    big.set_len(MAX_BYTES + 1).unwrap();
    assert_eq!(problem(dir.path()), "it holds more than 32MiB");
    big.set_len(MAX_BYTES - 1).unwrap();
    assert!(problem(dir.path()).contains("32MiB"), "together with the others");
    fs::remove_file(at("big")).unwrap();

    rustix::fs::mkfifoat(CWD, at("bin/pipe"), Mode::from_raw_mode(0o600)).unwrap();
    assert_eq!(
        problem(dir.path()),
        "bin/pipe in it is neither file, directory nor symbolic link"
    );
    fs::remove_file(at("bin/pipe")).unwrap();

    let mut deep = at("");
    for _ in 0..=MAX_DEPTH {
        deep.push("d");
    }
    fs::create_dir_all(deep).unwrap();
    assert!(problem(dir.path()).ends_with("is too deep in it"));
}

/// By the shells that there are: neither complains, and a prompt says where one is.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "a shell of the test's, which ends at once"
)]
fn the_set_up_is_a_shells() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join(".profile"), PROFILE).unwrap();
    fs::write(home.path().join(".bashrc"), BASHRC).unwrap();
    for shell in ["/bin/sh", "/bin/bash"] {
        let ran = std::process::Command::new(shell)
            .args(["-euc", r#". "$HOME/.profile"; echo "$PATH|$TERM""#])
            .env_clear()
            .env("HOME", home.path())
            .env("PATH", "/usr/bin:/bin")
            .env("TERM", "")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        let wrong = String::from_utf8_lossy(&ran.stderr).into_owned();
        if shell == "/bin/sh" {
            assert!(
                ran.status.success() && wrong.is_empty(),
                "{shell}: {said} {wrong}"
            );
            assert!(
                said.starts_with("/usr/local/sbin:") && said.trim_end().ends_with("|linux"),
                "{said}"
            );
        }
        assert!(wrong.is_empty(), "{shell}: {wrong}");
    }
}
