//! Several nodes on one database: what each promises alone they promise together.

use std::collections::{BTreeSet, HashMap};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gatepost_core::{DeliveryId, OnDoubt, Outcome, QueuePolicy, RetryScope};
use gatepost_store::{
    Database, Emit, LeaseError, Leased, NODE_SHARES, NodeRow, Pause, QueueSetup, Receipt, SettleError, Verb,
};

use sqlx::postgres::PgListener;
use tokio::sync::Notify;

use crate::check::postgres::connect;
use crate::check::{assert_log, assert_sound, entries};
use crate::fixture::{
    BEGIN, DELIVERED, Fixture, Place, RETRY, doubting, external, inbox, item, keyed, message, operator,
    queue, quick, text, until,
};

/// What takes longer hangs. A node's place is taken six seconds after its death, where nothing holds anybody up.
const TAKEOVER: Duration = Duration::from_secs(60);
/// A node's.
const LEASE: Duration = Duration::from_secs(5);

/// Another node of the same gateway: a directory of its own with the same keys.
pub(crate) fn beside(place: &Place, node: &str) -> Place {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("keys")).unwrap();
    for key in ["store.key", "audit.key", "seal-1.key"] {
        std::fs::copy(place.path().join("keys").join(key), dir.path().join("keys").join(key)).unwrap();
    }
    let Database::Postgres { url, .. } = &place.database else {
        unreachable!("these places are PostgreSQL's")
    };
    let database = Database::Postgres {
        url: url.clone(),
        node: node.to_owned(),
        engines: gatepost_store::Engines::Postgres,
    };
    Place { dir: Arc::new(dir), database, ..place.clone() }
}

pub(crate) async fn two(queues: Vec<QueueSetup>) -> (Fixture, Fixture) {
    let one = Fixture::new(queues).await;
    let other = beside(&one.place, "node-2").open().await.unwrap();
    (one, other)
}

pub(crate) fn url(place: &Place) -> &str {
    match &place.database {
        Database::Postgres { url, .. } => url,
        Database::Sqlite => unreachable!("these places are PostgreSQL's"),
    }
}

/// Leases until there is something.
async fn lease(fixture: &Fixture, queue: &str, session: u64, max: u32) -> Vec<Leased> {
    fixture.lease_in_time(queue, session, max).await
}

/// Stops both and looks whether what they leave is sound.
pub(crate) async fn assert_both_sound(one: Fixture, other: Fixture) {
    let (one, other) = (one.stop().await, other.stop().await);
    assert_sound(&one, "both stopped").await;
    // The one that stopped first has not seen all of it.
    assert_log(&one, "the first").await;
    let report = assert_log(&other, "the last").await;
    assert_eq!(report.size, entries(&other).await.len() as u64);
}

#[tokio::test]
async fn what_one_node_accepts_the_other_delivers_in_order() {
    let (one, other) = two(vec![inbox("in", keyed())]).await;
    for number in 0..20 {
        let node = if number % 2 == 0 { &one } else { &other };
        node.send(&number.to_string(), Some("k"), "in").await;
    }
    for number in 0..20 {
        let leased = lease(&other, "in", 0, 5).await;
        assert_eq!(leased.len(), 1, "only the head of a lane");
        assert_eq!(text(&leased[0]), number.to_string());
        other.taken("in", 0, &leased[0], DELIVERED).await;
    }
    assert_both_sound(one, other).await;
}

#[tokio::test]
async fn a_consumer_that_moves_to_another_node_finds_everything_there() {
    let (one, other) = two(vec![inbox("in", keyed())]).await;
    for number in 0..40 {
        one.send(&number.to_string(), Some(&number.to_string()), "in").await;
    }
    let first = lease(&one, "in", 0, 10).await;
    assert_eq!(first.len(), 10);
    let mut seen: BTreeSet<DeliveryId> = first.iter().map(|leased| leased.delivery).collect();
    // What it has leased there it settles here, and with it the rest of each lane goes on here.
    for leased in &first {
        other.taken("in", 0, leased, DELIVERED).await;
    }
    let started = Instant::now();
    while seen.len() < 40 {
        for leased in other.lease("in", 0, 10).await {
            assert!(seen.insert(leased.delivery), "leased twice");
            other.taken("in", 0, &leased, DELIVERED).await;
        }
        assert!(started.elapsed() < TAKEOVER, "{} of 40", seen.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_both_sound(one, other).await;
}

/// The node that has leased it does not know yet.
#[tokio::test]
async fn what_goes_back_at_another_node_is_not_overtaken_within_its_window() {
    let policy = QueuePolicy { window: 8, on_doubt: OnDoubt::Resend, ..keyed() };
    let (one, other) = two(vec![inbox("in", policy)]).await;
    for number in 0..3 {
        one.send(&number.to_string(), Some("a"), "in").await;
    }
    let first = lease(&one, "in", 0, 1).await;
    let back = Outcome::Retry { after: Some(Duration::ZERO), scope: RetryScope::Message };
    other.taken("in", 0, &first[0], back).await;
    let again = lease(&one, "in", 0, 8).await;
    assert_eq!(again.iter().map(text).collect::<Vec<_>>(), ["0", "1", "2"]);
    assert_both_sound(one, other).await;
}

/// The node at which its lane goes back does not know yet.
#[tokio::test]
async fn what_is_begun_at_another_node_stays_so_when_its_lane_goes_back() {
    let policy = QueuePolicy { window: 8, on_doubt: OnDoubt::Resend, ..keyed() };
    let (one, other) = two(vec![inbox("in", policy)]).await;
    for number in 0..2 {
        one.send(&number.to_string(), Some("a"), "in").await;
    }
    let leased = lease(&one, "in", 0, 2).await;
    other.taken("in", 0, &leased[1], Outcome::Begin).await;
    let away = Outcome::Retry { after: Some(Duration::from_secs(3600)), scope: RetryScope::Lane };
    one.taken("in", 0, &leased[0], away).await;
    other.taken("in", 0, &leased[1], DELIVERED).await;
    assert_both_sound(one, other).await;
}

#[tokio::test]
async fn consumers_on_both_nodes_share_a_queue_and_every_lane_keeps_its_order() {
    const LANES: usize = 60;
    const PER_LANE: usize = 5;
    let (one, other) = two(vec![inbox("in", keyed())]).await;
    let (one, other) = (Arc::new(one), Arc::new(other));
    let all = Arc::new(AtomicUsize::new(0));
    let workers = [Arc::clone(&one), Arc::clone(&other)].map(|node| {
        let all = Arc::clone(&all);
        tokio::spawn(async move {
            let (mut done, mut idle_since) = (Vec::new(), Instant::now());
            while !all_done(&all, LANES * PER_LANE, idle_since) {
                let leased = node.lease("in", 0, 8).await;
                for leased in &leased {
                    node.taken("in", 0, leased, DELIVERED).await;
                    done.push((Instant::now(), text(leased)));
                    all.fetch_add(1, Ordering::Relaxed);
                    idle_since = Instant::now();
                }
                if leased.is_empty() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            done
        })
    });
    for number in 0..PER_LANE {
        for lane in 0..LANES {
            let node = if (lane + number) % 2 == 0 { &one } else { &other };
            node.send(&format!("{lane}:{number}"), Some(&lane.to_string()), "in").await;
        }
    }
    let mut done = Vec::new();
    let mut shares = Vec::new();
    for worker in workers {
        let of_worker = worker.await.unwrap();
        shares.push(of_worker.len());
        done.extend(of_worker);
    }
    assert_eq!(done.len(), LANES * PER_LANE, "each once: {shares:?}");
    assert!(shares.iter().all(|share| *share > 0), "both had some: {shares:?}");
    done.sort();
    let mut next: HashMap<String, usize> = HashMap::new();
    for (_, name) in done {
        let (lane, number) = name.split_once(':').unwrap();
        let expected = next.entry(lane.to_owned()).or_default();
        assert_eq!(number.parse::<usize>().unwrap(), *expected, "lane {lane}");
        *expected += 1;
    }
    let [one, other] = [one, other].map(|node| Arc::into_inner(node).unwrap());
    assert_both_sound(one, other).await;
}

/// Whether so many have been had by all nodes together, and nothing too many has come for a while; or nothing has come for far too long.
fn all_done(had: &AtomicUsize, count: usize, idle_since: Instant) -> bool {
    let is_all = had.load(Ordering::Relaxed) >= count;
    idle_since.elapsed() > if is_all { Duration::from_secs(2) } else { TAKEOVER }
}

/// What a node has had of a delivery: when it had leased it, when it began to settle it, and its name.
type Had = (Instant, Instant, String);

/// Two lanes of a merge may belong to two nodes.
#[tokio::test]
async fn merges_keep_the_order_of_both_lanes_whoever_owns_them() {
    const LANES: usize = 12;
    const MESSAGES: usize = 240;
    let (one, other) = two(vec![inbox("in", keyed())]).await;
    let (one, other) = (Arc::new(one), Arc::new(other));
    let all = Arc::new(AtomicUsize::new(0));
    let workers = [Arc::clone(&one), Arc::clone(&other)].map(|node| {
        let all = Arc::clone(&all);
        tokio::spawn(async move {
            let (mut had, mut idle_since): (Vec<Had>, _) = (Vec::new(), Instant::now());
            while !all_done(&all, MESSAGES, idle_since) {
                let leased = node.lease("in", 0, 6).await;
                let leased_at = Instant::now();
                for (number, leased) in leased.iter().enumerate() {
                    // Some go back, and stand where they stood.
                    let goes_back = (had.len() + number) % 7 == 3 && leased.attempt == 1;
                    if !goes_back {
                        had.push((leased_at, Instant::now(), text(leased)));
                        all.fetch_add(1, Ordering::Relaxed);
                    }
                    node.taken("in", 0, leased, if goes_back { RETRY } else { DELIVERED }).await;
                    idle_since = Instant::now();
                }
                if leased.is_empty() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            had
        })
    });
    let lanes_of = |number: usize| -> BTreeSet<usize> {
        let lane = number * 7 % LANES;
        let is_merge = number.is_multiple_of(3);
        [lane].into_iter().chain(is_merge.then_some(number * 5 % 11)).collect()
    };
    for number in 0..MESSAGES {
        let node = if number % 2 == 0 { &one } else { &other };
        let name = number.to_string();
        let lanes: Vec<String> = lanes_of(number).iter().map(ToString::to_string).collect();
        match lanes.as_slice() {
            [lane, barrier] => drop(node.merge(&name, [lane, barrier], "in").await),
            lanes => drop(node.send(&name, lanes.first().map(String::as_str), "in").await),
        }
    }
    let mut had: Vec<Had> = Vec::new();
    let mut shares = Vec::new();
    for worker in workers {
        let of_worker = worker.await.unwrap();
        shares.push(of_worker.len());
        had.extend(of_worker);
    }
    assert_eq!(had.len(), MESSAGES, "each once: {shares:?}");
    assert!(shares.iter().all(|share| *share > 0), "both had some: {shares:?}");
    let mut by_number: Vec<(usize, Instant, Instant)> = had
        .into_iter()
        .map(|(leased_at, settled_at, name)| (name.parse().unwrap(), leased_at, settled_at))
        .collect();
    by_number.sort_unstable_by_key(|(number, ..)| *number);
    for (behind, leased_at, _) in &by_number {
        for (before, _, settled_at) in &by_number[..*behind] {
            let meet = !lanes_of(*before).is_disjoint(&lanes_of(*behind));
            assert!(!meet || leased_at >= settled_at, "{behind} was leased before {before} was settled");
        }
    }
    let [one, other] = [one, other].map(|node| Arc::into_inner(node).unwrap());
    assert_both_sound(one, other).await;
}

#[tokio::test]
async fn twins_that_are_handed_to_both_nodes_at_once_are_one_message() {
    let (one, other) = two(vec![queue("lab", quick())]).await;
    for round in 0..20 {
        let twin = || vec![message(&round.to_string(), None, "x", &["lab"])];
        let (first, second) = tokio::join!(one.accept(twin()), other.accept(twin()));
        let (first, second) = (first.unwrap().remove(0), second.unwrap().remove(0));
        assert_eq!(first.id, second.id, "round {round}");
        assert!(first.duplicate != second.duplicate, "round {round}");
        assert_eq!(first.deliveries[0].id, second.deliveries[0].id);
    }
    until("both count them", async || {
        one.stats("lab").await.waiting == 20 && other.stats("lab").await.waiting == 20
    })
    .await;
    let refused = other.accept(vec![message("0", None, "other content", &["lab"])]).await;
    assert!(matches!(refused, Err(gatepost_store::AcceptError::Mismatch(0))), "{refused:?}");
    assert_both_sound(one, other).await;
}

#[tokio::test]
async fn a_session_on_another_node_supersedes_the_one_before() {
    let (one, other) = two(vec![external("lab", doubting(OnDoubt::Hold))]).await;
    let session = one.session("lab").await;
    let delivery = one.send("1", None, "lab").await;
    let leased = lease(&one, "lab", session, 1).await.remove(0);
    one.taken("lab", session, &leased, BEGIN).await;
    let next = other.session("lab").await;
    assert!(next > session);
    assert_eq!(other.state(delivery).await, "in_doubt", "it had begun");
    // At once: not only when the node has looked around.
    let refused = one.settle("lab", session, &leased, DELIVERED).await;
    assert!(matches!(refused, Err(SettleError::Superseded)), "{refused:?}");
    let refused = one.try_lease(one.request("lab", session, 1)).await;
    assert!(matches!(refused, Err(LeaseError::Superseded)), "{refused:?}");
    assert_eq!(one.state(delivery).await, "in_doubt");
    assert_both_sound(one, other).await;
}

#[tokio::test]
async fn brakes_hold_on_every_node_and_counts_are_of_all() {
    let (one, other) = two(vec![inbox("in", quick())]).await;
    one.send("1", None, "in").await;
    other.send("2", None, "in").await;
    until("each counts both", async || {
        one.stats("in").await.waiting == 2 && other.stats("in").await.waiting == 2
    })
    .await;
    one.store.queue_pause(&operator(), "in".into(), Pause::Pause).await.unwrap();
    until("the other is paused too", async || other.stats("in").await.paused).await;
    assert!(other.lease("in", 0, 5).await.is_empty());
    other.store.queue_pause(&operator(), "in".into(), Pause::Resume).await.unwrap();
    until("the one goes on too", async || !one.stats("in").await.paused).await;
    assert!(!lease(&one, "in", 0, 5).await.is_empty());
    assert_both_sound(one, other).await;
}

#[tokio::test]
async fn a_delivery_is_operated_on_at_any_node() {
    let (one, other) = two(vec![inbox("in", keyed())]).await;
    let first = one.send("1", Some("k"), "in").await;
    let second = one.send("2", Some("k"), "in").await;
    let leased = lease(&one, "in", 0, 1).await.remove(0);
    one.taken("in", 0, &leased, Outcome::Reject).await;
    other.operate(first, Verb::Discard).await.unwrap();
    assert_eq!(one.state(first).await, "discarded");
    let refused = one.operate(first, Verb::Replay).await;
    assert!(refused.is_err(), "it has ended");
    let leased = lease(&one, "in", 0, 1).await.remove(0);
    assert_eq!(leased.delivery, second);
    one.taken("in", 0, &leased, RETRY).await;
    assert_both_sound(one, other).await;
}

#[tokio::test]
async fn a_node_that_dies_loses_its_buckets_and_its_leases_follow_their_policy() {
    for on_doubt in [OnDoubt::Resend, OnDoubt::Hold] {
        let (one, other) = two(vec![queue("lab", doubting(on_doubt)), inbox("in", keyed())]).await;
        let session = one.session("lab").await;
        let begun = one.send("begun", Some("a"), "lab").await;
        one.send("leased", Some("b"), "lab").await;
        one.send("mine", Some("c"), "in").await;
        let leased = lease(&one, "lab", session, 2).await;
        if on_doubt == OnDoubt::Hold {
            for leased in leased.iter().filter(|leased| leased.delivery == begun) {
                one.taken("lab", session, leased, BEGIN).await;
            }
        }
        let held = lease(&one, "in", 0, 1).await.remove(0);
        drop(one.crash().await);
        let died = Instant::now();
        // Sent again, flagged, or kept for a person.
        while other.state(begun).await != "in_doubt" {
            assert!(died.elapsed() < TAKEOVER, "{on_doubt:?}: {}", other.state(begun).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Leases of apps run on, and are settled wherever the app is now.
        other.taken("in", 0, &held, DELIVERED).await;
        let next = other.session("lab").await;
        let again = lease(&other, "lab", next, 5).await;
        assert!(!again.is_empty());
        for leased in &again {
            other.taken("lab", next, leased, BEGIN).await;
            other.taken("lab", next, leased, DELIVERED).await;
        }
        let place = other.stop().await;
        assert_sound(&place, "after a death").await;
        assert_log(&place, "after a death").await;
    }
}

#[tokio::test]
async fn what_is_taken_over_goes_on_with_larger_numbers() {
    let (one, other) = two(vec![inbox("in", keyed()), inbox("own", quick())]).await;
    let _consumed = consumed(&[(&one, "in", 0), (&other, "own", 0)]).await;
    // The number that this draws for another turn is older than all that follows.
    other.send("own", None, "own").await;
    let own = lease(&other, "own", 0, 1).await.remove(0);
    other.taken("own", 0, &own, DELIVERED).await;
    let delivery = one.send("1", Some("k"), "in").await;
    let leased = lease(&one, "in", 0, 1).await.remove(0);
    one.taken("in", 0, &leased, BEGIN).await;
    drop(one.crash().await);
    let died = Instant::now();
    while other.settle("in", 0, &leased, DELIVERED).await.is_ok_and(|answer| !answer.items[0].ok) {
        assert!(died.elapsed() < TAKEOVER, "it is not taken over");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(other.state(delivery).await, "delivered");
    assert!(numbers(&other, delivery).await.is_sorted());
    let place = other.stop().await;
    assert_log(&place, "after a death").await;
}

/// Has these queues consumed where they are now, and waits until no bucket has changed hands for a lease: until then turns hold locks while
/// they are decided.
pub(crate) async fn consumed(queues: &[(&Fixture, &str, u64)]) -> Vec<Arc<Notify>> {
    let hints = queues.iter().map(|(fixture, queue, _)| fixture.store.queue_hint(queue)).collect();
    for (fixture, queue, session) in queues {
        assert!(fixture.lease(queue, *session, 1).await.is_empty());
    }
    tokio::time::sleep(LEASE + Duration::from_millis(500)).await;
    hints
}

/// Numbers of a delivery's leaves, in their order.
async fn numbers(fixture: &Fixture, delivery: DeliveryId) -> Vec<i64> {
    let leaves = sqlx::query_scalar::<_, Vec<u8>>("SELECT leaves FROM delivery WHERE id = $1");
    let mut connection = connect(url(&fixture.place)).await;
    let leaves = leaves.bind(delivery.as_bytes().as_slice()).fetch_one(&mut connection).await.unwrap();
    leaves.as_chunks().0.iter().map(|number| i64::from_be_bytes(*number)).collect()
}

#[tokio::test]
async fn what_is_emitted_stands_behind_what_another_node_has_accepted_before() {
    let (one, other) = two(vec![queue("lab", quick()), inbox("in", keyed())]).await;
    let session = one.session("lab").await;
    let _consumed = consumed(&[(&one, "lab", session)]).await;
    for round in 0..5 {
        for name in ["a", "b"] {
            one.send(&format!("{name}{round}"), None, "lab").await;
        }
        let first = lease(&one, "lab", session, 1).await.remove(0);
        let second = lease(&one, "lab", session, 1).await.remove(0);
        // This draws a number for the next turn.
        one.taken("lab", session, &first, DELIVERED).await;
        other.send(&format!("accepted{round}"), Some("k"), "in").await;
        let mut settle = one.settling("lab", session, vec![item(&second, DELIVERED)]);
        let emitted = message(&format!("emitted{round}"), Some("k"), "x", &["in"]);
        settle.emit = vec![Emit { message: emitted, dead: None }];
        one.store.delivery_settle(settle).await.unwrap();
    }
    let mut connection = connect(url(&one.place)).await;
    let senders: Vec<String> = sqlx::query_scalar("SELECT m.sender_kind FROM message m JOIN delivery d ON d.message = m.seq JOIN queue q ON q.id = d.queue \
        WHERE q.name = 'in' ORDER BY d.pos").fetch_all(&mut connection).await.unwrap();
    assert_eq!(senders, ["app", "adapter"].repeat(5));
    assert_both_sound(one, other).await;
}

/// As one that was stopped for longer than its lease, or cut off from the database, and wakes up.
#[tokio::test]
async fn a_node_whose_lease_is_over_changes_nothing_and_comes_back_as_another() {
    let (one, other) = two(vec![external("lab", doubting(OnDoubt::Hold))]).await;
    let session = one.session("lab").await;
    let delivery = one.send("1", None, "lab").await;
    let leased = lease(&one, "lab", session, 1).await.remove(0);
    one.taken("lab", session, &leased, BEGIN).await;
    let mut connection = connect(url(&one.place)).await;
    let over = "UPDATE node SET until = since WHERE name = 'node-1'";
    let taken = "SELECT count(*) FROM node WHERE name = 'node-1' AND until = since";
    sqlx::raw_sql(over).execute(&mut connection).await.unwrap();
    let asked = Instant::now();
    // Its first word after that is refused or said again in its new name; never half written.
    let settled = loop {
        match one.settle("lab", session, &leased, DELIVERED).await {
            Ok(answer) => break answer,
            Err(SettleError::Store(_)) => {
                assert!(asked.elapsed() < TAKEOVER, "it does not come back");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    };
    assert!(settled.items[0].ok, "an external adapter's lease outlives the gateway's start: {settled:?}");
    assert_eq!(crate::check::postgres::number(url(&one.place), taken).await, 0, "the old epoch is gone");
    assert_eq!(other.state(delivery).await, "delivered");
    one.send("2", None, "lab").await;
    assert_both_sound(one, other).await;
}

#[tokio::test]
async fn there_is_one_log_whoever_numbers_it() {
    let (one, other) = two(vec![inbox("in", quick())]).await;
    let mut deliveries = Vec::new();
    for number in 0..30 {
        let node = if number % 3 == 0 { &one } else { &other };
        deliveries.push(node.send(&number.to_string(), None, "in").await);
    }
    for delivery in &deliveries {
        until("a receipt from either node", async || {
            for node in [&one, &other] {
                if !matches!(node.store.read().receipt(*delivery).await.unwrap(), Receipt::Proofs(_)) {
                    return false;
                }
            }
            true
        })
        .await;
    }
    // Whoever numbers it, the other goes on.
    let place = one.crash().await;
    deliveries.push(other.send("later", None, "in").await);
    let last = deliveries[deliveries.len() - 1];
    until("a receipt of what came after", async || {
        matches!(other.store.read().receipt(last).await.unwrap(), Receipt::Proofs(_))
    })
    .await;
    let one = place.open().await.unwrap();
    assert_both_sound(other, one).await;
}

#[tokio::test]
async fn a_node_without_the_others_keys_is_refused() {
    let one = Fixture::new(vec![queue("lab", quick())]).await;
    let stranger = Place { dir: Arc::new(tempfile::tempdir().unwrap()), ..one.place.clone() };
    let refused = stranger.refusal().await;
    assert!(matches!(refused, gatepost_store::OpenError::KeysElsewhere), "{refused:?}");
    assert!(!stranger.path().join("keys/store.key").exists(), "no key was made in its place");
}

/// The look of every quarter of a second would find it too: here it is the word itself that is waited for.
#[tokio::test]
async fn whoever_owns_it_is_told_of_what_another_node_accepts_in_few_words() {
    const MESSAGES: usize = 100;
    let (one, other) = two(vec![inbox("in", keyed())]).await;
    one.send("first", Some("k"), "in").await;
    let leased = lease(&one, "in", 0, 1).await.remove(0);
    one.taken("in", 0, &leased, DELIVERED).await;
    let mut words = PgListener::connect(url(&one.place)).await.unwrap();
    words.listen("gatepost").await.unwrap();
    // A node says it once it knows of the others, and that takes a renewal.
    let mut heard = 0;
    for number in 0.. {
        assert!(number < 50, "{number} messages, and not a word of them");
        other.send(&format!("known {number}"), Some("k"), "in").await;
        if tokio::time::timeout(Duration::from_millis(300), words.recv()).await.is_ok() {
            break;
        }
    }
    for number in 0..MESSAGES {
        other.send(&number.to_string(), Some(&number.to_string()), "in").await;
    }
    let mut within = TAKEOVER;
    while let Ok(word) = tokio::time::timeout(within, words.recv()).await {
        let word = word.unwrap();
        assert!(word.payload().ends_with(":1") || word.payload().ends_with(",1"), "{word:?} names the queue");
        heard += 1;
        within = Duration::from_millis(300);
    }
    assert!(heard > 0 && heard < MESSAGES, "{heard} words for {MESSAGES} commits");
    assert_both_sound(one, other).await;
}

#[tokio::test]
async fn every_node_says_the_same_of_all() {
    let (one, other) = two(vec![inbox("in", keyed()), inbox("quiet", keyed())]).await;
    let nodes = async |fixture: &Fixture| {
        let nodes = fixture.store.read().nodes().await.unwrap();
        assert!(nodes.iter().all(|node| node.lease.is_some_and(|lease| !lease.is_zero())), "{nodes:?}");
        nodes
    };
    let named = |nodes: &[NodeRow]| -> Vec<(String, bool)> {
        nodes.iter().map(|node| (node.name.clone(), node.is_here)).collect()
    };
    let share = |node: &NodeRow| node.shares.first().map_or(0, |(_, buckets)| *buckets);
    let name = |number: u32, is_here| (format!("node-{number}"), is_here);
    assert_eq!(named(&nodes(&one).await), [name(1, true), name(2, false)]);
    assert_eq!(named(&nodes(&other).await), [name(1, false), name(2, true)]);
    assert!(nodes(&one).await[0].shares.is_empty(), "nobody consumes anything");
    assert!(one.lease("in", 0, 1).await.is_empty());
    let seen = nodes(&other).await;
    assert_eq!(
        (seen[0].shares.as_slice(), share(&seen[1])),
        ([("in".to_owned(), NODE_SHARES)].as_slice(), 0)
    );
    until("both have their part", async || {
        assert!(one.lease("in", 0, 1).await.is_empty() && other.lease("in", 0, 1).await.is_empty());
        let seen = nodes(&one).await;
        let (first, second) = (share(&seen[0]), share(&seen[1]));
        first > 0 && second > 0 && first + second == NODE_SHARES
    })
    .await;
    assert_eq!(nodes(&one).await.iter().filter(|node| node.is_sequencer).count(), 1);
    let stopped = one.stop().await;
    assert_eq!(
        named(&nodes(&other).await),
        [name(2, true)],
        "who leaves in good order is not there any more"
    );
    drop(stopped);
    other.stop().await;
}

/// A turn's number is drawn when its transaction begins, and what another node commits after that may be what it is decided on.
#[tokio::test]
async fn what_depends_on_another_nodes_commit_has_the_larger_number() {
    let (one, other) = two(vec![inbox("in", keyed())]).await;
    let (mut holder, mut looker) = (connect(url(&one.place)).await, connect(url(&one.place)).await);
    let mut round = 0;
    let delivery = loop {
        round += 1;
        let key = format!("{round}");
        let delivery = one.send(&key, Some(&key), "in").await;
        let leased = lease(&other, "in", 0, 1).await.remove(0);
        let hold = "BEGIN; SELECT 1 FROM node WHERE name = 'node-1' FOR UPDATE";
        sqlx::raw_sql(hold).execute(&mut holder).await.unwrap();
        let waits = async {
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'BEGIN;%'";
            while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut looker).await.unwrap() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let mut operating = pin!(one.operate(delivery, Verb::Discard));
        let early = tokio::select! {
            early = &mut operating => Some(early),
            // The operator's turn has its number, and waits for its node's row.
            () = waits => None,
        };
        other.taken("in", 0, &leased, Outcome::Reject).await;
        sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.unwrap();
        match early {
            None => {
                operating.await.expect("it is dead when the operator's turn looks");
                break delivery;
            }
            // The first node does not know of the other yet, and has looked at the delivery before it has drawn a number.
            Some(early) => assert!(round < 20 && early.is_err(), "it is sent when the operator's turn looks"),
        }
    };
    let numbers = numbers(&one, delivery).await;
    assert!(numbers.len() >= 4 && numbers.is_sorted(), "{numbers:?}");
    assert_both_sound(one, other).await;
}

/// Nodes have their own copies of the trees of data keys. What one has cut out of them, another that cuts something else out does not
/// bring back, and neither does who wraps them with another seal key.
#[tokio::test]
async fn what_one_node_has_erased_no_other_brings_back() {
    let one = Fixture::new(vec![queue("lab", quick())]).await;
    let session = one.session("lab").await;
    let mut ids = Vec::new();
    for text in ["by the other", "by the one", "by the other again", "kept"] {
        ids.push(crate::seal::delivered(&one, session, text, text).await);
    }
    let other = beside(&one.place, "other").open().await.unwrap();
    let read = async |by: &Fixture, id| by.store.read().message(id, gatepost_store::Data::Include).await;
    for id in &ids {
        assert!(read(&other, *id).await.unwrap().unwrap().data.is_some(), "it knows the tree");
    }
    let mut somebody = connect(url(&one.place)).await;
    sqlx::raw_sql("CREATE TABLE kept AS SELECT * FROM payload").execute(&mut somebody).await.unwrap();
    for (by, id) in [(&other, ids[0]), (&one, ids[1]), (&other, ids[2])] {
        let erased =
            by.store.erase(crate::seal::operator(), gatepost_store::EraseWhat::Message(id)).await.unwrap();
        assert_eq!((erased.messages.as_slice(), erased.plain), (&[id][..], 0));
    }
    other.stop().await;
    assert_eq!(one.store.seal_key_rotate(crate::seal::operator()).await.unwrap().version, 2);
    // The rows put back beside the trees as they are now do not open.
    let back = "INSERT INTO payload SELECT * FROM kept ON CONFLICT DO NOTHING; DROP TABLE kept";
    sqlx::raw_sql(back).execute(&mut somebody).await.unwrap();
    let one = one.restart().await;
    for id in &ids[..3] {
        let read = read(&one, *id).await;
        assert!(matches!(read, Err(gatepost_store::StoreError::Erased)), "{:?}", read.err());
    }
    assert!(read(&one, ids[3]).await.unwrap().unwrap().data.is_some());
    one.stop().await;
}

/// Another node that does not have the new seal key could read nothing any more.
#[tokio::test]
async fn the_seal_key_is_not_changed_under_another_node_and_what_is_erased_says_so() {
    let one = Fixture::new(vec![queue("lab", quick())]).await;
    let other = beside(&one.place, "other").open().await.unwrap();
    let session = one.session("lab").await;
    let gone = crate::seal::delivered(&one, session, "gone", "s").await;
    let by = crate::seal::operator();
    let mut somebody = connect(url(&one.place)).await;
    let copy = "CREATE TABLE kept AS SELECT * FROM payload";
    sqlx::raw_sql(copy).execute(&mut somebody).await.unwrap();
    let erased = one.store.erase(by.clone(), gatepost_store::EraseWhat::Message(gone)).await.unwrap();
    assert_eq!((erased.messages.as_slice(), erased.seal_key), (&[gone][..], None));
    assert!(erased.copies_remain.is_some_and(|why| why.contains("other nodes")));
    let refused = one.store.seal_key_rotate(by.clone()).await.unwrap_err();
    assert!(refused.to_string().contains("stop them first"), "{refused}");
    // The row put back beside the trees as they are now does not open.
    sqlx::raw_sql("INSERT INTO payload SELECT * FROM kept; DROP TABLE kept")
        .execute(&mut somebody)
        .await
        .unwrap();
    let one = one.restart().await;
    let read = one.store.read().message(gone, gatepost_store::Data::Include).await;
    assert!(matches!(read, Err(gatepost_store::StoreError::Erased)), "{:?}", read.err());
    other.stop().await;
    assert_eq!(one.store.seal_key_rotate(by).await.unwrap().version, 2);
}
