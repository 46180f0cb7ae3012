//! Store time: what the wall clock, or the newest time in the store, said at start, plus the boot-time clock since then. It
//! never steps while the gateway runs, and never goes back behind what was written before.

use std::time::{SystemTime, UNIX_EPOCH};

use gatepost_core::Timestamp;
use nix::time::{ClockId, clock_gettime};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    base_micros: i64,
    boot_micros_at_base: i64,
}

impl Clock {
    pub(crate) fn start(newest_stored: Timestamp) -> Self {
        #[expect(clippy::disallowed_methods, reason = "the one place where the wall clock is read")]
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |span| span.as_micros());
        let wall = i64::try_from(wall).unwrap_or(i64::MAX);
        Self { base_micros: wall.max(newest_stored.as_micros()), boot_micros_at_base: boot_micros() }
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.base_micros + (boot_micros() - self.boot_micros_at_base))
    }
}

/// Counts on while the machine sleeps, unlike the monotonic clock: a lease must not outlive a night's suspend.
fn boot_micros() -> i64 {
    let Ok(time) = clock_gettime(ClockId::CLOCK_BOOTTIME) else {
        // Linux has had this clock since 2.6.39; without it time would stand still, which only delays retries.
        return 0;
    };
    time.tv_sec() * 1_000_000 + time.tv_nsec() / 1000
}
