//! Samples taken in turn: both of a pair see the same moment of the machine.

/// Ours and the raw one's.
pub(crate) struct Pairs<T = f64> {
    pub(crate) ours: Vec<T>,
    pub(crate) raw: Vec<T>,
}

impl<T> Default for Pairs<T> {
    fn default() -> Self {
        Self {
            ours: Vec::new(),
            raw: Vec::new(),
        }
    }
}

impl<T> Pairs<T> {
    /// Takes one, not always the same side first. Round 0 is to get everything going, and is not kept.
    pub(crate) fn take(&mut self, round: usize, ours: impl FnOnce() -> T, raw: impl FnOnce() -> T) {
        let (our, its) = if round.is_multiple_of(2) {
            let our = ours();
            (our, raw())
        } else {
            let its = raw();
            (ours(), its)
        };
        if round > 0 {
            self.ours.push(our);
            self.raw.push(its);
        }
    }
}
