//! How many of something may be at once: in all, and for each who asks, so that one of them leaves room for the others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// See the module.
#[derive(Debug)]
pub(super) struct Limit {
    all: usize,
    each: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    each: HashMap<IpAddr, usize>,
}

/// One of them, given back when it is dropped.
#[derive(Debug)]
#[must_use = "a place is given back when it is dropped"]
pub(super) struct Place {
    limit: Arc<Limit>,
    whose: IpAddr,
}

impl Limit {
    pub(super) fn new(all: usize, each: usize) -> Arc<Self> {
        Arc::new(Self {
            all,
            each,
            taken: Mutex::default(),
        })
    }

    /// Takes one; `None` where there are as many as there may be.
    pub(super) fn take(self: &Arc<Self>, whose: IpAddr) -> Option<Place> {
        let mut taken = self.lock();
        let own = taken.each.get(&whose).copied().unwrap_or(0);
        if taken.all >= self.all || own >= self.each {
            return None;
        }
        taken.all += 1;
        taken.each.insert(whose, own + 1);
        Some(Place {
            limit: Arc::clone(self),
            whose,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.limit.lock();
        taken.all -= 1;
        if let Some(own) = taken.each.get_mut(&self.whose) {
            *own -= 1;
            if *own == 0 {
                taken.each.remove(&self.whose);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_all_and_what_is_given_back_is_there_again() {
        let limit = Limit::new(3, 2);
        let [a, b] = [1, 2].map(|last| IpAddr::from([192, 0, 2, last]));
        let (one, two) = (limit.take(a).unwrap(), limit.take(a).unwrap());
        assert!(limit.take(a).is_none());
        let three = limit.take(b).unwrap();
        assert!(limit.take(b).is_none());
        drop(one);
        let four = limit.take(b).unwrap();
        drop((two, three, four));
        assert!(limit.lock().each.is_empty());
        assert_eq!(limit.lock().all, 0);
    }
}
