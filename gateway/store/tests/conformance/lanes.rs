//! Lanes of width one: who may be leased, and what stands in whose way.

use gatepost_core::{OnDead, OnDoubt, Order, Outcome, QueuePolicy, Resolution};
use gatepost_store::Verb;

use crate::check::assert_sound;
use crate::fixture::{
    BEGIN, DELIVERED, Fixture, RETRY, RETRY_LATER, doubting, keyed, message, queue, quick, text, texts,
};

async fn with(policy: QueuePolicy) -> (Fixture, u64) {
    let fixture = Fixture::new(vec![queue("lab", policy)]).await;
    let session = fixture.session("lab").await;
    (fixture, session)
}

#[tokio::test]
async fn without_order_everything_may_be_leased_at_once() {
    let (fixture, session) = with(quick()).await;
    for id in ["1", "2", "3"] {
        fixture.send(id, Some("k"), "lab").await;
    }
    assert_eq!(texts(&fixture.lease("lab", session, 10).await), ["1", "2", "3"]);
}

#[tokio::test]
async fn with_order_by_key_only_the_head_of_each_lane_is_leased() {
    let (fixture, session) = with(keyed()).await;
    for (id, key) in [("a1", Some("a")), ("a2", Some("a")), ("b1", Some("b")), ("n1", None), ("n2", None)] {
        fixture.send(id, key, "lab").await;
    }
    let leased = fixture.lease("lab", session, 10).await;
    assert_eq!(texts(&leased), ["a1", "b1", "n1", "n2"], "without a key nothing waits for anything");
    assert!(fixture.lease("lab", session, 10).await.is_empty());
    fixture.taken("lab", session, &leased[0], DELIVERED).await;
    assert_eq!(texts(&fixture.lease("lab", session, 10).await), ["a2"]);
}

#[tokio::test]
async fn a_lane_belongs_to_one_destination() {
    let fixture = Fixture::new(vec![queue("lab", keyed()), queue("archive", keyed())]).await;
    fixture.accept(vec![message("1", Some("k"), "1", &["lab", "archive"])]).await.unwrap();
    let (lab, archive) = (fixture.session("lab").await, fixture.session("archive").await);
    fixture.lease_one("lab", lab).await;
    fixture.lease_one("archive", archive).await;
}

#[tokio::test]
async fn r13_11_strict_order_is_one_lane() {
    let (fixture, session) = with(QueuePolicy { order: Order::Strict, ..quick() }).await;
    for (id, key) in [("1", Some("a")), ("2", Some("b")), ("3", None)] {
        fixture.send(id, key, "lab").await;
    }
    for expected in ["1", "2", "3"] {
        let leased = fixture.lease("lab", session, 10).await;
        assert_eq!(texts(&leased), [expected]);
        fixture.taken("lab", session, &leased[0], DELIVERED).await;
    }
}

#[tokio::test]
async fn r13_11_the_lane_is_fixed_at_accept_and_a_reload_changes_new_deliveries_only() {
    let (mut fixture, session) = with(keyed()).await;
    fixture.send("1", Some("k"), "lab").await;
    fixture.send("2", Some("k"), "lab").await;
    fixture.configure(vec![queue("lab", quick())]).await;
    fixture.send("3", Some("k"), "lab").await;
    assert_eq!(texts(&fixture.lease("lab", session, 10).await), ["1", "3"]);
}

#[tokio::test]
async fn a_head_in_backoff_blocks_its_lane_and_no_other() {
    let (fixture, session) = with(keyed()).await;
    for (id, key) in [("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b")] {
        fixture.send(id, Some(key), "lab").await;
    }
    let leased = fixture.lease("lab", session, 10).await;
    assert_eq!(fixture.taken("lab", session, &leased[0], RETRY_LATER).await, "waiting");
    fixture.taken("lab", session, &leased[1], DELIVERED).await;
    let answer = fixture.try_lease(fixture.request("lab", session, 10)).await.unwrap();
    assert_eq!(texts(&answer.deliveries), ["b2"]);
    let answer = fixture.try_lease(fixture.request("lab", session, 10)).await.unwrap();
    assert!(answer.deliveries.is_empty());
    let due = answer.next_due.expect("time alone brings a1 back").as_secs();
    assert!((3590..=3600).contains(&due), "{due}");
}

#[tokio::test]
async fn a_retried_head_comes_back_before_the_rest_of_its_lane() {
    let (fixture, session) = with(keyed()).await;
    fixture.send("1", Some("k"), "lab").await;
    fixture.send("2", Some("k"), "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    fixture.taken("lab", session, &leased, RETRY).await;
    let again = fixture.lease_in_time("lab", session, 10).await;
    assert_eq!(texts(&again), ["1"]);
    assert_eq!((again[0].attempt, again[0].delivery), (2, leased.delivery));
}

#[tokio::test]
async fn r13_1_held_in_doubt_blocks_its_lane_until_it_is_resolved() {
    let (fixture, session) = with(doubting(OnDoubt::Hold)).await;
    for (position, resolution) in
        [Resolution::Delivered, Resolution::Retry, Resolution::Dead].into_iter().enumerate()
    {
        let key = position.to_string();
        let first = fixture.send(&format!("{key}-1"), Some(&key), "lab").await;
        fixture.send(&format!("{key}-2"), Some(&key), "lab").await;
        let leased = fixture.lease_one("lab", session).await;
        fixture.taken("lab", session, &leased, BEGIN).await;
        assert_eq!(fixture.taken("lab", session, &leased, Outcome::InDoubt).await, "in_doubt");
        assert!(fixture.lease("lab", session, 10).await.is_empty(), "the lane is held");
        assert_eq!(fixture.stats("lab").await.held_lanes, 1);
        fixture.resolve(first, resolution).await;
        let next = fixture.lease("lab", session, 10).await;
        let expected = if resolution == Resolution::Retry { format!("{key}-1") } else { format!("{key}-2") };
        assert_eq!(texts(&next), [expected]);
        fixture.taken("lab", session, &next[0], Outcome::Reject).await;
        for leased in fixture.lease("lab", session, 10).await {
            fixture.taken("lab", session, &leased, Outcome::Reject).await;
        }
    }
    assert_sound(&fixture.stop().await, "held lanes").await;
}

#[tokio::test]
async fn a_dead_head_lets_its_lane_go_on_if_the_policy_says_so() {
    let (fixture, session) = with(keyed()).await;
    fixture.send("1", Some("k"), "lab").await;
    fixture.send("2", Some("k"), "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    assert_eq!(fixture.taken("lab", session, &leased, Outcome::Reject).await, "dead");
    assert_eq!(texts(&fixture.lease("lab", session, 10).await), ["2"]);
}

async fn dead_head() -> (Fixture, u64, gatepost_core::DeliveryId) {
    let (fixture, session) = with(QueuePolicy { on_dead: OnDead::HoldLane, ..keyed() }).await;
    let first = fixture.send("1", Some("k"), "lab").await;
    fixture.send("2", Some("k"), "lab").await;
    fixture.send("other", Some("l"), "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    fixture.taken("lab", session, &leased, Outcome::Reject).await;
    assert_eq!(texts(&fixture.lease("lab", session, 10).await), ["other"], "the dead head holds its lane");
    assert_eq!(fixture.stats("lab").await.held_lanes, 1);
    (fixture, session, first)
}

#[tokio::test]
async fn r13_11_a_discarded_head_releases_its_lane() {
    let (fixture, session, first) = dead_head().await;
    let fixture = {
        fixture.operate(first, Verb::Discard).await.unwrap();
        fixture
    };
    assert_eq!(texts(&fixture.lease("lab", session, 10).await), ["2"]);
    assert!(fixture.operate(first, Verb::Replay).await.is_err(), "discarded is the end");
    assert_sound(&fixture.stop().await, "discard").await;
}

#[tokio::test]
async fn r13_11_a_replayed_head_of_a_held_lane_keeps_its_place() {
    let (fixture, session, first) = dead_head().await;
    let row = fixture.operate(first, Verb::Replay).await.unwrap();
    assert_eq!((row.state, row.replayed, row.attempts, row.series), ("waiting", false, 0, 1));
    let leased = fixture.lease("lab", session, 10).await;
    assert_eq!(texts(&leased), ["1"]);
    assert!(!leased[0].replayed);
    fixture.taken("lab", session, &leased[0], DELIVERED).await;
    assert_eq!(texts(&fixture.lease("lab", session, 10).await), ["2"]);
    assert_sound(&fixture.stop().await, "replay in place").await;
}

#[tokio::test]
async fn r13_11_a_replayed_one_whose_lane_went_on_goes_beside_it() {
    let (fixture, session) = with(keyed()).await;
    let first = fixture.send("1", Some("k"), "lab").await;
    fixture.send("2", Some("k"), "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    fixture.taken("lab", session, &leased, Outcome::Reject).await;
    let second = fixture.lease_one("lab", session).await;
    let row = fixture.operate(first, Verb::Replay).await.unwrap();
    assert_eq!((row.state, row.replayed), ("waiting", true));
    assert_eq!(row.accepted_at, fixture.row(first).await.accepted_at, "when it was accepted, not replayed");
    let replayed = fixture.lease_one("lab", session).await;
    assert_eq!((text(&replayed), replayed.replayed), ("1".into(), true), "while 2 is in flight");
    fixture.taken("lab", session, &second, DELIVERED).await;
    fixture.taken("lab", session, &replayed, DELIVERED).await;
    assert_eq!(
        fixture.events(first).await,
        ["accepted", "attempt", "dead", "replayed", "attempt", "delivered"]
    );
    let place = fixture.stop().await;
    assert_sound(&place, "replay").await;
    crate::check::assert_log(&place, "replay").await;
}

#[tokio::test]
async fn r13_11_a_replayed_one_holds_nobody_up_even_over_a_restart() {
    let (fixture, session) = with(keyed()).await;
    let first = fixture.send("1", Some("k"), "lab").await;
    for id in ["2", "3"] {
        fixture.send(id, Some("k"), "lab").await;
    }
    let leased = fixture.lease_one("lab", session).await;
    fixture.taken("lab", session, &leased, Outcome::Reject).await;
    fixture.operate(first, Verb::Replay).await.unwrap();
    let fixture = fixture.restart().await;
    let session = fixture.session("lab").await;
    let mut leased = fixture.lease("lab", session, 10).await;
    leased.sort_by_key(text);
    assert_eq!(texts(&leased), ["1", "2"]);
    fixture.taken("lab", session, &leased[1], DELIVERED).await;
    assert_eq!(texts(&fixture.lease("lab", session, 10).await), ["3"], "beside the replayed one");
    assert_sound(&fixture.stop().await, "replayed beside").await;
}

#[tokio::test]
async fn operators_verbs_are_refused_in_other_states() {
    let (fixture, session) = with(keyed()).await;
    let delivery = fixture.send("1", None, "lab").await;
    let leaves = fixture.leaves().await;
    for verb in [Verb::Replay, Verb::Discard, Verb::Resolve(Resolution::Delivered)] {
        assert!(fixture.operate(delivery, verb).await.is_err(), "{verb:?} of a waiting one");
    }
    let leased = fixture.lease_one("lab", session).await;
    for verb in [Verb::Replay, Verb::Discard, Verb::Resolve(Resolution::Delivered)] {
        assert!(fixture.operate(delivery, verb).await.is_err(), "{verb:?} of a sending one");
    }
    assert_eq!(fixture.leaves().await, leaves + 1, "only the attempt is in the log");
    fixture.taken("lab", session, &leased, DELIVERED).await;
    let nobody = gatepost_core::DeliveryId::from_bytes([7; 16]);
    let missing = fixture.operate(nobody, Verb::Discard).await;
    assert!(matches!(missing, Err(gatepost_store::OperateError::NotFound)), "{missing:?}");
}

#[tokio::test]
async fn lanes_survive_a_crash() {
    let (fixture, session) = with(keyed()).await;
    for id in ["1", "2", "3"] {
        fixture.send(id, Some("k"), "lab").await;
    }
    let leased = fixture.lease_one("lab", session).await;
    fixture.taken("lab", session, &leased, DELIVERED).await;
    fixture.lease_one("lab", session).await;
    let fixture = fixture.crash().await.open().await.unwrap();
    let session = fixture.session("lab").await;
    let again = fixture.lease("lab", session, 10).await;
    assert_eq!(texts(&again), ["2"]);
    assert!(again[0].doubt, "it had begun");
}
