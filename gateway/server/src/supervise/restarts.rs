//! When a process that exited may be started again, and when its exits are a crash loop. Pure: time comes in as a parameter.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A process that lived this long starts again as if it had never exited.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// So many exits within `LOOP_WITHIN`, or so many in a row without a session, are a crash loop.
const LOOP_EXITS: usize = 5;
const LOOP_WITHIN: Duration = Duration::from_secs(60);

/// One life of a process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    pub(super) started: Instant,
    pub(super) ended: Instant,
    /// Whether it opened a session.
    pub(super) worked: bool,
}

/// What an exit calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) pause: Duration,
    pub(super) looping: bool,
}

/// The memory of one adapter's exits.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    /// Exits since the last healthy life.
    failures: u32,
    /// Exits in a row without a session.
    fruitless: usize,
    /// The newest exits, at most `LOOP_EXITS`.
    recent: VecDeque<Instant>,
}

impl Restarts {
    pub(super) fn exited(&mut self, life: Life) -> Verdict {
        if life.ended.duration_since(life.started) >= HEALTHY_AFTER {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.fruitless = if life.worked { 0 } else { self.fruitless.saturating_add(1) };
        self.recent.push_back(life.ended);
        if self.recent.len() > LOOP_EXITS {
            self.recent.pop_front();
        }
        Verdict { pause: self.pause(), looping: self.looping(life.ended) }
    }

    /// A person restarted it or changed its configuration: what was before does not count.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    fn pause(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(16);
        PAUSE_FIRST.saturating_mul(1 << doublings).min(PAUSE_MAX)
    }

    fn looping(&self, now: Instant) -> bool {
        let often = self.recent.len() == LOOP_EXITS
            && self.recent.front().is_some_and(|&first| now.duration_since(first) < LOOP_WITHIN);
        often || self.fruitless >= LOOP_EXITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Clock(Instant, Restarts);

    impl Clock {
        fn new() -> Self {
            Self(Instant::now(), Restarts::default())
        }

        /// Lives for `seconds`, exits, and waits for its pause.
        fn life(&mut self, seconds: u64, worked: bool) -> Verdict {
            let started = self.0;
            let ended = started + Duration::from_secs(seconds);
            let verdict = self.1.exited(Life { started, ended, worked });
            self.0 = ended + verdict.pause;
            verdict
        }
    }

    #[test]
    fn pauses_double_up_to_a_limit_and_a_healthy_life_resets_them() {
        let mut clock = Clock::new();
        let pauses: Vec<_> = (0..11).map(|_| clock.life(0, true).pause.as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
        assert_eq!(clock.life(59, true).pause, PAUSE_MAX);
        assert_eq!(clock.life(60, true).pause, PAUSE_FIRST);
    }

    #[test]
    fn r13_2_four_crashes_of_a_poison_message_are_no_crash_loop_and_the_fifth_is() {
        let mut clock = Clock::new();
        let looping: Vec<_> = (0..5).map(|_| clock.life(1, true).looping).collect();
        assert_eq!(looping, [false, false, false, false, true]);
    }

    #[test]
    fn exits_far_apart_are_a_crash_loop_only_without_sessions() {
        let mut worked = Clock::new();
        assert!((0..20).all(|_| !worked.life(20, true).looping));
        let mut fruitless = Clock::new();
        let looping: Vec<_> = (0..5).map(|_| fruitless.life(20, false).looping).collect();
        assert_eq!(looping, [false, false, false, false, true]);
        assert!(!fruitless.life(90, true).looping, "a session ends the loop");
    }

    #[test]
    fn what_was_before_a_restart_by_hand_does_not_count() {
        let mut clock = Clock::new();
        for _ in 0..9 {
            clock.life(0, false);
        }
        clock.1.forget();
        assert_eq!(clock.life(0, false), Verdict { pause: PAUSE_FIRST, looping: false });
    }
}
