//! What an image of OCI says of the processes in it: kept in its row, the default of what runs in its machines.
//!
//! The form in the row is durable: fields are added and never change their meaning. What the image itself says in full is
//! in the blob of its configuration (OCI image-spec, `config.md`).

pub use banger_oci::ImageConfig;
use banger_store::images::ImageRow;

use crate::error::Error;
use crate::host::Host;

/// That of an image, by its id, where it has one.
pub(crate) async fn of_image(host: &Host, id: String) -> Result<Option<ImageConfig>, Error> {
    let row = host
        .store
        .read(move |tx| banger_store::images::get(tx, &id))
        .await?;
    Ok(row.as_ref().and_then(of))
}

/// That of an image's row, where it has one. One that cannot be read is as none, and said in the log.
pub(crate) fn of(row: &ImageRow) -> Option<ImageConfig> {
    let text = row.config.as_deref()?;
    match serde_json::from_str(text) {
        Ok(config) => Some(config),
        Err(error) => {
            tracing::error!(image = row.name(), %error, "unreadable configuration of an image");
            None
        }
    }
}
