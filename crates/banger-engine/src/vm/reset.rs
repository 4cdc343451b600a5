//! Renewing a machine's system disk, from its image or from another. The work disk is not touched.
//!
//! ```text
//!   make the next generation's disk --> one transaction: generation, image, kernel, phase --> remove the old disk
//! ```
//!
//! Up to the transaction the old disk is in force and the new one is litter; from it on it is the other way round. The
//! litter of a daemon that died in between is swept by the next one (`reconcile`), and by the next start.

use std::sync::Arc;

use banger_store::StoreError;
use banger_store::vms::VmRow;

use crate::crash::Write;
use crate::error::{Error, chain};
use crate::held;
use crate::host::Host;
use crate::image::registry::Found;
use crate::limits;
use crate::operation::Progress;
use crate::vm::capability::system_disk;
use crate::vm::machines::phase_text;
use crate::vm::state::{Paths, Phase};

/// Renews the system disk of a machine that does not run; gives the row as it is since, which has then that phase. On an
/// error the row and its disk are as they were. May be dropped anywhere.
pub(crate) async fn renew(
    host: &Arc<Host>,
    row: &VmRow,
    after: &Phase,
    image: Option<&Found>,
    paths: &Paths,
    progress: Option<&Progress>,
) -> Result<VmRow, Error> {
    let mut next = row.clone();
    next.generation = row.generation.checked_add(1).ok_or_else(|| Error::Host {
        action: "renew the system disk",
        source: "it was renewed as often as can be counted".into(),
    })?;
    if let Some(image) = image {
        next.image_name = image.name();
        if image.row.id != row.image {
            move_to(host, &mut next, &image.row.id).await?;
        }
    }
    // Its row names the other one from the transaction on: until it is removed below, it is no garbage.
    let _held = held::hold(&system_disk::file(row, paths)?);
    let made = async {
        let making = system_disk::create_generation(host, &next, paths);
        match progress {
            Some(progress) => progress.or_cancelled(making).await,
            None => making.await,
        }?;
        let (kept, phase) = (next.clone(), phase_text(after)?);
        host.store
            .write(Write::VmReset, move |tx| {
                banger_store::vms::update(tx, &kept)?;
                banger_store::vms::set_phase(tx, &kept.id, &phase)
            })
            .await?;
        Ok(())
    };
    let made = made.await;
    let obsolete = if made.is_ok() { row } else { &next };
    if let Err(e) = system_disk::remove_generation(obsolete, paths) {
        tracing::warn!(
            vm = row.name,
            error = chain(&e),
            "a former system disk is left until the next start"
        );
    }
    made.map(|()| next)
}

/// Moves a row to another image. The kernel goes with the image, unless the machine had one of its own.
async fn move_to(host: &Host, row: &mut VmRow, image: &str) -> Result<(), Error> {
    let (from, to) = (row.image.clone(), image.to_owned());
    let (from, to) = host
        .store
        .read(move |tx| {
            let from = banger_store::images::get(tx, &from)?;
            let to = banger_store::images::get(tx, &to)?;
            Ok((from, to))
        })
        .await?;
    let to = to.ok_or_else(|| StoreError::Missing {
        what: "image",
        name: image.to_owned(),
    })?;
    if from.is_some_and(|from| from.kernel == row.kernel) {
        let needed = limits::boot_memory(host, &to.kernel);
        limits::boots(u64::from(row.memory_mib) << 20, &to.kernel, needed)?;
        row.kernel = to.kernel;
    }
    row.image = to.id;
    Ok(())
}
