//! Store time: what the wall clock, or the newest time in the store, said at start, plus the boot-time clock since then. It
//! never steps while the gateway runs, and never goes back behind what was written before.

use std::time::{SystemTime, UNIX_EPOCH};

use gatepost_core::Timestamp;
use nix::time::{ClockId, clock_gettime};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    source: Source,
    base_micros: i64,
    boot_micros_at_base: i64,
}

/// Where the two clocks are read that store time is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source {
    Machine,
    #[cfg(test)]
    Simulated(&'static Simulated),
}

/// A machine's clocks as a simulation sets them, microseconds.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct Simulated {
    pub(crate) wall: std::sync::atomic::AtomicI64,
    pub(crate) boot: std::sync::atomic::AtomicI64,
}

impl Clock {
    pub(crate) fn start(source: Source, newest_stored: Timestamp) -> Self {
        let base_micros = source.wall_micros().max(newest_stored.as_micros());
        Self { source, base_micros, boot_micros_at_base: source.boot_micros() }
    }

    pub(crate) fn now(&self) -> Timestamp {
        let since_base = self.source.boot_micros() - self.boot_micros_at_base;
        Timestamp::from_micros(self.base_micros + since_base)
    }
}

impl Source {
    fn wall_micros(self) -> i64 {
        match self {
            Self::Machine => wall_micros(),
            #[cfg(test)]
            Self::Simulated(clocks) => clocks.wall.load(std::sync::atomic::Ordering::Relaxed),
        }
    }

    fn boot_micros(self) -> i64 {
        match self {
            Self::Machine => boot_micros(),
            #[cfg(test)]
            Self::Simulated(clocks) => clocks.boot.load(std::sync::atomic::Ordering::Relaxed),
        }
    }
}

fn wall_micros() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "the one place where the wall clock is read")]
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |span| span.as_micros());
    i64::try_from(wall).unwrap_or(i64::MAX)
}

/// Counts on while the machine sleeps, unlike the monotonic clock: a lease must not outlive a night's suspend.
fn boot_micros() -> i64 {
    let Ok(time) = clock_gettime(ClockId::CLOCK_BOOTTIME) else {
        // Linux has had this clock since 2.6.39; without it time would stand still, which only delays retries.
        return 0;
    };
    time.tv_sec() * 1_000_000 + time.tv_nsec() / 1000
}
