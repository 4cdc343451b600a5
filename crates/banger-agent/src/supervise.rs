//! Keeps the server running: a process of its own, started anew when it dies.
//!
//! The supervisor is single-threaded and does nothing but fork and wait, so the server is always forked from a small,
//! quiet process. Where the agent is process 1, the supervisor is process 1, and reaps orphans besides. Under the
//! image's init it is a child of process 1, and marks itself (and so the server) as to be spared when systemd ends all
//! processes: argv[0] begins with `@` (systemd.io/ROOT_STORAGE_DAEMONS). So commands that are running when the machine
//! stops still report how they ended, pings are answered to the very end, and systemd waits for nobody.
//!
//! As process 1 it is also whom busybox's `poweroff`, `halt` and `reboot` ask, each by a signal (its `init/halt.c`: SIGUSR2,
//! SIGUSR1, SIGTERM). The kernel drops for process 1 what it has no handler for; here all three lead to the shutdown that a
//! call of the daemon's leads to, which is the server's to make.

use crate::boot::{Disks, InitMode};
use crate::exec;
use crate::listen::{self, Unix, Vsock};
use crate::log;
use crate::server::{self, Context, Role};
use crate::ssh;
use rustix::fd::OwnedFd;
use rustix::process::{Pid, Resource, Rlimit, WaitOptions, getrlimit, setrlimit, wait};
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Pauses before the server is started anew; one that ran this long starts over with the shortest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const LONG_LIFE: Duration = Duration::from_secs(60);

/// Descriptors of the server: 256 commands with five each, and transfers.
const OPEN_FILES: u64 = 8192;

/// Threads for blocking work: 16 transfers, and commands being started.
const BLOCKING_THREADS: usize = 48;

/// What `ps` shows; the `@` is explained above.
const ARGUMENTS: &[u8] = b"@banger-agent\0";

/// Whether a process of the guest has asked for the machine's end. The server has it from its fork, and sets its own.
static END_ASKED: AtomicBool = AtomicBool::new(false);

/// The server, for whom signals are passed on; 0 where there is none, and in the server itself.
static SERVER: AtomicI32 = AtomicI32::new(0);

/// Starts the server and keeps it running, for ever.
///
/// `layers` are file systems below the root that have to be made read-only last, where the agent is init.
pub(crate) fn supervise(mode: InitMode, layers: Vec<OwnedFd>, disks: Disks) -> ! {
    if matches!(mode, InitMode::Agent) {
        hear_the_guest();
    } else {
        spare_from_shutdown();
    }
    let (mut layers, mut disks) = (layers, Some(disks));
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        // SAFETY: this process has one thread, so the child may do everything.
        match unsafe { libc::fork() } {
            // In a memory of its own: what is taken here is there for the next.
            0 => serve_in_guest(mode, std::mem::take(&mut layers), disks.take()),
            pid if pid > 0 => {
                SERVER.store(pid, Ordering::SeqCst);
                // Between the fork and here nobody passed it on; once too often does no harm.
                if END_ASKED.load(Ordering::SeqCst) {
                    on_end_asked(0);
                }
                wait_for(pid);
                SERVER.store(0, Ordering::SeqCst);
            }
            _ => log::line(format_args!(
                "failed to fork the server: {}",
                io::Error::last_os_error()
            )),
        }
        if started.elapsed() > LONG_LIFE {
            pause = FIRST_PAUSE;
        }
        log::line(format_args!("the server has ended; starting it anew"));
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Has the signals of busybox's programs lead to [`on_end_asked`].
fn hear_the_guest() {
    for signal in [libc::SIGUSR1, libc::SIGUSR2, libc::SIGTERM] {
        // SAFETY: the handler does nothing but what signal-safety(7) allows; the mask is filled in before it is used.
        let set = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_end_asked as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigfillset(&raw mut action.sa_mask);
            libc::sigaction(signal, &raw const action, std::ptr::null_mut())
        };
        if set != 0 {
            log::line(format_args!(
                "failed to listen for signal {signal}: {}",
                io::Error::last_os_error()
            ));
        }
    }
}

/// Remembers, and tells the server. In the server, before it listens by itself, only the former: it looks then.
extern "C" fn on_end_asked(_signal: libc::c_int) {
    END_ASKED.store(true, Ordering::SeqCst);
    let server = SERVER.load(Ordering::SeqCst);
    if server > 0 {
        // SAFETY: a system call without pointers. The number is not another's before `wait_for` has reaped it.
        unsafe { libc::kill(server, END) };
    }
}

/// The signal by which the supervisor tells the server.
const END: libc::c_int = libc::SIGUSR2;

/// Resolves in the server when a process of the guest has asked for the machine's end.
async fn end_asked() -> io::Result<()> {
    let mut told = signal(SignalKind::from_raw(END))?;
    // After it listens: what came before is remembered, what comes now is heard.
    if !END_ASKED.load(Ordering::SeqCst) {
        told.recv().await;
    }
    Ok(())
}

/// Waits until the server has ended, reaping whatever else ends.
fn wait_for(server: libc::pid_t) {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, _))) if pid.as_raw_pid() == server => return,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            // No children at all: then the server is none either.
            Err(_) => return,
        }
    }
}

/// The server's life, in a process of its own.
fn serve_in_guest(mode: InitMode, layers: Vec<OwnedFd>, disks: Option<Disks>) -> ! {
    log::to_kernel();
    // For `ps` and `top`; the name the kernel gave is that of the file, init.
    let _cosmetic = rustix::thread::set_name(c"banger-agent");
    // A session of its own: the console's hang-ups are none of its business.
    let _is_leader_already = rustix::process::setsid();
    let role = match mode {
        InitMode::Agent => Role::Init { layers },
        InitMode::Systemd => Role::UnderSystemd,
        InitMode::Other => Role::UnderOtherInit,
    };
    let result = run(async move {
        let listener = Vsock::bind()?;
        let info = role.info();
        let context = context(role, disks, ssh::Place::in_guest());
        let open_files = context.open_files;
        let end: Pin<Box<dyn Future<Output = io::Result<()>> + Send>> = match mode {
            InitMode::Agent => Box::pin(end_asked()),
            InitMode::Systemd | InitMode::Other => Box::pin(std::future::pending()),
        };
        let hello = tokio::spawn(async move {
            listen::say_hello(info).await;
            exec::rehearse(open_files).await;
        });
        server::serve(listener, context, end).await;
        hello.abort();
        Ok(())
    });
    if let Err(error) = result {
        log::line(format_args!("failed to serve: {error}"));
    }
    std::process::exit(1)
}

/// Serves on a Unix socket in this very process, on a machine which the agent has not booted.
pub(crate) fn serve_for_debugging(path: &Path) -> io::Result<()> {
    run(async {
        let nobody_asks = std::future::pending();
        let context = context(Role::Debug, None, ssh::Place::beside(path));
        server::serve(Unix::bind(path)?, context, nobody_asks).await;
        Ok(())
    })
}

fn run(work: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        // Walking a tree and tar headers need little.
        .thread_stack_size(256 * 1024)
        .build()?
        .block_on(work)
}

/// Raises the server's own limit of descriptors, and remembers what commands are to have.
fn context(role: Role, disks: Option<Disks>, ssh: ssh::Place) -> Context {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: Some(maximum.unwrap_or(OPEN_FILES).min(OPEN_FILES)),
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        log::line(format_args!("failed to raise the limit of open files: {error}"));
    }
    let raw = |limit: Option<u64>| limit.unwrap_or(libc::RLIM_INFINITY);
    Context {
        role,
        disks,
        ssh,
        open_files: libc::rlimit {
            rlim_cur: raw(current),
            rlim_max: raw(maximum),
        },
    }
}

/// Makes argv[0] begin with `@`, by pointing the kernel to other arguments (`PR_SET_MM` of prctl(2)).
fn spare_from_shutdown() {
    // On the heap, for ever: the kernel reads arguments from anonymous memory only, not from a file's.
    let text: &'static mut [u8] = Box::leak(Box::from(ARGUMENTS));
    let start = text.as_ptr() as usize;
    let end = start + text.len();
    let set = |what: libc::c_int, address: usize| {
        // SAFETY: the kernel only notes the addresses, and reads them for /proc/PID/cmdline; the text is never freed.
        unsafe { libc::prctl(libc::PR_SET_MM, what, address, 0usize, 0usize) == 0 }
    };
    // The kernel wants start below end at every step, and the heap lies below the stack's old arguments.
    if !(set(libc::PR_SET_MM_ARG_START, start) && set(libc::PR_SET_MM_ARG_END, end)) {
        let error = io::Error::last_os_error();
        log::line(format_args!(
            "failed to mark the agent as to be spared at shutdown: {error}"
        ));
    }
}

/// Forks a supervisor beside the image's init.
pub(crate) fn supervise_aside(mode: InitMode, disks: Disks) -> io::Result<Pid> {
    // SAFETY: this process has one thread, so the child may do everything.
    match unsafe { libc::fork() } {
        0 => supervise(mode, Vec::new(), disks),
        pid => Pid::from_raw(pid.max(0)).ok_or_else(io::Error::last_os_error),
    }
}
