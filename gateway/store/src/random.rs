//! Randomness from the operating system, drawn in blocks so that an id does not cost a system call.

use std::cell::RefCell;

use gatepost_core::LeaseToken;
use uuid::Uuid;

const BLOCK_BYTES: usize = 4096;

pub(crate) struct Random {
    source: Source,
    block: [u8; BLOCK_BYTES],
    used: usize,
}

enum Source {
    System,
    /// What is drawn follows from the number alone.
    #[cfg(test)]
    Seeded(u64),
}

impl Random {
    pub(crate) fn new() -> Self {
        Self { source: Source::System, block: [0; BLOCK_BYTES], used: BLOCK_BYTES }
    }

    #[cfg(test)]
    pub(crate) fn seeded(seed: u64) -> Self {
        Self { source: Source::Seeded(seed), ..Self::new() }
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], getrandom::Error> {
        const { assert!(N <= BLOCK_BYTES) }
        if self.used + N > BLOCK_BYTES {
            self.source.fill(&mut self.block)?;
            self.used = 0;
        }
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.block[self.used..self.used + N]);
        // Drawn bytes become tokens and salts; they must not lie around for the next reader of this memory.
        self.block[self.used..self.used + N].fill(0);
        self.used += N;
        Ok(bytes)
    }

    /// A UUIDv7 (RFC 9562 §5.7) at `at_micros`.
    pub(crate) fn uuid(&mut self, at_micros: i64) -> Result<Uuid, getrandom::Error> {
        Ok(uuid_at(at_micros, &self.bytes()?))
    }

    pub(crate) fn token(&mut self, instance_epoch: u32) -> Result<LeaseToken, getrandom::Error> {
        Ok(LeaseToken::new(instance_epoch, self.bytes()?))
    }

    /// Uniform in [0, 1).
    pub(crate) fn jitter(&mut self) -> Result<f64, getrandom::Error> {
        Ok(f64::from(u32::from_be_bytes(self.bytes()?)) / 4_294_967_296.0)
    }
}

impl Source {
    fn fill(&mut self, block: &mut [u8]) -> Result<(), getrandom::Error> {
        match self {
            Self::System => getrandom::fill(block),
            #[cfg(test)]
            Self::Seeded(state) => {
                for chunk in block.chunks_mut(8) {
                    let drawn = crate::dice::next(state).to_be_bytes();
                    chunk.copy_from_slice(&drawn[..chunk.len()]);
                }
                Ok(())
            }
        }
    }
}

thread_local! {
    static OF_THREAD: RefCell<Random> = RefCell::new(Random::new());
}

/// Random bytes for whoever has no [`Random`] of its own: each thread draws from its own block.
pub(crate) fn of_thread<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    OF_THREAD.with_borrow_mut(Random::bytes)
}

/// A UUIDv7 (RFC 9562 §5.7) at `at_micros`, of which it keeps the milliseconds, from 10 random bytes.
pub(crate) fn uuid_at(at_micros: i64, random: &[u8; 10]) -> Uuid {
    let millis = u64::try_from(at_micros / 1000).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(millis, random).into_uuid()
}
