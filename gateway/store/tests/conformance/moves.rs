//! Giving a destination's deliveries to another one: order, doubt, and stopping half way.

use gatepost_core::message::NewMessage;
use gatepost_core::{DeliveryId, OnDead, OnDoubt, Order, Outcome, QueuePolicy, Resolution};
use gatepost_store::{MoveError, Moved, StoreError, Verb};

use crate::check::{assert_log, assert_sound};
use crate::fixture::{
    BEGIN, DELIVERED, Fixture, RETRY, doubting, keyed, message, operator, queue, quick, texts,
};

fn with_key(id: &str, key: &str, destination: &str) -> NewMessage {
    let attributes =
        format!(r#"{{"specversion":"1.0","id":"{id}","source":"/test","type":"t","partitionkey":"{key}"}}"#);
    NewMessage { attributes: attributes.into_bytes(), ..message(id, Some(key), id, &[destination]) }
}

pub(crate) async fn send(fixture: &Fixture, id: &str, key: &str, destination: &str) -> DeliveryId {
    fixture.accept(vec![with_key(id, key, destination)]).await.unwrap()[0].deliveries[0].id
}

async fn step(fixture: &Fixture, from: &str, to: &str, after: i64) -> Result<Moved, MoveError> {
    fixture
        .store
        .deliveries_move(&operator(), from.into(), to.into(), after, "the partner has moved".into())
        .await
}

/// All of it; how many waited and how many were dead.
async fn move_all(fixture: &Fixture, from: &str, to: &str) -> (u64, u64) {
    let (mut waiting, mut dead, mut after) = (0, 0, 0);
    loop {
        let moved = step(fixture, from, to, after).await.unwrap();
        waiting += moved.waiting;
        dead += moved.dead;
        match moved.next {
            Some(next) => after = next,
            None => return (waiting, dead),
        }
    }
}

/// Leases and delivers one by one until there is nothing more; what came, in order.
async fn drain(fixture: &Fixture, name: &str, session: u64) -> Vec<String> {
    let mut came = Vec::new();
    loop {
        let leased = fixture.lease(name, session, 1).await;
        let Some(one) = leased.first() else { return came };
        came.extend(texts(&leased));
        fixture.taken(name, session, one, DELIVERED).await;
    }
}

/// Counts agree with rows, and the log verifies.
async fn end(fixture: Fixture) {
    let place = fixture.stop().await;
    assert_sound(&place, "at the end").await;
    assert_log(&place, "at the end").await;
}

#[tokio::test]
async fn what_was_accepted_first_goes_first_at_the_new_destination_too() {
    let fixture = Fixture::new(vec![queue("old", keyed()), queue("new", keyed())]).await;
    let session = fixture.session("new").await;
    let first = send(&fixture, "a1", "a", "old").await;
    send(&fixture, "b1", "b", "new").await;
    send(&fixture, "a2", "a", "new").await;
    send(&fixture, "a3", "a", "old").await;
    send(&fixture, "b2", "b", "old").await;
    assert_eq!(move_all(&fixture, "old", "new").await, (3, 0));
    assert_eq!(fixture.row(first).await.destination, "new");
    assert_eq!(fixture.events(first).await, ["accepted", "moved"]);
    assert_eq!((fixture.stats("old").await.waiting, fixture.stats("new").await.waiting), (0, 5));
    let heads = fixture.lease("new", session, 10).await;
    assert_eq!(texts(&heads), ["b1", "a1"], "one head per lane, the ready one behind it no longer");
    for head in &heads {
        fixture.taken("new", session, head, DELIVERED).await;
    }
    let came = drain(&fixture, "new", session).await;
    assert_eq!(came, ["a2", "a3", "b2"], "each lane in accept order, and the older due first");
    end(fixture).await;
}

/// It had a delivery to each; both are at one now, and are given out together.
#[tokio::test]
async fn two_deliveries_of_a_message_at_one_destination_are_leased_together() {
    let fixture = Fixture::new(vec![queue("old", quick()), queue("new", quick())]).await;
    let session = fixture.session("new").await;
    fixture.accept(vec![message("m", None, "m", &["old", "new"])]).await.unwrap();
    assert_eq!(move_all(&fixture, "old", "new").await, (1, 0));
    let leased = fixture.lease("new", session, 10).await;
    assert_eq!(texts(&leased), ["m", "m"]);
    for one in &leased {
        fixture.taken("new", session, one, DELIVERED).await;
    }
    end(fixture).await;
}

#[tokio::test]
async fn the_lane_is_the_new_destinations_order() {
    let strict = QueuePolicy { order: Order::Strict, ..quick() };
    let fixture =
        Fixture::new(vec![queue("loose", quick()), queue("keyed", keyed()), queue("strict", strict)]).await;
    let sessions =
        [fixture.session("loose").await, fixture.session("keyed").await, fixture.session("strict").await];
    for (id, key) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
        send(&fixture, id, key, "loose").await;
    }
    move_all(&fixture, "loose", "keyed").await;
    let heads = fixture.lease("keyed", sessions[1], 10).await;
    assert_eq!(texts(&heads), ["a1", "b1"]);
    for head in &heads {
        fixture.taken("keyed", sessions[1], head, Outcome::Release).await;
    }
    move_all(&fixture, "keyed", "strict").await;
    let head = fixture.lease_one("strict", sessions[2]).await;
    assert!(fixture.lease("strict", sessions[2], 10).await.is_empty());
    fixture.taken("strict", sessions[2], &head, Outcome::Release).await;
    move_all(&fixture, "strict", "loose").await;
    assert_eq!(texts(&fixture.lease("loose", sessions[0], 10).await), ["a1", "a2", "b1"]);
    end(fixture).await;
}

/// An extension attribute may be an integer or a boolean; the key is its text then.
#[tokio::test]
async fn keys_that_are_no_strings_are_keys_at_the_new_destination_too() {
    let fixture = Fixture::new(vec![queue("old", keyed()), queue("new", keyed())]).await;
    let session = fixture.session("new").await;
    let send = async |id: &str, keys: [Option<&str>; 2]| {
        let named = ["partitionkey", "barrierkey"].into_iter().zip(keys);
        let named: String = named.filter_map(|(name, key)| Some(format!(r#","{name}":{}"#, key?))).collect();
        let attributes = format!(r#"{{"specversion":"1.0","id":"{id}","source":"/test","type":"t"{named}}}"#);
        let message = NewMessage {
            attributes: attributes.into_bytes(),
            barrier_key: keys[1].map(Into::into),
            ..message(id, keys[0], id, &["old"])
        };
        fixture.accept(vec![message]).await.unwrap();
    };
    send("1", [Some("42"), None]).await;
    send("2", [Some("42"), Some("true")]).await;
    send("3", [Some("true"), None]).await;
    assert_eq!(move_all(&fixture, "old", "new").await, (3, 0));
    for expected in ["1", "2", "3"] {
        let leased = fixture.lease("new", session, 10).await;
        assert_eq!(texts(&leased), [expected]);
        fixture.taken("new", session, &leased[0], DELIVERED).await;
    }
    end(fixture).await;
}

#[tokio::test]
async fn what_a_partner_may_have_stays_and_so_does_what_waits_behind_it() {
    let fixture = Fixture::new(vec![queue("old", doubting(OnDoubt::Hold)), queue("new", keyed())]).await;
    let (old, new) = (fixture.session("old").await, fixture.session("new").await);
    let doubtful = send(&fixture, "d1", "d", "old").await;
    let behind = send(&fixture, "d2", "d", "old").await;
    let out = send(&fixture, "e1", "e", "old").await;
    send(&fixture, "e2", "e", "old").await;
    let free = send(&fixture, "f1", "f", "old").await;
    for leased in fixture.lease("old", old, 2).await {
        fixture.taken("old", old, &leased, BEGIN).await;
        if leased.delivery == doubtful {
            fixture.taken("old", old, &leased, Outcome::InDoubt).await;
        }
    }
    assert_eq!(move_all(&fixture, "old", "new").await, (1, 0));
    assert_eq!(fixture.row(free).await.destination, "new");
    for stays in [doubtful, behind, out] {
        assert_eq!(fixture.row(stays).await.destination, "old");
    }
    // Decided, it goes with the next move, and in front of those it stood in front of.
    fixture.resolve(doubtful, Resolution::Retry).await;
    assert_eq!(move_all(&fixture, "old", "new").await, (2, 0));
    assert_eq!(drain(&fixture, "new", new).await, ["f1", "d1", "d2"]);
    end(fixture).await;
}

#[tokio::test]
async fn dead_ones_stay_dead_for_their_reason_and_are_replayed_where_they_are_now() {
    let holding = QueuePolicy { on_dead: OnDead::HoldLane, ..keyed() };
    let fixture = Fixture::new(vec![queue("old", holding), queue("new", keyed())]).await;
    let (old, new) = (fixture.session("old").await, fixture.session("new").await);
    let dead = send(&fixture, "a1", "a", "old").await;
    send(&fixture, "a2", "a", "old").await;
    let leased = fixture.lease_one("old", old).await;
    fixture.taken("old", old, &leased, Outcome::Reject).await;
    assert_eq!(fixture.stats("old").await.held_lanes, 1);
    assert_eq!(move_all(&fixture, "old", "new").await, (1, 1));
    let row = fixture.row(dead).await;
    assert_eq!((row.destination.as_str(), row.state, row.reason), ("new", "dead", Some("rejected")));
    assert_eq!(fixture.stats("old").await.held_lanes, 0);
    assert_eq!(drain(&fixture, "new", new).await, ["a2"], "the new destination does not hold lanes");
    fixture.operate(dead, Verb::Replay).await.unwrap();
    assert_eq!(drain(&fixture, "new", new).await, ["a1"]);
    end(fixture).await;
}

#[tokio::test]
async fn attempts_at_the_old_partner_do_not_count_at_the_new_one() {
    let fixture = Fixture::new(vec![queue("old", quick()), queue("new", quick())]).await;
    let (old, new) = (fixture.session("old").await, fixture.session("new").await);
    let delivery = send(&fixture, "1", "k", "old").await;
    for _ in 0..2 {
        let leased = fixture.lease_in_time("old", old, 1).await.remove(0);
        fixture.taken("old", old, &leased, RETRY).await;
    }
    move_all(&fixture, "old", "new").await;
    let row = fixture.row(delivery).await;
    assert_eq!((row.attempts, row.series), (0, 1));
    for expected in ["waiting", "waiting", "dead"] {
        let leased = fixture.lease_in_time("new", new, 1).await.remove(0);
        assert_eq!(fixture.taken("new", new, &leased, RETRY).await, expected);
    }
    end(fixture).await;
}

#[tokio::test]
async fn a_move_that_stops_half_way_leaves_everything_somewhere_and_the_rest_follows() {
    const MESSAGES: usize = 700;
    let mut fixture = Fixture::new(vec![queue("old", keyed()), queue("new", keyed())]).await;
    let ids: Vec<String> = (0..MESSAGES).map(|n| format!("{n:04}")).collect();
    for chunk in ids.chunks(100) {
        fixture.accept(chunk.iter().map(|id| with_key(id, "k", "old")).collect()).await.unwrap();
    }
    // The queue has left the configuration meanwhile.
    fixture.configure(vec![queue("new", keyed())]).await;
    let first = step(&fixture, "old", "new", 0).await.unwrap();
    assert!(first.waiting > 0 && first.next.is_some());
    let fixture = fixture.crash().await.open().await.unwrap();
    let both = (fixture.stats("old").await.waiting, fixture.stats("new").await.waiting);
    assert_eq!(both, (MESSAGES as u64 - first.waiting, first.waiting));
    let session = fixture.session("new").await;
    let one = fixture.lease_one("new", session).await;
    fixture.taken("new", session, &one, DELIVERED).await;
    assert_eq!(move_all(&fixture, "old", "new").await, (MESSAGES as u64 - first.waiting, 0));
    assert_eq!(move_all(&fixture, "old", "new").await, (0, 0), "asking again moves nothing twice");
    assert_eq!(drain(&fixture, "new", session).await, ids[1..]);
    end(fixture).await;
}

#[tokio::test]
async fn nothing_goes_where_nobody_serves_and_what_no_route_took_finds_a_home() {
    let mut fixture = Fixture::new(vec![queue("old", quick()), queue("new", quick())]).await;
    let old = fixture.session("old").await;
    fixture.send("1", None, "old").await;
    fixture.configure(vec![queue("new", quick())]).await;
    assert!(matches!(step(&fixture, "new", "old", 0).await, Err(MoveError::NotServed(_))));
    assert!(matches!(step(&fixture, "new", "unrouted", 0).await, Err(MoveError::NotServed(_))));
    assert!(matches!(step(&fixture, "new", "new", 0).await, Err(MoveError::Same(_))));
    let unknown = Err::<Moved, _>(step(&fixture, "new", "nowhere", 0).await.unwrap_err());
    assert!(matches!(unknown, Err(MoveError::Store(StoreError::NoQueue(_)))));
    assert_eq!(old, 1);
    let session = fixture.session("new").await;
    let mut settle = fixture.settling("new", session, Vec::new());
    settle.emit = vec![gatepost_store::Emit {
        message: message("lost", None, "lost", &[]),
        dead: Some(gatepost_core::delivery::Reason::NoRoute),
    }];
    let emitted = fixture.store.delivery_settle(settle).await.unwrap().emitted[0].0;
    assert_eq!(move_all(&fixture, "unrouted", "new").await, (0, 1));
    let detail = fixture.store.read().message_detail(emitted).await.unwrap().unwrap();
    let (row, _) = &detail.deliveries[0];
    assert_eq!((row.destination.as_str(), row.reason), ("new", Some("no_route")));
    fixture.operate(row.id, Verb::Replay).await.unwrap();
    assert_eq!(drain(&fixture, "new", session).await, ["lost"]);
    end(fixture).await;
}
