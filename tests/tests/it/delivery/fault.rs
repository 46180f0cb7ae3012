//! Rule 13.5: whose fault it is.

use std::time::{Duration, Instant};

use gatepost_tests::{Gateway, settle_item, until};
use serde_json::{Value, json};

use super::desk::{Desk, QUICK, names, with};
use crate::order_event;

fn trouble(leased: &Value) -> Value {
    with(settle_item(leased, "retry"), "scope", json!("destination"))
}

#[test]
fn r13_5_a_retry_is_the_messages_fault_unless_it_says_the_destinations() {
    // None comes back meanwhile.
    let desk = Desk::start("retry = { initial = \"10m\", max = \"10m\" }");
    for id in ["1", "2", "3"] {
        desk.send(id, id);
    }
    let leased = desk.lease(1).remove(0);
    desk.taken(&leased, "retry");
    assert_eq!(desk.charged(&leased), (1, false));
    let other = desk.lease(1).remove(0);
    assert_eq!(names(std::slice::from_ref(&other)), ["2"], "the others go on");
    desk.settle_item(with(settle_item(&other, "retry"), "scope", json!("message")));
    assert_eq!(desk.charged(&other), (1, false));
    assert_eq!(desk.gateway.queue("desk")["tripped"], Value::Null);
}

#[test]
fn r13_5_the_destinations_trouble_charges_nobody_backs_off_as_a_whole_and_probes_with_one() {
    // By that, give or take a fifth.
    const BACKS_OFF: Duration = Duration::from_millis(400);
    let desk = Desk::start("retry = { initial = \"500ms\", max = \"500ms\", attempts = 2 }");
    for n in 0..4 {
        desk.send(&n.to_string(), &n.to_string());
    }
    let first = desk.lease(1).remove(0);
    let mut said = Instant::now();
    assert_eq!(desk.settle_item(trouble(&first)), ("ok".into(), "waiting".into()));
    assert_eq!(desk.gateway.queue("desk")["tripped"], "unreachable");
    // More failures than there are attempts: nobody dies of them.
    for _ in 0..4 {
        let probe = until("it probes by itself", || {
            let probe = desk.lease(4);
            assert!(probe.len() <= 1, "more than one probe: {:?}", names(&probe));
            probe.into_iter().next()
        });
        assert!(said.elapsed() >= BACKS_OFF, "somebody was tried while it backs off: {:?}", said.elapsed());
        assert!(desk.lease(4).is_empty(), "one probe at a time");
        said = Instant::now();
        desk.settle_item(trouble(&probe));
    }
    let probe = desk.next();
    desk.taken(&probe, "delivered");
    assert_eq!(desk.gateway.queue("desk")["tripped"], Value::Null, "an answer closes the breaker");
    let rest = until("the others come", || {
        let rest = desk.lease(4);
        (!rest.is_empty()).then_some(rest)
    });
    assert!(rest.iter().all(|leased| desk.charged(leased) == (0, false)), "nobody has paid");
    desk.gateway.audit_verifies();
}

#[test]
fn r13_5_retry_after_is_honoured_for_the_destination() {
    let desk = Desk::start(QUICK);
    desk.send("1", "k");
    let leased = desk.next();
    let said = Instant::now();
    desk.settle_item(with(trouble(&leased), "after_ms", json!(1500)));
    desk.next();
    assert!(said.elapsed() >= Duration::from_millis(1500), "it was tried after {:?}", said.elapsed());
}

#[test]
fn r13_5_only_an_operator_ends_an_operators_pause_and_paused_time_does_not_count_towards_giving_up() {
    const GIVEN_UP_AFTER: Duration = Duration::from_secs(4);
    let mut desk = Desk::start(
        "retry = { initial = \"50ms\", max = \"50ms\", attempts = 1000, give_up_after = \"4s\" }",
    );
    let operate = |desk: &Desk, verb: &str| {
        desk.gateway.admin().post(&format!("/v1/queues/desk/{verb}"), &json!({})).expect(200)
    };
    operate(&desk, "pause");
    let paused = Instant::now();
    let message = desk.send("1", "k");
    assert!(desk.lease(1).is_empty());
    desk.gateway.kill();
    desk.gateway.restart();
    desk.open();
    assert_eq!(desk.gateway.queue("desk")["paused"], true, "also over a restart");
    until("longer than messages are given", || (paused.elapsed() > Duration::from_secs(5)).then_some(()));
    assert!(desk.lease(1).is_empty(), "it does not resume by itself");
    let resumed = Instant::now();
    operate(&desk, "resume");
    // Unpaused, time counts, and no other: had the pause counted, the first retry would be the last.
    let mut retries = 0;
    until("it is given up", || {
        let leased = desk.lease(1).pop()?;
        retries += 1;
        match desk.settle(&leased, "retry") {
            (status, state) if status == "ok" && state == "dead" => Some(leased),
            told => {
                assert_eq!(told, ("ok".into(), "waiting".into()));
                None
            }
        }
    });
    assert!(resumed.elapsed() >= GIVEN_UP_AFTER, "after {:?} and {retries} retries", resumed.elapsed());
    let dead = desk.gateway.delivery(&message);
    assert_eq!((&dead["state"], &dead["reason"]), (&json!("dead"), &json!("gave_up")), "{dead}");
}

#[test]
fn r13_5_tripped_time_does_not_count_towards_giving_up() {
    // Before the breaker opens, time counts: who is held up there begins anew.
    let (desk, mut leased) = until("the breaker opens before the message is given up", || {
        let desk = Desk::start("retry = { initial = \"50ms\", max = \"50ms\", give_up_after = \"3s\" }");
        desk.send("1", "k");
        let leased = desk.next();
        if desk.settle_item(trouble(&leased)).1 != "waiting" {
            return None;
        }
        let probe = desk.next();
        Some((desk, probe))
    });
    let tripped = Instant::now();
    while tripped.elapsed() < Duration::from_secs(5) {
        assert_eq!(desk.settle_item(trouble(&leased)), ("ok".into(), "waiting".into()));
        leased = desk.next();
    }
    assert_eq!(desk.taken(&leased, "retry"), "waiting", "the partner was away, the message is not to blame");
}

#[test]
fn r13_5_beyond_its_backlog_a_destination_takes_nothing_more_and_a_batch_is_refused_whole() {
    let desk = Desk::start("max_backlog = { messages = 3, bytes = \"1KiB\" }");
    let app = desk.gateway.app();
    let event = |id: &str, data: &str| order_event(id, id, &json!(data));
    desk.send("1", "k");
    let batch: Vec<Value> = ["2", "3", "4"].map(|id| event(id, "x")).into();
    assert_eq!(app.try_batch(&batch).unwrap().problem(429), "queue_full");
    assert_eq!(desk.gateway.list("/v1/messages", "messages").len(), 1, "not one of the batch is there");
    assert_eq!(app.try_batch(&batch[..2]).unwrap().status, 202);
    assert_eq!(app.event(&event("5", "x")).problem(429), "queue_full");
    assert_eq!(app.event(&event("1", "1")).status, 422, "a key that was used is compared, full or not");
    assert_eq!(app.event(&batch[0]).expect(202)["messages"][0]["duplicate"], true, "what is there is there");
    for leased in desk.lease(3) {
        desk.taken(&leased, "delivered");
    }
    for leased in desk.lease(3) {
        desk.taken(&leased, "delivered");
    }
    let large = "x".repeat(900);
    app.event(&event("6", &large)).expect(202);
    assert_eq!(app.event(&event("7", &large)).problem(429), "queue_full");
    desk.gateway.audit_verifies();
}

#[test]
fn what_a_sender_has_handed_in_stands_against_it_through_kill_9_and_goes_as_it_is_settled() {
    let user = format!("user = \"{}\"\nsend = [\"orders.*\"]\ninbox = [\"desk\"]", gatepost_tests::uid());
    let limits = "limits = { backlog = { messages = 4, bytes = \"64KiB\" } }";
    let mut gateway = Gateway::builder()
        .table("[apps.shop]", &format!("{user}\n{limits}"))
        .inbox("desk", "")
        .inbox("archive", "")
        .route("shop", &["desk", "archive"])
        .start();
    let hand_in = |gateway: &Gateway, id: &str| gateway.app().event(&order_event(id, id, &json!("x")));
    hand_in(&gateway, "1").expect(202);
    hand_in(&gateway, "2").expect(202);
    let full = hand_in(&gateway, "3");
    assert!(full.header("retry-after").is_some());
    assert_eq!(full.problem(429), "backlog_full", "two messages to two destinations");
    gateway.kill();
    gateway.restart();
    assert_eq!(hand_in(&gateway, "3").problem(429), "backlog_full");
    assert_eq!(hand_in(&gateway, "1").expect(202)["messages"][0]["duplicate"], true);
    let status: Value = serde_json::from_str(&gateway.cli_ok(&["--json", "status"])).unwrap();
    assert_eq!(status["senders"][0]["sender"], "app:shop", "{status}");
    assert_eq!(status["senders"][0]["deliveries"], 4);
    let backlog = || gateway.metric("gatepost_sender_backlog_deliveries{sender=\"app:shop\"}");
    assert!((backlog() - 4.0).abs() < 0.1);
    let results: Vec<Value> =
        gateway.lease("desk", 2).iter().map(|leased| settle_item(leased, "delivered")).collect();
    gateway.app().post("/v1/settle", &json!({"results": results})).expect(200);
    assert!((backlog() - 2.0).abs() < 0.1);
    hand_in(&gateway, "3").expect(202);
    assert_eq!(hand_in(&gateway, "4").problem(429), "backlog_full");
    let more = std::fs::read_to_string(gateway.config()).unwrap().replace("messages = 4", "messages = 6");
    std::fs::write(gateway.config(), more).unwrap();
    gateway.cli_ok(&["reload"]);
    hand_in(&gateway, "4").expect(202);
    assert_eq!(hand_in(&gateway, "5").problem(429), "backlog_full");
    gateway.audit_verifies();
}
