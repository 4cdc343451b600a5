//! Images from registries.
//!
//! ```text
//! begin: the reference, the name, the kernel ─► operation: resolve ─► download ─► unpack, make, digest, store ─► row, name
//! ```
//!
//! What is fetched stays when the operation is cancelled or fails, for the next attempt. What is there and current ends
//! the operation after the manifest; another image under a name that is there takes it over.

use std::sync::Arc;

use banger_oci::{Platform, Reference};

use super::make::MAKERS;
use super::oci::{self, Kernel, Wanted, Watch};
use crate::error::Error;
use crate::host::Host;
use crate::name;
use crate::operation::{Operation, Progress};

/// Begins to pull an image. Without a name it is called as the reference says.
pub(crate) async fn begin(
    host: &Arc<Host>,
    reference: &str,
    name: Option<String>,
    kernel: Option<String>,
) -> Result<Operation, Error> {
    let reference = Reference::parse(reference).map_err(|e| Error::BadName {
        what: "image",
        name: e.text.chars().take(80).collect(),
        problem: e.reason,
    })?;
    let name = match name {
        Some(name) => {
            name::image(&name)?;
            name::familiar(&name)
        }
        None => own_name(&reference),
    };
    let wanted = Wanted {
        name: name.clone(),
        kernel: Kernel::of(host, kernel).await?,
        // That is what a tag is: whatever the registry calls so.
        replace: true,
        source: format!("registry:{reference}"),
    };
    let pulling = host.clone();
    let work = move |progress: Progress| async move { pull(&pulling, &reference, wanted, &progress).await };
    host.operations
        .begin_alone("image.pull", MAKERS, &name, work)
        .await
}

/// What an image is called that is pulled without a name: a digest beside a tag is no part of it.
fn own_name(reference: &Reference) -> String {
    match reference.tag() {
        Some("latest") => reference.familiar_repository(),
        Some(tag) => format!("{}:{tag}", reference.familiar_repository()),
        None => reference.familiar(),
    }
}

async fn pull(
    host: &Arc<Host>,
    reference: &Reference,
    wanted: Wanted,
    progress: &Progress,
) -> Result<(), Error> {
    let _at_work = host.blobs.at_work().await;
    progress.stage_now("resolve");
    progress.message(&format!("asking {}", reference.registry()));
    let watch = Watch::new(host, progress);
    let (registries, platform) = (&host.settings.registries, Platform::host());
    let tell = |event: banger_oci::Event<'_>| watch.tell(event);
    let pulling = async {
        let pulled = banger_oci::pull(registries, reference, &platform, host.blobs.blobs(), &tell).await;
        pulled.map_err(|e| watch.failed(&wanted.name, e))
    };
    // Dropping it keeps what has come.
    let pulled = progress.or_cancelled(pulling).await?;
    oci::make(host, &pulled, wanted, progress).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_called_as_it_was_asked_for() {
        let digest = "ab".repeat(32);
        for (reference, name) in [
            ("debian", "debian"),
            ("docker.io/library/debian:12", "debian:12"),
            ("localhost:5000/app:latest", "localhost:5000/app"),
            (&format!("debian:12@sha256:{digest}"), "debian:12"),
            (
                &format!("debian@sha256:{digest}"),
                &format!("debian@sha256:{digest}"),
            ),
        ] {
            let reference = Reference::parse(reference).unwrap();
            assert_eq!(own_name(&reference), name, "{reference}");
            name::image(name).unwrap();
            assert_eq!(name::familiar(name), name);
        }
    }
}
