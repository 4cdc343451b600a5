//! `banger ssh`, `ssh-config` and `ssh-proxy`: what they hand to ssh and what they leave in files. A program of the
//! tests' own stands in for ssh where only its arguments matter; real ones are the end-to-end suite's.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;

use banger_api::types::VmState;

use crate::support::{Daemon, Ended};

/// Banger's own directory for a daemon on a socket of its own.
fn directory(daemon: &Daemon) -> PathBuf {
    let below = daemon.socket().with_file_name(".config/banger");
    let mut found = fs::read_dir(below).unwrap();
    let one = found.next().unwrap().unwrap().path();
    assert!(found.next().is_none());
    one
}

#[test]
fn ssh_gets_a_configuration_and_the_machine_as_a_host() {
    let daemon = Daemon::start();
    daemon.add_vm("dev");
    let programs = daemon.socket().with_file_name("programs");
    fs::create_dir(&programs).unwrap();
    let ssh = programs.join("ssh");
    fs::write(&ssh, "#!/bin/sh\necho \"$0\" \"$@\"\nexit 42\n").unwrap();
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = daemon.banger(arguments);
        let ended = Ended::from(command.env("PATH", &programs).output().unwrap());
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(42), ""));
        ended.stdout
    };
    let first = run(&["ssh", "dev", "-t", "--", "htop", "-d", "1"]);
    let config = directory(&daemon).join("config");
    let expected = format!(
        "{} -F {} dev.vm -t -- htop -d 1\n",
        ssh.display(),
        config.display()
    );
    assert_eq!(first, expected);
    assert!(run(&["ssh", "-l", "me", "dev.vm"]).ends_with(" -l me dev.vm\n"));
    // By id, which becomes the name.
    let id = daemon.world.vms.lock().unwrap()["dev"].id.clone();
    assert!(run(&["ssh", &format!("a@b@{id}")]).ends_with(" a@b@dev.vm\n"));

    let text = fs::read_to_string(&config).unwrap();
    let proxy = format!("--socket '{}' ssh-proxy -- '%n'", daemon.socket().display());
    assert!(text.contains(&proxy), "{text}");
    for (name, contents) in [
        ("id_ed25519", "private 0\n".to_owned()),
        ("known_hosts", format!("dev.vm ssh-ed25519 BBBB{id}\n")),
    ] {
        let path = directory(&daemon).join(name);
        assert_eq!(fs::read_to_string(&path).unwrap(), contents);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let mode = fs::metadata(directory(&daemon)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert!(!daemon.socket().with_file_name(".ssh").exists());
}

#[test]
fn what_keeps_ssh_from_starting_is_said() {
    let daemon = Daemon::start();
    daemon.add_vm("dev");
    let nothing = daemon.socket().with_file_name("nothing");
    let mut command = daemon.banger(&["ssh", "dev"]);
    let ended = Ended::from(command.env("PATH", nothing).output().unwrap());
    assert_eq!(ended.code, Some(125));
    assert!(
        ended.stderr.contains("there is no ssh client"),
        "{}",
        ended.stderr
    );
    assert!(ended.stderr.contains("openssh-client"), "{}", ended.stderr);

    daemon.world.vms.lock().unwrap().get_mut("dev").unwrap().state = VmState::Stopped;
    let stopped = daemon.run(&["ssh", "dev"]);
    let said = "error: machine \"dev\" is not running\nhint: start it: banger vm start dev\n";
    assert_eq!((stopped.code, stopped.stderr.as_str()), (Some(125), said));
    let proxied = daemon.run(&["ssh-proxy", "dev.vm"]);
    assert_eq!((proxied.code, proxied.stderr.as_str()), (Some(4), said));
    assert_eq!(daemon.run(&["ssh", "dve"]).code, Some(125));
    assert_eq!(daemon.run(&["ssh-proxy", "dve.vm"]).code, Some(3));
    assert_eq!(daemon.run(&["ssh", "-t"]).code, Some(2));
}

#[test]
fn the_proxy_passes_bytes_both_ways_each_with_its_end() {
    let daemon = Daemon::start();
    daemon.add_vm("dev");
    let sent: Vec<u8> = (0..3_000_000_u32)
        .map(|i| i.to_le_bytes()[i as usize % 3])
        .collect();
    let mut child = daemon
        .banger(&["ssh-proxy", "dev.vm"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let expected = [&sent[..], b"bye"].concat();
    let feeding = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &sent).unwrap());
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(
        output.stdout == expected,
        "{} bytes came back",
        output.stdout.len()
    );
}

#[test]
fn the_include_comes_and_goes_and_keys_are_renewed() {
    let daemon = Daemon::start();
    daemon.add_vm("dev");
    let file = daemon.socket().with_file_name("their config");
    fs::write(&file, "Host a\n  User b\n").unwrap();
    let file_argument = file.to_str().unwrap();
    let installed = daemon.run(&["ssh-config", "install", "--file", file_argument]);
    assert_eq!((installed.code, installed.stdout.as_str()), (Some(0), ""));
    let directory = directory(&daemon);
    let line = format!("Include \"{}\"", directory.join("config").display());
    assert!(installed.stderr.starts_with("added to"), "{}", installed.stderr);
    let with = format!("{line}\nHost a\n  User b\n");
    assert_eq!(fs::read_to_string(&file).unwrap(), with);
    let again = daemon.run(&["ssh-config", "install", "--file", file_argument]);
    assert!(again.stderr.starts_with("is already in"), "{}", again.stderr);
    assert_eq!(fs::read_to_string(&file).unwrap(), with);

    let shown = daemon.run(&["ssh-config", "show"]);
    assert_eq!(
        shown.stdout,
        fs::read_to_string(directory.join("config")).unwrap()
    );
    let identity = || fs::read_to_string(directory.join("id_ed25519")).unwrap();
    assert_eq!(identity(), "private 0\n");
    assert_eq!(daemon.run(&["ssh-config", "rotate"]).code, Some(0));
    assert_eq!(identity(), "private 1\n");
    // Somebody else has it renewed: what ssh runs before it connects brings it here.
    *daemon.world.keys.lock().unwrap() = 7;
    let at = directory.to_str().unwrap();
    let refreshed = daemon.run(&["ssh-config", "refresh", "--directory", at, "--", "dev.vm"]);
    assert_eq!((refreshed.code, refreshed.stderr.as_str()), (Some(0), ""));
    assert_eq!(identity(), "private 7\n");
    // The connection will say what is wrong.
    let unknown = daemon.run(&["ssh-config", "refresh", "--directory", at, "--", "nobody.vm"]);
    assert_eq!((unknown.code, unknown.stderr.as_str()), (Some(1), ""));

    let removed = daemon.run(&["ssh-config", "remove", "--file", file_argument]);
    assert!(removed.stderr.starts_with("removed from"), "{}", removed.stderr);
    assert_eq!(fs::read_to_string(&file).unwrap(), "Host a\n  User b\n");
    assert!(!directory.exists());
    let again = daemon.run(&["ssh-config", "remove", "--file", file_argument]);
    assert_eq!(again.code, Some(0));
    assert!(again.stderr.starts_with("is not in"), "{}", again.stderr);
}
