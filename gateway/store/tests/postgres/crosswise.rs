//! Two nodes that do the same things at the same time: neither waits for the other while that one waits for it. PostgreSQL would end
//! that after a second, in which both nodes stand still.

use std::time::Duration;

use gatepost_core::{OnDoubt, Outcome, QueuePolicy, RetryPolicy, RetryScope};

use crate::check::postgres::number;
use crate::elsewhere::suspects;
use crate::fixture::{
    BEGIN, DELIVERED, Fixture, TROUBLE, doubting, external, inbox, item, message, quick, until,
};
use crate::nodes::{assert_both_sound, consumed, two, url};
use crate::reads::OTHERS;

const DEADLOCKS: &str = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
async fn assert_no_deadlock(one: Fixture, other: Fixture) {
    let place = one.place.clone();
    assert_both_sound(one, other).await;
    until("all have gone", async || number(url(&place), OTHERS).await == 0).await;
    assert_eq!(number(url(&place), DEADLOCKS).await, 0);
}

/// Of many deliveries each node changes the rows in some order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_settle_the_same_deliveries_do_not_wait_for_each_other() {
    const DELIVERIES: u32 = 100;
    let policy = doubting(OnDoubt::Hold);
    let policy = QueuePolicy { retry: RetryPolicy { attempts: 100, ..policy.retry }, ..policy };
    let (one, other) = two(vec![inbox("in", policy)]).await;
    let _consumed = consumed(&[(&one, "in", 0)]).await;
    let messages = (0..DELIVERIES).map(|number| message(&number.to_string(), None, "x", &["in"]));
    one.accept(messages.collect()).await.unwrap();
    for round in 0..6 {
        let mut leased = Vec::new();
        while leased.len() < DELIVERIES as usize {
            leased.extend(one.lease_in_time("in", 0, DELIVERIES).await);
        }
        // In one call, and in a transaction.
        for outcome in [BEGIN, Outcome::Retry { after: Some(Duration::ZERO), scope: RetryScope::Message }] {
            let items = || leased.iter().map(|leased| item(leased, outcome)).collect();
            let settle = async |node: &Fixture| {
                let answer = node.store.delivery_settle(node.settling("in", 0, items())).await.unwrap();
                assert!(answer.items.iter().all(|item| item.ok), "round {round}, {outcome:?}");
            };
            tokio::join!(settle(&one), settle(&other));
        }
    }
    assert_no_deadlock(one, other).await;
}

/// Who gives a suspect out holds the queue's row, which all who work in its session share.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_lease_suspects_do_not_wait_for_each_other() {
    let (one, other) = two(vec![external("lab", quick())]).await;
    suspects(&one, &other).await;
    let session = one.session("lab").await;
    let mut delivered = 0;
    while delivered < 20 {
        let (first, second) = tokio::join!(one.lease("lab", session, 5), other.lease("lab", session, 5));
        assert!(first.len() + second.len() <= 1, "one goes alone");
        for (node, leased) in
            first.iter().map(|leased| (&other, leased)).chain(second.iter().map(|leased| (&one, leased)))
        {
            node.taken("lab", session, leased, DELIVERED).await;
            delivered += 1;
        }
    }
    assert_no_deadlock(one, other).await;
}

/// Who settles in a session shares the row that the breaker changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_trip_a_breaker_do_not_wait_for_each_other() {
    let names: Vec<String> = (0..12).map(|number| format!("lab-{number}")).collect();
    let (one, other) = two(names.iter().map(|name| external(name, quick())).collect()).await;
    for name in &names {
        let session = one.session(name).await;
        for id in ["1", "2"] {
            one.send(&format!("{name}-{id}"), None, name).await;
        }
        let mut leased = Vec::new();
        while leased.len() < 2 {
            leased.extend(one.lease_in_time(name, session, 2).await);
        }
        until("the other knows the session", async || {
            other.store.delivery_lease(other.request(name, session, 1)).await.is_ok()
        })
        .await;
        tokio::join!(
            one.taken(name, session, &leased[0], TROUBLE),
            other.taken(name, session, &leased[1], TROUBLE)
        );
        assert!(one.stats(name).await.tripped.is_some());
    }
    assert_no_deadlock(one, other).await;
}
