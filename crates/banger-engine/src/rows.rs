//! The state file as the engine uses it: [`Store`], with a name for every write, so that none can be made which the
//! daemon's death around it was never tried ([`crash`](crate::crash)).
//!
//! The ledger alone goes past this: its writes are steps of the objects they speak of.

use banger_store::{Store, StoreError, Transaction};

use crate::crash::{self, Point, Write};

/// The state file's rows. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Rows(Store);

impl Rows {
    pub(crate) fn new(store: Store) -> Self {
        Self(store)
    }

    /// Runs a job whose result must outlive a loss of power, see [`Store::write`].
    pub(crate) async fn write<T, F>(&self, what: Write, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        around(what, self.0.write(job)).await
    }

    /// Runs a job whose result must outlive the process, see [`Store::note`].
    pub(crate) async fn note<T, F>(&self, what: Write, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        around(what, self.0.note(job)).await
    }

    /// Runs a job that only reads.
    pub(crate) async fn read<T, F>(&self, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.0.read(job).await
    }
}

async fn around<T>(
    what: Write,
    commit: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    crash::point(Point::Before(what));
    let outcome = commit.await?;
    crash::point(Point::After(what));
    Ok(outcome)
}
