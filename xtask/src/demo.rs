//! `cargo xtask demo` and its undoing: links in `PATH`, the two bootstrap images, one command in a microVM.
//!
//! Everything goes through the `banger` command, as a user would type it, with the user's own state directory: what the
//! demo made is there to be used afterwards.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use crate::layout;
use crate::sh::{self, Result};

const IMAGES: [&str; 2] = ["debian", "busybox"];
const KERNEL: &str = "debian";
const PROGRAMS: [&str; 2] = ["banger", "bangerd"];
const HELLO: &str =
    r#". /etc/os-release; echo "Hello from $PRETTY_NAME, Linux $(uname -r), $(nproc) processors.""#;

/// From a built stage to a command that ran in a microVM.
pub(crate) fn demo() -> Result {
    let directory = link()?;
    leave_old_daemon()?;
    let began = began();
    for image in IMAGES {
        // An image that is there already is a success, at once.
        show(&["image", "bootstrap", image])?;
    }
    show(&["run", "debian", "--rm", "--", "sh", "-c", HELLO])?;
    println!(
        "
That command ran in a microVM of its own, which is gone again. All of it took {}, the build included. Next:

  banger run debian --name dev         a machine that stays
  banger exec -it dev -- bash          a shell in it
  banger cp README.md dev:             a file into it
  banger vm stop dev                   what it wrote stays: banger vm start dev goes on
  banger vm rm --force dev             gone without a trace
  banger doctor                        what this host could do better
  banger --help                        everything else",
        minutes(began.elapsed().unwrap_or_default())
    );
    if !on_path(&directory) {
        println!(
            "\n{0} is not in your PATH yet: export PATH=\"{0}:$PATH\"",
            directory.display()
        );
    }
    Ok(())
}

/// When `make demo` was called; without make, now.
fn began() -> SystemTime {
    let seconds = std::env::var("BANGER_DEMO_BEGAN").ok();
    let seconds = seconds.and_then(|seconds| seconds.parse().ok());
    seconds.map_or_else(SystemTime::now, |seconds| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    })
}

/// `3 min 5 s`.
fn minutes(time: Duration) -> String {
    match (time.as_secs() / 60, time.as_secs() % 60) {
        (0, seconds) => format!("{seconds} s"),
        (minutes, seconds) => format!("{minutes} min {seconds} s"),
    }
}

/// Undoes [`demo`]. Machines are never removed here: they are somebody's work. Nor is any image or kernel that the demo
/// did not make; while there is one, the command that removes it stays too. Where nothing is left, the state directory
/// goes, and the directory of the sockets.
pub(crate) fn clean() -> Result {
    let mut stays = Vec::new();
    let banger = layout::staged("banger");
    if banger.exists() {
        let names = |listing: &[&str]| -> Result<Vec<String>> {
            let names = sh::read(Command::new(&banger).args(listing).arg("-q"))?;
            Ok(names.lines().map(str::to_owned).collect())
        };
        let machines = names(&["ls"])?;
        if !machines.is_empty() {
            let machines = machines.join(" ");
            return Err(
                format!("there are machines; remove them first: banger vm rm --force {machines}").into(),
            );
        }
        let images = names(&["image", "ls"])?;
        for image in images.iter().filter(|image| IMAGES.contains(&image.as_str())) {
            show(&["image", "rm", image])?;
        }
        let own = |name: &&String| !IMAGES.contains(&name.as_str());
        stays.extend(images.iter().filter(own).map(|name| format!("image {name}")));
        let kernels = names(&["kernel", "ls"])?;
        for kernel in kernels {
            match kernel == KERNEL && stays.is_empty() {
                true => show(&["kernel", "rm", KERNEL])?,
                // An image that stays may boot with it.
                false => stays.push(format!("kernel {kernel}")),
            }
        }
        let status = status();
        let path = |key: &str| Some(PathBuf::from(status.as_ref()?.get(key)?.as_str()?));
        let (state, socket) = (path("state_directory"), path("socket"));
        stop_daemon()?;
        if stays.is_empty() {
            if let Some(state) = state.filter(|state| state.join("banger.db").exists()) {
                println!("removing {}", state.display());
                fs::remove_dir_all(&state)?;
            }
            if let Some(runtime) = socket.as_deref().and_then(Path::parent) {
                remove_runtime(runtime)?;
            }
        } else if let Some(state) = state {
            println!(
                "left: {}\n{} stays, and so does the banger command, which removes what is left; then make clean-demo again",
                stays.join(", "),
                state.display()
            );
            return Ok(());
        }
    }
    let directory = link_directory()?;
    for program in PROGRAMS {
        let link = directory.join(program);
        if fs::read_link(&link).is_ok_and(|to| to == layout::staged(program)) {
            println!("removing {}", link.display());
            fs::remove_file(&link)?;
        }
    }
    Ok(())
}

/// Removes the directory of the sockets, where nothing is in it but what tells notes already said.
fn remove_runtime(runtime: &Path) -> Result {
    let told = runtime.join("told");
    let Ok(entries) = fs::read_dir(runtime) else {
        // In the state directory, and gone with it.
        return Ok(());
    };
    let others = entries.flatten().filter(|entry| entry.path() != told).count();
    if others == 0 {
        println!("removing {}", runtime.display());
        fs::remove_dir_all(runtime)?;
    }
    Ok(())
}

/// Says a command and runs it on our terminal.
fn show(arguments: &[&str]) -> Result {
    let quoted: Vec<_> = arguments
        .iter()
        .map(|a| {
            if a.contains([' ', '"', '$', ';']) {
                format!("'{a}'")
            } else {
                (*a).to_owned()
            }
        })
        .collect();
    println!("$ banger {}", quoted.join(" "));
    sh::run(Command::new(layout::staged("banger")).args(arguments))
}

/// A directory of programs that the user may write to: the README's commands then work as they stand.
fn link_directory() -> Result<PathBuf> {
    // Root is who may write to /usr/local/bin.
    if layout::is_root() {
        return Ok(PathBuf::from("/usr/local/bin"));
    }
    let home = std::env::var_os("HOME").ok_or("HOME is not set")?;
    Ok(Path::new(&home).join(".local/bin"))
}

fn on_path(directory: &Path) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|entry| entry == directory))
}

/// Links the stage's programs, and leaves alone what is there and not ours.
fn link() -> Result<PathBuf> {
    let directory = link_directory()?;
    fs::create_dir_all(&directory).map_err(|e| format!("failed to make {}: {e}", directory.display()))?;
    for program in PROGRAMS {
        let (link, to) = (directory.join(program), layout::staged(program));
        match fs::read_link(&link) {
            Ok(there) if there == to => continue,
            // A link of another checkout's demo.
            Ok(there) if there.ends_with(Path::new("stage/bin").join(program)) => fs::remove_file(&link)?,
            Ok(_) | Err(_) if link.symlink_metadata().is_ok() => {
                println!("{} is there and not from here; left alone", link.display());
                continue;
            }
            Ok(_) | Err(_) => {}
        }
        symlink(&to, &link).map_err(|e| format!("failed to link {}: {e}", link.display()))?;
        println!("linked {} -> {}", link.display(), to.display());
    }
    Ok(directory)
}

/// What the daemon on the user's default socket says of itself, if it runs.
fn status() -> Option<serde_json::Value> {
    let mut status = Command::new(layout::staged("banger"));
    status
        .args(["daemon", "status", "--output", "json"])
        .env("BANGER_NO_AUTOSTART", "1");
    serde_json::from_str(&sh::read(&mut status).ok()?).ok()
}

/// Its process id.
fn daemon() -> Option<u32> {
    status()?.get("pid")?.as_u64()?.try_into().ok()
}

/// A daemon from before the last build goes; the next command starts the new one, which adopts its machines.
fn leave_old_daemon() -> Result {
    let Some(pid) = daemon() else { return Ok(()) };
    let executable = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    if executable == layout::staged("bangerd") {
        return Ok(());
    }
    println!("restarting the daemon: it is {}", executable.display());
    stop_daemon()
}

fn stop_daemon() -> Result {
    let Some(pid) = daemon() else { return Ok(()) };
    // Its ordered way out, the same as `systemctl stop` takes.
    sh::run(
        Command::new("kill")
            .args(["-TERM", &pid.to_string()])
            .stdout(Stdio::null()),
    )?;
    let patience = Instant::now() + Duration::from_secs(30);
    while Path::new(&format!("/proc/{pid}")).exists() {
        if Instant::now() > patience {
            return Err(format!("the daemon (process {pid}) did not end within 30 seconds").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_for_people() {
        assert_eq!(minutes(Duration::from_secs(59)), "59 s");
        assert_eq!(minutes(Duration::from_secs(605)), "10 min 5 s");
    }

    #[test]
    fn only_a_runtime_directory_without_sockets_goes() {
        let directory = std::env::temp_dir().join(format!("banger-demo-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("told"), "1 slow\n").unwrap();
        fs::write(directory.join("bangerd.sock"), "").unwrap();
        remove_runtime(&directory).unwrap();
        assert!(directory.join("told").exists());
        fs::remove_file(directory.join("bangerd.sock")).unwrap();
        remove_runtime(&directory).unwrap();
        assert!(!directory.exists());
        remove_runtime(&directory).unwrap();
    }
}
