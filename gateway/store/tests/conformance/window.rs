//! Rule 4: lanes of which several deliveries are leased at a time.

use std::sync::Arc;
use std::time::Duration;

use gatepost_core::{OnDead, OnDoubt, Order, Outcome, QueuePolicy};
use gatepost_store::{QueueSetup, Sessions};

use crate::check::assert_sound;
use crate::fixture::{
    BEGIN, DELIVERED, Fixture, RETRY, RETRY_LATER, SENT, TROUBLE, doubting, item, queue, texts,
};

fn windowed(window: u32) -> QueuePolicy {
    QueuePolicy { window, ..doubting(OnDoubt::Hold) }
}

/// Six in each lane.
pub(crate) async fn with(policy: QueuePolicy, lanes: &[&str]) -> (Fixture, u64) {
    let fixture = Fixture::new(vec![queue("fix", policy)]).await;
    for lane in lanes {
        for n in 1..=6 {
            fixture.send(&format!("{lane}{n}"), Some(lane), "fix").await;
        }
    }
    let session = fixture.session("fix").await;
    (fixture, session)
}

#[tokio::test]
async fn r13_4_consecutive_deliveries_of_a_lane_are_leased_in_order_up_to_the_window() {
    let (fixture, session) = with(windowed(3), &["a", "b"]).await;
    let leased = fixture.lease("fix", session, 10).await;
    assert_eq!(texts(&leased), ["a1", "a2", "a3", "b1", "b2", "b3"]);
    assert!(fixture.lease("fix", session, 10).await.is_empty(), "the window is full");
    fixture.taken("fix", session, &leased[0], BEGIN).await;
    fixture.taken("fix", session, &leased[0], DELIVERED).await;
    assert_eq!(texts(&fixture.lease("fix", session, 10).await), ["a4"]);
    assert_sound(&fixture.stop().await, "window").await;
}

#[tokio::test]
async fn r13_4_a_lease_of_fewer_goes_on_where_the_lane_stands() {
    let (fixture, session) = with(windowed(3), &["a"]).await;
    assert_eq!(texts(&fixture.lease("fix", session, 2).await), ["a1", "a2"]);
    assert_eq!(texts(&fixture.lease("fix", session, 2).await), ["a3"]);
    assert!(fixture.lease("fix", session, 2).await.is_empty());
}

#[tokio::test]
async fn r13_4_when_one_goes_back_later_unbegun_leases_become_stale_and_begun_ones_do_not() {
    let (fixture, session) = with(windowed(4), &["a"]).await;
    let leased = fixture.lease("fix", session, 10).await;
    fixture.taken("fix", session, &leased[0], BEGIN).await;
    fixture.taken("fix", session, &leased[1], BEGIN).await;
    fixture.taken("fix", session, &leased[0], RETRY_LATER).await;
    for later in &leased[2..] {
        assert_eq!(fixture.stale("fix", session, later, BEGIN).await, "waiting");
    }
    assert_eq!(fixture.taken("fix", session, &leased[1], DELIVERED).await, "delivered");
    assert!(fixture.lease("fix", session, 10).await.is_empty(), "a1 is in backoff");
    assert_sound(&fixture.stop().await, "recall").await;
}

#[tokio::test]
async fn r13_4_an_outcome_recalls_what_stands_behind_it_in_the_same_settle() {
    let (fixture, session) = with(windowed(3), &["a"]).await;
    let leased = fixture.lease("fix", session, 10).await;
    fixture.taken("fix", session, &leased[0], BEGIN).await;
    let items =
        vec![item(&leased[0], RETRY_LATER), item(&leased[1], BEGIN), item(&leased[2], Outcome::Reject)];
    let answer = fixture.store.delivery_settle(fixture.settling("fix", session, items)).await.unwrap();
    let ok: Vec<bool> = answer.items.iter().map(|item| item.ok).collect();
    assert_eq!(ok, [true, false, false]);
    assert_eq!(answer.items[1].state, "waiting");
    for leased in &leased {
        assert_eq!(fixture.state(leased.delivery).await, "waiting");
    }
    assert_sound(&fixture.stop().await, "recall within a settle").await;
}

#[tokio::test]
async fn r13_4_begun_before_the_one_in_front_went_back_is_not_recalled() {
    let (fixture, session) = with(windowed(3), &["a"]).await;
    let leased = fixture.lease("fix", session, 10).await;
    fixture.taken("fix", session, &leased[0], BEGIN).await;
    let items = vec![item(&leased[1], BEGIN), item(&leased[0], RETRY)];
    let answer = fixture.store.delivery_settle(fixture.settling("fix", session, items)).await.unwrap();
    assert!(answer.items.iter().all(|item| item.ok), "{:?}", answer.items);
    assert_eq!(fixture.state(leased[1].delivery).await, "sending");
    assert_eq!(fixture.state(leased[2].delivery).await, "waiting");
}

#[tokio::test]
async fn r13_4_a_dead_one_that_holds_its_lane_recalls_what_stands_behind_it() {
    let policy = QueuePolicy { on_dead: OnDead::HoldLane, ..windowed(3) };
    let (fixture, session) = with(policy, &["a"]).await;
    let leased = fixture.lease("fix", session, 10).await;
    assert_eq!(fixture.taken("fix", session, &leased[0], Outcome::Reject).await, "dead");
    assert_eq!(fixture.stale("fix", session, &leased[1], BEGIN).await, "waiting");
    assert!(fixture.lease("fix", session, 10).await.is_empty(), "the lane is held");
    fixture.operate(leased[0].delivery, gatepost_store::Verb::Replay).await.unwrap();
    assert_eq!(texts(&fixture.lease("fix", session, 10).await), ["a1", "a2", "a3"]);
    assert_sound(&fixture.stop().await, "dead in a window").await;
}

#[tokio::test]
async fn r13_4_a_dead_one_that_lets_its_lane_go_on_recalls_nobody() {
    let (fixture, session) = with(windowed(3), &["a"]).await;
    let leased = fixture.lease("fix", session, 10).await;
    assert_eq!(fixture.taken("fix", session, &leased[0], Outcome::Reject).await, "dead");
    assert_eq!(fixture.taken("fix", session, &leased[1], BEGIN).await, "sending");
}

/// a4 was the next to be leased when a1 went back; it must not be found before a1.
#[tokio::test]
async fn r13_4_what_was_next_when_its_lane_went_back_overtakes_nobody() {
    let (fixture, session) = with(windowed(3), &["a"]).await;
    let leased = fixture.lease("fix", session, 10).await;
    fixture.taken("fix", session, &leased[0], BEGIN).await;
    fixture.taken("fix", session, &leased[0], RETRY).await;
    let again = fixture.lease_in_time("fix", session, 10).await;
    assert_eq!(texts(&again), ["a1", "a2", "a3"]);
    assert_sound(&fixture.stop().await, "next of a lane that went back").await;
}

#[tokio::test]
async fn r13_4_a_lane_in_backoff_starves_no_other() {
    let (fixture, session) = with(windowed(3), &["a"]).await;
    let leased = fixture.lease("fix", session, 2).await;
    fixture.taken("fix", session, &leased[0], BEGIN).await;
    fixture.taken("fix", session, &leased[0], RETRY_LATER).await;
    fixture.send("b1", Some("b"), "fix").await;
    assert_eq!(texts(&fixture.lease("fix", session, 1).await), ["b1"]);
}

#[tokio::test]
async fn r13_4_the_breakers_probe_is_the_head_of_its_lane() {
    let (fixture, session) = with(windowed(3), &["a"]).await;
    let leased = fixture.lease("fix", session, 2).await;
    fixture.taken("fix", session, &leased[0], BEGIN).await;
    fixture.taken("fix", session, &leased[0], TROUBLE).await;
    assert_eq!(texts(&fixture.lease_in_time("fix", session, 10).await), ["a1"]);
    assert_sound(&fixture.stop().await, "probe").await;
}

#[tokio::test]
async fn r13_4_r13_5_a_recalled_probe_lets_the_next_one_go() {
    let (fixture, session) = with(windowed(3), &["a"]).await;
    fixture.send("b1", Some("b"), "fix").await;
    let mut leased = fixture.lease("fix", session, 2).await;
    leased.extend(fixture.lease("fix", session, 1).await);
    assert_eq!(texts(&leased), ["a1", "a2", "a3"]);
    let other = fixture.lease_one("fix", session).await;
    fixture.taken("fix", session, &leased[0], BEGIN).await;
    fixture.taken("fix", session, &leased[1], Outcome::Release).await;
    // a2 and a3 have gone back; now the breaker opens, and its probe is a2.
    fixture.taken("fix", session, &other, BEGIN).await;
    fixture.taken("fix", session, &other, TROUBLE).await;
    let probe = fixture.lease_in_time("fix", session, 10).await;
    let probe = if texts(&probe) == ["b1"] {
        fixture.taken("fix", session, &probe[0], Outcome::Release).await;
        fixture.lease_in_time("fix", session, 10).await
    } else {
        probe
    };
    assert_eq!(texts(&probe), ["a2"]);
    fixture.taken("fix", session, &leased[0], Outcome::Release).await;
    assert_eq!(fixture.state(probe[0].delivery).await, "waiting", "recalled");
    fixture.lease_in_time("fix", session, 10).await;
}

#[tokio::test]
async fn r13_4_a_lost_lease_recalls_what_stands_behind_it() {
    let (fixture, session) = with(windowed(6), &["a", "b", "c"]).await;
    let mut request = fixture.request("fix", session, 100);
    request.lease = Duration::from_millis(1);
    let leased = fixture.try_lease(request).await.unwrap().deliveries;
    assert_eq!(leased.len(), 18);
    fixture.until_state(leased[17].delivery, "waiting").await;
    for leased in &leased {
        assert_eq!(fixture.state(leased.delivery).await, "waiting");
    }
    assert_sound(&fixture.stop().await, "a whole window of leases lost").await;
}

/// What an earlier session has sent counts in the window and holds nobody up.
#[tokio::test]
async fn r13_4_a_later_session_goes_on_behind_what_an_earlier_one_has_sent() {
    let (fixture, session) = with(windowed(3), &["a"]).await;
    let sent = fixture.lease("fix", session, 2).await;
    for leased in &sent {
        fixture.taken("fix", session, leased, BEGIN).await;
        fixture.taken("fix", session, leased, SENT).await;
    }
    let session = fixture.session("fix").await;
    let next = fixture.lease("fix", session, 10).await;
    assert_eq!(texts(&next), ["a3"], "two of three places are taken");
    assert!(fixture.lease("fix", session, 10).await.is_empty(), "the window is full");
    fixture.taken("fix", session, &next[0], BEGIN).await;
    fixture.taken("fix", session, &sent[0], DELIVERED).await;
    assert_eq!(texts(&fixture.lease("fix", session, 10).await), ["a4"]);
    assert_sound(&fixture.stop().await, "behind what was sent in an older session").await;
}

/// What it had in hand and not sent goes first.
#[tokio::test]
async fn r13_4_what_an_earlier_session_had_in_hand_comes_before_what_stands_behind_it() {
    let (fixture, session) = with(windowed(4), &["a"]).await;
    let leased = fixture.lease("fix", session, 3).await;
    fixture.taken("fix", session, &leased[0], BEGIN).await;
    fixture.taken("fix", session, &leased[0], SENT).await;
    let session = fixture.session("fix").await;
    assert_eq!(texts(&fixture.lease("fix", session, 1).await), ["a2"]);
    assert_eq!(texts(&fixture.lease("fix", session, 10).await), ["a3", "a4"]);
    assert_sound(&fixture.stop().await, "one sent, two in hand").await;
}

/// As where one session did it all: what has begun goes on, what has not goes back behind it.
#[tokio::test]
async fn r13_4_when_what_an_earlier_session_has_sent_goes_back_so_does_what_has_not_begun_behind_it() {
    let (fixture, session) = with(windowed(3), &["a"]).await;
    let sent = fixture.lease("fix", session, 1).await;
    fixture.taken("fix", session, &sent[0], BEGIN).await;
    fixture.taken("fix", session, &sent[0], SENT).await;
    let session = fixture.session("fix").await;
    let next = fixture.lease("fix", session, 10).await;
    assert_eq!(texts(&next), ["a2", "a3"]);
    fixture.taken("fix", session, &next[0], BEGIN).await;
    fixture.taken("fix", session, &sent[0], RETRY).await;
    assert_eq!(fixture.state(next[0].delivery).await, "sending");
    assert_eq!(fixture.stale("fix", session, &next[1], BEGIN).await, "waiting");
    let again = fixture.lease_in_time("fix", session, 10).await;
    assert_eq!(texts(&again)[0], "a1");
    assert_sound(&fixture.stop().await, "sent in an older session and gone back").await;
}

/// Where each node has a session of its own, who has sent may be alive beside who asks.
#[tokio::test]
async fn r13_4_the_window_belongs_to_one_session_where_each_node_has_one_and_blocks_no_other_lane() {
    let (mut fixture, _) = with(windowed(3), &["a"]).await;
    fixture.configure(vec![QueueSetup { sessions: Sessions::OfNode, ..queue("fix", windowed(3)) }]).await;
    let session = fixture.session("fix").await;
    let leased = fixture.lease("fix", session, 1).await;
    fixture.taken("fix", session, &leased[0], BEGIN).await;
    fixture.taken("fix", session, &leased[0], SENT).await;
    let session = fixture.session("fix").await;
    fixture.send("b1", Some("b"), "fix").await;
    assert_eq!(texts(&fixture.lease("fix", session, 1).await), ["b1"], "a2 waits for a1's proof");
    assert!(fixture.lease("fix", session, 1).await.is_empty());
    fixture.taken("fix", session, &leased[0], DELIVERED).await;
    assert_eq!(texts(&fixture.lease("fix", session, 10).await), ["a2", "a3", "a4"]);
    assert_sound(&fixture.stop().await, "sent in an older session").await;
}

#[tokio::test]
async fn max_in_flight_holds_with_windows_and_concurrent_leases() {
    let policy = QueuePolicy { max_in_flight: 4, ..windowed(3) };
    let (fixture, session) = with(policy, &["a", "b", "c", "d"]).await;
    let fixture = Arc::new(fixture);
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let fixture = Arc::clone(&fixture);
            tokio::spawn(async move { fixture.lease("fix", session, 3).await.len() })
        })
        .collect();
    let mut leased = 0;
    for task in tasks {
        leased += task.await.unwrap();
    }
    assert_eq!(leased, 4);
}

#[tokio::test]
async fn r13_4_a_narrower_window_after_a_reload_still_recalls_and_lets_nobody_overtake() {
    let (mut fixture, session) = with(windowed(4), &["a"]).await;
    let leased = fixture.lease("fix", session, 3).await;
    fixture.taken("fix", session, &leased[0], BEGIN).await;
    fixture.configure(vec![queue("fix", windowed(1))]).await;
    assert!(fixture.lease("fix", session, 10).await.is_empty(), "three are leased, one may be");
    fixture.taken("fix", session, &leased[0], RETRY).await;
    fixture.stale("fix", session, &leased[1], BEGIN).await;
    assert_eq!(texts(&fixture.lease_in_time("fix", session, 10).await), ["a1"]);
    assert_sound(&fixture.stop().await, "narrower window").await;
}

#[tokio::test]
async fn r13_4_a_strict_lane_may_have_a_window_too() {
    let policy = QueuePolicy { order: Order::Strict, ..windowed(2) };
    let (fixture, session) = with(policy, &["a", "b"]).await;
    assert_eq!(texts(&fixture.lease("fix", session, 10).await), ["a1", "a2"]);
}

/// An outcome and a lease that reach the writer together: the lease must see what the outcome did to the lane.
#[tokio::test]
async fn r13_4_a_lease_beside_an_outcome_lets_nobody_overtake() {
    let (fixture, session) = with(windowed(3), &["a"]).await;
    let fixture = Arc::new(fixture);
    for round in 0..20 {
        let leased = fixture.lease_in_time("fix", session, 2).await;
        assert_eq!(texts(&leased), ["a1", "a2"], "round {round}");
        fixture.taken("fix", session, &leased[0], BEGIN).await;
        let back = tokio::spawn({
            let (fixture, leased) = (Arc::clone(&fixture), leased[0].clone());
            async move {
                let outcome = if round % 2 == 0 { TROUBLE } else { Outcome::Release };
                fixture.taken("fix", session, &leased, outcome).await
            }
        });
        let next = fixture.lease("fix", session, 10).await;
        back.await.unwrap();
        for leased in &next {
            let name = crate::fixture::text(leased);
            let taken = fixture.settle("fix", session, leased, BEGIN).await.unwrap().items[0].ok;
            assert!(!taken || name == "a1", "round {round}: {name} begins before a1");
            if taken {
                fixture.taken("fix", session, leased, Outcome::Release).await;
            }
        }
        for leased in &next {
            fixture.settle("fix", session, leased, Outcome::Release).await.unwrap();
        }
        // Charged to nobody, and the breaker closed by hand: the next round starts as this one did.
        fixture.store.queue_trip("fix".into(), None).await.unwrap();
    }
}
