//! Where operators' calls wait for their adapters. In memory: a call is either answered while its operator waits, or it is over.
//!
//! A call is handed to one session only, and to that one until it answers: an answer that was lost on its way is asked for again. What
//! a session leaves unanswered is never handed to the next: it may have been done.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gatepost_api::calls::{Offer, PendingCall};
use tokio::sync::{Notify, oneshot};
use uuid::Uuid;

/// Calls to one adapter that wait.
const WAITING_MAX: usize = 16;
/// An adapter that was not heard of for this long takes no calls.
const ABSENT_AFTER: Duration = Duration::from_secs(60);

/// What an adapter said to a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done(serde_json::Value),
    Refused(String),
}

/// Why a call cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoCall {
    /// The adapter does not ask for calls now.
    Absent,
    NotOffered,
    TooMany,
}

/// A newer session of the adapter asks for calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Superseded;

/// By adapter; bounded by the adapters of all configurations that were in force.
#[derive(Debug, Default)]
pub(crate) struct Calls(Mutex<HashMap<String, Desk>>);

/// One adapter's.
#[derive(Debug, Default)]
struct Desk {
    /// Of its newest session that is known here.
    epoch: u64,
    offers: Vec<Offer>,
    polls: usize,
    /// When the last poll ended.
    heard: Option<Instant>,
    waiting: VecDeque<Waiting>,
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct Waiting {
    call: PendingCall,
    /// What the audit log knows it by, if it changes something.
    note: Option<String>,
    /// The session has it.
    taken: bool,
    answer: oneshot::Sender<Answer>,
}

/// An open poll of a session. Dropped when it is answered or the adapter has gone.
#[derive(Debug)]
struct Poll<'a> {
    calls: &'a Calls,
    adapter: &'a str,
    changed: Arc<Notify>,
}

impl Desk {
    fn begin(&mut self, epoch: u64) {
        if epoch > self.epoch {
            self.epoch = epoch;
            // Its operator learns that nobody knows.
            self.waiting.retain(|waiting| !waiting.taken);
            self.changed.notify_waiters();
        }
    }

    fn is_there(&self, now: Instant) -> bool {
        self.polls > 0 || self.heard.is_some_and(|heard| now.duration_since(heard) <= ABSENT_AFTER)
    }

    fn take(&mut self) -> Option<PendingCall> {
        // One after the other: the one that is taken stands in front.
        let first = self.waiting.front_mut()?;
        first.taken = true;
        Some(first.call.clone())
    }

    fn place_of(&self, id: Uuid) -> Option<usize> {
        self.waiting.iter().position(|waiting| waiting.call.id == id)
    }
}

impl Calls {
    /// Whoever had an older session of the adapter gets nothing more.
    pub(crate) fn session_opened(&self, adapter: &str, epoch: u64) {
        self.at(adapter, |desk| desk.begin(epoch));
    }

    /// What can be called now.
    pub(super) fn offers(&self, adapter: &str) -> Result<Vec<Offer>, NoCall> {
        self.at(adapter, |desk| match desk.is_there(Instant::now()) {
            true => Ok(desk.offers.clone()),
            false => Err(NoCall::Absent),
        })
    }

    pub(super) fn offer(&self, adapter: &str, call: &str) -> Result<Offer, NoCall> {
        let offers = self.offers(adapter)?;
        offers.into_iter().find(|offer| offer.name == call).ok_or(NoCall::NotOffered)
    }

    /// Puts a call before the adapter. The receiver fails if the session that has got it ends without an answer.
    pub(super) fn place(
        &self,
        adapter: &str,
        call: PendingCall,
        note: Option<String>,
    ) -> Result<oneshot::Receiver<Answer>, NoCall> {
        self.at(adapter, |desk| {
            if desk.waiting.len() >= WAITING_MAX {
                return Err(NoCall::TooMany);
            }
            let (answer, answered) = oneshot::channel();
            desk.waiting.push_back(Waiting { call, note, taken: false, answer });
            desk.changed.notify_waiters();
            Ok(answered)
        })
    }

    /// The operator waits no longer. Whether the adapter had got it by then: then it stays, to be answered for the log.
    pub(super) fn give_up(&self, adapter: &str, id: Uuid) -> bool {
        self.at(adapter, |desk| match desk.place_of(id) {
            Some(place) if !desk.waiting[place].taken => {
                desk.waiting.remove(place);
                false
            }
            Some(_) | None => true,
        })
    }

    /// The next call to the adapter, as soon as there is one, within `wait`.
    pub(super) async fn next(
        &self,
        adapter: &str,
        epoch: u64,
        offers: Vec<Offer>,
        wait: Duration,
    ) -> Result<Option<PendingCall>, Superseded> {
        let deadline = tokio::time::Instant::now() + wait;
        let poll = self.poll(adapter, epoch, offers)?;
        loop {
            let changed = poll.changed.notified();
            tokio::pin!(changed);
            // Armed before looking, so that what comes in between is not missed.
            changed.as_mut().enable();
            if let Some(call) = self.in_session(adapter, epoch, Desk::take)? {
                return Ok(Some(call));
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Ok(None);
            }
        }
    }

    /// Whether this session has the call and is to answer it; if so, its note.
    pub(super) fn taken(
        &self,
        adapter: &str,
        epoch: u64,
        id: Uuid,
    ) -> Result<Option<Option<String>>, Superseded> {
        self.in_session(adapter, epoch, |desk| {
            let waiting = desk.place_of(id).map(|place| &desk.waiting[place]);
            waiting.filter(|waiting| waiting.taken).map(|waiting| waiting.note.clone())
        })
    }

    /// Tells the operator. One who has given up was told that nobody knows: the log knows now.
    pub(super) fn answer(&self, adapter: &str, id: Uuid, answer: Answer) -> bool {
        let waiting = self.at(adapter, |desk| desk.place_of(id).and_then(|place| desk.waiting.remove(place)));
        waiting.is_some_and(|waiting| waiting.answer.send(answer).is_ok())
    }

    fn poll<'a>(&'a self, adapter: &'a str, epoch: u64, offers: Vec<Offer>) -> Result<Poll<'a>, Superseded> {
        self.in_session(adapter, epoch, |desk| {
            desk.begin(epoch);
            desk.offers = offers;
            desk.polls += 1;
            Poll { calls: self, adapter, changed: Arc::clone(&desk.changed) }
        })
    }

    fn in_session<T>(
        &self,
        adapter: &str,
        epoch: u64,
        act: impl FnOnce(&mut Desk) -> T,
    ) -> Result<T, Superseded> {
        self.at(adapter, |desk| if epoch < desk.epoch { Err(Superseded) } else { Ok(act(desk)) })
    }

    fn at<T>(&self, adapter: &str, act: impl FnOnce(&mut Desk) -> T) -> T {
        let mut desks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match desks.get_mut(adapter) {
            Some(desk) => act(desk),
            None => act(desks.entry(adapter.to_owned()).or_default()),
        }
    }
}

impl Drop for Poll<'_> {
    fn drop(&mut self) {
        self.calls.at(self.adapter, |desk| {
            desk.polls = desk.polls.saturating_sub(1);
            desk.heard = Some(Instant::now());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(20);
    const HANG: Duration = Duration::from_secs(20);

    fn offers() -> Vec<Offer> {
        vec![Offer { name: "reset".to_owned(), changes: true, about: "x".to_owned() }]
    }

    fn call(number: u128) -> PendingCall {
        PendingCall {
            id: Uuid::from_u128(number),
            call: "reset".to_owned(),
            arguments: serde_json::Map::new(),
            operator: "ops".to_owned(),
        }
    }

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    async fn next(calls: &Calls, epoch: u64, wait: Duration) -> Result<Option<u128>, Superseded> {
        let next = calls.next("fix", epoch, offers(), wait).await?;
        Ok(next.map(|call| call.id.as_u128()))
    }

    #[tokio::test]
    async fn a_call_goes_to_one_session_until_it_is_answered_and_to_no_other() {
        let calls = Calls::default();
        assert_eq!(calls.offer("fix", "reset"), Err(NoCall::Absent), "it was never heard of");
        assert_eq!(next(&calls, 1, SOON).await, Ok(None));
        assert_eq!(calls.offer("fix", "rest"), Err(NoCall::NotOffered));
        assert!(calls.offer("fix", "reset").unwrap().changes);

        let first = calls.place("fix", call(1), Some("sha256:1".to_owned())).unwrap();
        let second = calls.place("fix", call(2), None).unwrap();
        assert_eq!(calls.taken("fix", 1, id(1)), Ok(None), "it has not got it");
        assert_eq!(next(&calls, 1, HANG).await, Ok(Some(1)));
        assert_eq!(next(&calls, 1, HANG).await, Ok(Some(1)), "the answer was lost on its way");
        assert_eq!(calls.taken("fix", 1, id(1)), Ok(Some(Some("sha256:1".to_owned()))));
        assert!(calls.answer("fix", id(1), Answer::Done(7.into())));
        assert_eq!(first.await, Ok(Answer::Done(7.into())));
        assert_eq!(calls.taken("fix", 1, id(1)), Ok(None), "it is answered once");

        assert_eq!(next(&calls, 1, HANG).await, Ok(Some(2)));
        let third = calls.place("fix", call(3), None).unwrap();
        calls.session_opened("fix", 2);
        let second = tokio::time::timeout(HANG, second).await.expect("its operator still waits");
        assert!(second.is_err(), "whether it was done, nobody knows");
        assert_eq!(next(&calls, 1, HANG).await, Err(Superseded));
        assert_eq!(calls.taken("fix", 1, id(2)), Err(Superseded));
        assert_eq!(next(&calls, 2, HANG).await, Ok(Some(3)), "nobody had got it");
        calls.answer("fix", id(3), Answer::Refused("no".to_owned()));
        assert_eq!(third.await, Ok(Answer::Refused("no".to_owned())));
    }

    #[tokio::test]
    async fn whoever_waits_is_woken_by_a_call_and_by_a_newer_session() {
        let calls = Arc::new(Calls::default());
        let waiting = |epoch| {
            let calls = Arc::clone(&calls);
            tokio::spawn(async move { next(&calls, epoch, HANG).await })
        };
        let first = waiting(1);
        while calls.offers("fix").is_err() {
            tokio::task::yield_now().await;
        }
        let _answer = calls.place("fix", call(1), None).unwrap();
        assert_eq!(tokio::time::timeout(HANG, first).await.unwrap().unwrap(), Ok(Some(1)));
        calls.answer("fix", id(1), Answer::Done(0.into()));
        let second = waiting(1);
        while calls.at("fix", |desk| desk.polls) == 0 {
            tokio::task::yield_now().await;
        }
        calls.session_opened("fix", 2);
        assert_eq!(tokio::time::timeout(HANG, second).await.unwrap().unwrap(), Err(Superseded));
    }

    #[tokio::test]
    async fn what_nobody_had_got_is_taken_back_and_only_so_much_waits() {
        let calls = Calls::default();
        assert_eq!(next(&calls, 1, SOON).await, Ok(None));
        for number in 0..WAITING_MAX as u128 {
            calls.place("fix", call(number), None).unwrap();
        }
        assert_eq!(calls.place("fix", call(99), None).unwrap_err(), NoCall::TooMany);
        assert_eq!(next(&calls, 1, HANG).await, Ok(Some(0)));
        assert!(calls.give_up("fix", id(0)), "the adapter has it");
        assert!(!calls.give_up("fix", id(1)), "nothing was done");
        assert!(!calls.answer("fix", id(0), Answer::Done(0.into())), "its operator has gone");
        assert_eq!(next(&calls, 1, HANG).await, Ok(Some(2)));
    }

    #[test]
    fn an_adapter_is_there_while_it_asks_and_for_a_while_after() {
        let calls = Calls::default();
        let poll = calls.poll("fix", 1, offers()).ok().unwrap();
        let long_ago = || calls.at("fix", |desk| desk.heard = Instant::now().checked_sub(ABSENT_AFTER * 2));
        long_ago();
        assert!(calls.offers("fix").is_ok());
        drop(poll);
        assert!(calls.offers("fix").is_ok());
        long_ago();
        assert_eq!(calls.offers("fix"), Err(NoCall::Absent));
    }
}
