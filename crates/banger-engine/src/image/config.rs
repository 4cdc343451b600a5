//! What an image of OCI says of the processes in it: kept in its row, the default of what runs in its machines.
//!
//! The form in the row is durable: fields are added and never change their meaning. What the image itself says in full is
//! in the blob of its configuration (OCI image-spec, `config.md`).

pub use banger_oci::ImageConfig;
use banger_store::images::ImageRow;

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
