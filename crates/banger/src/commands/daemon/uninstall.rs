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
        let running = running(context).await?;
        if self.purge {
            if !mine {
                return Err(CliError::usage(
                    "--purge removes the service's state, and this command is about another daemon's",
                ));
            }
            if running.as_ref().is_none_or(|running| !running.is_empty()) {
                return Err(CliError::new(
                    Kind::Conflict,
                    match running {
                        Some(running) => {
                            format!("{} still run: {}", count(running.len()), running.join(", "))
                        }
                        None => "the daemon does not run, so it is not known whether machines do".to_owned(),
                    },
                )
                .hint("`banger vm stop --all` stops them"));
            }
            let question = format!(
                "remove all machines, images and kernels in {}",
                paths.state().display()
            );
            ask::confirm(&question, self.yes).await?;
        }
        let manager = Systemctl::new(scope);
        // The other unit is not stopped: that would stop machines. Without its file it does nothing when the host goes
        // down.
        manager.run(&["disable", "--quiet", "--now", DAEMON]).await?;
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
