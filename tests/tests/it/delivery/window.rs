//! Rule 13.4: pipelines and late proof.

use gatepost_tests::until;
use serde_json::{Value, json};

use super::desk::{Desk, QUICK, item, names, with};

/// A desk with a window of three and two lanes of four.
fn windowed(more: &str) -> Desk {
    let desk = Desk::start(&format!("window = 3\n{more}"));
    for lane in ["a", "b"] {
        for n in 1..=4 {
            desk.send(&format!("{lane}{n}"), lane);
        }
    }
    desk
}

#[test]
fn r13_4_up_to_a_window_of_a_lane_is_leased_in_order_to_one_session() {
    let mut desk = windowed("on_doubt = \"hold\"");
    let leased = desk.lease(20);
    assert_eq!(names(&leased), ["a1", "a2", "a3", "b1", "b2", "b3"]);
    assert!(desk.lease(20).is_empty(), "the windows are full");
    desk.taken(&leased[0], "begin");
    desk.taken(&leased[0], "delivered");
    assert_eq!(names(&desk.lease(20)), ["a4"]);
    let old = desk.epoch;
    desk.open();
    assert_eq!(desk.try_lease(old, &json!({ "max": 20 })).problem(409), "superseded");
    for leased in &leased[1..] {
        desk.stale(leased, "begin");
    }
}

#[test]
fn r13_4_when_one_goes_back_the_unbegun_behind_it_are_stale_and_the_begun_are_not() {
    let retry = "retry = { initial = \"1s\", max = \"1s\" }";
    let desk = windowed(&format!("on_doubt = \"hold\"\n{retry}"));
    let leased = desk.lease(20);
    desk.taken(&leased[0], "begin");
    desk.taken(&leased[1], "begin");
    assert_eq!(desk.taken(&leased[0], "retry"), "waiting");
    assert_eq!(desk.stale(&leased[2], "begin"), "waiting", "a3 must not overtake a1");
    assert_eq!(desk.taken(&leased[1], "delivered"), "delivered", "a2's bytes had left");
    assert_eq!(desk.taken(&leased[3], "begin"), "sending", "the other lane goes on");
    // From here to its due time nobody of its lane is given out.
    let again = desk.next();
    assert_eq!(names(std::slice::from_ref(&again)), ["a1"]);
    assert_eq!(names(&desk.lease(20)), ["a3", "a4"]);
}

#[test]
fn r13_4_a_lost_lease_recalls_what_stands_behind_it() {
    // The first lease lasts two seconds: who is held up for longer begins anew.
    let (desk, first, behind) = until("those behind it are leased while it is", || {
        let desk = windowed(&format!("on_doubt = \"query\"\n{QUICK}"));
        let first = desk.lease_with(&json!({ "max": 1, "lease_ms": 1 })).remove(0);
        let behind = desk.lease(2);
        (names(&behind) == ["a2", "a3"]).then_some((desk, first, behind))
    });
    until("the first lease has run out", || (desk.delivery(&first)["state"] == "waiting").then_some(()));
    for leased in &behind {
        assert_eq!(desk.stale(leased, "begin"), "waiting");
    }
    let again = desk.lease(20);
    let lane = again.into_iter().filter(|leased| leased["event"]["partitionkey"] == "a");
    assert_eq!(names(&lane.collect::<Vec<_>>()), ["a1", "a2", "a3"]);
}

#[test]
fn r13_4_sent_waits_for_late_proof_outside_of_max_in_flight_and_takes_it_from_a_later_session() {
    let mut desk = Desk::start("on_doubt = \"hold\"\nmax_in_flight = 1");
    desk.send("a1", "a");
    desk.send("a2", "a");
    desk.send("b1", "b");
    let sent = desk.next();
    desk.taken(&sent, "begin");
    assert!(desk.lease(5).is_empty(), "one may be in flight");
    let on_the_wire = with(item(&sent, "sent"), "evidence", json!({ "level": "sent" }));
    assert_eq!(desk.settle_item(on_the_wire.clone()), ("ok".into(), "sending".into()));
    assert_eq!(desk.settle_item(on_the_wire), ("ok".into(), "sending".into()), "said twice");
    let other = desk.next();
    assert_eq!(names(std::slice::from_ref(&other)), ["b1"], "its place is free, its lane is not");
    desk.taken(&other, "begin");
    desk.taken(&other, "delivered");
    // The adapter's end, the gateway's kill -9 and its stop in order: the token lives on.
    desk.open();
    desk.gateway.kill();
    desk.gateway.restart();
    desk.open();
    assert!(desk.gateway.stop().success());
    desk.gateway.restart();
    desk.open();
    assert_eq!(desk.delivery(&sent)["state"], "sending");
    assert!(desk.lease(5).is_empty(), "its lane waits for the proof");
    assert_eq!(desk.taken(&sent, "delivered"), "delivered");
    assert_eq!(desk.charged(&sent), (0, false));
    assert_eq!(names(&desk.lease(5)), ["a2"]);
    assert_eq!(desk.story(&sent), ["attempt", "sent", "delivered"]);
    desk.gateway.audit_verifies();
}

#[test]
fn r13_4_without_proof_by_its_deadline_it_is_in_doubt() {
    for (policy, held) in [("hold", true), ("query", false)] {
        let mut desk = Desk::start(&format!("on_doubt = {policy:?}\n{QUICK}"));
        desk.send("1", "k");
        let sent = desk.next();
        desk.taken(&sent, "begin");
        desk.settle_item(with(item(&sent, "sent"), "after_ms", json!(300)));
        // The deadline passes while the gateway is away, too.
        desk.gateway.kill();
        desk.gateway.restart();
        until("the deadline has passed", || (desk.delivery(&sent)["state"] == "in_doubt").then_some(()));
        assert_eq!(desk.charged(&sent), (1, true), "{policy}");
        let told = desk.delivery(&sent)["history"].as_array().unwrap().last().unwrap().clone();
        assert_eq!((&told["event"], &told["code"]), (&json!("in_doubt"), &json!("proof_overdue")), "{told}");
        desk.open();
        assert_eq!(desk.stale(&sent, "delivered"), "in_doubt", "its token is over");
        let due = &desk.delivery(&sent)["due_at"];
        assert_eq!(due.is_null(), held, "{policy}: {due}");
    }
}

#[test]
fn r13_4_evidence_below_what_is_asked_for_is_refused_and_the_delivery_goes_on() {
    for (confirm, weak, enough) in [
        ("business", &["sent", "transport"][..], "business"),
        ("transport", &["sent"], "business"),
        ("sent", &[], "sent"),
    ] {
        let desk = Desk::start(&format!("confirm = {confirm:?}"));
        desk.send("1", "k");
        let leased = desk.next();
        let delivered = |level: &str| with(item(&leased, "delivered"), "evidence", json!({ "level": level }));
        for level in weak {
            let settle = json!({ "results": [delivered(level)] });
            assert_eq!(desk.refused(&settle, 422), "evidence_too_weak", "{confirm}, {level}");
        }
        let bare = with(item(&leased, "delivered"), "evidence", Value::Null);
        if confirm != "sent" {
            assert_eq!(desk.refused(&json!({ "results": [bare] }), 422), "evidence_too_weak", "{confirm}");
        }
        assert_eq!(desk.delivery(&leased)["state"], "sending", "{confirm}");
        assert_eq!(desk.settle_item(delivered(enough)), ("ok".into(), "delivered".into()), "{confirm}");
    }
}
