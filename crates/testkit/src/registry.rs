//! Debian's `docker-registry`, as a process of the test's.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Only ends a test that has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `program`, a `docker-registry`, with its files below `store`, at a port of 127.0.0.1 that the kernel chooses. `more`
/// is what the configuration `config`, which is written, has besides: lines of YAML, the first ones below `http`. Ending it is
/// the caller's.
///
/// # Panics
/// Where it ends instead of listening, with what it said.
#[must_use]
pub fn docker_registry(program: &Path, config: &Path, store: &Path, more: &str) -> (Child, SocketAddr) {
    let text = format!(
        "version: 0.1\nlog: {{level: info, formatter: text, accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: {store:?}}}}}\nhttp:\n  addr: 127.0.0.1:0\n{more}"
    );
    std::fs::write(config, text).expect("write a configuration");
    let mut process = Command::new(program)
        .arg("serve")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run docker-registry");
    let said = BufReader::new(process.stderr.take().expect("a pipe"));
    let (tell, told) = mpsc::channel();
    // Reads to the end, so that the registry never waits for us.
    std::thread::spawn(move || {
        let mut all = String::new();
        for line in said.lines().map_while(Result::ok) {
            if let Some((_, rest)) = line.split_once("listening on ") {
                let end = rest.find(['"', ',', ' ']).unwrap_or(rest.len());
                tell.send(Ok(rest[..end].parse().expect("an address"))).ok();
            }
            all.push_str(&line);
        }
        tell.send(Err(all)).ok();
    });
    let address = told
        .recv_timeout(PATIENCE)
        .expect("a registry that listens or ends");
    let address = address.unwrap_or_else(|said: String| panic!("docker-registry has ended: {said}"));
    (process, address)
}
