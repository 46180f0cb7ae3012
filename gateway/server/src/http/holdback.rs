//! How fast one principal is refused. Who asks again as soon as it is refused costs the others as much as who is served; so the first
//! refusals are told at once, and whoever keeps on is told later and later: then it waits, and not the others. Nothing else is delayed.
//!
//! What is held back is bounded by the connections that its principal may have, each with one request at a time. Pure but for a lock;
//! time is a parameter.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use gatepost_core::principal::Actor;

/// From one refusal of a principal to the next, once it gets many: 100 a second, which is more than anybody needs who listens to them.
const INTERVAL: Duration = Duration::from_millis(10);
/// Refusals that are told at once after a pause.
const PROMPT: u32 = 50;
/// Longest time that one is held back, so that who waits for its answer gets one.
const HELD_MAX: Duration = Duration::from_secs(5);

/// Of all principals. The map is bounded by the principals that configurations have named.
#[derive(Debug, Default)]
pub(crate) struct Holdback {
    /// When the next refusal of each is due, if all of them were an interval apart.
    due: Mutex<HashMap<Actor, Instant>>,
}

impl Holdback {
    /// How long to wait before `by` is told of one more refusal.
    pub(crate) fn next(&self, by: &Actor, now: Instant) -> Duration {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let next = due.get(by).copied().unwrap_or(now).max(now);
        let held = next.duration_since(now).saturating_sub(INTERVAL * (PROMPT - 1)).min(HELD_MAX);
        let latest = now + INTERVAL * (PROMPT - 1) + HELD_MAX;
        due.insert(by.clone(), (next + INTERVAL).min(latest));
        held
    }
}

#[cfg(test)]
mod tests {
    use gatepost_core::principal::ActorKind;

    use super::*;

    #[test]
    fn the_first_refusals_are_told_at_once_and_further_ones_an_interval_apart() {
        let (holdback, start) = (Holdback::default(), Instant::now());
        let (ehr, lab) = (Actor::new(ActorKind::App, "ehr"), Actor::new(ActorKind::App, "lab"));
        for _ in 0..PROMPT {
            assert_eq!(holdback.next(&ehr, start), Duration::ZERO);
        }
        for number in 1..=20 {
            assert_eq!(holdback.next(&ehr, start), INTERVAL * number, "64 at a time are told one by one");
        }
        assert_eq!(holdback.next(&lab, start), Duration::ZERO, "another's are its own");
        // What is due has been told by then: a pause makes up for everything.
        let later = start + INTERVAL * (PROMPT + 20);
        for _ in 0..PROMPT {
            assert_eq!(holdback.next(&ehr, later), Duration::ZERO);
        }
        assert_eq!(holdback.next(&ehr, later), INTERVAL);
    }

    #[test]
    fn nobody_waits_for_ever_and_nothing_is_held_against_anybody_for_long() {
        let (holdback, start) = (Holdback::default(), Instant::now());
        let ehr = Actor::new(ActorKind::App, "ehr");
        let longest = (0..100_000).map(|_| holdback.next(&ehr, start)).max();
        assert_eq!(longest, Some(HELD_MAX));
        let later = start + HELD_MAX + INTERVAL * PROMPT;
        assert_eq!(holdback.next(&ehr, later), Duration::ZERO);
    }
}
