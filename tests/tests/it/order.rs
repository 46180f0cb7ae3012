//! Order per key, and what does not hold up what.

use std::collections::{HashMap, HashSet};

use gatepost_tests::{Gateway, until};
use serde_json::{Value, json};

use crate::order_event;

const LANES: usize = 200;
const PER_LANE: usize = 50;
const EVENTS_PER_BATCH: usize = 1000;

/// What the partner took first of each lane, in its order.
fn first_effects(gateway: &Gateway, adapter: &str) -> HashMap<String, Vec<u64>> {
    let mut seen = HashSet::new();
    let mut lanes: HashMap<String, Vec<u64>> = HashMap::new();
    for effect in gateway.effects(adapter) {
        if seen.insert(effect["delivery"].as_str().unwrap().to_owned()) {
            let lane = effect["key"].as_str().unwrap().to_owned();
            lanes.entry(lane).or_default().push(effect["data"]["n"].as_u64().unwrap());
        }
    }
    lanes
}

#[test]
fn each_lane_keeps_its_order_while_the_partner_fails_at_random() {
    let gateway = Gateway::builder()
        .app("shop", &["*"], &[])
        .echo(
            "desk",
            "order = \"key\"\nretry = { initial = \"50ms\", max = \"100ms\", attempts = 1000 }",
            "batch = 200\nfail_percent = 15\nseed = 7\ndead_key = \"dead\"",
        )
        .route("shop", &["desk"])
        .start();
    let dead = gateway.app().event(&order_event("dead", "dead", &json!({ "n": 0 }))).expect(202);
    let mut events = Vec::with_capacity(LANES * PER_LANE);
    for n in 0..PER_LANE {
        for lane in 0..LANES {
            events.push(order_event(&format!("{lane}-{n}"), &format!("lane-{lane}"), &json!({ "n": n })));
        }
    }
    for batch in events.chunks(EVENTS_PER_BATCH) {
        assert_eq!(gateway.app().try_batch(batch).unwrap().status, 202);
    }
    // All lanes but the dead one.
    gateway.until_left("desk", 1);
    let lanes = first_effects(&gateway, "desk");
    assert_eq!(lanes.len(), LANES);
    let in_order: Vec<u64> = (0..PER_LANE as u64).collect();
    for (lane, order) in &lanes {
        assert_eq!(order, &in_order, "{lane}");
    }
    let dead = gateway.delivery(dead["messages"][0]["id"].as_str().unwrap());
    assert_ne!(dead["state"], "delivered");
    assert!(dead["attempts"].as_u64().unwrap() > 1, "it was tried all the while: {dead}");
    gateway.audit_verifies();
}

#[test]
fn a_dead_destination_slows_no_other() {
    let gateway = Gateway::builder()
        .app("shop", &["*"], &[])
        .echo("dead", "order = \"key\"", "")
        .echo("alive", "order = \"key\"", "")
        .route_when("shop", "type == \"to.dead\"", &["dead"])
        .route_when("shop", "type == \"to.alive\"", &["alive"])
        .start();
    let event = |n: usize, kind: &str, data: Value| {
        let mut event = order_event(&format!("{kind}-{n}"), &format!("k{n}"), &data);
        event["type"] = kind.into();
        event
    };
    for n in 0..50 {
        gateway.app().event(&event(n, "to.dead", json!({ "do": "down" }))).expect(202);
    }
    until("the breaker opens", || gateway.queue("dead")["tripped"].as_str().map(drop));
    for n in 0..50 {
        gateway.app().event(&event(n, "to.alive", json!({ "n": n }))).expect(202);
    }
    gateway.until_settled("alive");
    assert_eq!(gateway.effects("alive").len(), 50);
    let waiting = gateway.list("/v1/deliveries?destination=dead", "deliveries");
    assert_eq!(waiting.len(), 50);
    assert!(waiting.iter().all(|delivery| delivery["attempts"] == 0), "no message pays for its destination");
}
