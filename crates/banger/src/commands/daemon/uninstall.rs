//! `banger daemon uninstall`: takes away what `banger daemon install` made.

use std::path::Path;

use banger_api::types::{VmList, VmState};
use clap::Args;

use super::install;
use crate::ask;
use crate::context::Context;
use crate::error::{CliError, Kind, chain};
use crate::service::{DAEMON, Installed, MACHINES, Scope, Systemctl, files};
use crate::spawn;
use crate::stdio::{self, say};

/// Remove the service, and the programs it was installed with
///
/// Machines, images and kernels stay, and so does the configuration; machines that run go on. With --purge the state is
/// removed as well, which needs all machines to be stopped.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger daemon uninstall
  banger daemon uninstall --purge
  banger daemon uninstall --user
")]
pub(crate) struct Uninstall {
    /// Remove the service of this user
    #[arg(long)]
    user: bool,
    /// Remove all machines, images and kernels as well
    #[arg(long)]
    purge: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl Uninstall {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let scope = match self.user {
            true => Scope::User,
            false => Scope::System,
        };
        let Some(installed) = Installed::find(scope)? else {
            say!("no service is installed");
            return Ok(0);
        };
        install::check(scope)?;
        let paths = context.paths();
        // What this process would call the daemon's directories are those of the service.
        let mine = scope == Scope::of_this_process() && paths.is_plain && paths.socket_is_default;
        let mut running = running(context).await?;
        if self.purge {
            if !mine {
                return Err(CliError::usage(
                    "--purge removes the service's state, and this command is about another daemon's",
                ));
            }
            none_runs(running.as_deref())?;
            let question = format!(
                "remove all machines, images and kernels in {}",
                paths.state().display()
            );
            ask::confirm(&question, self.yes).await?;
            // A while may have passed, in which machines were started.
            running = self::running(context).await?;
            none_runs(running.as_deref())?;
        }
        let manager = Systemctl::new(scope);
        // The other unit is not stopped: that would stop machines. Without its file it does nothing when the host goes
        // down.
        manager.run(&["disable", "--quiet", "--now", DAEMON]).await?;
        if self.purge {
            none_left(paths.socket.parent(), &manager)?;
        }
        remove_files(&installed)?;
        manager.run(&["daemon-reload"]).await?;
        let running = running.unwrap_or_default();
        if running.is_empty() && mine {
            remove_tree(paths.socket.parent())?;
        }
        if !running.is_empty() {
            say!(
                "note: {} go on running: {}",
                count(running.len()),
                running.join(", ")
            );
        }
        if self.purge {
            remove_tree(Some(paths.state()))?;
        } else {
            say!(
                "machines, images and kernels are left in {}",
                paths.state().display()
            );
        }
        Ok(0)
    }
}

fn count(machines: usize) -> String {
    match machines {
        1 => "1 machine".to_owned(),
        machines => format!("{machines} machines"),
    }
}

/// Refuses where a machine runs, or where nobody can say.
fn none_runs(running: Option<&[String]>) -> Result<(), CliError> {
    let message = match running {
        Some([]) => return Ok(()),
        Some(running) => format!("{} still run: {}", count(running.len()), running.join(", ")),
        None => "the daemon does not run, so it is not known whether machines do".to_owned(),
    };
    Err(CliError::new(Kind::Conflict, message).hint("`banger vm stop --all` stops them"))
}

/// Refuses where the daemon, which has ended, has left a machine running: one that was started after it was asked. A machine
/// has a directory of sockets for as long as it runs.
fn none_left(runtime: Option<&Path>, manager: &Systemctl) -> Result<(), CliError> {
    let entries = runtime.and_then(|runtime| std::fs::read_dir(runtime).ok());
    let left = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("bgr"))
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .count();
    if left == 0 {
        return Ok(());
    }
    let message = format!(
        "{} started meanwhile; nothing is removed, and the service is stopped",
        match left {
            1 => "1 machine was".to_owned(),
            left => format!("{left} machines were"),
        }
    );
    let start = manager.shown(&["enable", "--now", DAEMON]);
    Err(CliError::new(Kind::Conflict, message).hint(format!(
        "`{start}` starts the service again, `banger vm stop --all` stops them; then try again"
    )))
}

/// Names of the machines that run; `None` where no daemon is there to say.
async fn running(context: &Context) -> Result<Option<Vec<String>>, CliError> {
    if !spawn::listens(context.socket()) {
        return Ok(None);
    }
    let vms = context.running_client().await?.vm_list(VmList::default()).await?;
    let runs = |state| match state {
        VmState::Starting | VmState::Running | VmState::Stopping => true,
        VmState::Creating | VmState::Stopped | VmState::Failed | VmState::Removing | VmState::Resetting => {
            false
        }
    };
    Ok(Some(
        vms.into_iter()
            .filter(|vm| vm.running.is_some() || runs(vm.state))
            .map(|vm| vm.name)
            .collect(),
    ))
}

/// Removes units and programs; directories only where they are ours and nothing else is in them.
fn remove_files(installed: &Installed) -> Result<(), CliError> {
    let mut paths = vec![installed.unit.with_file_name(MACHINES)];
    let mut own = Vec::new();
    if let Some(prefix) = installed.prefix() {
        let (files, directories) = files::below(prefix);
        paths.extend(files);
        own.extend(directories);
    }
    // Last, because it says where the others are: an uninstallation that failed can be run again.
    paths.push(installed.unit.clone());
    for path in paths {
        if files::remove(&path)? {
            stdio::print(&format!("{}\n", path.display()))?;
        }
    }
    for directory in own {
        // Something else may be in it.
        std::fs::remove_dir(directory).ok();
    }
    Ok(())
}

fn remove_tree(path: Option<&Path>) -> Result<(), CliError> {
    let Some(path) = path else { return Ok(()) };
    match std::fs::remove_dir_all(path) {
        Ok(()) => stdio::print(&format!("{}\n", path.display())),
        // A file system of its own: it is empty, and mounted by somebody else.
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(CliError::new(
            Kind::of_io(&error),
            format!("failed to remove {}: {}", path.display(), chain(&error)),
        )),
    }
}
