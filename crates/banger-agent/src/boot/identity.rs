//! The guest's name and resolver: `/etc/hostname`, `/etc/hosts`, `/etc/resolv.conf`.
//!
//! These files are the user's, too. The agent remembers on the VM's own disk (outside of what the guest sees) what it
//! has written last; a file that says anything else by now was edited, and is left alone from then on. On a VM's first
//! boot there is no memory: what the files say then is the image's, and is replaced.
//!
//! Where the root is the machine's own copy of the image (no overlay), that memory is a directory of the root, and goes
//! with it when the system disk is renewed.

use super::BootError;
use super::etc;
use super::mounts;
use crate::log;
use std::fs;
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Largest file of these that is looked at; a larger one is the user's.
const MAX_FILE: u64 = 256 * 1024;

/// What ends the one line of `/etc/hosts` which the agent owns.
const OWNED: &str = "# banger";

/// Names the guest. Failing to write a file is logged: the guest is usable without.
pub(super) fn set_name(name: &str, memory: &Path) -> Result<(), BootError> {
    let root = Path::new(mounts::ROOT);
    keep_up(root, memory, "hostname", |_| Some(format!("{name}\n")));
    keep_up(root, memory, "hosts", |current| Some(hosts(current, name)));
    // Where the user has chosen another name, that is the guest's name from the start.
    let chosen = read(&root.join("etc/hostname")).as_deref().and_then(chosen_name);
    host_name(chosen.as_deref().unwrap_or(name))
}

/// Sets the guest's name in the kernel and in files over those of its disk.
pub(super) fn name_only(name: &str) -> Result<(), BootError> {
    let run = Path::new("/run");
    let current = read(&Path::new(mounts::ROOT).join("etc/hosts"));
    etc::keep(run, "hostname", &format!("{name}\n"));
    etc::keep(run, "hosts", &hosts(current.as_deref().unwrap_or_default(), name));
    host_name(name)
}

fn host_name(name: &str) -> Result<(), BootError> {
    rustix::system::sethostname(name.as_bytes()).map_err(|errno| BootError::Io {
        doing: "set the host name to",
        path: name.into(),
        source: errno.into(),
    })
}

/// Sets the resolver, and the domain that names without a dot are in.
///
/// What images have in place of the file, a link to systemd-resolved's or resolvconf's, is replaced by it on the first
/// boot: both then take it for what it says. A link that came later (with the installation of systemd-resolved in the
/// guest) is the user's; for it, systemd-resolved is told in its own way.
pub(super) fn set_resolver(dns: Ipv4Addr, search: Option<&str>, memory: &Path) {
    resolver(Path::new(mounts::ROOT), Path::new("/run"), dns, search, memory);
}

fn resolver(root: &Path, run: &Path, dns: Ipv4Addr, search: Option<&str>, memory: &Path) {
    let text = resolver_text(dns, search);
    keep_up(root, memory, "resolv.conf", |_| Some(text));
    let link = fs::symlink_metadata(root.join("etc/resolv.conf")).is_ok_and(|found| found.is_symlink());
    if link && let Err(error) = tell_resolved(run, dns, search) {
        log::line(format_args!("failed to tell systemd-resolved of {dns}: {error}"));
    }
}

/// What resolv.conf(5) is to say.
pub(super) fn resolver_text(dns: Ipv4Addr, search: Option<&str>) -> String {
    let mut text = format!("nameserver {dns}\n");
    if let Some(search) = search {
        text.push_str(&format!("search {search}\n"));
    }
    text
}

/// A drop-in (resolved.conf(5)) that is gone with the next boot.
fn tell_resolved(run: &Path, dns: Ipv4Addr, search: Option<&str>) -> io::Result<()> {
    let directory = run.join("systemd/resolved.conf.d");
    fs::create_dir_all(&directory)?;
    let mut text = format!("[Resolve]\nDNS={dns}\n");
    if let Some(search) = search {
        text.push_str(&format!("Domains={search}\n"));
    }
    replace(&directory.join("50-banger.conf"), &text)
}

/// Brings one file of `/etc` up to date, unless the user has edited it.
fn keep_up(root: &Path, memory: &Path, name: &str, desired: impl FnOnce(&str) -> Option<String>) {
    let path = root.join("etc").join(name);
    let note = memory.join(name);
    let current = read(&path);
    let written = read(&note);
    let Some(desired) = desired(current.as_deref().unwrap_or_default()) else {
        return;
    };
    if !may_write(current.as_deref(), written.as_deref(), &desired) {
        return;
    }
    let result = mounts::make_dir(memory)
        .map_err(io::Error::other)
        // The memory last: after a crash in between, the file says what is desired, which the rule takes for its own.
        .and_then(|()| replace(&path, &desired))
        .and_then(|()| replace(&note, &desired));
    if let Err(error) = result {
        log::line(format_args!("failed to write /etc/{name}: {error}"));
    }
}

/// The rule: with no memory the file is the image's; else it is the agent's as long as it says what the agent wrote.
fn may_write(current: Option<&str>, written: Option<&str>, desired: &str) -> bool {
    if current == Some(desired) && written == Some(desired) {
        return false;
    }
    match (current, written) {
        (_, None) => true,
        (Some(current), Some(written)) => current == written || current == desired,
        // The user has removed it.
        (None, Some(_)) => false,
    }
}

/// `/etc/hosts` with this name on the agent's line (Debian's way: 127.0.1.1), and localhost.
fn hosts(current: &str, name: &str) -> String {
    let mut text = String::new();
    let own = |line: &str| line.ends_with(OWNED) || line.split_whitespace().next() == Some("127.0.1.1");
    for line in current.lines().filter(|line| !own(line)) {
        text.push_str(line);
        text.push('\n');
    }
    let localhost = |line: &str| {
        let words = line.split('#').next().unwrap_or_default();
        words.split_whitespace().skip(1).any(|word| word == "localhost")
    };
    if !text.lines().any(localhost) {
        text.insert_str(
            0,
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
        );
    }
    text.push_str(&format!("127.0.1.1\t{name} {OWNED}\n"));
    text
}

/// The name in `/etc/hostname` (hostname(5)): the first line that is no comment.
fn chosen_name(text: &str) -> Option<String> {
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with('#'))?;
    let plain = line
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'));
    (plain && line.len() <= 64).then(|| line.to_owned())
}

/// A small text file; `None` where there is none, or none that can be read as such. Links are not followed: the root is
/// not `/` yet, so they would lead elsewhere.
fn read(path: &Path) -> Option<String> {
    let no_follow = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(no_follow.bits()).ok()?;
    let file = fs::File::options()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Replaces a file (or a link, as systemd-resolved's) at once.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".banger-new");
    let fresh: PathBuf = path.with_file_name(name);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&fresh)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_the_user_wrote_stays() {
        // First boot: the image's.
        assert!(may_write(Some("localhost\n"), None, "dev\n"));
        assert!(may_write(None, None, "dev\n"));
        // Later boots: still the agent's.
        assert!(!may_write(Some("dev\n"), Some("dev\n"), "dev\n"));
        assert!(may_write(Some("dev\n"), Some("dev\n"), "renamed\n"));
        // Edited, or removed.
        assert!(!may_write(Some("mine\n"), Some("dev\n"), "dev\n"));
        assert!(!may_write(None, Some("dev\n"), "dev\n"));
        // A crash between file and memory.
        assert!(may_write(Some("renamed\n"), Some("dev\n"), "renamed\n"));
    }

    #[test]
    fn the_resolver_is_a_file_unless_the_user_links_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let (root, run, memory) = (
            dir.path().join("root"),
            dir.path().join("run"),
            dir.path().join("memory"),
        );
        let (file, drop_in) = (
            root.join("etc/resolv.conf"),
            run.join("systemd/resolved.conf.d/50-banger.conf"),
        );
        fs::create_dir_all(root.join("etc")).expect("made");
        // As in images with systemd-resolved.
        let link =
            || std::os::unix::fs::symlink("../run/systemd/resolve/stub-resolv.conf", &file).expect("linked");
        link();
        let dns = Ipv4Addr::new(10, 209, 0, 1);
        resolver(&root, &run, dns, Some("vm"), &memory);
        let text = fs::read_to_string(&file).expect("a file");
        assert_eq!(text, "nameserver 10.209.0.1\nsearch vm\n");
        assert!(!file.is_symlink() && !drop_in.exists());
        // The same once more; then with another server, still the agent's.
        resolver(&root, &run, dns, Some("vm"), &memory);
        let other = Ipv4Addr::new(10, 0, 2, 3);
        resolver(&root, &run, other, None, &memory);
        assert_eq!(
            fs::read_to_string(&file).expect("a file"),
            "nameserver 10.0.2.3\n"
        );
        // Later the user installs systemd-resolved.
        fs::remove_file(&file).expect("removed");
        link();
        resolver(&root, &run, dns, Some("vm"), &memory);
        assert!(file.is_symlink());
        let text = fs::read_to_string(&drop_in).expect("a drop-in");
        assert_eq!(text, "[Resolve]\nDNS=10.209.0.1\nDomains=vm\n");
    }

    #[test]
    fn hosts_keeps_the_image_s_lines() {
        assert_eq!(
            hosts(
                "127.0.0.1 localhost\n127.0.1.1 builder\n# note\n10.0.0.1 db\n",
                "dev"
            ),
            "127.0.0.1 localhost\n# note\n10.0.0.1 db\n127.0.1.1\tdev # banger\n"
        );
        assert!(hosts("", "dev").starts_with("127.0.0.1\tlocalhost\n"));
    }

    proptest! {
        #[test]
        fn hosts_settles(current in "([0-9. a-z#]{0,20}\n){0,5}", name in "[a-z]{1,8}") {
            let once = hosts(&current, &name);
            prop_assert_eq!(hosts(&once, &name), once.clone());
            let line = format!("127.0.1.1\t{name} {OWNED}\n");
            prop_assert!(once.ends_with(&line));
        }
    }

    #[test]
    fn the_name_in_a_hostname_file() {
        assert_eq!(
            chosen_name("# by hand\n\n box.example \n"),
            Some("box.example".to_owned())
        );
        assert_eq!(chosen_name("two words\n"), None);
        assert_eq!(chosen_name(""), None);
    }
}
