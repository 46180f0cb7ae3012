//! SIGSTOP: programs that stand still past the lease, and then go on as if nothing had been.

use std::time::{Duration, Instant};

use gatepost_tests::lab::Order;
use gatepost_tests::{Gateway, settle_item, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{Traffic, hand_in, judged, message_of, story};

const QUICK: &str = "retry = { initial = \"50ms\", max = \"200ms\", attempts = 1000 }";
/// Longer than a lease of 300 ms with the store's margin of 2 s.
const PAST_THE_LEASE: Duration = Duration::from_secs(3);

fn stands_still(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
}

#[test]
fn a_gateway_that_stood_still_past_the_lease_goes_on_and_nothing_is_lost_or_reordered() {
    let gateway = Gateway::builder()
        .app("shop", &["*"], &["desk"])
        .echo(
            "lab",
            &format!("order = \"key\"\n{QUICK}"),
            "lease_ms = 300\nfail_percent = 5\nseed = 5\nbatch = 8",
        )
        .inbox("desk", "")
        .route_when("shop", "type == \"orders.new\"", &["lab"])
        .route_when("shop", "type == \"desk\"", &["desk"])
        .start();
    let mut for_desk = crate::order_event("desk", "desk", &json!({}));
    for_desk["type"] = "desk".into();
    gateway.app().event(&for_desk).expect(202);
    let request = json!({ "max": 1, "lease_ms": 300 });
    let held = gateway.app().post("/v1/queues/desk/lease", &request).expect(200)["deliveries"][0].clone();
    let traffic = Traffic::start(&gateway.app(), 2, &["lab"]);
    for _ in 0..2 {
        traffic.go_on(20);
        gateway.signal(Signal::SIGSTOP);
        until("it stands still", || stands_still(gateway.pid()).then_some(()));
        let since = Instant::now();
        until("all leases are over", || (since.elapsed() > PAST_THE_LEASE).then_some(()));
        gateway.signal(Signal::SIGCONT);
        traffic.go_on(20);
    }
    let again = until("the app's lease is over too", || gateway.lease("desk", 1).pop());
    assert_eq!(again["id"], held["id"]);
    let settle = |item: Value| {
        let answer = gateway.app().post("/v1/settle", &json!({ "results": [item] })).expect(200);
        answer["results"][0]["status"].clone()
    };
    assert_eq!(settle(settle_item(&held, "reject")), "stale");
    assert_eq!(settle(settle_item(&again, "delivered")), "ok");
    let submissions = traffic.finish();
    gateway.until_settled("lab");
    let mut verdict = judged(&gateway, submissions, &[("lab", Order::Key)]);
    // The desk's message was not handed in by the senders that the judge knows.
    verdict.findings.retain(|finding| !finding.what.contains("nobody was told so"));
    verdict.expect_clean();
}

/// Longer than an adapter is held up that is not stopped.
const LEASE_MS: u64 = 9000;

/// An adapter that stands still with one delivery in hand, while others wait in its lane and beside it.
fn with_a_stopped_adapter(on_doubt: &str) -> (Gateway, Vec<gatepost_tests::lab::Submission>, Value, Pid) {
    let gateway = Gateway::builder()
        .app("shop", &["*"], &[])
        .echo(
            "lab",
            &format!("order = \"key\"\non_doubt = {on_doubt:?}\n{QUICK}"),
            &format!("lease_ms = {LEASE_MS}\nbatch = 1"),
        )
        .route("shop", &["lab"])
        .start();
    let mut submissions = Vec::new();
    let mut send = |mark: &str, lane: &str, data: Value| {
        submissions.push(hand_in(&gateway.app(), "shop", mark, lane, &data, &["lab"]));
    };
    send("before", "a", json!({}));
    send("paused", "a", json!({ "do": "pause" }));
    send("behind-1", "a", json!({}));
    send("behind-2", "a", json!({}));
    send("beside", "b", json!({}));
    let paused = message_of(&submissions[1]).to_owned();
    let pid = until("the adapter stands still", || {
        let pid = u32::try_from(gateway.adapter("lab")["pid"].as_u64()?).ok()?;
        stands_still(pid).then_some(pid)
    });
    let delivery = gateway.until_state(&paused, "in_doubt");
    assert_eq!(delivery["attempts"], 1, "a begun lease that runs out is an attempt");
    (gateway, submissions, delivery, Pid::from_raw(pid.cast_signed()))
}

#[test]
fn what_a_stopped_adapter_settles_too_late_is_stale_and_its_message_is_sent_again() {
    let (gateway, submissions, delivery, pid) = with_a_stopped_adapter("resend");
    kill(pid, Signal::SIGCONT).unwrap();
    gateway.until_settled("lab");
    assert_eq!(story(&gateway, &delivery), ["attempt", "in_doubt", "attempt", "delivered"]);
    let verdict = judged(&gateway, submissions, &[("lab", Order::Key)]);
    verdict.expect_clean();
    assert_eq!(verdict.doubled.values().sum::<u64>(), 1, "the partner got it twice, under one id");
}

#[test]
fn what_a_stopped_adapter_settles_too_late_does_not_end_a_doubt_that_a_person_must_decide() {
    let (gateway, submissions, delivery, pid) = with_a_stopped_adapter("hold");
    kill(pid, Signal::SIGCONT).unwrap();
    until("the lane beside it goes on", || {
        let beside = gateway.delivery(message_of(&submissions[4]));
        (beside["state"] == "delivered").then_some(())
    });
    let held = gateway.delivery(message_of(&submissions[1]));
    assert_eq!((&held["state"], &held["due_at"]), (&json!("in_doubt"), &Value::Null));
    assert_eq!(gateway.delivery(message_of(&submissions[2]))["state"], "waiting", "it blocks its lane");
    assert_eq!(story(&gateway, &delivery), ["attempt", "in_doubt"]);
    let path = format!("/v1/deliveries/{}/resolve", delivery["id"].as_str().unwrap());
    gateway.admin().post(&path, &json!({ "as": "delivered", "reason": "asked" })).expect(200);
    gateway.until_settled("lab");
    let verdict = judged(&gateway, submissions, &[("lab", Order::Key)]);
    verdict.expect_clean();
    assert_eq!(verdict.doubled.values().sum::<u64>(), 0);
}
