//! Whether a destination may be served now: an operator's pause, the breaker that backs a destination off that is out of
//! reach, and the quarantine of suspects.

use std::time::Duration;

use crate::id::DeliveryId;
use crate::policy::QueuePolicy;
use crate::retry;
use crate::time::Timestamp;

/// Why the breaker is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TripReason {
    /// The adapter reported that the partner is unreachable, refuses the login or throttles.
    Unreachable,
    /// The adapter process dies again and again.
    CrashLoop,
    /// The adapter's settings or program are refused.
    AdapterRefused,
}

impl TripReason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::CrashLoop => "crash_loop",
            Self::AdapterRefused => "adapter_refused",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Unreachable, Self::CrashLoop, Self::AdapterRefused]
            .into_iter()
            .find(|reason| reason.as_str() == name)
    }
}

/// An open breaker. It probes with one delivery at a time and closes by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trip {
    pub since: Timestamp,
    pub reason: TripReason,
    pub failures: u32,
    pub probe_due: Timestamp,
    /// The delivery that is the probe, while it is leased.
    pub probe: Option<DeliveryId>,
}

/// A destination's brakes, as the store keeps them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueControl {
    pub paused_since: Option<Timestamp>,
    pub trip: Option<Trip>,
    /// Time paused or tripped in all, up to the last change.
    pub idle_before: Duration,
    /// Since when it has been paused or tripped without a break.
    pub idle_since: Option<Timestamp>,
}

/// How many deliveries may be leased now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// None; and, if time alone changes that, when.
    Nothing {
        until: Option<Timestamp>,
    },
    /// One, as the breaker's probe.
    Probe,
    UpTo(u32),
}

impl QueueControl {
    /// Time in which the destination was paused or tripped, until `now`.
    pub fn idle_total(&self, now: Timestamp) -> Duration {
        self.idle_before + self.idle_since.map_or(Duration::ZERO, |since| now.since(since))
    }

    pub fn allowance(&self, now: Timestamp, in_flight: u32, policy: &QueuePolicy) -> Allowance {
        if self.paused_since.is_some() {
            return Allowance::Nothing { until: None };
        }
        let free = policy.max_in_flight.saturating_sub(in_flight);
        match &self.trip {
            Some(Trip { probe: Some(_), .. }) => Allowance::Nothing { until: None },
            Some(trip) if trip.probe_due > now => Allowance::Nothing { until: Some(trip.probe_due) },
            // Those that were under way when the breaker opened take their places still.
            _ if free == 0 => Allowance::Nothing { until: None },
            Some(_) => Allowance::Probe,
            None => Allowance::UpTo(free),
        }
    }

    pub fn pause(&mut self, now: Timestamp) {
        self.paused_since.get_or_insert(now);
        self.idle_since.get_or_insert(now);
    }

    pub fn resume(&mut self, now: Timestamp) {
        self.paused_since = None;
        self.end_idle(now);
    }

    /// The destination is in trouble. While the breaker is open only its probe's failure counts: the others were on their
    /// way when it opened. Returns whether this opened it.
    pub fn trouble(
        &mut self,
        from: Option<DeliveryId>,
        reason: TripReason,
        after: Option<Duration>,
        now: Timestamp,
        policy: &QueuePolicy,
        jitter: f64,
    ) -> bool {
        let opened = self.trip.is_none();
        let trip =
            self.trip.get_or_insert(Trip { since: now, reason, failures: 0, probe_due: now, probe: None });
        if opened || trip.probe == from || from.is_none() {
            trip.reason = reason;
            trip.failures = trip.failures.saturating_add(1);
            trip.probe = None;
            let pause = retry::probe_interval(&policy.retry, trip.failures, jitter);
            trip.probe_due = now + after.map_or(pause, |after| pause.max(retry::requested(after)));
        }
        self.idle_since.get_or_insert(now);
        opened
    }

    /// The partner answered: whatever it said, it is in reach. Returns whether this closed the breaker.
    pub fn answered(&mut self, now: Timestamp) -> bool {
        let closed = self.trip.take().is_some();
        if closed {
            self.end_idle(now);
        }
        closed
    }

    /// The probe's lease was lost without an answer; the next probe may go after the usual pause.
    pub fn probe_lost(&mut self, delivery: DeliveryId, now: Timestamp, policy: &QueuePolicy, jitter: f64) {
        if let Some(trip) = &mut self.trip
            && trip.probe == Some(delivery)
        {
            trip.probe = None;
            trip.probe_due = now + retry::probe_interval(&policy.retry, trip.failures.max(1), jitter);
        }
    }

    fn end_idle(&mut self, now: Timestamp) {
        if self.paused_since.is_none()
            && self.trip.is_none()
            && let Some(since) = self.idle_since.take()
        {
            self.idle_before += now.since(since);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const POLICY: fn() -> QueuePolicy = QueuePolicy::default;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn delivery(n: u128) -> DeliveryId {
        DeliveryId(Uuid::from_u128(n))
    }

    #[test]
    fn r13_5_an_open_breaker_lets_one_probe_through_and_counts_only_its_failure() {
        let mut control = QueueControl::default();
        assert!(control.trouble(Some(delivery(1)), TripReason::Unreachable, None, at(0), &POLICY(), 0.5));
        assert!(!control.trouble(Some(delivery(2)), TripReason::Unreachable, None, at(0), &POLICY(), 0.5));
        assert_eq!(control.trip.unwrap().failures, 1);
        assert_eq!(control.allowance(at(0), 0, &POLICY()), Allowance::Nothing { until: Some(at(1)) });
        assert_eq!(control.allowance(at(1), 0, &POLICY()), Allowance::Probe);
        assert_eq!(control.allowance(at(1), 256, &POLICY()), Allowance::Nothing { until: None });
        control.trip.as_mut().unwrap().probe = Some(delivery(3));
        assert_eq!(control.allowance(at(1), 1, &POLICY()), Allowance::Nothing { until: None });
        control.trouble(Some(delivery(3)), TripReason::Unreachable, None, at(2), &POLICY(), 0.5);
        assert_eq!(control.trip.unwrap().failures, 2);
        assert_eq!(control.trip.unwrap().probe_due, at(4));
        assert!(control.answered(at(10)));
        assert_eq!(control.allowance(at(10), 250, &POLICY()), Allowance::UpTo(6));
    }

    #[test]
    fn r13_5_paused_and_tripped_time_is_counted_once() {
        let mut control = QueueControl::default();
        control.pause(at(10));
        control.trouble(None, TripReason::CrashLoop, None, at(20), &POLICY(), 0.5);
        control.resume(at(30));
        assert_eq!(control.idle_total(at(40)), Duration::from_secs(30));
        control.answered(at(50));
        assert_eq!(control.idle_total(at(99)), Duration::from_secs(40));
    }

    #[test]
    fn r13_5_an_operators_pause_outlives_the_breaker() {
        let mut control = QueueControl::default();
        control.pause(at(0));
        control.trouble(None, TripReason::Unreachable, None, at(0), &POLICY(), 0.5);
        control.answered(at(1));
        assert_eq!(control.allowance(at(1), 0, &POLICY()), Allowance::Nothing { until: None });
    }

    #[test]
    fn a_lost_probe_lets_the_next_one_go() {
        let mut control = QueueControl::default();
        control.trouble(None, TripReason::Unreachable, None, at(0), &POLICY(), 0.5);
        control.trip.as_mut().unwrap().probe = Some(delivery(1));
        control.probe_lost(delivery(1), at(5), &POLICY(), 0.5);
        assert_eq!(control.allowance(at(6), 0, &POLICY()), Allowance::Probe);
    }
}
