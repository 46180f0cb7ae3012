//! Several nodes and windows: a consumer leases at one node and settles at another, and the partner sees the order all the same.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use gatepost_core::{OnDoubt, Outcome, QueuePolicy, RetryPolicy, RetryScope};
use gatepost_store::Leased;
use tokio::sync::mpsc;

use crate::fixture::{BEGIN, DELIVERED, Fixture, doubting, inbox, item, operator, queue, text, texts, until};
use crate::moves;
use crate::nodes::{assert_both_sound, two};

/// What is over once its margin is.
const SHORT: Duration = Duration::from_millis(1);

fn back(scope: RetryScope) -> Outcome {
    Outcome::Retry { after: Some(Duration::ZERO), scope }
}

/// Two nodes, and four deliveries of one lane leased at the first.
async fn leased_at_one(on_doubt: OnDoubt) -> (Fixture, Fixture, Vec<Leased>) {
    let policy = QueuePolicy { window: 4, ..doubting(on_doubt) };
    let (one, other) = two(vec![inbox("in", policy)]).await;
    for number in 0..5 {
        one.send(&number.to_string(), Some("a"), "in").await;
    }
    let leased = one.lease_in_time("in", 0, 4).await;
    assert_eq!(texts(&leased), ["0", "1", "2", "3"]);
    (one, other, leased)
}

/// Nobody begins or settles any of these, at either node; all of them are leased anew in their order.
async fn assert_recalled(one: Fixture, other: Fixture, first: &Leased, behind: &[Leased]) {
    for (number, leased) in behind.iter().enumerate() {
        let (node, second) = if number % 2 == 0 { (&one, &other) } else { (&other, &one) };
        node.stale("in", 0, leased, BEGIN).await;
        second.stale("in", 0, leased, BEGIN).await;
        assert_eq!(second.state(leased.delivery).await, "waiting");
    }
    until("all that went back is leased again", async || {
        one.row(first.delivery).await.due.is_some() && other.row(first.delivery).await.due.is_some()
    })
    .await;
    let mut seen = Vec::new();
    while seen.len() < 5 {
        for leased in one.lease_in_time("in", 0, 4).await {
            seen.push(text(&leased));
            other.taken("in", 0, &leased, BEGIN).await;
            one.taken("in", 0, &leased, DELIVERED).await;
        }
    }
    assert_eq!(seen, ["0", "1", "2", "3", "4"]);
    assert_both_sound(one, other).await;
}

#[tokio::test]
async fn what_goes_back_at_another_node_recalls_what_is_leased_behind_it() {
    for (on_doubt, scope) in [
        (OnDoubt::Hold, RetryScope::Message),
        (OnDoubt::Query, RetryScope::Message),
        (OnDoubt::Hold, RetryScope::Lane),
        (OnDoubt::Query, RetryScope::Lane),
        (OnDoubt::Resend, RetryScope::Lane),
    ] {
        let (one, other, leased) = leased_at_one(on_doubt).await;
        other.taken("in", 0, &leased[0], back(scope)).await;
        assert_recalled(one, other, &leased[0], &leased[1..]).await;
    }
}

/// In one settle, of which the node that is asked has leased nothing.
#[tokio::test]
async fn what_is_said_of_it_in_the_same_settle_comes_too_late_at_another_node() {
    let (one, other, leased) = leased_at_one(OnDoubt::Hold).await;
    let items =
        vec![item(&leased[1], BEGIN), item(&leased[0], back(RetryScope::Message)), item(&leased[2], BEGIN)];
    let answer = other.store.delivery_settle(other.settling("in", 0, items)).await.unwrap();
    assert_eq!(answer.items.iter().map(|item| item.ok).collect::<Vec<_>>(), [true, true, false]);
    one.stale("in", 0, &leased[3], BEGIN).await;
    one.taken("in", 0, &leased[1], DELIVERED).await;
    assert_both_sound(one, other).await;
}

/// The other node knows only the one whose lease it has changed.
#[tokio::test]
async fn a_lease_that_is_lost_at_another_node_recalls_what_is_leased_behind_it() {
    let (one, other, leased) = leased_at_one(OnDoubt::Hold).await;
    other.taken("in", 0, &leased[0], Outcome::Extend { lease: SHORT }).await;
    other.until_state(leased[0].delivery, "waiting").await;
    assert_recalled(one, other, &leased[0], &leased[1..]).await;
}

#[tokio::test]
async fn a_proof_that_does_not_come_at_another_node_recalls_what_is_leased_behind_it() {
    let (one, other, leased) = leased_at_one(OnDoubt::Query).await;
    other.taken("in", 0, &leased[0], BEGIN).await;
    other.taken("in", 0, &leased[0], Outcome::Sent { within: SHORT }).await;
    other.until_state(leased[0].delivery, "in_doubt").await;
    assert_recalled(one, other, &leased[0], &leased[1..]).await;
}

/// It stands where it was accepted: before what another node has leased there.
#[tokio::test]
async fn what_is_moved_at_another_node_recalls_what_is_leased_behind_it() {
    let policy = doubting(OnDoubt::Hold);
    let (one, other) = two(vec![queue("old", policy), inbox("in", policy)]).await;
    let before = moves::send(&one, "before", "a", "old").await;
    one.send("behind", Some("a"), "in").await;
    let behind = one.lease_in_time("in", 0, 1).await.remove(0);
    let by = operator();
    let moved = other.store.deliveries_move(&by, "old".into(), "in".into(), 0, String::new()).await;
    assert_eq!(moved.unwrap().waiting, 1);
    one.stale("in", 0, &behind, BEGIN).await;
    let first = one.lease_in_time("in", 0, 5).await;
    assert_eq!(first.iter().map(|leased| leased.delivery).collect::<Vec<_>>(), [before]);
    assert_both_sound(one, other).await;
}

/// What is next in a lane is leased at one node while what stands before it goes back at the other. Whoever settles does so in the order
/// that it was given, so that whatever begins has nothing before it that has not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_back_while_its_lane_is_leased_elsewhere_is_not_overtaken() {
    const LANES: usize = 6;
    const PER_LANE: usize = 12;
    let policy = QueuePolicy { window: 4, ..doubting(OnDoubt::Hold) };
    let policy = QueuePolicy { retry: RetryPolicy { attempts: 1000, ..policy.retry }, ..policy };
    let (one, other) = two(vec![inbox("in", policy)]).await;
    for number in 0..PER_LANE {
        for lane in 0..LANES {
            one.send(&format!("{lane}:{number}"), Some(&lane.to_string()), "in").await;
        }
    }
    let (one, other) = (Arc::new(one), Arc::new(other));
    let (give, mut given) = mpsc::unbounded_channel();
    let leases = Arc::clone(&one);
    let leasing = tokio::spawn(async move {
        while !give.is_closed() {
            for leased in leases.lease("in", 0, 2).await {
                drop(give.send(leased));
            }
        }
    });
    // Of each lane: what has begun, or is delivered.
    let mut begun: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); LANES];
    let (mut delivered, mut turns) = (0, 0_usize);
    while delivered < LANES * PER_LANE {
        let leased = tokio::time::timeout(Duration::from_secs(20), given.recv()).await;
        let leased = leased.expect("what is not delivered is leased again").unwrap();
        let name = text(&leased);
        let (lane, number) = name.split_once(':').unwrap();
        let (lane, number): (usize, usize) = (lane.parse().unwrap(), number.parse().unwrap());
        turns += 1;
        if turns % 3 == 0 {
            other.settle("in", 0, &leased, back(RetryScope::Message)).await.unwrap();
            continue;
        }
        let node = if turns % 2 == 0 { &one } else { &other };
        if node.settle("in", 0, &leased, BEGIN).await.unwrap().items[0].ok {
            begun[lane].insert(number);
            assert!((0..number).all(|before| begun[lane].contains(&before)), "{name}: {begun:?}");
            other.taken("in", 0, &leased, DELIVERED).await;
            delivered += 1;
        }
    }
    drop(given);
    leasing.await.unwrap();
    let [one, other] = [one, other].map(|node| Arc::into_inner(node).unwrap());
    assert_both_sound(one, other).await;
}
