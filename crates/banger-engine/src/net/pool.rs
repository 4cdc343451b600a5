//! Taps made ahead of need. Taking one is an operation on a map, so that a start waits for the kernel only when there is
//! none left; the network's keeper makes them, and removes what is too many.
//!
//! ```text
//!   made by the keeper -> spare -> some machine's -> returned -> spare, once the keeper saw that nobody has it open
//! ```
//! That a tap exists is in the ledger of the host (`Owner::Host`), that a run uses it in the run's: collecting the run gives
//! it back, and a daemon that starts learns from there who has which.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Number of taps at most: what is left of an interface's name behind the longest bridge's.
const NUMBERS: u32 = 9999;

/// All taps of the bridge. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    bridge: String,
    taps: Mutex<Taps>,
    /// Somebody gave one back or waits for one: the keeper has something to do. That one was taken is no hurry.
    used: Notify,
    /// There is a spare one.
    filled: Notify,
}

#[derive(Debug, Default)]
struct Taps {
    /// Up and in the bridge.
    spare: BTreeSet<String>,
    /// By machine.
    used: BTreeMap<String, String>,
    /// In use, and not there any more: somebody has deleted them. Their machines.
    lost: BTreeSet<String>,
    /// Nobody's, and perhaps still open: a VMM that cannot be killed has it, or it was there when the daemon came.
    returned: BTreeSet<String>,
    /// Being made or removed by the keeper.
    between: BTreeSet<String>,
    /// Names that somebody else's links have.
    avoided: BTreeSet<String>,
    /// Starts that wait for one.
    waiting: usize,
    /// What is said to be spare is there. What a ledger of before says is not, after the host's boot.
    ready: bool,
}

/// How many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Levels {
    /// Ready to be taken.
    pub(crate) spare: usize,
    /// In use by machines.
    pub(crate) used: usize,
    /// Starts that wait for one.
    pub(crate) waiting: usize,
}

impl Pool {
    /// Without taps, for a bridge of that name.
    pub(crate) fn new(bridge: &str) -> Self {
        Self(Arc::new(Shared {
            bridge: bridge.to_owned(),
            taps: Mutex::default(),
            used: Notify::new(),
            filled: Notify::new(),
        }))
    }

    fn taps(&self) -> MutexGuard<'_, Taps> {
        self.0.taps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a machine a spare tap, or again the one that it has. Another is made for it when the keeper looks next: once the
    /// machine's VMM runs, since it would only make its start wait.
    pub(crate) fn take(&self, vm: &str) -> Option<String> {
        let mut taps = self.taps();
        if let Some(tap) = taps.used.get(vm) {
            return Some(tap.clone());
        }
        if !taps.ready {
            return None;
        }
        let tap = taps.spare.pop_first()?;
        taps.used.insert(vm.to_owned(), tap.clone());
        Some(tap)
    }

    /// As [`Self::take`], waiting for one to be made. Dropping it takes nothing.
    pub(crate) async fn take_when_there_is_one(&self, vm: &str) -> String {
        let waiting = Waiting::new(self);
        loop {
            let filled = self.0.filled.notified();
            tokio::pin!(filled);
            // Heard from here on: one that is added before the next look is not missed.
            filled.as_mut().enable();
            if let Some(tap) = self.take(vm) {
                drop(waiting);
                return tap;
            }
            self.0.used.notify_one();
            filled.await;
        }
    }

    /// A machine's tap.
    pub(crate) fn of(&self, vm: &str) -> Option<String> {
        self.taps().used.get(vm).cloned()
    }

    /// Whether a machine runs on with a tap that is not there any more.
    pub(crate) fn is_lost(&self, vm: &str) -> bool {
        self.taps().lost.contains(vm)
    }

    /// All that are in use, by machine.
    pub(crate) fn used(&self) -> BTreeMap<String, String> {
        self.taps().used.clone()
    }

    /// All that are spare.
    pub(crate) fn spare(&self) -> BTreeSet<String> {
        self.taps().spare.clone()
    }

    /// Taps that came back and were not looked at since, or are still open.
    pub(super) fn returned(&self) -> BTreeSet<String> {
        self.taps().returned.clone()
    }

    /// A machine that runs has this tap: learned from the ledger.
    pub(crate) fn adopt(&self, vm: &str, tap: &str) {
        let mut taps = self.taps();
        taps.spare.remove(tap);
        taps.returned.remove(tap);
        taps.used.insert(vm.to_owned(), tap.to_owned());
    }

    /// A run has ended. Its tap may be anybody's once nobody has it open, unless it was nobody's already.
    pub(crate) fn give_back(&self, vm: &str, tap: &str) {
        let mut taps = self.taps();
        if taps.used.get(vm).is_some_and(|has| has == tap) {
            taps.used.remove(vm);
            taps.lost.remove(vm);
            taps.returned.insert(tap.to_owned());
            drop(taps);
            self.0.used.notify_one();
        }
    }

    /// Whether a name is one that our taps have.
    pub(crate) fn is_tap(&self, name: &str) -> bool {
        let number = name
            .strip_prefix(&self.0.bridge)
            .and_then(|rest| rest.strip_prefix('t'));
        number.is_some_and(|n| !n.is_empty() && n.len() <= 4 && n.bytes().all(|b| b.is_ascii_digit()))
    }

    /// Counted.
    pub(crate) fn levels(&self) -> Levels {
        let taps = self.taps();
        Levels {
            spare: taps.spare.len(),
            used: taps.used.len(),
            waiting: taps.waiting,
        }
    }

    // ---- the keeper's ----------------------------------------------------------------------------------------------

    /// Until somebody gave one back or waits for one.
    pub(super) async fn changed(&self) {
        self.0.used.notified().await;
    }

    /// Nothing is handed out until what is there was looked at: nobody knows what is spare.
    pub(super) fn begin(&self) {
        let mut taps = self.taps();
        taps.ready = false;
        taps.spare.clear();
        taps.returned.clear();
        taps.avoided.clear();
    }

    /// What is said to be spare is there.
    pub(super) fn ready(&self) {
        self.taps().ready = true;
        self.0.filled.notify_waiters();
    }

    /// The name of a tap to make, where fewer are spare than shall be and are waited for.
    pub(super) fn wants(&self, size: usize) -> Option<String> {
        let mut taps = self.taps();
        if taps.spare.len() >= size.max(usize::from(taps.waiting > 0)).max(taps.waiting) {
            return None;
        }
        let used: BTreeSet<&String> = taps.used.values().collect();
        let taken = |name: &String| {
            let nobodys = [&taps.spare, &taps.returned, &taps.between, &taps.avoided];
            used.contains(name) || nobodys.iter().any(|set| set.contains(name))
        };
        let name = (0..=NUMBERS)
            .map(|n| format!("{}t{n}", self.0.bridge))
            .find(|name| !taken(name))?;
        taps.between.insert(name.clone());
        Some(name)
    }

    /// A spare tap that is one too many. It is nobody's from here on.
    pub(super) fn surplus(&self, size: usize) -> Option<String> {
        let mut taps = self.taps();
        if taps.spare.len() <= size.max(taps.waiting) {
            return None;
        }
        let name = taps.spare.pop_last()?;
        taps.between.insert(name.clone());
        Some(name)
    }

    /// A machine's is not there, which nothing mends while it runs: `true` the first time.
    pub(super) fn lose(&self, vm: &str, tap: &str) -> bool {
        let mut taps = self.taps();
        taps.used.get(vm).is_some_and(|has| has == tap) && taps.lost.insert(vm.to_owned())
    }

    /// One is there that is no machine's.
    pub(super) fn found(&self, name: &str) {
        self.taps().returned.insert(name.to_owned());
    }

    /// A spare one is not there: `false` where it was taken meanwhile.
    pub(super) fn withdraw(&self, name: &str) -> bool {
        self.taps().spare.remove(name)
    }

    /// One that was made, or came back, is there and nobody has it open.
    pub(super) fn add(&self, name: &str) {
        let mut taps = self.taps();
        taps.between.remove(name);
        taps.returned.remove(name);
        taps.spare.insert(name.to_owned());
        drop(taps);
        self.0.filled.notify_waiters();
    }

    /// One that was to be made has the name of somebody else's link: another name is wanted.
    pub(super) fn avoid(&self, name: &str) {
        let mut taps = self.taps();
        taps.between.remove(name);
        taps.avoided.insert(name.to_owned());
    }

    /// One that was being made or removed, or came back, is not there.
    pub(super) fn forget(&self, name: &str) {
        let mut taps = self.taps();
        taps.between.remove(name);
        taps.returned.remove(name);
        taps.spare.remove(name);
    }
}

/// Counts a start that waits, for as long as it does.
struct Waiting<'a>(&'a Pool);

impl<'a> Waiting<'a> {
    fn new(pool: &'a Pool) -> Self {
        pool.taps().waiting += 1;
        Self(pool)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.taps().waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(size: usize) -> Pool {
        let pool = Pool::new("bgr0");
        pool.ready();
        while let Some(name) = pool.wants(size) {
            pool.add(&name);
        }
        pool
    }

    #[test]
    fn a_tap_is_one_machines_until_it_is_given_back() {
        let pool = filled(2);
        let (a, b) = (pool.take("a").unwrap(), pool.take("b").unwrap());
        assert_eq!((a.as_str(), b.as_str()), ("bgr0t0", "bgr0t1"));
        assert_eq!(pool.take("a").as_deref(), Some("bgr0t0"));
        assert_eq!(pool.take("c"), None);
        // Not its own: nothing happens.
        pool.give_back("b", &a);
        assert_eq!(pool.take("c"), None);
        pool.give_back("a", &a);
        pool.give_back("a", &a);
        // Somebody may have it open still.
        assert_eq!(pool.take("c"), None);
        assert_eq!(pool.returned(), BTreeSet::from([a.clone()]));
        pool.add(&a);
        assert_eq!(pool.take("c").as_deref(), Some("bgr0t0"));
        assert_eq!(
            pool.levels(),
            Levels {
                spare: 0,
                used: 2,
                waiting: 0
            }
        );
    }

    #[test]
    fn a_lost_tap_is_its_machines_until_that_gives_it_back() {
        let pool = filled(1);
        let tap = pool.take("a").unwrap();
        assert!(!pool.lose("b", &tap) && !pool.lose("a", "bgr0t7") && !pool.is_lost("a"));
        assert!(pool.lose("a", &tap), "news");
        assert!(!pool.lose("a", &tap) && pool.is_lost("a"));
        pool.give_back("a", &tap);
        assert!(!pool.is_lost("a"));
    }

    #[test]
    fn what_is_missing_is_made_and_what_is_too_many_goes() {
        let pool = filled(3);
        pool.adopt("a", "bgr0t1");
        assert_eq!(pool.wants(3).as_deref(), Some("bgr0t3"));
        assert_eq!(
            pool.wants(3).as_deref(),
            Some("bgr0t4"),
            "one in the making has its name"
        );
        pool.add("bgr0t3");
        pool.give_back("a", "bgr0t1");
        assert_eq!(pool.surplus(3), None);
        pool.add("bgr0t1");
        assert_eq!(pool.surplus(3).as_deref(), Some("bgr0t3"));
        pool.forget("bgr0t3");
        assert_eq!(pool.surplus(3), None);
        assert!(
            pool.is_tap("bgr0t12")
                && !pool.is_tap("bgr0t")
                && !pool.is_tap("bgr0t1x")
                && !pool.is_tap("bgr0")
        );
    }

    #[test]
    fn what_is_said_to_be_spare_is_nobodys_until_it_was_looked_at() {
        let pool = Pool::new("bgr0");
        // A run of before the host's boot: its tap is gone.
        pool.adopt("a", "bgr0t0");
        pool.give_back("a", "bgr0t0");
        assert_eq!(pool.take("b"), None);
        pool.begin();
        pool.ready();
        assert_eq!(pool.take("b"), None);
        assert_eq!(pool.wants(1).as_deref(), Some("bgr0t0"));
    }

    #[tokio::test]
    async fn a_start_that_finds_none_waits_for_one() {
        let pool = filled(0);
        let waiting = tokio::spawn({
            let pool = pool.clone();
            async move { pool.take_when_there_is_one("a").await }
        });
        pool.changed().await;
        let name = pool.wants(0).unwrap();
        pool.add(&name);
        assert_eq!(waiting.await.unwrap(), name);
        assert_eq!(pool.levels().waiting, 0);
        // One that has given up is waited for no more.
        let given_up = pool.take_when_there_is_one("b");
        drop(tokio::time::timeout(std::time::Duration::from_millis(1), given_up).await);
        assert_eq!(pool.wants(0), None);
    }
}
