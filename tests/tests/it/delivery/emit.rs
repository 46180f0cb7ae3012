//! Rule 13.6: emitting and routing.

use gatepost_tests::{Gateway, settle_item};
use serde_json::{Value, json};

use super::desk::{Desk, item};
use crate::order_event;

fn event(id: &str, kind: &str) -> Value {
    json!({ "specversion": "1.0", "id": id, "source": "/desk", "type": kind, "data": { "id": id } })
}

#[test]
fn r13_6_without_results_an_emit_is_an_accept_and_what_goes_nowhere_is_refused() {
    let mut desk = Desk::start("");
    let settle =
        |kind: &str| json!({ "results": [], "emit": [event("e", kind)], "state": { "seq": "MQ==" } });
    assert_eq!(desk.refused(&settle("answers.nowhere"), 422), "no_route");
    assert_eq!(desk.refused(&settle("orders.new"), 403), "type_not_allowed");
    let epoch = format!("gatepost-epoch: {}", desk.epoch);
    let headers = ["content-type: application/cloudevents+json", &epoch];
    let accept = |kind: &str| {
        desk.client().send("POST", "/v1/messages", &headers, event("e", kind).to_string().as_bytes()).unwrap()
    };
    assert_eq!(accept("answers.nowhere").problem(422), "no_route");
    assert_eq!(accept("orders.new").problem(403), "type_not_allowed");
    assert!(desk.gateway.list("/v1/messages", "messages").is_empty(), "nothing is stored");
    assert_eq!(desk.open()["state"], json!({}), "nor the state that came with it");
    let emitted = desk.try_settle(&settle("answers.new")).expect(200);
    assert_eq!(emitted["emitted"][0]["duplicate"], false);
    assert_eq!(desk.gateway.lease("answers", 5).len(), 1);
    assert_eq!(desk.open()["state"], json!({ "seq": "MQ==" }));
}

#[test]
fn r13_6_with_results_what_goes_nowhere_is_kept_dead_and_the_settle_goes_through() {
    let desk = Desk::start("");
    desk.send("1", "k");
    let leased = desk.next();
    let emit =
        [event("good", "answers.new"), event("lost", "answers.nowhere"), event("forbidden", "orders.new")];
    let settle = json!({ "results": [item(&leased, "delivered")], "emit": emit });
    let settled = desk.try_settle(&settle).expect(200);
    assert_eq!(settled["results"][0]["status"], "ok");
    assert_eq!(settled["emitted"].as_array().unwrap().len(), 3);
    assert_eq!(desk.delivery(&leased)["state"], "delivered");
    let answers = desk.gateway.lease("answers", 5);
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0]["event"]["id"], "good");
    let mut kept: Vec<(Value, Value, Value)> = desk
        .gateway
        .list("/v1/deliveries?destination=unrouted", "deliveries")
        .into_iter()
        .map(|dead| (dead["message"].clone(), dead["state"].clone(), dead["reason"].clone()))
        .collect();
    kept.sort_by_key(|(_, _, reason)| reason.to_string());
    let dead = |n: usize, reason: &str| (settled["emitted"][n]["id"].clone(), json!("dead"), json!(reason));
    assert_eq!(kept, [dead(1, "no_route"), dead(2, "type_not_allowed")]);
    desk.gateway.audit_verifies();
}

/// An app with these routes to inboxes, each route by its condition and where to.
fn routed(send: &str, routes: &[(Option<&str>, &[&str])]) -> Gateway {
    let mut builder = Gateway::builder()
        .app("shop", &[send], &["a", "b", "c"])
        .inbox("a", "")
        .inbox("b", "")
        .inbox("c", "");
    for (when, to) in routes {
        builder = match when {
            Some(when) => builder.route_when("shop", when, to),
            None => builder.route("shop", to),
        };
    }
    builder.start()
}

fn destinations(gateway: &Gateway, event: &Value) -> Vec<String> {
    let accepted = gateway.app().event(event).expect(202);
    let deliveries = accepted["messages"][0]["deliveries"].as_array().unwrap();
    deliveries.iter().map(|delivery| delivery["destination"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn r13_6_every_matching_route_applies_and_each_destination_gets_it_once() {
    let gateway = routed(
        "*",
        &[
            (Some("type == \"t.one\""), &["a"]),
            (Some("type.startsWith(\"t.\")"), &["b", "a"]),
            (None, &["c", "b"]),
        ],
    );
    let seen = |id: &str, kind: &str| {
        let mut to = destinations(&gateway, &event(id, kind));
        to.sort();
        to
    };
    assert_eq!(seen("1", "t.one"), ["a", "b", "c"]);
    assert_eq!(seen("2", "t.two"), ["a", "b", "c"]);
    assert_eq!(seen("3", "other"), ["b", "c"], "a route without a condition always matches");
    for (inbox, count) in [("a", 2), ("b", 3), ("c", 3)] {
        assert_eq!(gateway.lease(inbox, 10).len(), count, "{inbox}");
    }
}

#[test]
fn r13_6_a_condition_that_fails_is_named_and_never_a_route_that_does_not_match() {
    let named = |gateway: &Gateway, data: Value| {
        let answer = gateway.app().event(&order_event("1", "k", &data));
        (answer.problem(422), answer.json()["detail"].as_str().unwrap().to_owned())
    };
    let gateway = Gateway::builder()
        .app("shop", &["*"], &[])
        .inbox("a", "")
        .inbox("b", "")
        .table("[[routes]]", "name = \"expensive\"\nfrom = \"shop\"\nwhen = 'data.total > 100'\nto = [\"a\"]")
        .table("[[routes]]", "name = \"all\"\nfrom = \"shop\"\nto = [\"b\"]")
        .start();
    let (code, detail) = named(&gateway, json!({ "sum": 7 }));
    assert_eq!(code, "route_failed");
    assert!(detail.contains("expensive"), "{detail}");
    assert!(gateway.list("/v1/messages", "messages").is_empty(), "nor does it go by the other route");
    assert_eq!(destinations(&gateway, &order_event("2", "k", &json!({ "total": 7 }))), ["b"]);
}

#[test]
fn r13_6_a_star_at_the_end_stands_for_any_rest_and_elsewhere_for_itself() {
    let gateway = routed("orders.*", &[(None, &["a"])]);
    let status = |kind: &str| gateway.app().event(&event(kind, kind)).status;
    assert_eq!([status("orders.new"), status("orders.new.today"), status("orders.")], [202, 202, 202]);
    assert_eq!([status("orders"), status("Orders.new"), status("xorders.new")], [403, 403, 403]);
    let gateway = routed("orders.*.new", &[(None, &["a"])]);
    let answer = |kind: &str| gateway.app().event(&event(kind, kind));
    assert_eq!(answer("orders.big.new").problem(403), "type_not_allowed");
    assert_eq!(answer("orders.*.new").status, 202, "a star in the middle is a star");
    let batch = [event("1", "orders.*.new"), event("2", "orders.big.new")];
    assert_eq!(gateway.app().try_batch(&batch).unwrap().problem(403), "type_not_allowed");
    assert_eq!(gateway.list("/v1/messages", "messages").len(), 1, "the whole batch is refused");
    let leased = gateway.lease("a", 5).remove(0);
    gateway.app().post("/v1/settle", &json!({ "results": [settle_item(&leased, "delivered")] })).expect(200);
}
