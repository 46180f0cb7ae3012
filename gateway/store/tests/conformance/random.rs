//! Laws that must hold whatever happens in whatever order: random runs from fixed seeds, printed on failure.
//! `GATEPOST_SEED_SHIFT=N cargo test … random::` runs others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use gatepost_core::{DeliveryId, OnDead, OnDoubt, QueuePolicy};

use crate::check::{Step, assert_log, assert_sound, by_delivery, entries};
use crate::dice::Dice;
use crate::fixture::{DELIVERED, Fixture, RETRY, doubting, item, keyed, message, queue, text};
use crate::run::Run;

/// After a run the order of each lane was kept, every count is right, the log verifies and says what happened.
async fn laws_hold(seed: u64, policy: QueuePolicy, lanes: u64, per_lane: u64, mishaps: u64) {
    laws_hold_with(0, seed, policy, [lanes, per_lane], mishaps).await;
}

/// … where some deliveries, in percent, stand in two lanes.
async fn laws_hold_with(
    merges: u64,
    seed: u64,
    policy: QueuePolicy,
    [lanes, per_lane]: [u64; 2],
    mishaps: u64,
) {
    let seed = shifted(seed);
    let context = format!("seed {seed}");
    let run = Run::new(seed, policy, lanes, per_lane, mishaps).await.with_merges(merges);
    let (fixture, names) = run.finish().await;
    assert_eq!(names.len() as u64, lanes * per_lane, "{context}");
    let mut histories = HashMap::new();
    let mut ends = HashMap::new();
    for (position, delivery) in names.keys().enumerate() {
        let row = fixture.row(*delivery).await;
        assert!(["delivered", "discarded", "expired"].contains(&row.state), "{context}: {row:?}");
        ends.insert(*delivery, row.state);
        if position % 8 == 0 {
            histories.insert(*delivery, fixture.events(*delivery).await);
        }
    }
    let place = fixture.stop().await;
    assert_sound(&place, &context).await;
    let report = assert_log(&place, &context).await;
    assert_eq!((report.unsigned, report.deliveries_open), (0, 0), "{context}");
    leaves_say(&by_delivery(&entries(&place).await), &histories, &ends, &context);
}

fn shifted(seed: u64) -> u64 {
    let shift = std::env::var("GATEPOST_SEED_SHIFT").ok().and_then(|shift| shift.parse::<u64>().ok());
    seed.wrapping_add(shift.unwrap_or(0) << 32)
}

/// The log alone tells each delivery's way and end.
fn leaves_say(
    leaves: &HashMap<[u8; 16], Vec<Step>>,
    histories: &HashMap<DeliveryId, Vec<String>>,
    ends: &HashMap<DeliveryId, &'static str>,
    context: &str,
) {
    for (delivery, end) in ends {
        let steps = &leaves[delivery.as_bytes()];
        let last = steps.last().unwrap();
        assert_eq!(last.state.as_deref(), Some(*end), "{context}: {delivery} {steps:?}");
        if let Some(history) = histories.get(delivery) {
            let events: Vec<&String> = steps.iter().map(|step| &step.event).collect();
            assert_eq!(history.iter().collect::<Vec<_>>(), events, "{context}: {delivery}");
        }
    }
}

#[tokio::test]
async fn fifty_lanes_of_twenty_keep_their_order_without_mishaps() {
    laws_hold(0x5eed_0001, keyed(), 50, 20, 0).await;
}

#[tokio::test]
async fn laws_hold_with_resend_crashes_and_restarts() {
    laws_hold(0x5eed_0002, keyed(), 20, 12, 6).await;
}

#[tokio::test]
async fn laws_hold_with_hold_and_held_lanes() {
    let policy = QueuePolicy { on_dead: OnDead::HoldLane, ..doubting(OnDoubt::Hold) };
    laws_hold(0x5eed_0003, policy, 20, 10, 5).await;
}

#[tokio::test]
async fn laws_hold_with_query() {
    laws_hold(0x5eed_0004, doubting(OnDoubt::Query), 20, 10, 5).await;
}

#[tokio::test]
async fn laws_hold_with_a_window() {
    let policy = QueuePolicy { window: 3, ..doubting(OnDoubt::Query) };
    laws_hold(0x5eed_0005, policy, 10, 10, 3).await;
}

#[tokio::test]
async fn laws_hold_with_a_window_and_held_lanes() {
    let policy = QueuePolicy { window: 4, on_dead: OnDead::HoldLane, ..doubting(OnDoubt::Hold) };
    laws_hold(0x5eed_0006, policy, 10, 10, 3).await;
}

#[tokio::test]
async fn laws_hold_with_merges() {
    laws_hold_with(25, 0x5eed_000a, keyed(), [12, 20], 4).await;
}

#[tokio::test]
async fn laws_hold_with_merges_held_lanes_and_doubt() {
    let policy = QueuePolicy { on_dead: OnDead::HoldLane, ..doubting(OnDoubt::Hold) };
    laws_hold_with(25, 0x5eed_000b, policy, [12, 15], 4).await;
}

#[tokio::test]
async fn laws_hold_with_merges_and_a_window() {
    let policy = QueuePolicy { window: 4, on_dead: OnDead::HoldLane, ..doubting(OnDoubt::Query) };
    laws_hold_with(20, 0x5eed_000c, policy, [8, 12], 3).await;
}

#[tokio::test]
async fn laws_hold_without_order_and_with_few_in_flight() {
    let policy = QueuePolicy { order: gatepost_core::Order::None, max_in_flight: 7, ..keyed() };
    let (fixture, _) = {
        // Without order there is none to check: every delivery is a lane of its own.
        Run::new(shifted(0x5eed_0007), policy, 200, 1, 5).await.finish().await
    };
    let place = fixture.stop().await;
    assert_sound(&place, "seed 5eed0007").await;
    assert_log(&place, "seed 5eed0007").await;
}

/// Several workers of one adapter at once, so that their calls meet in the same commits.
#[tokio::test]
async fn concurrent_workers_keep_the_order_of_every_lane() {
    const LANES: u64 = 10;
    const PER_LANE: u64 = 12;
    let seed = 0x5eed_0008;
    let fixture = Arc::new(Fixture::new(vec![queue("lab", keyed())]).await);
    let session = fixture.session("lab").await;
    let successes: Arc<Mutex<HashMap<String, Vec<u64>>>> = Arc::default();
    let workers: Vec<_> = (0..6)
        .map(|worker| {
            let (fixture, successes) = (Arc::clone(&fixture), Arc::clone(&successes));
            tokio::spawn(work(fixture, session, successes, Dice(seed + worker), LANES * PER_LANE))
        })
        .collect();
    for number in 0..PER_LANE {
        for lane in 0..LANES {
            let id = format!("{lane}:{number}");
            let accepted = fixture.accept(vec![message(&id, Some(&lane.to_string()), &id, &["lab"])]).await;
            accepted.unwrap();
        }
    }
    for worker in workers {
        worker.await.unwrap();
    }
    for (lane, numbers) in successes.lock().unwrap().iter() {
        let expected: Vec<u64> = (0..PER_LANE).collect();
        assert_eq!(numbers, &expected, "seed {seed}: lane {lane}");
    }
    let fixture = Arc::into_inner(fixture).unwrap();
    let place = fixture.stop().await;
    assert_sound(&place, "concurrent workers").await;
    assert_log(&place, "concurrent workers").await;
}

async fn work(
    fixture: Arc<Fixture>,
    session: u64,
    successes: Arc<Mutex<HashMap<String, Vec<u64>>>>,
    mut dice: Dice,
    total: u64,
) {
    loop {
        let leased = fixture.lease("lab", session, u32::try_from(dice.below(4) + 1).unwrap()).await;
        if leased.is_empty() {
            let done: usize = successes.lock().unwrap().values().map(Vec::len).sum();
            if done as u64 == total {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        for leased in leased {
            // Noted before it is settled: afterwards another worker may have the next one already.
            let release = dice.chance(10);
            if !release {
                let name = text(&leased);
                let (lane, number) = name.split_once(':').unwrap();
                let mut successes = successes.lock().unwrap();
                successes.entry(lane.to_owned()).or_default().push(number.parse().unwrap());
            }
            let outcome = if release { gatepost_core::Outcome::Release } else { DELIVERED };
            fixture.taken("lab", session, &leased, outcome).await;
        }
    }
}

/// Idempotent callers that repeat everything: what was lost on the way back is asked for again.
#[tokio::test]
async fn repeating_every_call_changes_nothing() {
    let fixture = Fixture::new(vec![queue("lab", keyed())]).await;
    let session = fixture.session("lab").await;
    let mut dice = Dice(0x5eed_0009);
    for n in 0..30 {
        let batch = || vec![message(&n.to_string(), Some("k"), "x", &["lab"])];
        let first = fixture.accept(batch()).await.unwrap();
        let again = fixture.accept(batch()).await.unwrap();
        assert_eq!((first[0].id, &first[0].deliveries), (again[0].id, &again[0].deliveries));
        let leased = fixture.lease_in_time("lab", session, 5).await;
        let outcome = if dice.chance(30) { RETRY } else { DELIVERED };
        for _ in 0..2 {
            let items = leased.iter().map(|leased| item(leased, outcome)).collect();
            let answer =
                fixture.store.delivery_settle(fixture.settling("lab", session, items)).await.unwrap();
            assert!(answer.items.iter().all(|item| item.ok), "round {n}");
        }
    }
    let place = fixture.stop().await;
    assert_sound(&place, "repeated calls").await;
    assert_log(&place, "repeated calls").await;
}
