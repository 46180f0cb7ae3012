//! Rule 13.2: begin, crashes, poison.

use gatepost_tests::{Gateway, until, until_within};
use serde_json::{Value, json};

use super::desk::{Desk, QUICK, item, names};
use crate::adapters::{LOOP_DEADLINE, accept, echo};

#[test]
fn r13_2_with_resend_the_lease_is_the_begin() {
    let desk = Desk::start("");
    desk.send("1", "k");
    let leased = desk.next();
    assert_eq!(desk.delivery(&leased)["state"], "sending");
    assert_eq!(desk.story(&leased), ["attempt"], "logged with the lease");
    assert_eq!(desk.taken(&leased, "begin"), "sending");
    assert_eq!(desk.story(&leased), ["attempt"], "to say it again changes nothing");
    assert_eq!(desk.taken(&leased, "delivered"), "delivered");
    assert_eq!(desk.story(&leased), ["attempt", "delivered"]);
}

#[test]
fn r13_2_otherwise_nothing_can_have_been_sent_before_begin() {
    for policy in ["hold", "query"] {
        let desk = Desk::start(&format!("on_doubt = {policy:?}"));
        desk.send("1", "k");
        let leased = desk.next();
        assert_eq!(desk.delivery(&leased)["state"], "leased", "{policy}");
        for outcome in ["delivered", "in_doubt", "sent"] {
            let settle = json!({ "results": [item(&leased, outcome)] });
            assert_eq!(desk.refused(&settle, 409), "not_begun", "{policy}, {outcome}");
        }
        assert!(desk.story(&leased).is_empty(), "{policy}");
        assert_eq!(desk.taken(&leased, "begin"), "sending", "{policy}");
        assert_eq!(desk.taken(&leased, "delivered"), "delivered", "{policy}");
        assert_eq!(desk.story(&leased), ["attempt", "delivered"], "{policy}");
    }
}

#[test]
fn r13_2_a_begun_lease_that_expires_costs_an_attempt_and_an_unbegun_one_does_not() {
    let desk = Desk::start(&format!("on_doubt = \"query\"\n{QUICK}"));
    desk.send("1", "a");
    desk.send("2", "b");
    // Who is held up for those two seconds begins too late, which costs nobody anything: then both are there to lease once more.
    let leased = until("both are leased, and one is begun in time", || {
        let leased = desk.lease_with(&json!({ "max": 2, "lease_ms": 1 }));
        (leased.len() == 2 && desk.settle(&leased[0], "begin").0 == "ok").then_some(leased)
    });
    until("both leases have run out", || {
        let states = [0, 1].map(|n| desk.delivery(&leased[n])["state"].clone());
        (states == ["in_doubt", "waiting"]).then_some(())
    });
    assert_eq!(desk.charged(&leased[0]), (1, true), "begun: it may have arrived");
    assert_eq!(desk.charged(&leased[1]), (0, false), "not begun: it cannot have");
    assert_eq!(desk.stale(&leased[0], "delivered"), "in_doubt");
    assert_eq!(
        desk.stale(&leased[1], "begin"),
        "waiting",
        "a late begin comes to nothing, so no bytes leave"
    );
    let mut again = Vec::new();
    until("both are leased again", || {
        again.extend(desk.lease(2));
        (again.len() == 2).then_some(())
    });
    let doubt = |id: &str| {
        let again = again.iter().find(|leased| leased["event"]["id"] == id).unwrap();
        again["in_doubt"] == true
    };
    assert_eq!((doubt("1"), doubt("2")), (true, false));
    desk.gateway.audit_verifies();
}

#[test]
fn r13_2_after_a_death_leases_come_back_one_by_one_and_uncharged() {
    let mut desk = Desk::start(&format!("on_doubt = \"query\"\n{QUICK}"));
    for n in 1..=4 {
        desk.send(&n.to_string(), &n.to_string());
    }
    let leased = desk.lease(4);
    desk.taken(&leased[0], "begin");
    // An external adapter's next session is what tells of the end of its last.
    desk.open();
    let mut seen = Vec::new();
    for _ in 0..4 {
        let alone = until("the next suspect comes", || {
            let alone = desk.lease(4);
            assert!(alone.len() <= 1, "suspects came together: {:?}", names(&alone));
            alone.into_iter().next()
        });
        assert!(desk.lease(4).is_empty(), "one at a time");
        assert_eq!(desk.charged(&alone).0, 0, "nobody pays for a death that may not be his");
        desk.taken(&alone, "begin");
        desk.taken(&alone, "delivered");
        seen.push(alone["event"]["id"].as_str().unwrap().to_owned());
    }
    seen.sort();
    assert_eq!(seen, ["1", "2", "3", "4"]);
}

#[test]
fn r13_2_three_deaths_alone_with_it_make_a_poison_and_its_neighbours_pay_nothing() {
    for policy in ["resend", "query"] {
        let gateway = echo(&format!("on_doubt = {policy:?}"), "").start();
        gateway.admin().post("/v1/queues/desk/pause", &json!({})).expect(200);
        let before: Vec<String> = (0..4).map(|n| accept(&gateway, &format!("a{n}"), json!({}))).collect();
        let poison = accept(&gateway, "poison", json!({ "do": "crash" }));
        let after: Vec<String> = (0..4).map(|n| accept(&gateway, &format!("b{n}"), json!({}))).collect();
        gateway.admin().post("/v1/queues/desk/resume", &json!({})).expect(200);
        let dead = until_within(LOOP_DEADLINE, "the poison is dead", || {
            let delivery = gateway.delivery(&poison);
            (delivery["state"] == "dead").then_some(delivery)
        });
        assert_eq!((&dead["reason"], &dead["attempts"]), (&json!("poison"), &json!(0)), "{policy}");
        for neighbour in before.iter().chain(&after) {
            let delivery = gateway.until_state(neighbour, "delivered");
            assert_eq!(delivery["attempts"], unharmed(&gateway), "{policy}: {delivery}");
        }
        let story = steps(&gateway, &dead);
        // The first death was shared with others; with `query` it came before the begin, and was not an attempt.
        let attempts = story.iter().filter(|&step| step == "attempt").count();
        assert_eq!(attempts, if policy == "resend" { 4 } else { 0 }, "{policy}: {story:?}");
        gateway.audit_verifies();
    }
}

/// What one that never met the poison has been charged when it is delivered.
fn unharmed(gateway: &Gateway) -> Value {
    let id = format!("later-{}", gateway.list("/v1/messages", "messages").len());
    let message = accept(gateway, &id, json!({}));
    gateway.until_state(&message, "delivered")["attempts"].clone()
}

fn steps(gateway: &Gateway, delivery: &Value) -> Vec<String> {
    let log = gateway.audit_log();
    let leaves = log.iter().filter(|leaf| leaf["delivery"] == delivery["id"]);
    leaves.map(|leaf| leaf["event"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn r13_2_deaths_of_the_gateway_cost_nothing_and_poison_nobody() {
    let mut gateway = echo("on_doubt = \"query\"", "").start();
    let message = accept(&gateway, "1", json!({ "do": "hang" }));
    for kill in 0..4 {
        until("it hangs", || {
            matches!(gateway.delivery(&message)["state"].as_str(), Some("leased" | "sending")).then_some(())
        });
        if kill % 2 == 0 {
            gateway.kill();
        } else {
            assert!(gateway.stop().success());
        }
        gateway.restart();
    }
    let delivery = gateway.delivery(&message);
    assert_ne!(delivery["state"], "dead", "{delivery}");
    assert_eq!((&delivery["attempts"], &delivery["in_doubt"]), (&json!(0), &json!(false)), "{delivery}");
    gateway.audit_verifies();
}
