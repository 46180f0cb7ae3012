//! What a principal has used of its own limits: messages and requests by rate, bytes on their way. Pure but for a lock; time is a parameter.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gatepost_api::problem::Code;
use gatepost_core::principal::Actor;

use super::problem::Refusal;
use crate::config::Rate;

/// What a rate is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Paced {
    /// Handed in.
    Messages,
    /// Of any kind.
    Requests,
}

/// Of all principals. The maps are bounded by the principals that configurations have named.
#[derive(Debug, Default)]
pub(crate) struct Allowances {
    due: Mutex<HashMap<(Actor, Paced), Due>>,
    bytes: Mutex<HashMap<Actor, Arc<AtomicU64>>>,
}

/// When what somebody has had so far would be due by a rate.
#[derive(Clone, Copy, Debug)]
struct Due {
    at: Instant,
    by: Rate,
}

impl Due {
    /// From when on there is more by a rate. By another one than before nothing has been had: an operator has changed it.
    fn next(due: Option<Self>, rate: Rate, now: Instant) -> Instant {
        due.filter(|due| due.by == rate).map_or(now, |due| due.at.max(now))
    }
}

impl Allowances {
    /// Takes so many of the principal's rate, all or none. A batch above the burst is taken only after a full pause, and is paid for by a
    /// longer one: the rate holds, and no batch is refused for ever.
    pub(crate) fn take(
        &self,
        by: &Actor,
        of: Paced,
        rate: Rate,
        count: u64,
        now: Instant,
    ) -> Result<(), Refusal> {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let of_whom = (by.clone(), of);
        let next = Due::next(due.get(&of_whom).copied(), rate, now);
        wait_for(of, rate, count, next, now)?;
        due.insert(of_whom, Due { at: next + cost(rate, count), by: rate });
        Ok(())
    }

    /// Whether the principal could hand in even one message; asked before anything of a body is read.
    pub(crate) fn peek(&self, by: &Actor, rate: Rate, now: Instant) -> Result<(), Refusal> {
        let due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let next = Due::next(due.get(&(by.clone(), Paced::Messages)).copied(), rate, now);
        wait_for(Paced::Messages, rate, 1, next, now)
    }

    /// An account for one request's body.
    pub(crate) fn flight(&self, by: &Actor, max: Option<u64>) -> Option<Flight> {
        let max = max?;
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let all = Arc::clone(bytes.entry(by.clone()).or_default());
        Some(Flight { all, max, own: 0 })
    }
}

fn cost(rate: Rate, count: u64) -> Duration {
    let nanos = rate.per.as_nanos() * u128::from(count) / u128::from(rate.count.get());
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

fn wait_for(of: Paced, rate: Rate, count: u64, next: Instant, now: Instant) -> Result<(), Refusal> {
    let burst = rate.burst.get();
    let ahead = cost(rate, burst - count.min(burst));
    let wait = next.duration_since(now).saturating_sub(ahead);
    if wait.is_zero() {
        return Ok(());
    }
    let what = match of {
        Paced::Messages => "messages",
        Paced::Requests => "requests",
    };
    let (most, seconds) = (rate.count, rate.per.as_secs());
    let detail =
        format!("this principal may send {most} {what} per {seconds} s, {burst} at once; nothing was done");
    Err(Refusal::new(Code::RateLimited, detail).retry_after(wait))
}

/// What one request has of its principal's bytes; given back when dropped.
#[derive(Debug)]
pub(crate) struct Flight {
    all: Arc<AtomicU64>,
    max: u64,
    own: u64,
}

impl Flight {
    /// The body has, or will have, `bytes`. On a refusal nothing more is taken.
    pub(crate) fn grow_to(&mut self, bytes: u64) -> Result<(), Refusal> {
        let more = bytes.saturating_sub(self.own);
        let grown = self.all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| {
            all.checked_add(more).filter(|all| *all <= self.max)
        });
        match grown {
            Ok(_) => {
                self.own += more;
                Ok(())
            }
            Err(_) => {
                let detail =
                    format!("{} bytes of this principal may be on their way; nothing was stored", self.max);
                Err(Refusal::new(Code::BytesInFlight, detail))
            }
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.all.fetch_sub(self.own, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use gatepost_core::principal::ActorKind;

    use super::*;

    fn rate(count: u64, burst: u64) -> Rate {
        let number = |n| NonZeroU64::new(n).unwrap();
        Rate { count: number(count), per: Duration::from_secs(1), burst: number(burst) }
    }

    fn ehr() -> Actor {
        Actor::new(ActorKind::App, "ehr")
    }

    #[test]
    fn a_rate_is_kept_over_any_time_and_a_batch_is_whole_or_not() {
        let (allowances, start) = (Allowances::default(), Instant::now());
        let take = |messages, ms| {
            let now = start + Duration::from_millis(ms);
            allowances.take(&ehr(), Paced::Messages, rate(10, 5), messages, now)
        };
        take(3, 0).unwrap();
        let refusal = take(3, 0).unwrap_err();
        assert_eq!((refusal.code, refusal.code.status()), (Code::RateLimited, 429));
        take(2, 0).expect("the refused batch took nothing");
        assert!(take(1, 99).is_err());
        take(1, 100).unwrap();
        let other = Actor::new(ActorKind::App, "lab");
        allowances.take(&other, Paced::Messages, rate(10, 5), 5, start).expect("another's");
        allowances.take(&ehr(), Paced::Requests, rate(10, 5), 5, start).expect("another account");
        let mut taken = 0;
        for ms in 200..10_200 {
            taken += u64::from(take(1, ms).is_ok());
        }
        assert!((99..=101).contains(&taken), "{taken} in ten seconds");
    }

    #[test]
    fn a_batch_above_the_burst_waits_for_a_full_pause_and_is_paid_for() {
        let (allowances, start) = (Allowances::default(), Instant::now());
        let take = |messages, ms| {
            let now = start + Duration::from_millis(ms);
            allowances.take(&ehr(), Paced::Messages, rate(10, 5), messages, now)
        };
        take(1, 0).unwrap();
        assert!(take(50, 50).is_err());
        take(50, 100).unwrap();
        assert!(take(1, 4_500).is_err());
        take(1, 4_700).unwrap();
        assert!(allowances.peek(&ehr(), rate(10, 5), start + Duration::from_millis(4_700)).is_err());
    }

    /// It may have had a day's worth of the old one.
    #[test]
    fn a_rate_that_was_changed_begins_anew() {
        let (allowances, now) = (Allowances::default(), Instant::now());
        let slow = Rate { per: Duration::from_secs(60), ..rate(1, 10) };
        allowances.take(&ehr(), Paced::Messages, slow, 1000, now).unwrap();
        assert!(allowances.take(&ehr(), Paced::Messages, slow, 1, now).is_err());
        let fast = rate(100, 100);
        allowances.peek(&ehr(), fast, now).unwrap();
        allowances.take(&ehr(), Paced::Messages, fast, 100, now).unwrap();
        assert!(allowances.take(&ehr(), Paced::Messages, fast, 1, now).is_err());
    }

    #[test]
    fn bytes_are_given_back_and_a_refused_body_takes_none() {
        let allowances = Allowances::default();
        assert!(allowances.flight(&ehr(), None).is_none());
        let (mut one, mut two) =
            (allowances.flight(&ehr(), Some(10)).unwrap(), allowances.flight(&ehr(), Some(10)).unwrap());
        one.grow_to(6).unwrap();
        one.grow_to(6).unwrap();
        assert_eq!(two.grow_to(5).unwrap_err().code, Code::BytesInFlight);
        two.grow_to(4).unwrap();
        drop(one);
        two.grow_to(10).unwrap();
        assert!(two.grow_to(u64::MAX).is_err());
        drop(two);
        assert_eq!(allowances.bytes.lock().unwrap()[&ehr()].load(Ordering::Relaxed), 0);
    }
}
