//! Deliveries that are ordered by two keys: they stand in two lanes, go once they are the first in both, and all behind them in either
//! waits.

use gatepost_core::{DeliveryId, OnDead, OnDoubt, Order, Outcome, QueuePolicy, Resolution};
use gatepost_store::{MoveError, Moved, SessionEnd, Verb};

use crate::check::{assert_log, assert_sound};
use crate::fixture::{
    BEGIN, DELIVERED, Fixture, RETRY_LATER, SENT, doubting, keyed, merge, message, operator, queue, quick,
    texts, until,
};

async fn with(policy: QueuePolicy) -> (Fixture, u64) {
    let fixture = Fixture::new(vec![queue("lab", policy)]).await;
    let session = fixture.session("lab").await;
    (fixture, session)
}

/// What may be leased now, as soon as anything may be, and given back.
async fn ready(fixture: &Fixture, session: u64) -> Vec<String> {
    let leased = fixture.lease_in_time("lab", session, 20).await;
    for one in &leased {
        fixture.taken("lab", session, one, Outcome::Release).await;
    }
    let mut names = texts(&leased);
    names.sort();
    names
}

async fn nothing_is_ready(fixture: &Fixture, session: u64) {
    // Longer than a node of several takes to look after its lanes.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert!(fixture.lease("lab", session, 20).await.is_empty());
}

/// Leases the one that must be the only one, and settles it.
async fn only(fixture: &Fixture, session: u64, name: &str, outcome: Outcome) {
    let leased = fixture.lease_in_time("lab", session, 20).await;
    assert_eq!(texts(&leased), [name]);
    fixture.taken("lab", session, &leased[0], outcome).await;
}

async fn end(fixture: Fixture, context: &str) {
    let place = fixture.stop().await;
    assert_sound(&place, context).await;
    assert_log(&place, context).await;
}

#[tokio::test]
async fn a_merge_waits_for_all_before_it_in_both_lanes_and_all_behind_it_wait() {
    let (fixture, session) = with(keyed()).await;
    fixture.send("a1", Some("a"), "lab").await;
    fixture.send("b1", Some("b"), "lab").await;
    fixture.merge("a+b", ["a", "b"], "lab").await;
    fixture.send("a2", Some("a"), "lab").await;
    fixture.send("b2", Some("b"), "lab").await;
    fixture.send("c1", Some("c"), "lab").await;
    let leased = fixture.lease("lab", session, 20).await;
    assert_eq!(texts(&leased), ["a1", "b1", "c1"]);
    fixture.taken("lab", session, &leased[2], DELIVERED).await;
    fixture.taken("lab", session, &leased[0], DELIVERED).await;
    nothing_is_ready(&fixture, session).await;
    fixture.taken("lab", session, &leased[1], DELIVERED).await;
    let merge = fixture.lease_in_time("lab", session, 20).await;
    assert_eq!(texts(&merge), ["a+b"]);
    nothing_is_ready(&fixture, session).await;
    fixture.taken("lab", session, &merge[0], DELIVERED).await;
    assert_eq!(ready(&fixture, session).await, ["a2", "b2"]);
    end(fixture, "a merge").await;
}

/// What ends in one settle ends in one commit, whose own statement cannot see both.
#[tokio::test]
async fn a_merge_is_found_when_both_before_it_end_at_once() {
    let (fixture, session) = with(keyed()).await;
    for (id, key) in [("a1", "a"), ("b1", "b")] {
        fixture.send(id, Some(key), "lab").await;
    }
    fixture.merge("a+b", ["a", "b"], "lab").await;
    fixture.send("a2", Some("a"), "lab").await;
    let leased = fixture.lease("lab", session, 20).await;
    let items = leased.iter().map(|leased| crate::fixture::item(leased, DELIVERED)).collect();
    fixture.store.delivery_settle(fixture.settling("lab", session, items)).await.unwrap();
    only(&fixture, session, "a+b", DELIVERED).await;
    only(&fixture, session, "a2", DELIVERED).await;
    end(fixture, "both at once").await;
}

#[tokio::test]
async fn a_merge_into_empty_lanes_goes_at_once_and_one_batch_keeps_its_order() {
    let (fixture, session) = with(keyed()).await;
    let batch = vec![
        merge("a+b", ["a", "b"], &["lab"]),
        message("b1", Some("b"), "b1", &["lab"]),
        merge("c+b", ["c", "b"], &["lab"]),
        message("c1", Some("c"), "c1", &["lab"]),
    ];
    fixture.accept(batch).await.unwrap();
    for name in ["a+b", "b1", "c+b", "c1"] {
        only(&fixture, session, name, DELIVERED).await;
    }
    end(fixture, "empty lanes").await;
}

/// Crosswise, and round in a ring: who was accepted first goes first.
#[tokio::test]
async fn merges_that_wait_for_each_other_in_a_ring_do_not_stand_still() {
    let (fixture, session) = with(keyed()).await;
    let pairs = [["a", "b"], ["b", "a"], ["b", "c"], ["c", "a"], ["a", "b"]];
    let name = |number: usize| format!("{number}:{}", pairs[number].join("+"));
    for (number, pair) in pairs.into_iter().enumerate() {
        fixture.merge(&name(number), pair, "lab").await;
    }
    for number in 0..pairs.len() {
        only(&fixture, session, &name(number), DELIVERED).await;
    }
    end(fixture, "a ring").await;
}

#[tokio::test]
async fn a_merge_in_backoff_in_doubt_or_dead_holds_both_lanes_as_a_head_does() {
    let policy = QueuePolicy { on_dead: OnDead::HoldLane, ..doubting(OnDoubt::Hold) };
    let (fixture, session) = with(policy).await;
    let first = fixture.merge("a+b", ["a", "b"], "lab").await;
    fixture.send("a1", Some("a"), "lab").await;
    fixture.send("b1", Some("b"), "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    fixture.taken("lab", session, &leased, BEGIN).await;
    fixture.taken("lab", session, &leased, Outcome::InDoubt).await;
    nothing_is_ready(&fixture, session).await;
    assert_eq!(fixture.stats("lab").await.held_lanes, 1, "it counts once: one delivery is to be decided on");
    fixture.resolve(first, Resolution::Retry).await;
    let leased = fixture.lease_in_time("lab", session, 20).await;
    assert_eq!(texts(&leased), ["a+b"]);
    fixture.taken("lab", session, &leased[0], BEGIN).await;
    assert_eq!(fixture.taken("lab", session, &leased[0], Outcome::Reject).await, "dead");
    nothing_is_ready(&fixture, session).await;
    fixture.operate(first, Verb::Replay).await.unwrap();
    let leased = fixture.lease_in_time("lab", session, 20).await;
    assert_eq!(texts(&leased), ["a+b"], "it has kept its place in both");
    fixture.taken("lab", session, &leased[0], BEGIN).await;
    fixture.taken("lab", session, &leased[0], Outcome::Reject).await;
    fixture.operate(first, Verb::Discard).await.unwrap();
    assert_eq!(ready(&fixture, session).await, ["a1", "b1"]);
    end(fixture, "held").await;
}

#[tokio::test]
async fn a_dead_merge_that_holds_nothing_lets_both_lanes_go_on_and_is_replayed_beside_them() {
    let (fixture, session) = with(keyed()).await;
    let first = fixture.merge("a+b", ["a", "b"], "lab").await;
    fixture.send("a1", Some("a"), "lab").await;
    fixture.send("b1", Some("b"), "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    fixture.taken("lab", session, &leased, Outcome::Reject).await;
    assert_eq!(ready(&fixture, session).await, ["a1", "b1"]);
    assert!(fixture.operate(first, Verb::Replay).await.unwrap().replayed);
    assert_eq!(ready(&fixture, session).await, ["a+b", "a1", "b1"]);
    end(fixture, "replayed beside").await;
}

#[tokio::test]
async fn a_merge_that_expires_releases_both_lanes() {
    let (fixture, session) = with(keyed()).await;
    fixture.send("a1", Some("a"), "lab").await;
    let head = fixture.lease_one("lab", session).await;
    let soon = gatepost_core::Timestamp::from_micros(head.message.accepted_at.as_micros() + 300_000);
    let expiring =
        gatepost_core::message::NewMessage { expires_at: Some(soon), ..merge("a+b", ["a", "b"], &["lab"]) };
    let expired = fixture.accept(vec![expiring]).await.unwrap()[0].deliveries[0].id;
    fixture.send("b1", Some("b"), "lab").await;
    fixture.until_state(expired, "expired").await;
    only(&fixture, session, "b1", DELIVERED).await;
    fixture.taken("lab", session, &head, DELIVERED).await;
    end(fixture, "expired").await;
}

#[tokio::test]
async fn r13_4_a_merge_goes_alone_where_several_of_a_lane_are_leased_at_a_time() {
    let (fixture, session) = with(QueuePolicy { window: 3, ..doubting(OnDoubt::Hold) }).await;
    for id in ["a1", "a2"] {
        fixture.send(id, Some("a"), "lab").await;
    }
    fixture.send("b1", Some("b"), "lab").await;
    fixture.merge("a+b", ["a", "b"], "lab").await;
    for (id, key) in [("a3", "a"), ("a4", "a"), ("b2", "b")] {
        fixture.send(id, Some(key), "lab").await;
    }
    let leased = fixture.lease("lab", session, 20).await;
    assert_eq!(texts(&leased), ["a1", "a2", "b1"], "the window ends before it");
    for one in &leased {
        nothing_is_ready(&fixture, session).await;
        fixture.taken("lab", session, one, BEGIN).await;
        fixture.taken("lab", session, one, DELIVERED).await;
    }
    let merge = fixture.lease_in_time("lab", session, 20).await;
    assert_eq!(texts(&merge), ["a+b"], "and nothing goes with it");
    fixture.taken("lab", session, &merge[0], BEGIN).await;
    fixture.taken("lab", session, &merge[0], SENT).await;
    nothing_is_ready(&fixture, session).await;
    fixture.taken("lab", session, &merge[0], DELIVERED).await;
    let mut rest = texts(&fixture.lease_in_time("lab", session, 20).await);
    rest.sort();
    assert_eq!(rest, ["a3", "a4", "b2"]);
    end(fixture, "a window").await;
}

/// It goes back behind nobody, and those that had gone on with the session that died are found again.
#[tokio::test]
async fn a_merge_whose_session_dies_is_the_first_of_both_lanes_again() {
    let (fixture, session) = with(QueuePolicy { window: 3, ..keyed() }).await;
    fixture.merge("a+b", ["a", "b"], "lab").await;
    fixture.send("a1", Some("a"), "lab").await;
    fixture.send("b1", Some("b"), "lab").await;
    fixture.lease_one("lab", session).await;
    fixture.store.session_end("lab".into(), SessionEnd::Crashed).await.unwrap();
    let session = fixture.session("lab").await;
    only(&fixture, session, "a+b", DELIVERED).await;
    assert_eq!(ready(&fixture, session).await, ["a1", "b1"]);
    end(fixture, "a dead session").await;
}

#[tokio::test]
async fn lanes_and_merges_outlive_a_kill() {
    let (fixture, session) = with(keyed()).await;
    fixture.send("a1", Some("a"), "lab").await;
    fixture.merge("a+b", ["a", "b"], "lab").await;
    fixture.send("b1", Some("b"), "lab").await;
    fixture.lease_one("lab", session).await;
    let place = fixture.crash().await;
    assert_sound(&place, "after the kill").await;
    let fixture = place.open().await.unwrap();
    let session = fixture.session("lab").await;
    for name in ["a1", "a+b", "b1"] {
        only(&fixture, session, name, DELIVERED).await;
    }
    end(fixture, "after a kill").await;
}

#[tokio::test]
async fn with_equal_keys_or_one_or_without_order_by_key_it_is_as_if_there_were_one() {
    let strict = QueuePolicy { order: Order::Strict, ..quick() };
    let windowed = QueuePolicy { window: 2, ..keyed() };
    let queues = [("lab", keyed()), ("none", quick()), ("strict", strict), ("window", windowed)];
    let fixture = Fixture::new(queues.map(|(name, policy)| queue(name, policy)).into()).await;
    let lab = fixture.session("lab").await;
    let only_second =
        gatepost_core::message::NewMessage { partition_key: None, ..merge("-+a", ["-", "a"], &["lab"]) };
    fixture.accept(vec![merge("a+a", ["a", "a"], &["lab"]), only_second]).await.unwrap();
    only(&fixture, lab, "a+a", DELIVERED).await;
    only(&fixture, lab, "-+a", DELIVERED).await;
    for destination in ["none", "strict", "window"] {
        for id in ["1", "2"] {
            let id = format!("{destination}{id}");
            fixture
                .accept(vec![merge(
                    &id,
                    ["a", if destination == "window" { "a" } else { "b" }],
                    &[destination],
                )])
                .await
                .unwrap();
        }
    }
    let (none, strict, window) =
        (fixture.session("none").await, fixture.session("strict").await, fixture.session("window").await);
    assert_eq!(texts(&fixture.lease("none", none, 5).await), ["none1", "none2"]);
    assert_eq!(texts(&fixture.lease("strict", strict, 5).await), ["strict1"]);
    assert_eq!(texts(&fixture.lease("window", window, 5).await), ["window1", "window2"]);
    end(fixture, "one lane").await;
}

async fn step(fixture: &Fixture, after: i64) -> Result<Moved, MoveError> {
    let reason = "the partner has moved".to_owned();
    fixture.store.deliveries_move(&operator(), "old".into(), "lab".into(), after, reason).await
}

async fn two_queues(policy: QueuePolicy) -> (Fixture, [u64; 2]) {
    let fixture = Fixture::new(vec![queue("old", policy), queue("lab", policy)]).await;
    let sessions = [fixture.session("old").await, fixture.session("lab").await];
    (fixture, sessions)
}

#[tokio::test]
async fn a_moved_merge_stands_in_both_lanes_of_the_new_destination_where_it_was_accepted() {
    for window in [1, 3] {
        let (fixture, [_, session]) = two_queues(QueuePolicy { window, ..keyed() }).await;
        let moved = fixture.merge("a+b", ["a", "b"], "old").await;
        fixture.send("a1", Some("a"), "lab").await;
        fixture.merge("c+b", ["c", "b"], "lab").await;
        fixture.send("c1", Some("c"), "lab").await;
        assert_eq!(step(&fixture, 0).await.unwrap().waiting, 1);
        assert_eq!(fixture.row(moved).await.destination, "lab");
        only(&fixture, session, "a+b", DELIVERED).await;
        assert_eq!(ready(&fixture, session).await, ["a1", "c+b"]);
        end(fixture, "moved").await;
    }
}

/// b1 may be with the old partner: so the merge stays, and with it what stands behind it in its other lane.
#[tokio::test]
async fn nothing_is_moved_past_a_merge_that_must_stay() {
    let (fixture, [old, _]) = two_queues(keyed()).await;
    fixture.send("b1", Some("b"), "old").await;
    let b1 = fixture.lease_one("old", old).await;
    let merge = fixture.merge("a+b", ["a", "b"], "old").await;
    let a1 = fixture.send("a1", Some("a"), "old").await;
    let c1 = fixture.send("c1", Some("c"), "old").await;
    let moved = step(&fixture, 0).await.unwrap();
    assert_eq!(moved.waiting, 1);
    let at = async |delivery: DeliveryId| fixture.row(delivery).await.destination;
    assert_eq!(
        (at(merge).await.as_str(), at(a1).await.as_str(), at(c1).await.as_str()),
        ("old", "old", "lab")
    );
    fixture.taken("old", old, &b1, RETRY_LATER).await;
    assert_eq!(step(&fixture, 0).await.unwrap().waiting, 3, "b1 has come back, and all of them go");
    end(fixture, "what must stay").await;
}

#[tokio::test]
async fn a_policy_that_comes_to_hold_leads_a_doubtful_merge_nowhere_and_nobody_past_it() {
    let (mut fixture, session) = with(doubting(OnDoubt::Query)).await;
    fixture.merge("a+b", ["a", "b"], "lab").await;
    fixture.send("b1", Some("b"), "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    fixture.taken("lab", session, &leased, BEGIN).await;
    fixture.taken("lab", session, &leased, Outcome::InDoubt).await;
    fixture.configure(vec![queue("lab", doubting(OnDoubt::Hold))]).await;
    until("it is held", async || {
        fixture.lease("lab", session, 5).await;
        fixture.stats("lab").await.held == 1
    })
    .await;
    nothing_is_ready(&fixture, session).await;
    end(fixture, "held by a new policy").await;
}
