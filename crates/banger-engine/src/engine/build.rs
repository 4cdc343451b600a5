//! Images built from recipes.

use tokio::sync::mpsc;

use super::Engine;
use crate::error::{Error, io};
use crate::image::build::{self, Build, log};
use crate::operation::Operation;
use crate::vm::task::Handle;

impl Engine {
    /// Begins to build an image. What is wrong with the recipe is the call's error.
    pub async fn build_image(&self, build: Build) -> Result<Operation, Error> {
        build::begin(self, build).await
    }

    /// What a build has said: chunks until its end, or, when following, until the operation has ended.
    pub async fn build_log(&self, operation: &str, follow: bool) -> Result<mpsc::Receiver<Vec<u8>>, Error> {
        let watch = self.watch_operation(operation).await?;
        // The watch knows the operation by its id, so this is no path of the caller's.
        let id = watch.borrow().id.clone();
        log::read(&self.host.settings.state_dir, &id, follow, watch)
    }

    /// Empties the cache of steps. Returns how many there were, and their bytes.
    pub async fn prune_builds(&self) -> Result<(u32, u64), Error> {
        let state = self.host.settings.state_dir.clone();
        let cleared = tokio::task::spawn_blocking(move || {
            let cleared = build::cache::clear(&state);
            cleared.map_err(io("empty the cache of builds in", state))
        });
        cleared.await.map_err(|e| Error::Host {
            action: "empty the cache of builds",
            source: Box::new(e),
        })?
    }

    pub(crate) fn host(&self) -> &std::sync::Arc<crate::host::Host> {
        &self.host
    }

    pub(crate) fn machine(&self, name: &str) -> Result<Handle, Error> {
        self.machines.find(name)
    }
}
