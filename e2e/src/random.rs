//! Numbers that look random and are the same for the same seed (xorshift64*, Vigna 2014, <https://arxiv.org/abs/1402.6246>).

/// A source of numbers.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The seed from the environment variable `BANGER_TEST_SEED`, else this one; printed, so that a run can be repeated.
    #[must_use]
    pub fn seeded(otherwise: u64) -> Self {
        let seed = std::env::var("BANGER_TEST_SEED").ok().map_or(otherwise, |seed| {
            seed.parse().expect("a number in BANGER_TEST_SEED")
        });
        println!("seed {seed} (BANGER_TEST_SEED)");
        Self(seed.max(1))
    }

    /// Another source, which goes its own way from here.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self(self.next().max(1))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// One of `0..below`.
    pub fn below(&mut self, below: u64) -> u64 {
        // The upper bits are the better ones; the bias of so small a range does not matter.
        (self.next() >> 11) % below
    }

    /// One of them.
    pub fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        let index = self.below(of.len().try_into().expect("a short list"));
        of[usize::try_from(index).expect("an index")]
    }
}
