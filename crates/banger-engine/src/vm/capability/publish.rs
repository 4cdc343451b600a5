//! Published ports: bound before anything else of a start exists, so that a port which is taken is known at once, and kept
//! from then on, so that nobody takes it while the guest boots. Who connects meanwhile waits for the guest.

use banger_vmm::MachineSpec;

use super::{Capability, Start};
use crate::doctor::Check;
use crate::error::{Error, Kind};
use crate::ports::{self, Publication};

pub(crate) struct Publish;

fn wanted(start: &Start<'_>) -> Vec<Publication> {
    let published = start.host.ports.of(&start.row.id);
    published
        .into_iter()
        .map(|published| published.publication)
        .collect()
}

#[async_trait::async_trait]
impl Capability for Publish {
    fn name(&self) -> &'static str {
        "publish"
    }

    async fn check(&self, start: &Start<'_>) -> Vec<Check> {
        let mut checks = Vec::new();
        // A machine that runs has them.
        let open = start.host.ports.is_open(&start.row.id);
        for publication in wanted(start) {
            let shown = format!(
                "{publication} leads to port {} of the guest",
                publication.guest_port
            );
            let bound = match open {
                true => Ok(Vec::new()),
                false => ports::reserve(&[publication]).await,
            };
            checks.push(match bound {
                Ok(_) => Check::fine(self.name(), "port", shown),
                Err(e) => {
                    let report = e.report();
                    let fix = if report.kind == Kind::InUse {
                        let back = format!("banger vm unpublish {} {publication}", start.row.name);
                        format!("end what has it, or take the port back: {back}")
                    } else {
                        report.hint.unwrap_or_default()
                    };
                    Check::failure(self.name(), "port", report.message, fix)
                }
            });
        }
        checks
    }

    async fn prepare(&self, start: &Start<'_>) -> Result<(), Error> {
        // No row in the ledger: a socket ends with whoever has it, the daemon.
        let reserved = ports::reserve(&wanted(start)).await?;
        *start
            .reserved
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = reserved;
        Ok(())
    }

    fn contribute(&self, _start: &Start<'_>, _spec: &mut MachineSpec) {
        // The way into the guest is its control channel.
    }
}
