//! Readers of what registries say, for the fuzzer alone (fuzz/, feature `fuzzing`): they are nobody else's business and
//! give nothing back, since all that counts is that they come back.

use crate::config::ImageConfig;
use crate::manifest::{self, Parsed};
use crate::platform::Platform;

/// A manifest or index, with what is chosen from it.
pub fn document(bytes: &[u8]) {
    if let Ok(Parsed::Index(index)) = manifest::parse(bytes, None, "fuzz") {
        drop(index.select(&Platform::linux("amd64"), "fuzz"));
    }
}

/// An image's configuration.
///
/// # Panics
/// Where what is written of it again is none.
pub fn configuration(bytes: &[u8]) {
    if let Ok((config, layers)) = ImageConfig::parse(bytes) {
        drop(config.environment());
        let again = ImageConfig::parse(&config.document(&layers));
        assert!(again.is_ok(), "what is written can be read: {again:?}");
    }
}

/// The `www-authenticate` of an answer.
pub fn challenge(bytes: &[u8]) {
    crate::registry::read_challenge(bytes);
}
