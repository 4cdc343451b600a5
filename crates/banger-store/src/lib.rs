//! All of Banger's durable state, in one SQLite file.
//!
//! Place: under the engine, which alone decides what a row means. This crate keeps rows and the rules that hold between
//! them (unique names, no image removed under a machine); it does not know what starting a machine is.
//!
//! One thread owns the one connection, so writes are ordered by structure and nothing locks. A job is a closure that
//! runs in one transaction; a panic-free error rolls it back. Two kinds of commit:
//! - [`Store::write`]: on stable storage before it returns (`synchronous=FULL`).
//! - [`Store::note`]: survives the death of the process at once and the loss of power by the next `write`
//!   (`synchronous=NORMAL`, <https://www.sqlite.org/pragma.html#pragma_synchronous>). For rows that speak of things
//!   which a loss of power takes away too: processes, sockets, stages of an operation.
//!
//! Long-lived threads: `banger-store` (this one); it ends when the last [`Store`] is dropped.

pub mod facts;
pub mod images;
pub mod kernels;
pub mod leases;
pub mod ledger;
mod migrate;
pub mod operations;
pub mod publications;
pub mod sessions;
pub mod vms;

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use tokio::sync::oneshot;

pub use rusqlite::{Error as SqliteError, Transaction};

/// Why the file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file or its directory cannot be used.
    #[error("failed to open the state file {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// SQLite's word.
        source: rusqlite::Error,
    },
    /// A newer Banger wrote it.
    #[error("the state file {} has schema {found}; this version knows up to {known}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest schema of this build.
        known: i64,
    },
    /// The copy that is made before a migration failed; nothing was changed.
    #[error("failed to back up the state file to {} before migrating it", path.display())]
    Backup {
        /// The copy.
        path: PathBuf,
        /// SQLite's word.
        source: rusqlite::Error,
    },
    /// A migration failed; the file is as it was.
    #[error("failed to migrate the state file {}", path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// The library's word.
        source: rusqlite_migration::Error,
    },
    /// The writer thread could not be started.
    #[error("failed to start the store's thread")]
    Thread(#[source] std::io::Error),
}

/// Why a job failed. Nothing of it was kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A unique name is taken.
    #[error("{what} {name:?} already exists")]
    Exists {
        /// `machine`, `image`, `kernel`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// No such row.
    #[error("no {what} {name:?}")]
    Missing {
        /// `machine`, `image`, `kernel`, `operation`.
        what: &'static str,
        /// Name or id asked for.
        name: String,
    },
    /// Another row refers to it.
    #[error("{what} {name:?} is in use by {}", by.join(", "))]
    InUse {
        /// What was to be removed.
        what: &'static str,
        /// Its name.
        name: String,
        /// Names of the users.
        by: Vec<String>,
    },
    /// A port of the host leads to another machine, or elsewhere in the same one.
    #[error("port {wanted} is taken: {held} leads to machine {vm:?}")]
    PortTaken {
        /// `127.0.0.1:8080/tcp`.
        wanted: String,
        /// What is in its way: the same, or the same port at another address.
        held: String,
        /// The machine's name.
        vm: String,
    },
    /// None of them is free.
    #[error("no {what} is free: all {taken} are taken")]
    Exhausted {
        /// `address`.
        what: &'static str,
        /// How many there are.
        taken: u32,
    },
    /// The file system is full.
    #[error("no space left for the state file")]
    Full,
    /// The file or its file system turned read-only.
    #[error("the state file cannot be written")]
    ReadOnly,
    /// A row holds what this version does not understand.
    #[error("row of {table} holds an unreadable {column}")]
    Corrupt {
        /// Table.
        table: &'static str,
        /// Column.
        column: &'static str,
        /// The parser's word.
        source: serde_json::Error,
    },
    /// Anything else SQLite says.
    #[error("the state file failed")]
    Sqlite(#[source] rusqlite::Error),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl From<rusqlite::Error> for StoreError {
    fn from(e: rusqlite::Error) -> Self {
        match e.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::ReadOnly) => Self::ReadOnly,
            _ => Self::Sqlite(e),
        }
    }
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// How soon a commit must be on stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durability {
    Synced,
    Ordered,
}

/// The open state file. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    jobs: mpsc::SyncSender<Job>,
}

/// Jobs that may wait before callers do. Jobs take well under a millisecond, so this is a burst, not a backlog.
const QUEUE: usize = 256;

impl Store {
    /// Opens or makes the file, brings its schema up to date (after a copy of the old one) and starts the thread.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let open = |source| OpenError::Open {
            path: path.to_owned(),
            source,
        };
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let mut connection = Connection::open_with_flags(path, flags).map_err(open)?;
        connection.busy_timeout(Duration::from_secs(5)).map_err(open)?;
        connection
            .pragma_update(None, "journal_mode", "WAL")
            .map_err(open)?;
        connection
            .pragma_update(None, "foreign_keys", true)
            .map_err(open)?;
        connection
            .pragma_update(None, "synchronous", "FULL")
            .map_err(open)?;
        // The whole state is small; a large page cache would only be resident memory.
        connection.pragma_update(None, "cache_size", -512).map_err(open)?;
        migrate::up(path, &mut connection)?;

        let (jobs, queue) = mpsc::sync_channel::<Job>(QUEUE);
        std::thread::Builder::new()
            .name("banger-store".to_owned())
            .spawn(move || {
                while let Ok(job) = queue.recv() {
                    job(&mut connection);
                }
            })
            .map_err(OpenError::Thread)?;
        Ok(Self { jobs })
    }

    /// Runs a job whose result must outlive a loss of power.
    pub async fn write<T, F>(&self, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.run(Durability::Synced, job).await
    }

    /// Runs a job whose result must outlive the process.
    pub async fn note<T, F>(&self, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.run(Durability::Ordered, job).await
    }

    /// Runs a job that only reads.
    pub async fn read<T, F>(&self, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.run(Durability::Ordered, job).await
    }

    async fn run<T, F>(&self, durability: Durability, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let boxed: Job = Box::new(move |connection| {
            // A caller that no longer listens still gets its job done: a commit is never half-wanted.
            drop(reply.send(transact(connection, durability, job)));
        });
        // The queue is full only while the disk is slow; then the caller's runtime thread must not be blocked.
        match self.jobs.try_send(boxed) {
            Ok(()) => {}
            Err(mpsc::TrySendError::Disconnected(_)) => return Err(StoreError::Closed),
            Err(mpsc::TrySendError::Full(boxed)) => {
                let jobs = self.jobs.clone();
                tokio::task::spawn_blocking(move || jobs.send(boxed))
                    .await
                    .map_err(|_| StoreError::Closed)?
                    .map_err(|_| StoreError::Closed)?;
            }
        }
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

fn transact<T>(
    connection: &mut Connection,
    durability: Durability,
    job: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let level = match durability {
        Durability::Synced => "FULL",
        Durability::Ordered => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", level)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Deferred)?;
    let value = job(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

/// Turns a unique-constraint failure into [`StoreError::Exists`].
fn exists_or(e: rusqlite::Error, what: &'static str, name: &str) -> StoreError {
    match e.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation) => StoreError::Exists {
            what,
            name: name.to_owned(),
        },
        _ => e.into(),
    }
}

fn to_json<T: serde::Serialize>(
    table: &'static str,
    column: &'static str,
    value: &T,
) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|source| StoreError::Corrupt {
        table,
        column,
        source,
    })
}

fn from_json<T: serde::de::DeserializeOwned>(
    table: &'static str,
    column: &'static str,
    text: &str,
) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|source| StoreError::Corrupt {
        table,
        column,
        source,
    })
}

/// A column that holds a time, RFC 3339 in UTC.
fn time(row: &rusqlite::Row<'_>, index: usize) -> rusqlite::Result<jiff::Timestamp> {
    let text: String = row.get(index)?;
    text.parse().map_err(|e: jiff::Error| {
        rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, Box::new(e))
    })
}

/// As [`time`], where there may be none.
fn maybe_time(row: &rusqlite::Row<'_>, index: usize) -> rusqlite::Result<Option<jiff::Timestamp>> {
    if matches!(row.get_ref(index)?, rusqlite::types::ValueRef::Null) {
        Ok(None)
    } else {
        time(row, index).map(Some)
    }
}

/// SQLite's integers are signed; ours are sizes and counts. Both directions refuse what does not fit.
fn unsigned<T: TryFrom<i64>>(row: &rusqlite::Row<'_>, index: usize) -> rusqlite::Result<T> {
    let value: i64 = row.get(index)?;
    T::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(index, value))
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Writes and removes a row, to find out whether writing works.
pub fn probe(tx: &Transaction<'_>) -> Result<(), StoreError> {
    let id = ledger::insert(tx, "probe:", "{}", jiff::Timestamp::now())?;
    ledger::remove(tx, id)
}
