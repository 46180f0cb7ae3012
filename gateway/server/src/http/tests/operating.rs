//! What operators and auditors see and do.

use serde_json::json;

use super::bench::{Answer, Bench, CANARY, Who, event, text};
use crate::http::consumers::ABSENT_AFTER;

/// Lets a delivery of the lab die; gives its message and it.
async fn dead(bench: &Bench, id: &str) -> (String, String) {
    let epoch = bench.session(Who::Lab).await;
    let (message, delivery) = bench.sent(id, "t.lab").await;
    let leased = bench.lease(Who::Lab, "lab", json!({"max": 1, "epoch": epoch})).await;
    let result = json!({"delivery": delivery, "token": leased[0]["token"], "outcome": "reject", "reason": "AR", "evidence": {"level": "transport", "ack": "AR"}});
    bench.settle(Who::Lab, json!({"results": [result], "epoch": epoch})).await.ok(200);
    (message, delivery)
}

#[tokio::test]
async fn a_messages_view_shows_its_history_to_sender_and_operator_only() {
    let bench = Bench::new().await;
    let (message, delivery) = dead(&bench, "1").await;
    let path = format!("/v1/messages/{message}");
    let view = bench.get(Who::Ops, &path).send().await.ok(200).json();
    assert_eq!((&view["app"], &view["attributes"]["id"]), (&json!("ehr"), &json!("1")));
    let delivered = &view["deliveries"][0];
    assert_eq!(
        (&delivered["id"], &delivered["state"], &delivered["reason"]),
        (&json!(delivery), &json!("dead"), &json!("rejected"))
    );
    let last = delivered["history"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&last["event"], &last["by"], &last["reason"], &last["evidence"]["ack"]),
        (&json!("dead"), &json!("adapter:lab"), &json!("AR"), &json!("AR"))
    );
    bench.get(Who::Ehr, &path).send().await.ok(200);
    for who in [Who::Other, Who::Lab] {
        bench.get(who, &path).send().await.ok(404);
    }
    for path in ["/v1/messages/x", "/v1/messages/018f0000-0000-7000-8000-000000000000"] {
        assert_eq!(bench.get(Who::Ops, path).send().await.ok(404).code(), "not_found");
    }
    bench.end().await;
}

#[tokio::test]
async fn an_operators_read_of_a_payload_is_a_leaf_before_the_bytes() {
    let bench = Bench::new().await;
    let (message, _) = bench.sent("1", "t.lab").await;
    let path = format!("/v1/messages/{message}/data");
    assert_eq!(bench.get(Who::Looker, &path).send().await.ok(403).code(), "forbidden");
    assert_eq!(bench.leaves("payload_read").await.len(), 0);
    bench.get(Who::Ops, &path).send().await.ok(200);
    let leaves = bench.leaves("payload_read").await;
    assert_eq!((leaves.len(), &leaves[0]["message"]), (1, &json!(message)));
    bench.get(Who::Ops, &path).send().await.ok(200);
    assert_eq!(bench.leaves("payload_read").await.len(), 1, "within a minute it is counted");
    let (other, _) = bench.sent("2", "t.lab").await;
    bench.get(Who::Ops, &format!("/v1/messages/{other}/data")).send().await.ok(200);
    assert_eq!(bench.leaves("payload_read").await.len(), 2, "another payload is another leaf");
    bench.get(Who::Ehr, &path).send().await.ok(200);
    assert_eq!(bench.leaves("payload_read").await.len(), 2, "a sender's read of its own is none");
    bench.end().await;
}

#[tokio::test]
async fn replies_are_payload_and_shown_only_to_those_who_may_read_it() {
    let bench = Bench::new().await;
    let epoch = bench.session(Who::Lab).await;
    let (message, delivery) = bench.sent("1", "t.lab").await;
    let leased = bench.lease(Who::Lab, "lab", json!({"max": 1, "epoch": epoch})).await;
    let result = json!({"delivery": delivery, "token": leased[0]["token"], "outcome": "delivered",
        "evidence": {"level": "transport"}, "reply": {"datacontenttype": "text/plain", "data": CANARY}});
    bench.settle(Who::Lab, json!({"results": [result], "epoch": epoch})).await.ok(200);
    let path = format!("/v1/messages/{message}");
    assert!(bench.get(Who::Ehr, &path).send().await.ok(200).text.contains(CANARY));
    assert!(!bench.get(Who::Looker, &path).send().await.ok(200).text.contains(CANARY));
    assert_eq!(bench.leaves("payload_read").await.len(), 0);
    assert!(bench.get(Who::Ops, &path).send().await.ok(200).text.contains(CANARY));
    assert_eq!(bench.leaves("payload_read").await.len(), 1);
    bench.end().await;
}

#[tokio::test]
async fn lists_are_paged_filtered_and_searching_is_a_leaf() {
    let bench = Bench::new().await;
    for id in ["1", "2", "3"] {
        let mut event = event(id, "t.lab");
        event["subject"] = json!(format!("patient-{id}"));
        bench.event(Who::Ehr, &event).send().await.ok(202);
    }
    let bench_ref = &bench;
    let list =
        |query: String| async move { bench_ref.get(Who::Ops, &format!("/v1/messages?{query}")).send().await };
    let first = list("limit=2".into()).await.ok(200).json();
    assert_eq!(first["messages"].as_array().unwrap().len(), 2);
    let second = list(format!("limit=2&cursor={}", text(&first["next"]))).await.ok(200).json();
    assert_eq!((second["messages"].as_array().unwrap().len(), &second["next"]), (1, &json!(null)));
    let found = list("subject=patient-2&app=ehr&type=t.lab&state=waiting&destination=lab".into())
        .await
        .ok(200)
        .json();
    assert_eq!(found["messages"].as_array().unwrap().len(), 1);
    assert_eq!(list("subject=patient-9".into()).await.ok(200).json()["messages"], json!([]));
    for query in ["limit=0", "limit=x", "state=gone", "since=now", "colour=red", "cursor=%00bad"] {
        assert_eq!(list(query.into()).await.ok(400).code(), "invalid_request", "{query}");
    }
    assert_eq!(bench.leaves("searched").await.len(), 1, "one at once, the others counted");
    assert_eq!(bench.get(Who::Ehr, "/v1/messages").send().await.ok(403).code(), "forbidden");
    bench.end().await;
}

#[tokio::test]
async fn dead_letters_are_replayed_and_discarded_with_a_reason() {
    let bench = Bench::new().await;
    let (_, delivery) = dead(&bench, "1").await;
    let act = |who, verb: &str, body: serde_json::Value| {
        bench.post(who, &format!("/v1/deliveries/{delivery}/{verb}")).json(&body).send()
    };
    let listed = bench.get(Who::Ops, "/v1/deliveries?state=dead").send().await.ok(200).json();
    assert_eq!(listed["deliveries"][0]["id"], delivery);
    assert_eq!(act(Who::Ops, "replay", json!({"reason": "  "})).await.ok(400).code(), "invalid_request");
    assert_eq!(act(Who::Looker, "replay", json!({"reason": "r"})).await.ok(403).code(), "forbidden");
    assert_eq!(act(Who::Ehr, "replay", json!({"reason": "r"})).await.ok(403).code(), "forbidden");
    let resolve = act(Who::Ops, "resolve", json!({"as": "delivered", "reason": "r"})).await.ok(409);
    assert_eq!(resolve.code(), "illegal_state");
    let replayed = act(Who::Ops, "replay", json!({"reason": "partner is back"})).await.ok(200).json();
    assert_eq!(
        (&replayed["state"], &replayed["series"], &replayed["replayed"]),
        (&json!("waiting"), &json!(1), &json!(true))
    );
    assert_eq!(act(Who::Ops, "discard", json!({"reason": "r"})).await.ok(409).code(), "illegal_state");
    let unknown = bench.post(Who::Ops, "/v1/deliveries/018f0000-0000-7000-8000-000000000000/discard");
    assert_eq!(unknown.json(&json!({"reason": "r"})).send().await.ok(404).code(), "not_found");
    let leaves = bench.leaves("replayed").await;
    assert_eq!((leaves.len(), &leaves[0]["by"]["name"]), (1, &json!("ops")));
    bench.end().await;
}

#[tokio::test]
async fn a_doubt_is_listed_as_held_and_resolved() {
    let bench = Bench::new().await;
    let epoch = bench.session(Who::Careful).await;
    let (_, delivery) = bench.sent("1", "t.careful").await;
    let leased = bench.lease(Who::Careful, "careful", json!({"max": 1, "epoch": epoch})).await;
    for outcome in ["begin", "in_doubt"] {
        let result = json!({"delivery": delivery, "token": leased[0]["token"], "outcome": outcome});
        bench.settle(Who::Careful, json!({"results": [result], "epoch": epoch})).await.ok(200);
    }
    let held = bench.get(Who::Ops, "/v1/deliveries?state=held").send().await.ok(200).json();
    assert_eq!(held["deliveries"][0]["id"], delivery);
    let body = json!({"as": "delivered", "reason": "the partner has it"});
    let resolved =
        bench.post(Who::Ops, &format!("/v1/deliveries/{delivery}/resolve")).json(&body).send().await;
    assert_eq!(resolved.ok(200).json()["state"], "delivered");
    bench.end().await;
}

#[tokio::test]
async fn a_paused_queue_gives_nothing_until_it_is_resumed() {
    let bench = Bench::new().await;
    let epoch = bench.session(Who::Lab).await;
    bench.sent("1", "t.lab").await;
    let brake = |who, queue: &str, verb: &str| bench.post(who, &format!("/v1/queues/{queue}/{verb}")).send();
    assert_eq!(brake(Who::Looker, "lab", "pause").await.ok(403).code(), "forbidden");
    assert_eq!(brake(Who::Ops, "none", "pause").await.ok(404).code(), "not_found");
    assert_eq!(brake(Who::Ops, "lab", "pause").await.ok(200).json()["paused"], true);
    let lease = async |who, queue: &str, request: serde_json::Value| {
        bench.post(who, &format!("/v1/queues/{queue}/lease")).json(&request).send().await.ok(200).json()
    };
    let paused = json!({"deliveries": [], "paused": true});
    assert_eq!(lease(Who::Lab, "lab", json!({"max": 1, "epoch": epoch})).await, paused);
    assert_eq!(lease(Who::Ehr, "results", json!({"max": 1})).await, json!({"deliveries": []}));
    assert_eq!(brake(Who::Ops, "lab", "resume").await.ok(200).json()["paused"], false);
    assert_eq!(
        bench.lease(Who::Lab, "lab", json!({"max": 1, "epoch": epoch})).await.as_array().unwrap().len(),
        1
    );
    let queues = bench.get(Who::Looker, "/v1/queues").send().await.ok(200).json();
    let names: Vec<_> =
        queues["queues"].as_array().unwrap().iter().map(|queue| text(&queue["name"])).collect();
    assert_eq!(names, ["careful", "lab", "results", "unrouted"]);
    let lab = bench.get(Who::Ops, "/v1/queues/lab").send().await.ok(200).json();
    assert_eq!(lab["depth"]["sending"], 1);
    bench.end().await;
}

#[tokio::test]
async fn adapters_are_listed_and_restarted_with_a_leaf() {
    let bench = Bench::new().await;
    let adapters = bench.get(Who::Ops, "/v1/adapters").send().await.ok(200).json();
    assert_eq!(adapters["adapters"][1]["name"], "lab");
    let restart = |who, name: &str| bench.post(who, &format!("/v1/adapters/{name}/restart")).send();
    assert_eq!(restart(Who::Looker, "lab").await.ok(403).code(), "forbidden");
    assert_eq!(restart(Who::Ops, "none").await.ok(404).code(), "not_found");
    assert_eq!(restart(Who::Ops, "lab").await.ok(202).json()["name"], "lab");
    assert_eq!(*bench.adapters.restarted.lock().unwrap(), ["lab"]);
    assert_eq!(bench.leaves("adapter_restarted").await.len(), 1);
    bench.end().await;
}

#[tokio::test]
async fn the_log_is_there_for_auditors_and_receipts_for_senders() {
    let bench = Bench::new().await;
    let (_, delivery) = dead(&bench, "1").await;
    let path = format!("/v1/audit/receipt/{delivery}");
    let receipt = covered(&bench, &path).await;
    let proofs = receipt.json();
    assert!(text(&proofs["proofs"][0]).starts_with("c2sp.org/tlog-proof@v1"), "{proofs}");
    assert_eq!(proofs["proofs"].as_array().unwrap().len(), 3, "accepted, attempt, dead");
    assert_eq!(bench.get(Who::Other, &path).send().await.ok(404).code(), "not_found");
    bench.get(Who::Ops, &path).send().await.ok(200);

    let checkpoint = bench.get(Who::Ops, "/v1/audit/checkpoint").send().await.ok(200);
    let size: u64 = checkpoint.text.lines().nth(1).unwrap().parse().unwrap();
    bench.get(Who::Ops, &format!("/v1/audit/tile/0/000.p/{size}")).send().await.ok(200);
    bench.get(Who::Ops, &format!("/v1/audit/tile/entries/000.p/{size}")).send().await.ok(200);
    for path in
        ["tile/0/000", "tile/9/x001/000", "tile/entries/000", "tile/0/0", "tile/x/000.p/1", "tile/0/000.p/0"]
    {
        assert_eq!(
            bench.get(Who::Ops, &format!("/v1/audit/{path}")).send().await.ok(404).code(),
            "not_found",
            "{path}"
        );
    }
    assert_eq!(bench.get(Who::Looker, "/v1/audit/checkpoint").send().await.ok(403).code(), "forbidden");
    assert_eq!(bench.get(Who::Ehr, "/v1/audit/tile/0/000.p/1").send().await.ok(403).code(), "forbidden");
    assert_eq!(
        bench.leaves("audit_read").await.len(),
        2,
        "one for receipts, one for tiles; none for checkpoints"
    );
    bench.end().await;
}

/// Asks until a checkpoint covers the answer, as `Retry-After` tells clients to.
async fn covered(bench: &Bench, path: &str) -> Answer {
    loop {
        let answer = bench.get(Who::Ehr, path).send().await;
        if answer.status != 503 {
            return answer.ok(200);
        }
        assert_eq!(
            (answer.code().as_str(), &answer.headers["retry-after"]),
            ("receipt_pending", &"1".parse().unwrap())
        );
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn health_says_what_blocks_and_metrics_hold_no_values() {
    let bench = Bench::new().await;
    let mut event = event("1", "t.lab");
    event["subject"] = json!(CANARY);
    event["partitionkey"] = json!(CANARY);
    event["data"] = json!({"name": CANARY});
    bench.event(Who::Ehr, &event).send().await.ok(202);
    bench.get(Who::Ehr, &format!("/{CANARY}")).send().await.ok(404);
    for who in [Who::Ehr, Who::Lab, Who::Ops] {
        bench.get(who, "/livez").send().await.ok(200);
        let mut readiness = bench.get(who, "/readyz").send().await.ok(200).json();
        // What the configuration is warned of names files of this host: for operators.
        let warnings = readiness.as_object_mut().unwrap().remove("warnings");
        assert_eq!(warnings.is_some(), matches!(who, Who::Ops), "{warnings:?}");
        assert!(warnings.is_none_or(|warnings| warnings.to_string().contains("adapters.lab: has no limit")));
        let user = readiness.as_object_mut().unwrap().remove("runs_as");
        assert_eq!(user.is_some(), matches!(who, Who::Ops), "{user:?}");
        assert_eq!(readiness, json!({"ready": true, "blocking": []}));
    }
    let metrics = bench.get(Who::Ops, "/metrics").send().await.ok(200).text;
    for line in [
        r#"gatepost_queue_deliveries{queue="lab",state="waiting"} 1"#,
        r#"gatepost_http_requests_total{method="POST",route="/v1/messages",status="202"} 1"#,
        r#"gatepost_refused_total{code="not_found"} 1"#,
        r#"gatepost_adapter_restarts_total{adapter="lab"} 2"#,
        "gatepost_accepted_deliveries_total 1",
        "gatepost_store_accepting 1",
        "# EOF",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert!(!metrics.contains(CANARY));
    assert_eq!(bench.get(Who::Ehr, "/metrics").send().await.ok(403).code(), "forbidden");
    let before = bench.leaves("refused").await.len();
    assert_eq!(before, 1);
    *bench.adapters.tripped.lock().unwrap() = true;
    let blocked = bench.get(Who::Ehr, "/readyz").send().await.ok(503).json();
    assert!(blocked["blocking"].to_string().contains("`lab`"), "{blocked}");
    *bench.adapters.tripped.lock().unwrap() = false;
    bench.stop.send_replace(true);
    assert!(bench.get(Who::Ehr, "/readyz").send().await.ok(503).text.contains("stopping"));
    bench.end().await;
}

#[tokio::test]
async fn an_adapter_that_is_run_elsewhere_is_absent_until_it_is_heard_of_and_comes_back_by_itself() {
    let bench = Bench::new().await;
    let careful = async || {
        let adapters = bench.get(Who::Ops, "/v1/adapters").send().await.ok(200).json();
        let careful =
            adapters["adapters"].as_array().unwrap().iter().find(|item| item["name"] == "careful").unwrap();
        let state = text(&careful["state"]);
        let metrics = bench.get(Who::Ops, "/metrics").send().await.ok(200).text;
        let line = format!(r#"gatepost_adapter_state{{adapter="careful",state="{state}"}} 1"#);
        assert!(metrics.contains(&line), "{metrics}");
        (state, careful["last_error"].clone())
    };
    assert_eq!(careful().await.0, "external_absent", "it has never come");
    let epoch = bench.session(Who::Careful).await;
    assert_eq!(careful().await, ("external".to_owned(), json!(null)));
    bench.state.consumers.backdate("careful", ABSENT_AFTER * 2);
    let (state, why) = careful().await;
    assert_eq!((state.as_str(), why), ("external_absent", json!("nothing heard of it for 120 s")));
    bench.lease(Who::Careful, "careful", json!({"max": 1, "epoch": epoch})).await;
    assert_eq!(careful().await.0, "external");
    bench.end().await;
}

#[tokio::test]
async fn a_queue_is_moved_with_a_reason_and_what_is_left_is_said() {
    let bench = Bench::new().await;
    let (_, delivery) = dead(&bench, "1").await;
    let (_, waiting) = bench.sent("2", "t.lab").await;
    let path = "/v1/queues/lab/move";
    let act = async |who, body: serde_json::Value| bench.post(who, path).json(&body).send().await;
    assert_eq!(act(Who::Looker, json!({"to": "results", "reason": "x"})).await.ok(403).code(), "forbidden");
    for body in [
        json!({"to": "results", "reason": " "}),
        json!({"to": "lab", "reason": "x"}),
        json!({"to": "results"}),
    ] {
        assert_eq!(act(Who::Ops, body.clone()).await.ok(400).code(), "invalid_request", "{body}");
    }
    assert_eq!(act(Who::Ops, json!({"to": "nowhere", "reason": "x"})).await.ok(404).code(), "not_found");
    let answer = act(Who::Ops, json!({"to": "unrouted", "reason": "x"})).await.ok(409);
    assert_eq!(answer.code(), "illegal_state");
    let bad = json!({"to": "results", "reason": "x", "cursor": "-1"});
    assert_eq!(act(Who::Ops, bad).await.ok(400).code(), "invalid_request");
    let moved = act(Who::Ops, json!({"to": "results", "reason": "the lab has moved"})).await.ok(200).json();
    assert_eq!(
        (&moved["waiting"], &moved["dead"], &moved["next"], &moved["left"]["waiting"]),
        (&json!(1), &json!(1), &json!(null), &json!(0))
    );
    let leaves = bench.leaves("moved").await;
    assert_eq!(leaves.len(), 2);
    for (leaf, id, state) in [(&leaves[0], &delivery, "dead"), (&leaves[1], &waiting, "waiting")] {
        assert_eq!(
            (
                &leaf["delivery"],
                &leaf["destination"],
                &leaf["subject_of"],
                &leaf["state"],
                &leaf["by"]["name"]
            ),
            (&json!(id), &json!("results"), &json!("lab"), &json!(state), &json!("ops"))
        );
    }
    bench.end().await;
}

#[tokio::test]
async fn r13_8_thousands_of_failures_of_strangers_are_few_leaves_that_count_them_all() {
    const FAILURES: u64 = 5000;
    let bench = Bench::new().await;
    for number in 0..FAILURES {
        bench.state.trail.turned_away(&format!("spiffe://flood.example/{number}"));
    }
    let stop = bench.stop.subscribe();
    bench.stop.send_replace(true);
    bench.state.trail.clone().run(stop).await;
    let leaves = bench.leaves("refused").await;
    assert!(leaves.len() <= 70, "{} leaves", leaves.len());
    let counted: u64 = leaves.iter().map(|leaf| leaf["count"].as_u64().unwrap_or(1)).sum();
    assert_eq!(counted, FAILURES);
    assert!(
        leaves.iter().any(|leaf| leaf["subject_of"] == "spiffe://flood.example/0"),
        "the first are told by name"
    );
    assert!(
        leaves.iter().any(|leaf| leaf["subject_of"].is_null() && leaf["count"].as_u64() > Some(4900)),
        "{leaves:?}"
    );
    bench.end().await;
}
