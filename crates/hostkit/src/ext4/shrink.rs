//! Making a file system, and the file that it is in, as small as what is in it.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use super::mend::MendError;
use super::{E2fsTools, superblock};
use crate::exec::{Command, ExecError};
use crate::process::Exit;

/// Moving what is in the way takes its time, on a slow disk.
const TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Shrinks the file system in `path`, which nobody uses and which is clean, as far as it goes, and cuts the file after it.
/// Every block of it is checked before (resize2fs demands it). Returns its new length in bytes.
///
/// # Errors
/// [`MendError::Superblock`] where it is none, or not clean; [`MendError::Command`] where a program fails.
pub async fn shrink(tools: &E2fsTools, path: &Path) -> Result<u64, MendError> {
    superblock::check(path)?;
    let absolute = std::path::absolute(path).map_err(|source| MendError::Open {
        path: path.to_owned(),
        source,
    })?;
    let check = tools.e2fsck.command().args(["-f", "-y"]).arg(&absolute);
    match run(check).await {
        // e2fsck(8): 1 is that something was put in order.
        Ok(())
        | Err(ExecError::Failed {
            exit: Exit::Code(1), ..
        }) => {}
        Err(source) => return Err(failed(path, source)),
    }
    let resize = tools.resize2fs.command().arg("-M").arg(&absolute);
    run(resize).await.map_err(|source| failed(path, source))?;
    // Where it was mounted is nobody's business.
    let forget = tools.tune2fs.command().args(["-M", "/"]).arg(&absolute);
    run(forget).await.map_err(|source| failed(path, source))?;
    let size = superblock::check(path)?.size;
    let opened = File::options().write(true).open(path);
    let cut = opened.and_then(|file| file.set_len(size));
    cut.map_err(|source| MendError::Open {
        path: path.to_owned(),
        source,
    })?;
    Ok(size)
}

async fn run(command: Command<'_>) -> Result<(), ExecError> {
    command.timeout(TIMEOUT).run().await.map(|_said| ())
}

fn failed(path: &Path, source: ExecError) -> MendError {
    MendError::Command {
        path: path.to_owned(),
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ext4::tests::{assert_clean, tools};
    use crate::ext4::{make_empty, superblock};

    #[tokio::test]
    async fn it_is_as_small_as_what_is_in_it_and_whole() {
        let Some(tools) = tools() else { return };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        make_empty(&tools, &path, 1 << 30, "disk").await.unwrap();
        let size = shrink(&tools, &path).await.unwrap();
        assert!(size < 512 << 20, "{size}");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), size);
        assert_eq!(superblock::check(&path).unwrap().size, size);
        assert_clean(&path).await;
    }
}
