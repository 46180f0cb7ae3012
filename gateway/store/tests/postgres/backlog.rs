//! What a sender has handed in, to whichever of several nodes, and is not settled.

use std::sync::Arc;

use gatepost_core::principal::{Actor, ActorKind};
use gatepost_store::{AcceptError, QueueSetup};

use crate::check::assert_sound;
use crate::fixture::{DELIVERED, Fixture, app, inbox, message, quick, sender, until};
use crate::nodes::beside;

const MOST: u64 = 6;

async fn two(limit: u64) -> (Fixture, Fixture) {
    let one = Fixture::new(vec![inbox("in", quick()), sender(&app(), limit, u64::MAX)]).await;
    let other = beside(&one.place, "node-2").open().await.unwrap();
    (one, other)
}

/// Whether it was taken; another refusal than the sender's is a failure.
async fn taken(node: &Fixture, id: &str) -> bool {
    match node.accept(vec![message(id, None, "xy", &["in"])]).await {
        Ok(accepted) => !accepted[0].duplicate,
        Err(AcceptError::SenderFull(_)) => false,
        Err(error) => panic!("{id}: {error:?}"),
    }
}

async fn until_backlog(node: &Fixture, deliveries: u64) {
    let what = format!("{deliveries} are not settled");
    until(&what, async || node.backlog(&app()) == (deliveries, 2 * deliveries)).await;
}

async fn settle_one(node: &Fixture) {
    let leased = node.lease_in_time("in", 0, 1).await;
    node.taken("in", 0, &leased[0], DELIVERED).await;
}

#[tokio::test]
async fn what_is_handed_to_one_node_stands_against_its_sender_on_the_other() {
    let (one, other) = two(MOST).await;
    for n in 0..3 {
        assert!(taken(&one, &format!("one-{n}")).await);
    }
    until_backlog(&other, 3).await;
    for n in 0..3 {
        assert!(taken(&other, &format!("other-{n}")).await);
    }
    assert!(!taken(&other, "too many").await);
    until_backlog(&one, MOST).await;
    assert!(!taken(&one, "too many").await);
    // What is handed in again at another node is answered as the first time.
    let again = other.accept(vec![message("one-0", None, "xy", &["in"])]).await.unwrap();
    assert!(again[0].duplicate);
    settle_one(&other).await;
    until_backlog(&one, MOST - 1).await;
    assert!(taken(&one, "there is room").await);
    assert!(!taken(&one, "and no more").await);
    let (one, other) = (one.stop().await, other.stop().await);
    assert_sound(&one, "two nodes").await;
    drop(other);
}

#[tokio::test]
async fn a_node_that_dies_leaves_what_it_has_counted() {
    let (one, other) = two(MOST).await;
    for n in 0..4 {
        assert!(taken(&one, &n.to_string()).await);
    }
    until_backlog(&other, 4).await;
    settle_one(&other).await;
    let place = one.crash().await;
    until("its place is taken", async || other.store.read().nodes().await.unwrap().len() == 1).await;
    assert_eq!(other.backlog(&app()), (3, 6));
    for n in 4..7 {
        assert!(taken(&other, &n.to_string()).await);
    }
    assert!(!taken(&other, "too many").await);
    let back = place.open().await.unwrap();
    until_backlog(&back, MOST).await;
    assert!(!taken(&back, "too many").await);
    drop(back.stop().await);
    assert_sound(&other.stop().await, "one has died").await;
}

#[tokio::test]
async fn both_nodes_are_filled_at_once_and_killed_and_the_counts_are_those_of_the_rows() {
    let (one, other) = two(40).await;
    let nodes = [Arc::new(one), Arc::new(other)];
    let tasks: Vec<_> = (0..60)
        .map(|n| {
            let node = Arc::clone(&nodes[n % 2]);
            tokio::spawn(async move {
                drop(node.accept(vec![message(&n.to_string(), None, "xy", &["in"])]).await)
            })
        })
        .collect();
    until("some are taken", async || nodes.iter().any(|node| node.backlog(&app()).0 > 0)).await;
    for task in tasks {
        task.abort();
        drop(task.await);
    }
    let [one, other] = nodes.map(|node| Arc::try_unwrap(node).ok().expect("nobody else has it"));
    let place = one.crash().await;
    drop(other.crash().await);
    assert_sound(&place, "both killed").await;
    let alone = place.open().await.unwrap();
    let mut open = alone.backlog(&app()).0;
    assert!(open > 0);
    while taken(&alone, &format!("after-{open}")).await {
        open += 1;
    }
    assert!(open >= 40, "{open}");
    assert_sound(&alone.stop().await, "filled").await;
}

/// A configuration comes to one node before the other: until then that one knows the new sender by its number only.
#[tokio::test]
async fn a_sender_that_one_node_does_not_know_yet_is_counted_by_it_too() {
    let (mut one, other) = two(MOST).await;
    let mut queues = one.place.queues.clone();
    for n in 0..12 {
        let new = Actor::new(ActorKind::App, format!("new-{n}"));
        queues.push(sender(&new, 1, u64::MAX));
        one.configure(queues.clone()).await;
        let of = |id: &str| vec![message(&format!("{n}-{id}"), None, "xy", &["in"])];
        one.accept_from(&new, of("a")).await.unwrap();
        settle_one(&other).await;
        until("its end is seen", async || one.backlog(&new) == (0, 0)).await;
        one.accept_from(&new, of("b")).await.unwrap();
        let full = one.accept_from(&new, of("c")).await;
        assert!(matches!(full, Err(AcceptError::SenderFull(_))), "{full:?}");
        settle_one(&other).await;
        until("its end is seen", async || one.backlog(&new) == (0, 0)).await;
    }
    let last = queues.pop().map(|setup: QueueSetup| setup.name).unwrap();
    until("the other knows them by name", async || {
        other.store.health().senders().iter().any(|row| row.sender == last)
    })
    .await;
    let (one, other) = (one.stop().await, other.stop().await);
    assert_sound(&one, "new senders").await;
    drop(other);
}
