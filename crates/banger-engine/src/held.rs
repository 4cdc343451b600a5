//! Paths that somebody is at work on. What is there and has no row yet, or none any more, is no garbage as long as it is
//! held: `collect` asks here. Nothing is kept over the daemon's death, after which nobody is at work.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Each with how many hold it.
static HELD: Mutex<BTreeMap<PathBuf, u32>> = Mutex::new(BTreeMap::new());

/// A path that is held until this is dropped.
#[derive(Debug)]
#[must_use = "a path is held until this is dropped"]
pub(crate) struct Held(PathBuf);

impl Held {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

/// Holds a path that is not there yet, or whose row is about to go.
pub(crate) fn hold(path: &Path) -> Held {
    hold_in(&mut lock(), path.to_owned())
}

/// Makes something and holds it, so that whoever sees it and then asks gets the answer: `make` runs under the lock, and
/// must not hold or let go of anything.
pub(crate) fn hold_made(make: impl FnOnce() -> io::Result<PathBuf>) -> io::Result<Held> {
    let mut held = lock();
    Ok(hold_in(&mut held, make()?))
}

/// All that are held.
pub(crate) fn all() -> HashSet<PathBuf> {
    lock().keys().cloned().collect()
}

fn hold_in(held: &mut BTreeMap<PathBuf, u32>, path: PathBuf) -> Held {
    *held.entry(path.clone()).or_default() += 1;
    Held(path)
}

fn lock() -> MutexGuard<'static, BTreeMap<PathBuf, u32>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = lock();
        if let Some(count) = held.get_mut(&self.0) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_held_as_long_as_anybody_holds_it() {
        let path = Path::new("/nowhere/held");
        let (one, two) = (hold(path), hold_made(|| Ok(path.to_owned())).unwrap());
        drop(one);
        assert!(all().contains(path));
        drop(two);
        assert!(!all().contains(path));
        hold_made(|| Err(io::ErrorKind::NotFound.into())).unwrap_err();
    }
}
