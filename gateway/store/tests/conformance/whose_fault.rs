//! Rule 5: the destination's trouble is not the message's.

use std::time::{Duration, Instant};

use gatepost_core::queue::TripReason;
use gatepost_core::{Outcome, QueuePolicy, RetryPolicy, RetryScope};
use gatepost_store::Pause;

use crate::check::{assert_log, assert_sound};
use crate::fixture::{
    AWAY, DELIVERED, Fixture, RETRY, RETRY_LATER, SENT, TROUBLE, in_time, item, operator, queue, quick,
    texts, until,
};

async fn with(policy: QueuePolicy, count: usize) -> (Fixture, u64) {
    let fixture = Fixture::new(vec![queue("lab", policy)]).await;
    for n in 0..count {
        fixture.send(&n.to_string(), None, "lab").await;
    }
    let session = fixture.session("lab").await;
    (fixture, session)
}

/// Opens the breaker with one delivery and leaves nothing leased.
async fn tripped(fixture: &Fixture, session: u64) {
    let leased = fixture.lease_one("lab", session).await;
    fixture.taken("lab", session, &leased, TROUBLE).await;
    assert_eq!(fixture.stats("lab").await.tripped, Some(TripReason::Unreachable));
}

#[tokio::test]
async fn r13_5_the_destinations_trouble_charges_nobody_and_probes_with_one() {
    let (fixture, session) = with(quick(), 3).await;
    let first = fixture.lease_one("lab", session).await;
    fixture.taken("lab", session, &first, TROUBLE).await;
    assert_eq!(fixture.row(first.delivery).await.attempts, 0);
    let answer = fixture.try_lease(fixture.request("lab", session, 10)).await.unwrap();
    assert!(answer.deliveries.is_empty() && answer.next_due.is_some(), "backed off as a whole");
    let probe = fixture.lease_in_time("lab", session, 10).await;
    assert_eq!(probe.len(), 1, "one probe");
    assert!(fixture.lease("lab", session, 10).await.is_empty(), "and no other beside it");
    fixture.taken("lab", session, &probe[0], TROUBLE).await;
    let probe = fixture.lease_in_time("lab", session, 10).await;
    fixture.taken("lab", session, &probe[0], DELIVERED).await;
    assert_eq!(fixture.stats("lab").await.tripped, None);
    assert_eq!(fixture.lease_in_time("lab", session, 10).await.len(), 2);
    let place = fixture.stop().await;
    assert_sound(&place, "breaker").await;
    assert_log(&place, "breaker").await;
}

#[tokio::test]
async fn r13_5_any_answer_of_the_partner_closes_the_breaker() {
    for outcome in [DELIVERED, Outcome::Reject, RETRY, SENT] {
        let (fixture, session) = with(quick(), 2).await;
        tripped(&fixture, session).await;
        let probe = fixture.lease_in_time("lab", session, 1).await.remove(0);
        fixture.taken("lab", session, &probe, outcome).await;
        assert_eq!(fixture.stats("lab").await.tripped, None, "{outcome:?}");
    }
}

#[tokio::test]
async fn r13_5_a_destination_that_only_ever_sends_comes_back_too() {
    let policy = QueuePolicy { confirm: Some(gatepost_core::Level::Sent), ..quick() };
    let (fixture, session) = with(policy, 2).await;
    tripped(&fixture, session).await;
    let probe = fixture.lease_in_time("lab", session, 1).await.remove(0);
    assert_eq!(fixture.taken("lab", session, &probe, SENT).await, "delivered");
    assert_eq!(fixture.stats("lab").await.tripped, None);
}

#[tokio::test]
async fn r13_5_a_lost_probe_is_followed_by_the_next() {
    let (fixture, session) = with(quick(), 2).await;
    tripped(&fixture, session).await;
    for outcome in [Outcome::Release, Outcome::InDoubt] {
        let probe = fixture.lease_in_time("lab", session, 1).await.remove(0);
        fixture.taken("lab", session, &probe, outcome).await;
        assert!(fixture.stats("lab").await.tripped.is_some(), "{outcome:?} says nothing of the partner");
    }
    fixture.lease_in_time("lab", session, 1).await;
    let session = fixture.session("lab").await;
    fixture.lease_in_time("lab", session, 1).await;
}

#[tokio::test]
async fn r13_5_retry_after_is_honoured_without_charging() {
    let (fixture, session) = with(quick(), 1).await;
    let leased = fixture.lease_one("lab", session).await;
    let later = Outcome::Retry { after: Some(Duration::from_secs(600)), scope: RetryScope::Destination };
    fixture.taken("lab", session, &leased, later).await;
    let row = fixture.row(leased.delivery).await;
    assert_eq!(row.attempts, 0);
    assert!(row.due.unwrap().since(fixture.store.read().now()) > Duration::from_secs(590));
    let answer = fixture.try_lease(fixture.request("lab", session, 10)).await.unwrap();
    assert!(answer.next_due.unwrap() > Duration::from_secs(590), "the whole destination waits");
}

#[tokio::test]
async fn r13_5_breaker_and_pause_survive_a_restart() {
    let (fixture, session) = with(quick(), 2).await;
    tripped(&fixture, session).await;
    let fixture = fixture.crash().await.open().await.unwrap();
    assert_eq!(fixture.stats("lab").await.tripped, Some(TripReason::Unreachable));
    let session = fixture.session("lab").await;
    assert_eq!(fixture.lease_in_time("lab", session, 10).await.len(), 1, "a probe");
    fixture.store.queue_pause(&operator(), "lab".into(), Pause::Pause).await.unwrap();
    let fixture = fixture.crash().await.open().await.unwrap();
    assert!(fixture.stats("lab").await.paused);
    let session = fixture.session("lab").await;
    assert!(fixture.lease("lab", session, 10).await.is_empty());
    fixture.store.queue_pause(&operator(), "lab".into(), Pause::Resume).await.unwrap();
    fixture.lease_in_time("lab", session, 10).await;
}

#[tokio::test]
async fn r13_5_an_operators_pause_ends_only_at_an_operators_word() {
    let (fixture, session) = with(quick(), 2).await;
    let leased = fixture.lease_one("lab", session).await;
    fixture.store.queue_pause(&operator(), "lab".into(), Pause::Pause).await.unwrap();
    let answer = fixture.try_lease(fixture.request("lab", session, 10)).await.unwrap();
    assert!(answer.deliveries.is_empty() && answer.next_due.is_none(), "no time ends a pause");
    fixture.taken("lab", session, &leased, DELIVERED).await;
    fixture.store.queue_trip("lab".into(), Some(TripReason::CrashLoop)).await.unwrap();
    fixture.store.queue_trip("lab".into(), None).await.unwrap();
    assert!(fixture.lease("lab", session, 10).await.is_empty());
    fixture.store.queue_pause(&operator(), "lab".into(), Pause::Resume).await.unwrap();
    assert_eq!(texts(&fixture.lease("lab", session, 10).await), ["1"]);
}

fn impatient(give_up_after: Duration) -> QueuePolicy {
    QueuePolicy { retry: RetryPolicy { give_up_after, attempts: 100, ..quick().retry }, ..quick() }
}

#[tokio::test]
async fn a_delivery_older_than_give_up_after_is_dead_at_its_next_failure() {
    const GIVE_UP: Duration = Duration::from_millis(900);
    let (fixture, session) = with(impatient(GIVE_UP), 1).await;
    let leased = fixture.lease_one("lab", session).await;
    let born = fixture.row(leased.delivery).await.accepted_at;
    until("it is old", async || fixture.store.read().now().since(born) > GIVE_UP).await;
    assert_eq!(fixture.taken("lab", session, &leased, RETRY).await, "dead");
    assert_eq!(fixture.row(leased.delivery).await.reason, Some("gave_up"));
}

#[tokio::test]
async fn r13_5_paused_time_does_not_count_towards_giving_up() {
    in_time("it is young but for the pause", async |give_up| {
        let before = Instant::now();
        let (fixture, session) = with(impatient(give_up), 1).await;
        let leased = fixture.lease_one("lab", session).await;
        fixture.store.queue_pause(&operator(), "lab".into(), Pause::Pause).await.unwrap();
        let before = before.elapsed();
        let born = fixture.row(leased.delivery).await.accepted_at;
        let now = || fixture.store.read().now();
        until("it is old", async || now().since(born) > give_up + Duration::from_millis(100)).await;
        let after = Instant::now();
        fixture.store.queue_pause(&operator(), "lab".into(), Pause::Resume).await.unwrap();
        let state = fixture.taken("lab", session, &leased, RETRY).await;
        let is_young = before + after.elapsed() < give_up;
        is_young.then(|| assert_eq!(state, "waiting"))
    })
    .await;
}

#[tokio::test]
async fn r13_5_tripped_time_does_not_count_even_over_a_restart() {
    in_time("it is young when the breaker opens", async |give_up| {
        let before = Instant::now();
        let (fixture, session) = with(impatient(give_up), 1).await;
        let leased = fixture.lease_one("lab", session).await;
        let after = Some(give_up + Duration::from_millis(100));
        let long = Outcome::Retry { after, scope: RetryScope::Destination };
        let state = fixture.taken("lab", session, &leased, long).await;
        if before.elapsed() > give_up {
            return None;
        }
        assert_eq!(state, "waiting");
        let fixture = fixture.crash().await.open().await.unwrap();
        let session = fixture.session("lab").await;
        let probe = fixture.lease_in_time("lab", session, 1).await.remove(0);
        assert_eq!(fixture.taken("lab", session, &probe, RETRY).await, "waiting", "not given up");
        Some(())
    })
    .await;
}

#[tokio::test]
async fn attempts_are_charged_on_outcomes_and_end() {
    let (fixture, session) = with(quick(), 1).await;
    for attempt in 1..=3 {
        let released = fixture.lease_in_time("lab", session, 1).await.remove(0);
        assert_eq!(released.attempt, attempt);
        fixture.taken("lab", session, &released, Outcome::Release).await;
        let leased = fixture.lease_in_time("lab", session, 1).await.remove(0);
        assert_eq!(leased.attempt, attempt, "a released one costs nothing");
        fixture.taken("lab", session, &leased, RETRY).await;
    }
    let dead = fixture.store.read().delivery_list(&Default::default(), None, 10).await.unwrap();
    assert_eq!((dead.items[0].state, dead.items[0].reason), ("dead", Some("attempts_spent")));
    assert_log(&fixture.stop().await, "attempts").await;
}

#[tokio::test]
async fn r13_5_a_lane_whose_partner_is_away_charges_nothing_and_holds_up_no_other() {
    let policy = QueuePolicy { order: gatepost_core::Order::Key, ..quick() };
    let fixture = Fixture::new(vec![queue("lab", policy)]).await;
    for (text, key) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
        fixture.send(text, Some(key), "lab").await;
    }
    let session = fixture.session("lab").await;
    let heads = fixture.lease("lab", session, 10).await;
    assert_eq!(texts(&heads), ["a1", "b1"]);
    assert_eq!(fixture.taken("lab", session, &heads[0], AWAY).await, "waiting");
    let row = fixture.row(heads[0].delivery).await;
    assert_eq!((row.attempts, row.reason), (0, None));
    assert!(row.due.unwrap().since(fixture.store.read().now()) > Duration::from_secs(590));
    assert_eq!(fixture.stats("lab").await.tripped, None, "the destination is not away");
    fixture.taken("lab", session, &heads[1], DELIVERED).await;
    assert!(fixture.lease("lab", session, 10).await.is_empty(), "its lane waits for it");
    assert_eq!(fixture.taken("lab", session, &heads[0], Outcome::Wake).await, "waiting");
    let again = fixture.lease_one("lab", session).await;
    assert_eq!((again.delivery, again.attempt), (heads[0].delivery, 1));
    fixture.stale("lab", session, &heads[0], Outcome::Wake).await;
    fixture.taken("lab", session, &again, DELIVERED).await;
    fixture.stale("lab", session, &again, Outcome::Wake).await;
    let last = fixture.lease_one("lab", session).await;
    assert_eq!(texts(std::slice::from_ref(&last)), ["a2"]);
    let place = fixture.stop().await;
    assert_sound(&place, "lane").await;
    assert_log(&place, "lane").await;
}

#[tokio::test]
async fn r13_5_what_waits_for_its_partner_is_due_again_with_the_next_session_and_nothing_else_is() {
    let policy = QueuePolicy { order: gatepost_core::Order::Key, ..quick() };
    let fixture = Fixture::new(vec![queue("lab", policy)]).await;
    for (text, key) in [("a1", "a"), ("a2", "a"), ("b1", "b"), ("c1", "c")] {
        fixture.send(text, Some(key), "lab").await;
    }
    let session = fixture.session("lab").await;
    let heads = fixture.lease("lab", session, 10).await;
    assert_eq!(texts(&heads), ["a1", "b1", "c1"]);
    fixture.taken("lab", session, &heads[0], AWAY).await;
    fixture.taken("lab", session, &heads[1], RETRY_LATER).await;
    fixture.taken("lab", session, &heads[2], AWAY).await;
    assert!(fixture.lease("lab", session, 10).await.is_empty());
    // Of the same gateway, and of one that has been started anew.
    let session = fixture.session("lab").await;
    let again = fixture.lease("lab", session, 10).await;
    assert_eq!(texts(&again), ["a1", "c1"]);
    assert!(again.iter().all(|leased| leased.attempt == 1), "nothing is charged");
    fixture.taken("lab", session, &again[0], AWAY).await;
    fixture.taken("lab", session, &again[1], DELIVERED).await;
    let fixture = fixture.crash().await.open().await.unwrap();
    let session = fixture.session("lab").await;
    assert_eq!(texts(&fixture.lease("lab", session, 10).await), ["a1"]);
    let place = fixture.stop().await;
    assert_sound(&place, "woken").await;
    assert_log(&place, "woken").await;
}

#[tokio::test]
async fn r13_5_more_than_one_step_of_what_waits_for_its_partner_is_woken() {
    let (fixture, session) = with(QueuePolicy { max_in_flight: 1000, ..quick() }, 700).await;
    let leased = fixture.lease("lab", session, 1000).await;
    assert_eq!(leased.len(), 700);
    let away = leased.iter().map(|leased| item(leased, AWAY)).collect();
    fixture.store.delivery_settle(fixture.settling("lab", session, away)).await.unwrap();
    let session = fixture.session("lab").await;
    assert_eq!(fixture.lease("lab", session, 1000).await.len(), 700);
}

#[tokio::test]
async fn r13_5_a_lane_whose_partner_is_away_shows_that_the_destination_is_there() {
    let (fixture, session) = with(quick(), 2).await;
    tripped(&fixture, session).await;
    let probe = fixture.lease_in_time("lab", session, 1).await.remove(0);
    fixture.taken("lab", session, &probe, AWAY).await;
    assert_eq!(fixture.stats("lab").await.tripped, None);
}

/// Where the queue is paused during the pause of a lane, that time is time paused once.
#[tokio::test]
async fn r13_5_a_lanes_pause_over_the_queues_pause_keeps_a_delivery_young_once() {
    const GIVE_UP: Duration = Duration::from_millis(400);
    const PAUSE: Duration = Duration::from_millis(1500);
    let retry = RetryPolicy { give_up_after: GIVE_UP, attempts: 1000, ..quick().retry };
    let fixture = Fixture::new(vec![queue("lab", QueuePolicy { retry, ..quick() })]).await;
    let session = fixture.session("lab").await;
    fixture.send("1", None, "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    let away = Outcome::Retry { after: Some(PAUSE), scope: RetryScope::Lane };
    fixture.taken("lab", session, &leased, away).await;
    fixture.store.queue_pause(&operator(), "lab".into(), Pause::Pause).await.unwrap();
    tokio::time::sleep(PAUSE).await;
    fixture.store.queue_pause(&operator(), "lab".into(), Pause::Resume).await.unwrap();
    let again = fixture.lease_in_time("lab", session, 1).await.remove(0);
    tokio::time::sleep(GIVE_UP + Duration::from_millis(50)).await;
    assert_eq!(fixture.taken("lab", session, &again, RETRY).await, "dead");
    assert_eq!(fixture.row(again.delivery).await.reason, Some("gave_up"));
}
