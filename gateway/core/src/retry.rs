//! When to try again: exponential backoff with jitter, a floor and caps. Randomness is a parameter.

use std::time::Duration;

use crate::policy::RetryPolicy;

/// No retry comes sooner, whatever an adapter asks for: a partner that answers at once must not burn its attempts at once.
pub const RETRY_FLOOR: Duration = Duration::from_millis(50);
/// Longest delay an adapter may ask for, so that one odd `Retry-After` cannot park a message for months.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(86_400);
/// Longest pause between two probes of a destination that is out of reach.
pub const PROBE_INTERVAL_MAX: Duration = Duration::from_secs(30);

/// Delay before the attempt that follows `failures` failures (from 1), spread by ±20 % with `jitter` in [0, 1).
pub fn backoff(policy: &RetryPolicy, failures: u32, jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(40);
    let raw = policy.initial.as_secs_f64() * 2f64.powi(i32::try_from(doublings).unwrap_or(40));
    let capped = raw.min(policy.max.as_secs_f64());
    Duration::from_secs_f64(capped * (0.8 + 0.4 * jitter.clamp(0.0, 1.0))).max(RETRY_FLOOR)
}

/// The delay an adapter asked for, held between the floor and the cap.
pub fn requested(after: Duration) -> Duration {
    after.clamp(RETRY_FLOOR, RETRY_AFTER_MAX)
}

/// Pause before the next probe of a destination after `failures` failed ones.
pub fn probe_interval(policy: &RetryPolicy, failures: u32, jitter: f64) -> Duration {
    backoff(policy, failures, jitter).min(PROBE_INTERVAL_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_the_cap_and_never_below_the_floor() {
        let policy = RetryPolicy::default();
        let seconds = |failures| backoff(&policy, failures, 0.5).as_secs_f64();
        assert_eq!([1, 2, 3, 4].map(seconds), [1.0, 2.0, 4.0, 8.0]);
        assert_eq!(seconds(20), 300.0);
        assert_eq!(seconds(u32::MAX), 300.0);
        let eager = RetryPolicy { initial: Duration::ZERO, ..policy };
        assert_eq!(backoff(&eager, 1, 0.0), RETRY_FLOOR);
        assert!(backoff(&policy, 1, 0.0) < backoff(&policy, 1, 0.99));
    }

    #[test]
    fn a_requested_delay_is_held_in_bounds() {
        assert_eq!(requested(Duration::ZERO), RETRY_FLOOR);
        assert_eq!(requested(Duration::from_secs(7)), Duration::from_secs(7));
        assert_eq!(requested(Duration::from_secs(u64::MAX / 2)), RETRY_AFTER_MAX);
    }
}
