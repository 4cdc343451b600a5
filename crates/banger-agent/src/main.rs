//! The guest agent: init of the initramfs, then a gRPC server on vsock.
//!
//! One binary, three lives:
//!
//! ```text
//! process 1 (kernel starts /init) ── boot ──┬─ supervise ── server      the agent stays as init
//!                                           └─ execve the image's init;  supervise ── server beside it
//! banger-agent serve --unix PATH ────────────── server                   for debugging and tests, on any machine
//! ```
//!
//! - [`boot`]: from the kernel's hand-over to the image's root file system, as the kernel command line says.
//! - [`supervise`]: starts the server, starts it anew when it dies, reaps orphans where the agent is process 1.
//! - [`server`]: the protocol of `banger-agent-api`; [`exec`], [`transfer`] and [`ssh`] do its work.
//! - [`listen`]: vsock and Unix sockets, and the hello line.
//!
//! The binary is static and needs nothing from the image. It trusts nothing in the image either, but it does not guard
//! the guest against its own root user: the boundary is the VMM.
//!
//! Floating-point state: under Firecracker on hosts without hardware virtualization, some kernels save SSE registers
//! only. glibc honours `GLIBC_TUNABLES` from the kernel command line (also handed to every command), and no dependency
//! picks AVX at run time: HTTP/1 (httparse) is not compiled in, and nothing uses memchr's vector search.

mod account;
mod boot;
mod exec;
mod grow;
mod listen;
mod log;
mod server;
mod session;
mod sparse;
mod ssh;
mod supervise;
mod transfer;
mod vsock;

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: banger-agent serve --unix PATH | banger-agent --version
This is the agent of Banger's guests; in a guest the kernel starts it as /init.";

fn main() -> ExitCode {
    if rustix::process::getpid() == rustix::process::Pid::INIT {
        boot::run();
    }
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let words: Vec<_> = arguments
        .iter()
        .map(|word| word.to_str().unwrap_or_default())
        .collect();
    match words.as_slice() {
        ["serve", "--unix", _] => {
            let path = PathBuf::from(&arguments[2]);
            match supervise::serve_for_debugging(&path) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    log::line(format_args!("failed to serve on {}: {error}", path.display()));
                    ExitCode::FAILURE
                }
            }
        }
        ["--version"] => {
            println!("banger-agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}
