//! The guest's control channel: the runtime directory with its sockets, and the socket on which the guest's hello
//! arrives. It is first, because every process of the run is found by this directory.

use std::os::unix::fs::DirBuilderExt;

use banger_vmm::MachineSpec;
use tokio::net::UnixListener;

use super::{Capability, Start};
use crate::doctor::Check;
use crate::error::{Error, io};
use crate::ledger::{Object, Owner};

/// Bytes of a Unix socket's path, without the terminating zero (`sun_path`, unix(7)).
const SOCKET_PATH: usize = 107;

pub(crate) struct GuestSocket;

#[async_trait::async_trait]
impl Capability for GuestSocket {
    fn name(&self) -> &'static str {
        "guest-socket"
    }

    async fn check(&self, start: &Start<'_>) -> Vec<Check> {
        let path = start.paths.hello();
        let (shown, length) = (path.display(), path.as_os_str().len());
        vec![if length <= SOCKET_PATH {
            Check::fine(
                self.name(),
                "path",
                format!("{shown} has {length} of {SOCKET_PATH} bytes"),
            )
        } else {
            Check::failure(
                self.name(),
                "path",
                format!("the socket path {shown} has {length} bytes and may have {SOCKET_PATH}"),
                "set a shorter `runtime_dir` under `[daemon]` in the configuration",
            )
        }]
    }

    async fn prepare(&self, start: &Start<'_>) -> Result<(), Error> {
        let owner = Owner::Run(start.row.id.clone());
        let runtime = &start.paths.runtime;
        let entered = start
            .host
            .ledger
            .enter(
                &owner,
                &Object::Directory {
                    path: runtime.clone(),
                },
            )
            .await?;
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(runtime)
            .map_err(io("create", runtime))?;
        entered.made();
        // From here on a process may exist; this row finds the one that dies unrecorded with us.
        start
            .host
            .ledger
            .enter(
                &owner,
                &Object::Processes {
                    runtime: runtime.clone(),
                    state: start.paths.state.clone(),
                },
            )
            .await?
            .nothing_to_make();
        let path = start.paths.hello();
        let listener = UnixListener::bind(&path).map_err(io("listen on", path))?;
        *start
            .hello
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(listener);
        Ok(())
    }

    fn contribute(&self, _start: &Start<'_>, _spec: &mut MachineSpec) {
        // A machine without this device would be none of ours: it is part of every specification from the start.
    }
}
