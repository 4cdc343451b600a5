//! A stage's machine: made of its base and of what is in the cache, used for the steps that are not, removed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_agent_api::{AgentClient, AgentError, ExecEvent, ExitStatus, proto};
use bytes::Bytes;
use hostkit::delta::Pieces;
use hostkit::digest::Digest;
use tokio::io::AsyncReadExt;

use super::cache::{self, Made};
use super::log::Log;
use crate::engine::{Engine, NewVm};
use crate::error::Error;
use crate::guest;
use crate::image::work;
use crate::operation::{Operation, OperationState};
use crate::vm::capability::system_disk;
use crate::vm::state::Paths;

/// How long a guest may stay frozen while its disk is looked at.
const FROZEN: Duration = Duration::from_secs(30 * 60);
/// For the guest to end its processes and to write everything.
const SETTLING: Duration = Duration::from_secs(10 * 60);
const THAWING: Duration = Duration::from_secs(60);
/// Of an archive at once.
const CHUNK: usize = 64 << 10;

/// A build machine that runs.
pub(super) struct Bench {
    engine: Engine,
    name: String,
    guest: AgentClient,
    disk: PathBuf,
    /// What the disk was like when the last step was kept.
    pieces: Pieces,
}

/// What a stage's machine is to be.
pub(super) struct Plan<'a> {
    pub(super) name: &'a str,
    pub(super) operation: String,
    pub(super) image: &'a str,
    pub(super) kernel: Option<String>,
    pub(super) vcpus: Option<u32>,
    pub(super) memory: Option<u64>,
    pub(super) disk: Option<u64>,
    /// What has been made of the image so far.
    pub(super) differences: Vec<PathBuf>,
}

impl Bench {
    /// Makes the machine and starts it. What was made of one that cannot be started is removed.
    pub(super) async fn start(engine: &Engine, plan: Plan<'_>) -> Result<Self, Error> {
        let new = NewVm {
            name: Some(plan.name.to_owned()),
            image: plan.image.to_owned(),
            vcpus: plan.vcpus,
            memory: plan.memory,
            disk: plan.disk,
            kernel: plan.kernel,
            work_disk: Some(0),
            build: Some(plan.operation),
            ..NewVm::default()
        };
        let created = engine.create_vm(new).await?;
        ended(engine, created).await?;
        let bench = Self::come_up(engine, plan.name, plan.differences).await;
        if bench.is_err() {
            remove(engine, plan.name).await;
        }
        bench
    }

    async fn come_up(engine: &Engine, name: &str, differences: Vec<PathBuf>) -> Result<Self, Error> {
        let host = engine.host();
        let id = engine.machine(name)?.id.clone();
        let (rows, _unreadable) = host.store.read(banger_store::vms::list).await?;
        let row = rows.into_iter().find(|row| row.id == id);
        let row = row.ok_or_else(|| gone(name))?;
        let paths = Paths::new(&host.settings.state_dir, &host.settings.runtime_dir, &id);
        let disk = system_disk::file(&row, &paths)?;
        let path = disk.clone();
        let applied = work::blocking(move |cancel| {
            cache::apply(&path, &differences, cancel)?;
            Pieces::of(&File::open(&path)?, |_| cancel.check())
        });
        let applied = applied.await;
        let pieces = applied.map_err(crate::error::io("make ready", &disk))?;
        let started = engine.start_vm(name, None).await?;
        ended(engine, started).await?;
        let guest = guest::client(&engine.machine(name)?)?;
        Ok(Self {
            engine: engine.clone(),
            name: name.to_owned(),
            guest,
            disk,
            pieces,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Runs a command to its end; all that it says goes to the log.
    pub(super) async fn run(&self, start: proto::ExecStart, log: &mut Log) -> Result<ExitStatus, Error> {
        let (_input, mut output) = self.guest.exec(start).await.map_err(|e| self.failed(e))?;
        loop {
            match output.next().await.map_err(|e| self.failed(e))? {
                Some(ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes)) => log.bytes(&bytes),
                Some(ExecEvent::Exited(status)) => return Ok(status),
                // Nothing comes after the exit, and that ends this.
                None => return Err(gone(&self.name)),
            }
        }
    }

    /// Unpacks an archive in the guest.
    pub(super) async fn unpack(&self, start: proto::UploadStart, archive: &Path) -> Result<(), Error> {
        let mut file = tokio::fs::File::open(archive)
            .await
            .map_err(crate::error::io("open", archive))?;
        let mut upload = self.guest.upload(start);
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = file
                .read(&mut buffer)
                .await
                .map_err(crate::error::io("read", archive))?;
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            let sent = upload.send(Bytes::copy_from_slice(bytes)).await;
            sent.map_err(|e| self.failed(e))?;
        }
        upload.finish().await.map_err(|e| self.failed(e))?;
        Ok(())
    }

    /// As [`Self::unpack`], of bytes.
    pub(super) async fn unpack_bytes(
        &self,
        start: proto::UploadStart,
        archive: Vec<u8>,
    ) -> Result<(), Error> {
        let mut upload = self.guest.upload(start);
        upload
            .send(Bytes::from(archive))
            .await
            .map_err(|e| self.failed(e))?;
        upload.finish().await.map_err(|e| self.failed(e))?;
        Ok(())
    }

    /// Brings the guest to rest, writes what has become of its disk since the last time, and lets it go on.
    pub(super) async fn difference(&mut self, before: Digest, to: PathBuf) -> Result<Made, Error> {
        let settled = self.guest.settle(FROZEN, SETTLING).await;
        settled.map_err(|e| self.failed(e))?;
        let (pieces, disk) = (std::mem::take(&mut self.pieces), self.disk.clone());
        let made = work::blocking(move |cancel| cache::difference(pieces, &before, &disk, to, cancel)).await;
        let thawed = self.guest.thaw(THAWING).await;
        let (pieces, made) = made.map_err(crate::error::io("keep what changed on", &self.disk))?;
        thawed.map_err(|e| self.failed(e))?;
        self.pieces = pieces;
        Ok(made)
    }

    /// Removes the machine.
    pub(super) async fn remove(self) {
        remove(&self.engine, &self.name).await;
    }

    fn failed(&self, source: AgentError) -> Error {
        Error::Agent {
            vm: self.name.clone(),
            source: Box::new(source),
        }
    }
}

/// Removes a build machine; what cannot be is said, and removed by the next daemon.
async fn remove(engine: &Engine, name: &str) {
    let removed = match engine.remove_vm(name, true).await {
        Ok(operation) => ended(engine, operation).await,
        Err(e) => Err(e),
    };
    if let Err(e) = removed {
        tracing::warn!(
            vm = name,
            error = crate::error::chain(&e),
            "build machine not removed"
        );
    }
}

/// Waits for an operation that is part of this one. When nobody waits any more, it goes on to its end.
pub(super) async fn ended(engine: &Engine, operation: Operation) -> Result<(), Error> {
    let mut watch = engine.watch_operation(&operation.id).await?;
    let waited = watch.wait_for(|operation| operation.state.ended()).await;
    let end = waited.map_err(|_| Error::ShuttingDown)?.clone();
    match end.state {
        OperationState::Succeeded => Ok(()),
        OperationState::Running
        | OperationState::Cancelling
        | OperationState::Failed
        | OperationState::Cancelled => Err(end.error.map_or(Error::Cancelled, Error::Part)),
    }
}

fn gone(name: &str) -> Error {
    Error::Missing {
        what: "machine",
        name: name.to_owned(),
        near: None,
    }
}
