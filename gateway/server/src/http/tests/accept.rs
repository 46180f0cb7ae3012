//! Taking messages in.

use axum::body::{Body, Bytes};
use axum::http::Method;
use futures_util::stream::{self, StreamExt as _};
use serde_json::{Value, json};

use super::bench::{Bench, CANARY, Who, event, text};
use super::pends;

#[tokio::test]
async fn an_event_is_stored_and_answered_with_its_deliveries() {
    let bench = Bench::new().await;
    let answer = bench.event(Who::Ehr, &event("1", "t.lab")).send().await.ok(202);
    let body = answer.json();
    let message = &body["messages"][0];
    assert_eq!(body["durability"], "fsync");
    assert_eq!(
        (&message["duplicate"], &message["deliveries"][0]["destination"]),
        (&json!(false), &json!("lab"))
    );
    assert_eq!(answer.headers["location"], format!("/v1/messages/{}", text(&message["id"])));
    assert_eq!(bench.leaves("accepted").await.len(), 1);
    bench.end().await;
}

/// Nobody can know from the configuration that a user is in the other's group.
#[tokio::test]
async fn r13_15_who_matches_two_principals_is_refused_with_an_entry_and_nothing_is_stored() {
    let bench = Bench::new().await;
    bench.reconfigure(|text| format!("{text}\n[apps.grouped]\ngroup = \"4242\"\nsend = [\"t.*\"]\n"));
    for who in [Who::Ehr, Who::InGroup(1099, 4242)] {
        bench.get(who, "/livez").send().await.ok(200);
    }
    let both = Who::InGroup(1001, 4242);
    assert_eq!(bench.event(both, &event("1", "t.lab")).send().await.ok(403).code(), "ambiguous_identity");
    assert_eq!(bench.get(both, "/livez").send().await.ok(403).code(), "ambiguous_identity");
    assert_eq!(bench.leaves("accepted").await.len(), 0);
    let refused = bench.leaves("refused").await;
    assert!(refused.iter().any(|leaf| leaf["code"] == "ambiguous_identity"), "{refused:?}");
    bench.end().await;
}

#[tokio::test]
async fn large_bodies_that_never_end_hold_up_nobody_but_their_sender() {
    let bench = Bench::new().await;
    let epoch = bench.session(Who::Lab).await.to_string();
    let endless = || {
        let piece = Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 100 * 1024]));
        bench
            .post(Who::Ehr, "/v1/messages")
            .header("content-type", "application/cloudevents-batch+json")
            .body(Body::from_stream(stream::iter([piece]).chain(stream::pending())))
            .send()
    };
    // What they announce is more than the whole account.
    let mut endless: Vec<_> = (0..10).map(|_| Box::pin(endless())).collect();
    for request in &mut endless {
        assert!(pends(request.as_mut()).await);
    }
    let mut large = event("1", "ack.ok");
    large["data"] = "x".repeat(1 << 20).into();
    bench.event(Who::Lab, &large).header("gatepost-epoch", &epoch).send().await.ok(202);
    drop(endless);
    bench.end().await;
}

#[tokio::test]
async fn binary_mode_carries_attributes_in_headers_and_any_bytes() {
    let bench = Bench::new().await;
    let sent = bench
        .post(Who::Ehr, "/v1/messages")
        .header("ce-specversion", "1.0")
        .header("ce-id", "1")
        .header("ce-source", "/ehr")
        .header("ce-type", "t.lab")
        .header("ce-subject", "%C3%A9")
        .header("content-type", "application/hl7-v2+er7")
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .body(&b"MSH|\xff"[..])
        .send()
        .await
        .ok(202);
    let message = text(&sent.json()["messages"][0]["id"]);
    let view = bench.get(Who::Ehr, &format!("/v1/messages/{message}")).send().await.ok(200).json();
    assert_eq!(view["attributes"]["subject"], "é");
    assert_eq!(view["attributes"]["traceparent"], "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let epoch = bench.session(Who::Lab).await;
    let leased = bench.lease(Who::Lab, "lab", json!({"max": 1, "epoch": epoch})).await;
    assert_eq!(leased[0]["event"]["data_base64"], "TVNIfP8=");
    assert_eq!(leased[0]["event"]["gatepostapp"], "ehr");
    assert_eq!(leased[0]["event"]["gatepostid"], message);
    bench.end().await;
}

#[tokio::test]
async fn r13_13_a_repetition_is_a_duplicate_and_other_content_is_refused() {
    let bench = Bench::new().await;
    let send = |event: Value, key: &'static str| {
        let call = bench.event(Who::Ehr, &event);
        if key.is_empty() { call } else { call.header("idempotency-key", key) }
    };
    let first = send(event("1", "t.lab"), "").send().await.ok(202).json();
    let again = send(event("1", "t.lab"), "").send().await.ok(202).json();
    assert_eq!(first["messages"][0]["id"], again["messages"][0]["id"]);
    assert_eq!(again["messages"][0]["duplicate"], true);
    let mut other = event("1", "t.lab");
    other["data"] = json!({"n": CANARY});
    let refused = send(other, "").send().await.ok(422);
    assert_eq!(refused.code(), "idempotency_mismatch");
    assert!(!refused.text.contains(CANARY));

    send(event("2", "t.lab"), "\"key\"").send().await.ok(202);
    let keyed = send(event("3", "t.lab"), "key").send().await.ok(202).json();
    assert_eq!(
        keyed["messages"][0]["duplicate"], true,
        "quoted and bare are the same key; the id does not count"
    );
    bench.end().await;
}

#[tokio::test]
async fn r13_13_a_repetition_is_answered_whatever_rights_and_routes_have_become() {
    let bench = Bench::new().await;
    let (first, _) = bench.sent("1", "t.lab").await;
    let epoch = bench.session(Who::Lab).await;
    let intake = |epoch: u64, id: &str| {
        bench.settle(Who::Lab, json!({"emit": [event(id, "ack.ok")], "state": {"k": "AA=="}, "epoch": epoch}))
    };
    let taken = text(&intake(epoch, "7").await.ok(200).json()["emitted"][0]["id"]);
    bench.reconfigure(|text| {
        text.replace("send = [\"t.*\", \"failing\"]", "send = [\"u.*\"]")
            .replace("type == \"ack.ok\"", "false")
    });

    let again = bench.event(Who::Ehr, &event("1", "t.lab")).send().await.ok(202).json();
    assert_eq!(
        (&again["messages"][0]["id"], &again["messages"][0]["duplicate"]),
        (&json!(first), &json!(true))
    );
    assert_eq!(again["messages"][0]["deliveries"][0]["destination"], "lab");
    assert_eq!(bench.event(Who::Ehr, &event("2", "t.lab")).send().await.ok(403).code(), "type_not_allowed");
    let mut other = event("1", "t.lab");
    other["data"] = json!(2);
    assert_eq!(bench.event(Who::Ehr, &other).send().await.ok(403).code(), "type_not_allowed");
    let repeated = intake(epoch, "7").await.ok(200).json();
    assert_eq!(repeated["emitted"], json!([{"id": taken, "duplicate": true}]));
    assert_eq!(intake(epoch, "8").await.ok(422).code(), "no_route");
    bench.end().await;
}

#[tokio::test]
async fn a_batch_is_stored_whole_or_not_at_all() {
    let bench = Bench::new().await;
    let batch = |events: Value| {
        bench
            .post(Who::Ehr, "/v1/messages")
            .header("content-type", "application/cloudevents-batch+json")
            .body(events.to_string())
    };
    let twins = json!([event("1", "t.lab"), event("2", "t.lab"), event("1", "t.lab")]);
    let answer = batch(twins).send().await.ok(202).json();
    let duplicates: Vec<_> = (0..3).map(|index| answer["messages"][index]["duplicate"] == true).collect();
    assert_eq!(duplicates, [false, false, true]);

    let mut mismatch = event("4", "t.lab");
    mismatch["data"] = json!(2);
    for (events, status, code) in [
        (json!([event("3", "t.lab"), event("4", "u")]), 403, "type_not_allowed"),
        (json!([event("3", "t.lab"), event("4", "t.nowhere")]), 422, "no_route"),
        (json!([event("3", "t.lab"), event("4", "failing")]), 422, "route_failed"),
        (json!([event("3", "t.lab"), {"specversion": "1.0"}]), 400, "invalid_event"),
        (json!([event("4", "t.lab"), mismatch]), 422, "idempotency_mismatch"),
    ] {
        let refused = batch(events).send().await.ok(status);
        assert_eq!(refused.code(), code);
        assert!(refused.json()["detail"].as_str().unwrap().contains("event 1"), "{}", refused.text);
    }
    let keyed =
        batch(json!([event("5", "t.lab"), event("6", "t.lab")])).header("idempotency-key", "k").send().await;
    assert_eq!(keyed.ok(400).code(), "idempotency_key_with_batch");
    let third = bench.event(Who::Ehr, &event("3", "t.lab")).send().await.ok(202).json();
    assert_eq!(third["messages"][0]["duplicate"], false, "no refused batch left anything behind");
    bench.end().await;
}

#[tokio::test]
async fn faults_are_named_without_values() {
    let bench = Bench::new().await;
    let mut expiring = event("1", "t.lab");
    expiring["expirytime"] = json!(CANARY);
    let mut named = event("1", "t.lab");
    named["Bad_Name"] = json!(CANARY);
    let mut failing = event("1", "failing");
    failing["subject"] = json!(CANARY);
    for (event, code, word) in [
        (expiring, "invalid_event", "expirytime"),
        (named, "invalid_event", "Bad_Name"),
        (failing, "route_failed", "route"),
    ] {
        let refused = bench.event(Who::Ehr, &event).send().await;
        assert_eq!(refused.code(), code);
        assert!(refused.text.contains(word) && !refused.text.contains(CANARY), "{}", refused.text);
    }
    let torn = bench.post(Who::Ehr, "/v1/messages").header("content-type", "application/cloudevents+json");
    let torn = torn.body(format!("{{\"id\": \"{CANARY}\", ")).send().await.ok(400);
    assert_eq!(torn.code(), "invalid_request");
    assert!(torn.text.contains("column") && !torn.text.contains(CANARY), "{}", torn.text);
    bench.end().await;
}

#[tokio::test]
async fn limits_of_size_hold() {
    let bench = Bench::new().await;
    let binary = |bytes: usize| {
        let call = bench.post(Who::Ehr, "/v1/messages").header("ce-specversion", "1.0").header("ce-id", "1");
        call.header("ce-source", "/s").header("ce-type", "t.lab").body(vec![7u8; bytes])
    };
    binary(2 * 1024 * 1024).send().await.ok(202);
    assert_eq!(binary(2 * 1024 * 1024 + 1).send().await.ok(413).code(), "too_large");
    let mut big = event("2", "t.lab");
    big["data"] = json!("x".repeat(2 * 1024 * 1024));
    assert_eq!(bench.event(Who::Ehr, &big).send().await.ok(413).code(), "too_large");
    bench.end().await;
}

#[tokio::test]
async fn only_senders_send_and_adapters_name_their_session() {
    let bench = Bench::new().await;
    assert_eq!(bench.event(Who::Ops, &event("1", "t.lab")).send().await.ok(403).code(), "forbidden");
    assert_eq!(bench.event(Who::Lab, &event("1", "ack.ok")).send().await.ok(400).code(), "invalid_request");
    let epoch = bench.session(Who::Lab).await;
    let send = |epoch: u64, id| {
        bench.event(Who::Lab, &event(id, "ack.ok")).header("gatepost-epoch", &epoch.to_string())
    };
    send(epoch, "1").send().await.ok(202);
    let newer = bench.session(Who::Lab).await;
    assert!(newer > epoch);
    assert_eq!(send(epoch, "2").send().await.ok(409).code(), "superseded");
    let refused = bench.post(Who::Ehr, "/v1/messages").header("content-type", "application/json").body("{}");
    assert_eq!(refused.send().await.ok(415).code(), "unsupported_media_type");
    bench.end().await;
}

#[tokio::test]
async fn prefer_wait_answers_when_all_has_ended_with_the_reply() {
    let bench = Bench::new().await;
    let waiting = async {
        let answer =
            bench.event(Who::Ehr, &event("1", "t.lab")).header("prefer", "wait=60").send().await.ok(200);
        assert_eq!(answer.headers["preference-applied"], "wait=60");
        answer.json()
    };
    let serving = async {
        let epoch = bench.session(Who::Lab).await;
        let leased = bench.lease(Who::Lab, "lab", json!({"max": 1, "wait_ms": 60000, "epoch": epoch})).await;
        let result = json!({
            "delivery": leased[0]["id"], "token": leased[0]["token"], "outcome": "delivered",
            "evidence": {"level": "transport"}, "reply": {"datacontenttype": "application/json", "data": {"ack": "AA"}},
        });
        bench.settle(Who::Lab, json!({"results": [result], "epoch": epoch})).await.ok(200);
    };
    let (answer, ()) = tokio::join!(waiting, serving);
    let delivery = &answer["messages"][0]["deliveries"][0];
    assert_eq!(
        (&delivery["state"], &delivery["reply"]["data"]),
        (&json!("delivered"), &json!({"ack": "AA"}))
    );

    let again =
        bench.event(Who::Ehr, &event("1", "t.lab")).header("prefer", "wait=60").send().await.ok(200).json();
    assert_eq!(
        again["messages"][0]["deliveries"][0]["reply"]["data"]["ack"], "AA",
        "a duplicate waits on the original"
    );
    bench.end().await;
}

#[tokio::test]
async fn whoever_waits_is_told_what_a_refusal_said_and_nobody_else_is() {
    let bench = Bench::new().await;
    let sent = event("1", "t.lab");
    let waiting =
        async { bench.event(Who::Ehr, &sent).header("prefer", "wait=60").send().await.ok(200).json() };
    let serving = async {
        let epoch = bench.session(Who::Lab).await;
        let leased = bench.lease(Who::Lab, "lab", json!({"max": 1, "wait_ms": 60000, "epoch": epoch})).await;
        let result = json!({
            "delivery": leased[0]["id"], "token": leased[0]["token"], "outcome": "reject", "reason": "unknown patient",
            "reply": {"datacontenttype": "text/plain", "data": "MSA|AE|1"},
        });
        bench.settle(Who::Lab, json!({"results": [result], "epoch": epoch})).await.ok(200);
    };
    let (answer, ()) = tokio::join!(waiting, serving);
    let delivery = &answer["messages"][0]["deliveries"][0];
    assert_eq!((&delivery["state"], &delivery["reply"]["data"]), (&json!("dead"), &json!("MSA|AE|1")));
    let path = format!("/v1/messages/{}", answer["messages"][0]["id"].as_str().unwrap());
    let seen = bench.get(Who::Ehr, &path).send().await.ok(200).json();
    assert_eq!(seen["deliveries"][0]["reply"]["data"], "MSA|AE|1");
    // It is payload.
    let seen = bench.get(Who::Looker, &path).send().await.ok(200).json();
    assert_eq!(
        (&seen["deliveries"][0]["state"], &seen["deliveries"][0]["reply"]),
        (&json!("dead"), &Value::Null)
    );
    bench.end().await;
}

#[tokio::test]
async fn a_wait_that_runs_out_answers_202_and_the_stop_ends_it() {
    let bench = Bench::new().await;
    let answer = bench.event(Who::Ehr, &event("1", "t.lab")).header("prefer", "wait=0").send().await.ok(202);
    assert_eq!(answer.json()["messages"][0]["deliveries"][0]["state"], "waiting");
    let waiting = bench.event(Who::Ehr, &event("2", "t.lab")).header("prefer", "wait=300").send();
    let stop = async { bench.stop.send_replace(true) };
    let (answer, _) = tokio::join!(waiting, stop);
    answer.ok(202);
    bench.end().await;
}

#[tokio::test]
async fn identity_comes_from_the_connection_and_a_token_only_narrows_it() {
    let bench = Bench::new().await;
    let live = |who| bench.get(who, "/livez");
    live(Who::Ehr).send().await.ok(200);
    live(Who::User(1003)).header("authorization", "Bearer foo").send().await.ok(200);
    for (call, status, code) in [
        (live(Who::User(9999)), 401, "unauthenticated"),
        (live(Who::User(9999)).header("authorization", "Bearer foo"), 401, "unauthenticated"),
        (live(Who::User(1003)), 401, "unauthenticated"),
        (live(Who::User(1003)).header("authorization", "Bearer wrong"), 401, "unauthenticated"),
    ] {
        assert_eq!(call.send().await.ok(status).code(), code);
    }
    assert_eq!(bench.anonymous("/livez").send().await.ok(500).code(), "internal");
    assert_eq!(bench.leaves("refused").await.len(), 1, "the first at once, the others counted");
    let unparsed = bench.call(Who::User(9999), Method::POST, "/v1/settle").body("{{{").send().await.ok(401);
    assert_eq!(unparsed.code(), "unauthenticated", "nothing is parsed before the caller is known");
    bench.end().await;
}
