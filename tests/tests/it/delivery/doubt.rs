//! Rule 13.1: doubt.

use std::time::{Duration, SystemTime};

use gatepost_tests::until;
use serde_json::{Value, json};

use super::desk::{Desk, QUICK, item, names};
use crate::order_event;

const HOLD: &str = "on_doubt = \"hold\"";

fn one_of(policy: &str) -> (Desk, Value) {
    let desk = Desk::start(&format!("on_doubt = {policy:?}\n{QUICK}"));
    desk.send("1", "k");
    let leased = desk.next();
    desk.taken(&leased, "begin");
    (desk, leased)
}

#[test]
fn r13_1_in_doubt_is_said_of_begun_deliveries_counts_one_attempt_and_holds_at_once() {
    let desk = Desk::start(HOLD);
    desk.send("1", "k");
    let leased = desk.next();
    assert_eq!(desk.refused(&json!({ "results": [item(&leased, "in_doubt")] }), 409), "not_begun");
    assert_eq!(desk.taken(&leased, "begin"), "sending");
    assert_eq!(desk.taken(&leased, "in_doubt"), "in_doubt");
    assert_eq!(desk.charged(&leased), (1, true));
    assert_eq!(desk.delivery(&leased)["due_at"], Value::Null, "a person decides");
    assert_eq!(desk.story(&leased), ["attempt", "in_doubt"]);
    assert!(desk.lease(1).is_empty());
    desk.gateway.audit_verifies();
}

#[test]
fn r13_1_the_flag_stays_until_the_adapter_says_what_became_of_it() {
    for policy in ["query", "resend"] {
        for (outcome, state, attempts) in
            [("delivered", "delivered", 1), ("reject", "dead", 2), ("retry", "waiting", 2)]
        {
            let (desk, leased) = one_of(policy);
            assert_eq!(leased["in_doubt"], false);
            desk.taken(&leased, "in_doubt");
            let again = desk.next();
            assert_eq!((&again["id"], &again["in_doubt"]), (&leased["id"], &json!(true)), "{policy}");
            assert_eq!(desk.taken(&again, "release"), "in_doubt", "given back it is as doubtful as before");
            assert_eq!(desk.charged(&leased), (1, true));
            let again = desk.next();
            assert_eq!(again["in_doubt"], true, "{policy}");
            desk.taken(&again, "begin");
            assert_eq!(desk.taken(&again, outcome), state, "{policy}");
            assert_eq!(desk.charged(&leased), (attempts, false), "{policy}, {outcome}");
            if outcome == "retry" {
                assert_eq!(desk.next()["in_doubt"], false, "{policy}");
            }
        }
    }
}

#[test]
fn r13_1_an_operators_word_ends_the_doubt() {
    let (desk, leased) = one_of("hold");
    desk.taken(&leased, "in_doubt");
    desk.resolve(&leased, "retry");
    let again = desk.next();
    assert_eq!((&again["id"], &again["in_doubt"]), (&leased["id"], &json!(false)));
    desk.taken(&again, "begin");
    desk.taken(&again, "in_doubt");
    assert_eq!(desk.stale(&again, "delivered"), "in_doubt", "the adapter has had its say");
    desk.resolve(&leased, "delivered");
    assert_eq!(desk.delivery(&leased)["state"], "delivered");
    assert_eq!(desk.charged(&leased), (1, false));
    desk.send("2", "k");
    let second = desk.next();
    desk.taken(&second, "begin");
    desk.taken(&second, "in_doubt");
    desk.resolve(&second, "dead");
    let dead = desk.delivery(&second);
    assert_eq!((&dead["state"], &dead["reason"]), (&json!("dead"), &json!("resolved")));
    desk.gateway.audit_verifies();
}

#[test]
fn r13_1_a_doubtful_lease_that_is_lost_goes_back_to_doubt_with_a_pause_and_spent_attempts_hold_it() {
    let retry = "retry = { initial = \"100ms\", max = \"100ms\", attempts = 2 }";
    let desk = Desk::start(&format!("on_doubt = \"query\"\n{retry}"));
    desk.send("1", "k");
    let leased = desk.next();
    desk.taken(&leased, "begin");
    desk.taken(&leased, "in_doubt");
    let again = until("it is due", || desk.lease_with(&json!({ "max": 1, "lease_ms": 1 })).pop());
    let lost = until("its lease has run out", || {
        let delivery = desk.delivery(&again);
        (delivery["state"] == "in_doubt").then_some(delivery)
    });
    // Unbegun, it was not charged again; its pause is in its due time.
    assert_eq!(lost["attempts"], 1);
    assert!(lost["due_at"].as_str() > lost["changed_at"].as_str(), "{lost}");
    let again = desk.next();
    desk.taken(&again, "begin");
    assert_eq!(desk.taken(&again, "in_doubt"), "in_doubt");
    assert_eq!(desk.charged(&again), (2, true));
    assert_eq!(desk.delivery(&again)["due_at"], Value::Null, "its attempts are spent: held");
    assert_eq!(desk.gateway.queue("desk")["depth"]["held"], 1);
}

/// How long the orders of these tests are worth something.
const BRIEF: Duration = Duration::from_millis(2500);

/// Sets something up, anew each time that those orders were worth nothing any more before it was done.
fn in_time<T>(set_up: impl FnMut() -> Option<T>) -> T {
    until("it is set up before the time of its orders is over", set_up)
}

/// An order with an expiry, and when that is.
fn brief(desk: &Desk, id: &str) -> (String, SystemTime) {
    let expiry = SystemTime::now() + BRIEF;
    let mut event = order_event(id, id, &json!(id));
    event["expirytime"] = humantime::format_rfc3339_millis(expiry).to_string().into();
    (desk.send_event(&event), expiry)
}

/// Store time began with the wall's, so it is past what the wall is clearly past.
fn until_past(expiry: SystemTime) {
    until("its time is over", || (SystemTime::now() > expiry + Duration::from_millis(100)).then_some(()));
}

#[test]
fn r13_1_begin_after_the_expiry_is_refused_and_retry_or_release_after_it_expire() {
    let (desk, leased) = in_time(|| {
        let desk = Desk::start(HOLD);
        for id in ["begin", "retry", "release", "waiting"] {
            brief(&desk, id);
        }
        let leased = desk.lease(3);
        let all = names(&leased) == ["begin", "retry", "release"];
        (all && desk.settle(&leased[1], "begin").0 == "ok").then_some((desk, leased))
    });
    let (message, expiry) = brief(&desk, "last");
    until_past(expiry);
    assert_eq!(desk.settle(&leased[0], "begin"), ("stale".into(), "expired".into()));
    assert_eq!(desk.taken(&leased[1], "retry"), "expired");
    assert_eq!(desk.taken(&leased[2], "release"), "expired");
    desk.gateway.until_state(&message, "expired");
    assert!(desk.lease(5).is_empty());
    assert_eq!(desk.story(&leased[0]), ["expired"], "no attempt began");
    desk.gateway.audit_verifies();
}

#[test]
fn r13_1_what_has_begun_never_expires_by_time_alone() {
    let (desk, leased, expiry) = in_time(|| {
        let desk = Desk::start(HOLD);
        let (_, expiry) = brief(&desk, "1");
        let (_, _) = brief(&desk, "2");
        let leased = desk.lease(2);
        let begun = leased.iter().filter(|leased| desk.settle(leased, "begin").0 == "ok").count();
        (begun == 2).then_some((desk, leased, expiry))
    });
    until_past(expiry + BRIEF);
    assert_eq!(desk.delivery(&leased[0])["state"], "sending");
    assert_eq!(desk.taken(&leased[0], "delivered"), "delivered");
    assert_eq!(desk.taken(&leased[1], "in_doubt"), "in_doubt", "it may have arrived, so it has not expired");
    assert_eq!(desk.delivery(&leased[1])["state"], "in_doubt");
    desk.gateway.audit_verifies();
}

#[test]
fn r13_1_held_in_doubt_is_listed_counted_and_blocks_its_lane_but_takes_no_place_in_flight() {
    let desk = Desk::start("on_doubt = \"hold\"\nmax_in_flight = 1");
    for (id, lane) in [("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b")] {
        desk.send(id, lane);
    }
    let held = desk.next();
    assert_eq!(names(std::slice::from_ref(&held)), ["a1"]);
    assert!(desk.lease(5).is_empty(), "one may be in flight");
    desk.taken(&held, "begin");
    desk.taken(&held, "in_doubt");
    let other = desk.lease(5);
    assert_eq!(names(&other), ["b1"], "its place is free, its lane is not");
    let listed = desk.gateway.list("/v1/deliveries?state=in_doubt", "deliveries");
    assert_eq!(listed.iter().map(|held| &held["id"]).collect::<Vec<_>>(), [&held["id"]]);
    let queue = desk.gateway.queue("desk");
    assert_eq!((&queue["depth"]["held"], &queue["held_lanes"]), (&json!(1), &json!(1)));
    assert_eq!(desk.gateway.metric("gatepost_queue_deliveries{queue=\"desk\",state=\"held\"}"), 1.0);
    desk.taken(&other[0], "begin");
    desk.taken(&other[0], "delivered");
    let other = desk.lease(5);
    assert_eq!(names(&other), ["b2"]);
    desk.taken(&other[0], "begin");
    desk.taken(&other[0], "delivered");
    desk.resolve(&held, "delivered");
    assert_eq!(names(&desk.lease(5)), ["a2"]);
}
