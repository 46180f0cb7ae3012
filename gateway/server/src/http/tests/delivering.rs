//! Leasing, settling, sessions, payloads by reference.

use serde_json::json;

use super::bench::{Bench, Who, event};
use super::pends;

#[tokio::test]
async fn r13_14_an_empty_queue_gives_nothing_and_anothers_queue_is_forbidden() {
    let bench = Bench::new().await;
    let epoch = bench.session(Who::Lab).await;
    assert_eq!(bench.lease(Who::Lab, "lab", json!({"max": 5, "epoch": epoch})).await, json!([]));
    assert_eq!(bench.lease(Who::Ehr, "results", json!({"max": 5})).await, json!([]));
    for (who, queue) in [
        (Who::Ehr, "lab"),
        (Who::Lab, "results"),
        (Who::Other, "results"),
        (Who::Ops, "lab"),
        (Who::Ehr, "none"),
    ] {
        let refused =
            bench.post(who, &format!("/v1/queues/{queue}/lease")).json(&json!({"max": 1})).send().await;
        assert_eq!(refused.ok(403).code(), "forbidden", "{who:?} {queue}");
    }
    for request in
        [json!({"max": 0, "epoch": epoch}), json!({"max": 1}), json!({"max": 1, "epoch": epoch, "x": 1})]
    {
        let refused = bench.post(Who::Lab, "/v1/queues/lab/lease").json(&request).send().await;
        assert_eq!(refused.ok(400).code(), "invalid_request", "{request}");
    }
    bench.end().await;
}

#[tokio::test]
async fn a_long_poll_wakes_when_something_comes_and_when_the_gateway_stops() {
    let bench = Bench::new().await;
    let epoch = bench.session(Who::Lab).await;
    let request = json!({"max": 1, "wait_ms": 60000, "epoch": epoch});
    let (leased, (_, delivery)) =
        tokio::join!(bench.lease(Who::Lab, "lab", request.clone()), bench.sent("1", "t.lab"));
    assert_eq!(leased[0]["id"], delivery);
    let (nothing, _) =
        tokio::join!(bench.lease(Who::Lab, "lab", request), async { bench.stop.send_replace(true) });
    assert_eq!(nothing, json!([]));
    bench.end().await;
}

#[tokio::test]
async fn the_same_request_id_gives_the_same_leases() {
    let bench = Bench::new().await;
    let epoch = bench.session(Who::Lab).await;
    bench.sent("1", "t.lab").await;
    bench.sent("2", "t.lab").await;
    let request = json!({"max": 1, "request_id": "r1", "epoch": epoch, "lease_ms": 60000});
    let first = bench.lease(Who::Lab, "lab", request.clone()).await;
    let again = bench.lease(Who::Lab, "lab", request).await;
    assert_eq!((&first[0]["id"], &first[0]["token"]), (&again[0]["id"], &again[0]["token"]));
    assert!(first[0]["lease_ms"].as_u64().unwrap() <= 60_000);
    bench.end().await;
}

#[tokio::test]
async fn outcomes_are_written_repeated_and_stale() {
    let bench = Bench::new().await;
    let epoch = bench.session(Who::Lab).await;
    let (_, delivery) = bench.sent("1", "t.lab").await;
    let leased = bench.lease(Who::Lab, "lab", json!({"max": 1, "epoch": epoch})).await;
    let result = |outcome: &str, token: &serde_json::Value| {
        let evidence = if outcome == "delivered" { json!({"level": "transport"}) } else { json!({}) };
        json!({"delivery": delivery, "token": token, "outcome": outcome, "evidence": evidence})
    };
    let settle = |result, atomic: bool| {
        bench.settle(Who::Lab, json!({"results": [result], "epoch": epoch, "atomic": atomic}))
    };
    let token = &leased[0]["token"];
    let done = settle(result("delivered", token), false).await.ok(200).json();
    assert_eq!(done["results"][0], json!({"delivery": delivery, "status": "ok", "state": "delivered"}));
    let again = settle(result("delivered", token), true).await.ok(200).json();
    assert_eq!(again["results"][0]["status"], "ok");
    let other = settle(result("reject", token), false).await.ok(200).json();
    assert_eq!(other["results"][0]["status"], "stale");
    let garbage = settle(result("reject", &json!("none")), false).await.ok(200).json();
    assert_eq!(garbage["results"][0]["status"], "stale");
    let refused = settle(result("reject", token), true).await.ok(409);
    assert_eq!(refused.code(), "settle_refused");
    assert_eq!(refused.json()["results"][0]["status"], "stale");
    let stranger =
        bench.settle(Who::Ehr, json!({"results": [result("delivered", token)]})).await.ok(200).json();
    assert_eq!(stranger["results"][0], json!({"delivery": delivery, "status": "stale", "state": "unknown"}));
    assert_eq!(bench.settle(Who::Ops, json!({"results": []})).await.ok(403).code(), "forbidden");
    bench.end().await;
}

#[tokio::test]
async fn r13_2_and_4_begin_and_evidence_are_demanded() {
    let bench = Bench::new().await;
    let epoch = bench.session(Who::Careful).await;
    let (_, delivery) = bench.sent("1", "t.careful").await;
    let leased = bench.lease(Who::Careful, "careful", json!({"max": 1, "epoch": epoch})).await;
    let settle = |outcome: &str, level: &str| {
        let mut result = json!({"delivery": delivery, "token": leased[0]["token"], "outcome": outcome});
        if !level.is_empty() {
            result["evidence"] = json!({"level": level});
        }
        bench.settle(Who::Careful, json!({"results": [result], "epoch": epoch}))
    };
    assert_eq!(settle("delivered", "business").await.ok(409).code(), "not_begun");
    settle("begin", "").await.ok(200);
    let weak = settle("delivered", "transport").await.ok(422);
    assert_eq!(weak.code(), "evidence_too_weak");
    assert!(weak.text.contains("business"));
    assert_eq!(settle("delivered", "").await.ok(422).code(), "evidence_too_weak");
    assert_eq!(settle("delivered", "strong").await.ok(400).code(), "invalid_request");
    settle("delivered", "business").await.ok(200);
    bench.end().await;
}

#[tokio::test]
async fn r13_3_a_new_session_fences_the_old_one_and_brings_the_state() {
    let bench = Bench::new().await;
    let first = bench.session(Who::Lab).await;
    let state = json!({"results": [], "state": {"seq": "AQI=", "gone": null}, "epoch": first});
    bench.settle(Who::Lab, state.clone()).await.ok(200);
    let opened = bench.post(Who::Lab, "/v1/session").send().await.ok(200).json();
    assert_eq!(opened["state"], json!({"seq": "AQI="}));
    assert_eq!(opened["settings"], json!({"connect": "lab:2575"}));
    assert_eq!(
        (&opened["name"], &opened["on_doubt"], &opened["confirm"]),
        (&json!("lab"), &json!("resend"), &json!("transport"))
    );
    assert_eq!(bench.settle(Who::Lab, state).await.ok(409).code(), "superseded");
    let lease =
        bench.post(Who::Lab, "/v1/queues/lab/lease").json(&json!({"max": 1, "epoch": first})).send().await;
    assert_eq!(lease.ok(409).code(), "superseded");
    assert_eq!(bench.post(Who::Ehr, "/v1/session").send().await.ok(403).code(), "forbidden");
    let app = bench.settle(Who::Ehr, json!({"state": {"k": "AA=="}})).await;
    assert_eq!(app.ok(403).code(), "forbidden");
    bench.end().await;
}

#[tokio::test]
async fn r13_6_an_emit_alone_is_an_accept_and_beside_results_it_never_holds_them_up() {
    let bench = Bench::new().await;
    let epoch = bench.session(Who::Lab).await;
    let alone = |event: serde_json::Value| {
        bench.settle(Who::Lab, json!({"emit": [event], "state": {"k": "AA=="}, "epoch": epoch}))
    };
    assert_eq!(alone(event("1", "ack.nowhere")).await.ok(422).code(), "no_route");
    assert_eq!(alone(event("1", "t.lab")).await.ok(403).code(), "type_not_allowed");
    let mut broken = event("1", "ack.ok");
    broken["id"] = json!("");
    let refused = alone(broken).await.ok(400);
    assert_eq!(refused.code(), "invalid_event");
    assert!(refused.text.contains("event 0"));
    assert_eq!(bench.post(Who::Lab, "/v1/session").send().await.ok(200).json()["state"], json!({}));
    let epoch = bench.session(Who::Lab).await;
    let taken = bench
        .settle(Who::Lab, json!({"emit": [event("1", "ack.ok")], "state": {"k": "AA=="}, "epoch": epoch}));
    assert_eq!(taken.await.ok(200).json()["emitted"][0]["duplicate"], false);
    assert_eq!(bench.lease(Who::Ehr, "results", json!({"max": 5})).await.as_array().unwrap().len(), 1);

    let (_, delivery) = bench.sent("2", "t.lab").await;
    let leased = bench.lease(Who::Lab, "lab", json!({"max": 1, "epoch": epoch})).await;
    let result = json!({"delivery": delivery, "token": leased[0]["token"], "outcome": "delivered", "evidence": {"level": "transport"}});
    let emit = json!([event("7", "ack.nowhere"), event("8", "secret.type"), event("9", "ack.ok")]);
    let done = bench
        .settle(Who::Lab, json!({"results": [result], "emit": emit, "epoch": epoch}))
        .await
        .ok(200)
        .json();
    assert_eq!(done["results"][0]["status"], "ok");
    assert_eq!(done["emitted"].as_array().unwrap().len(), 3);
    let dead =
        bench.get(Who::Ops, "/v1/deliveries?state=dead&destination=unrouted").send().await.ok(200).json();
    let mut reasons: Vec<_> =
        dead["deliveries"].as_array().unwrap().iter().map(|item| item["reason"].clone()).collect();
    reasons.sort_by_key(ToString::to_string);
    assert_eq!(reasons, [json!("no_route"), json!("type_not_allowed")]);
    bench.end().await;
}

#[tokio::test]
async fn payloads_are_read_by_their_sender_the_lease_holder_and_nobody_else() {
    let bench = Bench::new().await;
    let (message, delivery) = bench.sent("1", "t.lab").await;
    let path = format!("/v1/messages/{message}/data");
    let sender = bench.get(Who::Ehr, &path).send().await.ok(200);
    assert_eq!(
        (sender.text.as_str(), &sender.headers["content-type"]),
        ("{\"n\":1}", &"application/json".parse().unwrap())
    );
    for who in [Who::Other, Who::Lab] {
        assert_eq!(bench.get(who, &path).send().await.ok(404).code(), "not_found");
    }
    let epoch = bench.session(Who::Lab).await;
    let leased = bench.lease(Who::Lab, "lab", json!({"max": 1, "epoch": epoch})).await;
    bench.get(Who::Lab, &path).send().await.ok(200);
    let done = json!({"delivery": delivery, "token": leased[0]["token"], "outcome": "reject"});
    bench.settle(Who::Lab, json!({"results": [done], "epoch": epoch})).await.ok(200);
    bench.get(Who::Lab, &path).send().await.ok(404);
    bench.end().await;
}

#[tokio::test]
async fn r13_12_a_large_payload_is_leased_by_reference_and_read_in_full() {
    let bench = Bench::new().await;
    let epoch = bench.session(Who::Lab).await;
    let mut big = event("1", "t.lab");
    big["datacontenttype"] = json!("text/plain");
    let payload = "x".repeat(1024 * 1024 + 1);
    big["data"] = json!(payload);
    bench.event(Who::Ehr, &big).send().await.ok(202);
    let leased = bench.lease(Who::Lab, "lab", json!({"max": 1, "max_bytes": 1, "epoch": epoch})).await;
    let event = &leased[0]["event"];
    assert_eq!((event.get("data"), event.get("data_base64")), (None, None));
    let read = bench.get(Who::Lab, event["dataref"].as_str().unwrap()).send().await.ok(200);
    assert_eq!(read.headers["content-type"], "text/plain");
    assert!(read.text == payload);
    bench.end().await;
}

#[tokio::test]
async fn a_lease_that_its_client_did_not_wait_for_goes_back_at_once() {
    let bench = Bench::new().await;
    let epoch = bench.session(Who::Careful).await;
    let (_, delivery) = bench.sent("1", "t.careful").await;
    {
        let lease =
            bench.lease(Who::Careful, "careful", json!({"max": 1, "epoch": epoch, "lease_ms": 3_600_000}));
        let mut lease = Box::pin(lease);
        // Far enough that the lease is committed, and then the client goes away.
        let before = bench.state.store.health().ops();
        while bench.state.store.health().ops() == before && pends(lease.as_mut()).await {
            tokio::task::yield_now().await;
        }
    }
    let wait = json!({"max": 1, "epoch": epoch, "wait_ms": 60000});
    assert_eq!(bench.lease(Who::Careful, "careful", wait).await[0]["id"], delivery);
    bench.end().await;
}
