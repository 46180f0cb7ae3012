//! What a consumer, an adapter or an operator has done at one node holds at the next at once, whatever that one remembers.

use gatepost_core::{OnDoubt, Outcome, QueuePolicy};
use gatepost_store::{LeaseRequest, QueueSetup, SessionEnd, Sessions, Verb};

use crate::check::postgres::number;
use crate::fixture::{
    AWAY, BEGIN, DELIVERED, Fixture, RETRY, TROUBLE, doubting, external, inbox, item, keyed, queue, quick,
    texts, until,
};
use crate::nodes::{assert_both_sound, consumed, two, url};

/// Waits until each node has buckets of a queue of which nothing is ready.
pub(crate) async fn both_consume(one: &Fixture, other: &Fixture, name: &str, session: u64) {
    until("both have their part", async || {
        assert!(one.lease(name, session, 1).await.is_empty());
        assert!(other.lease(name, session, 1).await.is_empty());
        let nodes = one.store.read().nodes().await.unwrap();
        nodes.iter().all(|node| node.shares.iter().any(|(of, share)| of == name && *share > 0))
    })
    .await;
}

/// Twenty deliveries of `lab` that were leased, at whichever node, when their session ended: the next has them one at a time.
pub(crate) async fn suspects(one: &Fixture, other: &Fixture) {
    let session = one.session("lab").await;
    both_consume(one, other, "lab", session).await;
    for number in 0..20 {
        one.send(&number.to_string(), None, "lab").await;
    }
    let mut leased = 0;
    while leased < 20 {
        leased += one.lease("lab", session, 20).await.len() + other.lease("lab", session, 20).await.len();
    }
}

#[tokio::test]
async fn what_is_begun_at_one_node_is_delivered_at_the_other() {
    let (one, other) = two(vec![inbox("in", doubting(OnDoubt::Hold))]).await;
    let delivery = one.send("1", Some("a"), "in").await;
    let leased = one.lease_in_time("in", 0, 1).await.remove(0);
    other.taken("in", 0, &leased, BEGIN).await;
    one.taken("in", 0, &leased, DELIVERED).await;
    assert_eq!(other.state(delivery).await, "delivered");
    assert_both_sound(one, other).await;
}

/// The other node remembers the lease before.
#[tokio::test]
async fn a_newer_lease_of_the_same_delivery_is_good_at_every_node() {
    let (one, other) = two(vec![inbox("in", doubting(OnDoubt::Hold))]).await;
    one.send("1", Some("a"), "in").await;
    let first = one.lease_in_time("in", 0, 1).await.remove(0);
    other.taken("in", 0, &first, BEGIN).await;
    one.taken("in", 0, &first, RETRY).await;
    let second = one.lease_in_time("in", 0, 1).await.remove(0);
    other.stale("in", 0, &first, BEGIN).await;
    other.taken("in", 0, &second, BEGIN).await;
    other.taken("in", 0, &second, DELIVERED).await;
    assert_both_sound(one, other).await;
}

/// The other node remembers it as begun.
#[tokio::test]
async fn an_operator_is_believed_at_every_node() {
    let (one, other) = two(vec![inbox("in", doubting(OnDoubt::Hold))]).await;
    let delivery = one.send("1", Some("a"), "in").await;
    let leased = one.lease_in_time("in", 0, 1).await.remove(0);
    other.taken("in", 0, &leased, BEGIN).await;
    one.taken("in", 0, &leased, Outcome::Reject).await;
    other.operate(delivery, Verb::Replay).await.unwrap();
    let again = one.lease_in_time("in", 0, 1).await.remove(0);
    assert!(again.replayed);
    assert_both_sound(one, other).await;
}

#[tokio::test]
async fn a_session_is_good_at_every_node_as_soon_as_it_is_open() {
    let (one, other) = two(vec![external("lab", doubting(OnDoubt::Hold))]).await;
    let session = one.session("lab").await;
    let _consumed = consumed(&[(&one, "lab", session)]).await;
    one.send("1", None, "lab").await;
    for _ in 0..3 {
        let session = other.session("lab").await;
        let leased = one.lease_in_time("lab", session, 1).await.remove(0);
        let session = other.session("lab").await;
        let settling = one.settling("lab", session, vec![item(&leased, BEGIN)]);
        let answer = one.store.delivery_settle(settling).await.expect("this is the newest session");
        assert!(!answer.items[0].ok, "its lease was taken back");
    }
    assert_both_sound(one, other).await;
}

/// Whoever dies while it is leased, it was that one.
#[tokio::test]
async fn a_suspect_is_alone_on_all_nodes() {
    let (one, other) = two(vec![external("lab", quick())]).await;
    suspects(&one, &other).await;
    let session = one.session("lab").await;
    for round in 0..6 {
        let (node, second) = if round % 2 == 0 { (&one, &other) } else { (&other, &one) };
        let suspect = node.lease_in_time("lab", session, 5).await;
        assert_eq!(suspect.len(), 1, "round {round}");
        assert!(second.lease("lab", session, 5).await.is_empty(), "round {round}");
        second.taken("lab", session, &suspect[0], DELIVERED).await;
    }
    assert_both_sound(one, other).await;
}

/// Not even what is no suspect goes beside it.
#[tokio::test]
async fn while_a_suspect_is_leased_no_other_node_leases_anything() {
    let (one, other) = two(vec![external("lab", quick())]).await;
    let session = one.session("lab").await;
    both_consume(&one, &other, "lab", session).await;
    one.send("suspect", None, "lab").await;
    let either = async |session| {
        for node in [&one, &other].into_iter().cycle() {
            if let Some(leased) = node.lease("lab", session, 1).await.pop() {
                return leased;
            }
        }
        unreachable!("it goes on for ever")
    };
    either(session).await;
    let session = one.session("lab").await;
    let suspect = either(session).await;
    for number in 0..20 {
        one.send(&number.to_string(), None, "lab").await;
    }
    for node in [&one, &other] {
        assert!(node.lease("lab", session, 5).await.is_empty());
    }
    one.taken("lab", session, &suspect, DELIVERED).await;
    for node in [&one, &other] {
        assert!(!node.lease_in_time("lab", session, 20).await.is_empty());
    }
    assert_both_sound(one, other).await;
}

#[tokio::test]
async fn the_breaker_goes_on_whichever_node_its_probe_is_settled_at() {
    let (one, other) = two(vec![inbox("in", quick())]).await;
    for number in 0..3 {
        one.send(&number.to_string(), None, "in").await;
    }
    let first = one.lease_in_time("in", 0, 1).await.remove(0);
    one.taken("in", 0, &first, TROUBLE).await;
    // One whose failure counts, one that is lost, and one that closes it.
    for outcome in [TROUBLE, Outcome::Release, DELIVERED] {
        until("both know", async || other.stats("in").await.tripped.is_some()).await;
        let probe = one.lease_in_time("in", 0, 5).await;
        assert_eq!(probe.len(), 1, "{outcome:?}");
        assert!(one.lease("in", 0, 5).await.is_empty(), "{outcome:?}");
        other.taken("in", 0, &probe[0], outcome).await;
    }
    until("the rest is leased at once", async || one.lease("in", 0, 5).await.len() == 2).await;
    assert_both_sound(one, other).await;
}

#[tokio::test]
async fn the_breaker_lets_one_probe_through_on_all_nodes() {
    let (one, other) = two(vec![inbox("in", quick())]).await;
    both_consume(&one, &other, "in", 0).await;
    for number in 0..20 {
        one.send(&number.to_string(), None, "in").await;
    }
    let first = one.lease_in_time("in", 0, 1).await.remove(0);
    one.taken("in", 0, &first, TROUBLE).await;
    until("both know", async || other.stats("in").await.tripped.is_some()).await;
    for (node, second) in [(&one, &other), (&other, &one)] {
        let probe = node.lease_in_time("in", 0, 5).await;
        assert_eq!(probe.len(), 1);
        assert!(second.lease("in", 0, 5).await.is_empty());
        node.taken("in", 0, &probe[0], TROUBLE).await;
    }
    assert_both_sound(one, other).await;
}

/// Of a lease that is given in the old session just now.
#[tokio::test]
async fn a_session_that_opens_elsewhere_leaves_no_lease_to_the_one_before() {
    let (one, other) = two(vec![external("lab", doubting(OnDoubt::Query))]).await;
    for number in 0..30 {
        one.send(&number.to_string(), Some(&number.to_string()), "lab").await;
    }
    let mut session = one.session("lab").await;
    for round in 0..20 {
        let request = one.request("lab", session, 20);
        let (leased, next) = tokio::join!(one.try_lease(request), other.session("lab"));
        session = next;
        let left =
            "SELECT count(*) FROM delivery WHERE session < (SELECT session FROM queue WHERE name = 'lab')";
        let left = number(url(&one.place), left).await;
        assert_eq!(left, 0, "round {round}: {:?}", leased.map(|leased| leased.deliveries.len()));
    }
    assert_both_sound(one, other).await;
}

/// A node's own session would have woken it.
#[tokio::test]
async fn a_session_wakes_what_its_own_node_has_put_away() {
    let each = QueueSetup { sessions: Sessions::OfNode, ..queue("each", keyed()) };
    let once = external("once", keyed());
    let (one, other) = two(vec![each, once]).await;
    for (name, wakes_others) in [("each", false), ("once", true)] {
        let session = one.session(name).await;
        let delivery = one.send(name, Some("a"), name).await;
        let leased = one.lease_in_time(name, session, 1).await.remove(0);
        one.taken(name, session, &leased, AWAY).await;
        let due = one.row(delivery).await.due;
        other.session(name).await;
        assert_eq!(one.row(delivery).await.due < due, wakes_others, "{name}");
        one.session(name).await;
        assert!(one.row(delivery).await.due < due, "{name}");
    }
    assert_both_sound(one, other).await;
}

/// Where each node has a session of its own, another's leases are not this one's to end.
#[tokio::test]
async fn what_one_nodes_adapter_dies_of_ends_no_lease_of_another() {
    let each = QueueSetup { sessions: Sessions::OfNode, ..queue("each", doubting(OnDoubt::Hold)) };
    let (one, other) = two(vec![each]).await;
    let (mut session, others) = (one.session("each").await, other.session("each").await);
    let _consumed = consumed(&[(&one, "each", session), (&other, "each", others)]).await;
    for number in 0..20 {
        one.send(&number.to_string(), None, "each").await;
    }
    let held = other.lease_in_time("each", others, 1).await.remove(0);
    assert!(!one.lease_in_time("each", session, 3).await.is_empty());
    one.store.session_end("each".into(), SessionEnd::Crashed).await.unwrap();
    session = one.session("each").await;
    // What is suspect is ready, and waits until nothing else is leased.
    assert!(one.lease("each", session, 1).await.is_empty());
    one.store.session_end("each".into(), SessionEnd::Crashed).await.unwrap();
    session = one.session("each").await;
    other.taken("each", others, &held, BEGIN).await;
    other.taken("each", others, &held, DELIVERED).await;
    let suspect = one.lease_in_time("each", session, 5).await;
    assert_eq!(suspect.len(), 1);
    assert_both_sound(one, other).await;
}

/// The node that is asked again remembers what it gave out the first time.
#[tokio::test]
async fn what_was_taken_back_elsewhere_is_not_given_again_to_the_same_request() {
    let policy = QueuePolicy { window: 4, ..doubting(OnDoubt::Resend) };
    let (one, other) = two(vec![inbox("in", policy)]).await;
    for number in 0..4 {
        one.send(&number.to_string(), Some("a"), "in").await;
    }
    let first = one.lease_in_time("in", 0, 1).await.remove(0);
    let asked = || LeaseRequest { request_id: Some("again".into()), ..one.request("in", 0, 2) };
    let behind = one.try_lease(asked()).await.unwrap().deliveries;
    assert_eq!(texts(&behind), ["1", "2"]);
    other.taken("in", 0, &first, AWAY).await;
    assert_eq!(other.state(behind[0].delivery).await, "waiting");
    assert_eq!(texts(&one.try_lease(asked()).await.unwrap().deliveries), [""; 0]);
    assert_both_sound(one, other).await;
}
