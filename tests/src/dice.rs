//! Chance that can be repeated.

use std::time::SystemTime;

/// xorshift64.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The same throws for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A seed that has not been tried, or `GATEPOST_SEED`, to see again what another run has seen.
    pub fn fresh_seed() -> u64 {
        if let Ok(given) = std::env::var("GATEPOST_SEED") {
            return given.parse().expect("GATEPOST_SEED is a number");
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("the clock is set");
        now.as_secs() ^ u64::from(now.subsec_nanos()) << 20
    }

    pub fn below(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 11) % sides as u64).expect("less than a usize")
    }
}
