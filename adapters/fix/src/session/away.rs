//! What goes back because the session cannot send it, and is woken when it can: it is not logged on, its partner has not confirmed enough of
//! what was sent before, or more waits than its share of places.
//!
//! Kept in hand it would keep places from the adapter's other sessions, and be suspected of every death of the adapter. What was leased behind
//! it in its lane the gateway takes back with it: that is refused here, or when it is to begin, and so never overtakes it.

use std::collections::BTreeMap;
use std::time::Duration;

use gatepost_adapter::{
    Failure, Lease, Outcome, Scope, SettleError, SettleResponse, SettleStatus, Settlement,
};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Driver, newest};
use crate::intake::Order;

/// What has gone back comes by itself after as long as the session has sent nothing, within these bounds: the process that would wake it
/// may not be there any more.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// The same of a session that is not to be up: outside of its window, logged out, halted.
const PAUSE_MAX_RESTING: Duration = Duration::from_secs(300);
/// So much later for each other that is away already, so that a long backlog does not come all at once.
const SPREAD: Duration = Duration::from_millis(50);
/// Most results of one settlement.
const RESULTS_MAX: usize = 400;

/// Deliveries that have gone back.
#[derive(Debug)]
pub(super) struct Away {
    /// By their ids, which begin with the time at which they were made.
    leases: BTreeMap<Uuid, Lease>,
    max: usize,
    down_since: Option<Instant>,
}

impl Away {
    pub(super) fn new(max: usize) -> Self {
        Self { leases: BTreeMap::new(), max, down_since: None }
    }

    pub(super) fn is_down(&mut self, is_down: bool, now: Instant) {
        self.down_since = is_down.then(|| self.down_since.unwrap_or(now));
    }

    /// The gateway has it back. Beyond the bound the oldest is forgotten: it has expired long since, or comes by itself.
    fn went(&mut self, lease: Lease) {
        self.leases.insert(lease.delivery, lease);
        if self.leases.len() > self.max {
            self.leases.pop_first();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// The oldest ones, `most` of them.
    fn take(&mut self, most: usize) -> Vec<Lease> {
        let some = most.min(self.leases.len());
        std::iter::from_fn(|| self.leases.pop_first()).take(some).map(|(_, lease)| lease).collect()
    }

    /// How long one stays away beside which so many others go back.
    fn pause(&self, now: Instant, longest: Duration, others: usize) -> Duration {
        let down = self.down_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let others = u32::try_from(self.leases.len() + others).unwrap_or(u32::MAX);
        down.clamp(PAUSE_MIN, longest).saturating_add(SPREAD.saturating_mul(others))
    }
}

impl Driver {
    /// Gives back what cannot be sent before the session has logged on.
    pub(super) async fn give_back(&mut self) -> Result<(), Failure> {
        if self.engine.is_logged_on() {
            return Ok(());
        }
        self.away.is_down(true, Instant::now());
        self.send_back(0, "is not logged on").await
    }

    /// Gives back all but the first `kept` of what waits; `why`: what of the session.
    pub(super) async fn send_back(&mut self, kept: usize, why: &str) -> Result<(), Failure> {
        let kept = kept.min(self.waiting.len());
        let mut back = newest(self.waiting.split_off(kept), Order::id);
        if self.gateway.stop().is_requested() {
            // Let go of, they go back at once: for the adapter's next process.
            return Ok(());
        }
        while !back.is_empty() {
            let some: Vec<Order> = back.drain(..back.len().min(RESULTS_MAX)).collect();
            self.settle_back(&some, why).await?;
        }
        Ok(())
    }

    async fn settle_back(&mut self, back: &[Order], why: &str) -> Result<(), Failure> {
        let reason = format!("session `{}` {why}", self.config.name);
        let is_wanted = self.enabled && self.halted.is_none() && self.engine.is_open(self.now());
        let longest = if is_wanted { PAUSE_MAX } else { PAUSE_MAX_RESTING };
        let now = Instant::now();
        let mut settlement = Settlement::default();
        let mut leases: BTreeMap<Uuid, Lease> = BTreeMap::new();
        for (others, Order { delivery, .. }) in
            back.iter().filter(|order| !order.delivery.is_lost()).enumerate()
        {
            let after = Some(self.away.pause(now, longest, others));
            let reason = reason.clone();
            settlement.outcome(delivery, Outcome::Retry { scope: Scope::Lane, after, reason, reply: None });
            leases.insert(delivery.id(), delivery.lease());
        }
        if leases.is_empty() {
            return Ok(());
        }
        for result in self.settle_alone(settlement).await?.results {
            if result.status == SettleStatus::Ok
                && let Some(lease) = leases.remove(&result.delivery)
            {
                self.away.went(lease);
            }
        }
        Ok(())
    }

    /// The session can send: `most` of what has gone back are due at once. What is not there to be woken is on its way here, or over.
    pub(super) async fn wake(&mut self, most: usize) -> Result<(), Failure> {
        for some in self.away.take(most).chunks(RESULTS_MAX) {
            let mut settlement = Settlement::default();
            some.iter().for_each(|lease| settlement.wake(lease));
            self.settle_alone(settlement).await?;
        }
        Ok(())
    }

    /// Settles what depends on nothing else: each result counts by itself.
    async fn settle_alone(&self, settlement: Settlement) -> Result<SettleResponse, Failure> {
        let unfit = |error: SettleError| Failure::new("the gateway does not take deliveries back", error);
        self.gateway.settle(settlement).await.map_err(unfit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(number: u128, token: &str) -> Lease {
        serde_json::from_value(serde_json::json!({"delivery": Uuid::from_u128(number), "token": token}))
            .unwrap()
    }

    #[test]
    fn one_that_goes_back_again_is_woken_by_its_newest_lease_and_once() {
        let mut away = Away::new(10);
        away.went(lease(1, "t1"));
        away.went(lease(2, "t"));
        away.went(lease(1, "t2"));
        assert_eq!(away.take(9), [lease(1, "t2"), lease(2, "t")]);
        assert_eq!(away.take(9), []);
    }

    #[test]
    fn beyond_the_bound_the_oldest_are_forgotten() {
        let mut away = Away::new(3);
        (1..=5).for_each(|number| away.went(lease(number, "t")));
        assert_eq!(away.take(9), [3, 4, 5].map(|number| lease(number, "t")));
    }

    #[test]
    fn the_longer_a_session_is_down_the_more_seldom_its_deliveries_come() {
        let began = Instant::now();
        let mut away = Away::new(10);
        away.is_down(true, began);
        away.is_down(true, began + Duration::from_secs(5));
        let pause = |away: &Away, down, others| {
            away.pause(began + Duration::from_secs(down), PAUSE_MAX, others).as_millis()
        };
        assert_eq!([0, 5, 60, 3600].map(|down| pause(&away, down, 0)), [1000, 5000, 60_000, 60_000]);
        away.went(lease(1, "t"));
        assert_eq!(pause(&away, 0, 3), 1200);
        away.is_down(false, began);
        assert_eq!(pause(&away, 60, 0), 1050);
    }

    #[test]
    fn of_several_leases_of_a_delivery_the_last_counts() {
        let id = |number| Uuid::from_u128(number);
        let leases = [(id(3), "old"), (id(1), "t"), (id(2), "t"), (id(3), "new")];
        assert_eq!(newest(leases, |(id, _)| *id), [(id(1), "t"), (id(2), "t"), (id(3), "new")]);
    }
}
