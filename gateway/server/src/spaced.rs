//! Something that each of many may do as often as it likes, but beyond a rate only later: whoever overdoes it waits, and not the others.
//! Pure but for a lock; time is a parameter.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most who are followed at a time. Whoever else comes has to wait for nothing, as long as so many others are over their rate.
const FOLLOWED_MAX: usize = 4096;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Spacing {
    /// From one to the next, once there are many.
    pub(crate) interval: Duration,
    /// So many at once after a pause.
    pub(crate) prompt: u32,
    /// Longest time that one has to wait.
    pub(crate) wait_max: Duration,
}

#[derive(Debug)]
pub(crate) struct Spaced<K> {
    spacing: Spacing,
    /// When the next one of each is due, if all of them were an interval apart.
    due: Mutex<HashMap<K, Instant>>,
}

impl<K: Eq + Hash + Clone> Spaced<K> {
    pub(crate) fn new(spacing: Spacing) -> Self {
        Self { spacing, due: Mutex::default() }
    }

    /// How long one more would have to wait now.
    pub(crate) fn ahead(&self, of: &K, now: Instant) -> Duration {
        let due = self.due.lock().unwrap_or_else(PoisonError::into_inner).get(of).copied();
        let ahead = self.spacing.interval * (self.spacing.prompt - 1);
        due.unwrap_or(now).saturating_duration_since(now).saturating_sub(ahead).min(self.spacing.wait_max)
    }

    /// How long `of` has to wait with one more.
    pub(crate) fn next(&self, of: &K, now: Instant) -> Duration {
        let Spacing { interval, prompt, wait_max } = self.spacing;
        let ahead = interval * (prompt - 1);
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let next = due.get(of).copied().unwrap_or(now).max(now);
        if due.len() >= FOLLOWED_MAX && !due.contains_key(of) {
            due.retain(|_, due| *due > now);
            if due.len() >= FOLLOWED_MAX {
                return Duration::ZERO;
            }
        }
        due.insert(of.clone(), (next + interval).min(now + ahead + wait_max));
        next.duration_since(now).saturating_sub(ahead).min(wait_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(10);
    const PROMPT: u32 = 50;
    const WAIT_MAX: Duration = Duration::from_secs(5);

    fn spaced() -> Spaced<u32> {
        Spaced::new(Spacing { interval: INTERVAL, prompt: PROMPT, wait_max: WAIT_MAX })
    }

    #[test]
    fn the_first_come_at_once_and_further_ones_an_interval_apart() {
        let (spaced, start) = (spaced(), Instant::now());
        for _ in 0..PROMPT {
            assert_eq!(spaced.next(&1, start), Duration::ZERO);
        }
        for number in 1..=20 {
            assert_eq!(spaced.next(&1, start), INTERVAL * number, "however many come at a time");
        }
        assert_eq!(spaced.next(&2, start), Duration::ZERO, "another waits for itself only");
        // All are through by then: a pause makes up for everything.
        let later = start + INTERVAL * (PROMPT + 20);
        for _ in 0..PROMPT {
            assert_eq!(spaced.next(&1, later), Duration::ZERO);
        }
        assert_eq!(spaced.next(&1, later), INTERVAL);
    }

    #[test]
    fn looking_ahead_takes_nothing() {
        let (spaced, start) = (spaced(), Instant::now());
        for _ in 0..PROMPT {
            spaced.next(&1, start);
        }
        for _ in 0..3 {
            assert_eq!(spaced.ahead(&1, start), INTERVAL);
        }
        assert_eq!(spaced.next(&1, start), INTERVAL);
        assert_eq!(spaced.ahead(&1, start), INTERVAL * 2);
        assert_eq!(spaced.ahead(&2, start), Duration::ZERO);
        for _ in 0..1000 {
            spaced.next(&1, start);
        }
        assert_eq!(spaced.ahead(&1, start), WAIT_MAX, "no longer than that");
    }

    #[test]
    fn nobody_waits_for_ever_and_nothing_is_held_against_anybody_for_long() {
        let (spaced, start) = (spaced(), Instant::now());
        let longest = (0..100_000).map(|_| spaced.next(&1, start)).max();
        assert_eq!(longest, Some(WAIT_MAX));
        assert_eq!(spaced.next(&1, start + WAIT_MAX + INTERVAL * PROMPT), Duration::ZERO);
    }

    #[test]
    fn who_has_not_come_for_a_while_is_forgotten() {
        let (spaced, start) = (spaced(), Instant::now());
        for other in 0..FOLLOWED_MAX as u32 {
            spaced.next(&other, start);
        }
        let one_more = FOLLOWED_MAX as u32;
        (0..PROMPT * 2).for_each(|_| assert_eq!(spaced.next(&one_more, start), Duration::ZERO));
        let later = start + INTERVAL * 2;
        spaced.next(&one_more, later);
        assert_eq!(spaced.due.lock().unwrap().len(), 1);
    }
}
