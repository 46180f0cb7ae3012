//! Store time. It never steps while the gateway runs, and never goes back behind what was written before.
//!
//! On SQLite: what the wall clock, or the newest time in the store, said at start, plus the boot-time clock since then. On
//! PostgreSQL: what the database said last, plus the boot-time clock since then.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use gatepost_core::Timestamp;
use nix::time::{ClockId, clock_gettime};

#[derive(Clone, Debug)]
pub(crate) struct Clock {
    source: Source,
    time: Arc<Time>,
}

#[derive(Debug)]
struct Time {
    /// Store time when the boot-time clock was at zero.
    offset_micros: AtomicI64,
    /// The newest that was told.
    newest_micros: AtomicI64,
}

/// By more than this two clocks do not drift apart between two looks.
const LEAP_MICROS: i64 = 1_000_000;

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
    pub(crate) wall: AtomicI64,
    pub(crate) boot: AtomicI64,
}

impl Clock {
    pub(crate) fn start(source: Source, newest_stored: Timestamp) -> Self {
        Self::at(source, source.wall_micros().max(newest_stored.as_micros()))
    }

    /// Begins with what the database says.
    pub(crate) fn following(now: Timestamp) -> Self {
        Self::at(Source::Machine, now.as_micros())
    }

    fn at(source: Source, now: i64) -> Self {
        let offset_micros = AtomicI64::new(now - source.boot_micros());
        Self { source, time: Arc::new(Time { offset_micros, newest_micros: AtomicI64::new(now) }) }
    }

    pub(crate) fn now(&self) -> Timestamp {
        let now = self.time.offset_micros.load(Ordering::Relaxed) + self.source.boot_micros();
        let newest = self.time.newest_micros.fetch_max(now, Ordering::Relaxed);
        Timestamp::from_micros(now.max(newest))
    }

    /// Takes over what the database says now. Where that is a little behind what was told, time stands still until it is not; where
    /// it is far behind, this host's clock has leapt since the database was asked last, and what was told is forgotten: nothing was
    /// written by it.
    pub(crate) fn follow(&self, now: Timestamp) {
        let now = now.as_micros();
        self.time.offset_micros.store(now - self.source.boot_micros(), Ordering::Relaxed);
        if self.time.newest_micros.load(Ordering::Relaxed) > now + LEAP_MICROS {
            self.time.newest_micros.store(now, Ordering::Relaxed);
        }
    }
}

impl Source {
    fn wall_micros(self) -> i64 {
        match self {
            Self::Machine => wall_micros(),
            #[cfg(test)]
            Self::Simulated(clocks) => clocks.wall.load(Ordering::Relaxed),
        }
    }

    fn boot_micros(self) -> i64 {
        match self {
            Self::Machine => boot_micros(),
            #[cfg(test)]
            Self::Simulated(clocks) => clocks.boot.load(Ordering::Relaxed),
        }
    }
}

pub(crate) fn wall_micros() -> i64 {
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
