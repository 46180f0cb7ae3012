//! What one principal may take, and that it takes nothing from the others.

use std::time::Instant;

use axum::body::{Body, Bytes};
use futures_util::StreamExt as _;
use gatepost_core::principal::{Actor, ActorKind};
use serde_json::{Value, json};

use super::bench::{Answer, Bench, Who, event};
use crate::supervise::queue_setups;

const GREEDY: Who = Who::User(1005);

async fn stored(bench: &Bench, app: &str) -> usize {
    let answer = bench.get(Who::Ops, &format!("/v1/messages?app={app}&limit=1000")).send().await.ok(200);
    answer.json()["messages"].as_array().unwrap().len()
}

fn refused(answer: &Answer, code: &str) {
    assert_eq!(answer.status.as_u16(), 429, "{}", answer.text);
    assert_eq!(answer.code(), code);
    let wait: u32 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(wait >= 1);
}

/// A body that says how long it is, sends a part, and then nothing for ever.
fn drip(part: usize) -> Body {
    let first = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from(vec![b' '; part]))]);
    Body::from_stream(first.chain(futures_util::stream::pending()))
}

async fn well_behaved(bench: &Bench, from: usize, count: usize) {
    for number in from..from + count {
        bench.event(Who::Ehr, &event(&format!("good-{number}"), "t.lab")).send().await.ok(202);
    }
}

#[tokio::test]
async fn a_flood_is_refused_beyond_its_rate_and_the_others_go_on() {
    let bench = Bench::new().await;
    let flood = async {
        let mut taken = 0;
        for number in 0..100 {
            let answer = bench.event(GREEDY, &event(&format!("flood-{number}"), "t.lab")).send().await;
            match answer.status.as_u16() {
                202 => taken += 1,
                _ => refused(&answer, "rate_limited"),
            }
        }
        taken
    };
    let (taken, ()) = tokio::join!(flood, well_behaved(&bench, 0, 100));
    assert_eq!((taken, stored(&bench, "greedy").await), (10, 10), "its burst");
    assert_eq!(stored(&bench, "ehr").await, 100);
    bench.end().await;
}

#[tokio::test]
async fn who_asks_too_often_is_refused_whatever_it_asks_for_and_the_others_are_not() {
    let bench = Bench::new().await;
    bench.reconfigure(|text| text.replace(GREEDY_HAS, "{ request_rate = \"1/m\" }"));
    let message =
        bench.event(GREEDY, &event("a", "t.lab")).send().await.ok(202).json()["messages"][0].clone();
    let path = format!("/v1/messages/{}", message["id"].as_str().unwrap());
    for _ in 0..3 {
        refused(&bench.get(GREEDY, &path).send().await, "rate_limited");
    }
    refused(&bench.event(GREEDY, &event("b", "t.lab")).send().await, "rate_limited");
    assert_eq!(stored(&bench, "greedy").await, 1);
    well_behaved(&bench, 0, 20).await;
    bench.end().await;
}

#[tokio::test]
async fn a_batch_is_taken_whole_or_not_at_all() {
    let bench = Bench::new().await;
    let batch = |name: &str, count: usize| {
        let events: Vec<_> = (0..count).map(|number| event(&format!("{name}-{number}"), "t.lab")).collect();
        let call = bench.post(GREEDY, "/v1/messages");
        call.header("content-type", "application/cloudevents-batch+json")
            .body(json!(events).to_string())
            .send()
    };
    batch("a", 7).await.ok(202);
    refused(&batch("b", 4).await, "rate_limited");
    assert_eq!(stored(&bench, "greedy").await, 7);
    batch("c", 3).await.ok(202);
    refused(&batch("d", 1).await, "rate_limited");
    assert_eq!(stored(&bench, "greedy").await, 10);
    bench.end().await;
}

#[tokio::test]
async fn drips_and_huge_bodies_take_what_their_sender_has_and_no_more() {
    let bench = Bench::new().await;
    let send = |body: Body| {
        bench
            .post(GREEDY, "/v1/messages")
            .header("content-type", "application/cloudevents+json")
            .body(body)
            .send()
    };
    // Announced, and refused before a byte of it is read.
    refused(&send(Body::from(vec![b' '; 300 * 1024])).await, "bytes_in_flight");
    // Not announced, and refused as soon as it is too much.
    refused(&send(drip(300 * 1024)).await, "bytes_in_flight");

    let mut held: Vec<_> = (0..2).map(|_| Box::pin(send(drip(100 * 1024)))).collect();
    for request in &mut held {
        assert!(super::pends(request.as_mut()).await, "it waits for the rest");
    }
    refused(&send(Body::from(vec![b' '; 60 * 1024])).await, "bytes_in_flight");
    let mut small: Vec<_> = (0..2).map(|_| Box::pin(send(drip(1)))).collect();
    for request in &mut small {
        assert!(super::pends(request.as_mut()).await);
    }
    refused(&send(drip(1)).await, "too_many_requests");
    well_behaved(&bench, 0, 20).await;

    drop((held, small));
    bench.event(GREEDY, &event("after", "t.lab")).send().await.ok(202);
    assert_eq!((stored(&bench, "greedy").await, stored(&bench, "ehr").await), (1, 20));
    bench.end().await;
}

#[tokio::test]
async fn a_reload_changes_limits_for_whoever_is_there() {
    let bench = Bench::new().await;
    for number in 0..10 {
        bench.event(GREEDY, &event(&format!("{number}"), "t.lab")).send().await.ok(202);
    }
    refused(&bench.event(GREEDY, &event("x", "t.lab")).send().await, "rate_limited");
    bench.reconfigure(|text| text.replace("rate = \"1/m\", burst = 10, ", ""));
    bench.event(GREEDY, &event("x", "t.lab")).send().await.ok(202);
    bench.end().await;
}

/// Puts a configuration into force in which `from` is `to`, the store included.
async fn reload(bench: &Bench, from: &str, to: &str) {
    bench.reconfigure(|text| text.replace(from, to));
    bench.state.store.queues_configure(queue_setups(&bench.state.config.load())).await.unwrap();
}

/// What the app has for limits in the benches' configuration.
const GREEDY_HAS: &str = "{ rate = \"1/m\", burst = 10, bytes_in_flight = \"256KiB\", requests = 4 }";

#[tokio::test]
async fn what_is_not_settled_stands_against_its_sender_until_it_is_and_against_nobody_else() {
    let bench = Bench::new().await;
    reload(&bench, GREEDY_HAS, "{ backlog = { messages = 3, bytes = \"1MiB\" } }").await;
    let send = |id: &str| bench.event(GREEDY, &event(id, "t.lab")).send();
    let first = send("1").await.ok(202).json();
    send("2").await.ok(202);
    let both = json!([event("3", "t.lab"), event("4", "t.lab")]).to_string();
    let batch =
        bench.post(GREEDY, "/v1/messages").header("content-type", "application/cloudevents-batch+json");
    refused(&batch.body(both).send().await, "backlog_full");
    send("3").await.ok(202);
    let answer = send("4").await;
    refused(&answer, "backlog_full");
    let problem = answer.json();
    assert_eq!(
        (&problem["retryable"], &problem["type"]),
        (&json!(true), &json!("/v1/problems#backlog_full"))
    );
    let detail = problem["detail"].as_str().unwrap();
    for said in [
        "`app:greedy` has 3 deliveries of 21 bytes",
        "add 1 of 7 bytes",
        "3 deliveries and 1048576 bytes is the limit",
    ] {
        assert!(detail.contains(said), "{said} is not in {detail}");
    }
    let again = send("1").await.ok(202).json();
    assert_eq!(again["messages"][0]["duplicate"], true);
    assert_eq!(again["messages"][0]["id"], first["messages"][0]["id"]);
    well_behaved(&bench, 0, 20).await;

    let senders = bench.get(Who::Ops, "/v1/senders").send().await.ok(200).json();
    let of = |name: &str| {
        senders["senders"].as_array().unwrap().iter().find(|item| item["sender"] == name).unwrap().clone()
    };
    let limit = json!({"deliveries": 3, "bytes": 1 << 20});
    assert_eq!(
        of("app:greedy"),
        json!({"sender": "app:greedy", "deliveries": 3, "bytes": 21, "limit": limit})
    );
    assert_eq!((&of("app:ehr")["deliveries"], &of("app:ehr")["limit"]), (&json!(20), &json!(null)));
    assert_eq!(of("adapter:lab")["deliveries"], 0);
    bench.get(GREEDY, "/v1/senders").send().await.ok(403);
    let metrics = bench.get(Who::Ops, "/metrics").send().await.ok(200).text;
    for line in [
        r#"gatepost_sender_backlog_deliveries{sender="app:greedy"} 3"#,
        r#"gatepost_sender_backlog_bytes{sender="app:greedy"} 21"#,
        r#"gatepost_refused_total{code="backlog_full"} 2"#,
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    let queues = bench.get(Who::Ops, "/v1/queues?limit=100").send().await.ok(200).text;
    assert!(!queues.contains("app:"), "a sender is no queue: {queues}");
    bench.post(Who::Ops, "/v1/queues/app:greedy/pause").json(&json!({})).send().await.ok(404);

    let epoch = bench.session(Who::Lab).await;
    let leased = bench.lease(Who::Lab, "lab", json!({"max": 1, "epoch": epoch})).await;
    refused(&send("4").await, "backlog_full");
    let result = json!({"delivery": leased[0]["id"], "token": leased[0]["token"], "outcome": "delivered",
        "evidence": {"level": "transport"}});
    bench.settle(Who::Lab, json!({"results": [result], "epoch": epoch})).await.ok(200);
    send("4").await.ok(202);
    refused(&send("5").await, "backlog_full");
    reload(&bench, GREEDY_HAS, "{ rate = \"1000/s\" }").await;
    send("5").await.ok(202);
    bench.end().await;
}

#[tokio::test]
async fn an_adapter_takes_in_no_more_than_may_be_unsettled_and_its_outcomes_go_through() {
    let bench = Bench::new().await;
    let has = "[adapters.lab]\nuser = \"2001\"";
    reload(&bench, has, &format!("{has}\nlimits = {{ backlog = {{ messages = 1 }} }}")).await;
    let epoch = bench.session(Who::Lab).await;
    let settle = |results: Value, id: &str| {
        bench.settle(Who::Lab, json!({"results": results, "emit": [event(id, "ack.ok")], "epoch": epoch}))
    };
    bench.sent("1", "t.lab").await;
    let leased = bench.lease(Who::Lab, "lab", json!({"max": 1, "epoch": epoch})).await;
    settle(json!([]), "in-1").await.ok(200);
    refused(&settle(json!([]), "in-2").await, "backlog_full");
    let handed_in =
        bench.event(Who::Lab, &event("in-2", "ack.ok")).header("gatepost-epoch", &epoch.to_string());
    refused(&handed_in.send().await, "backlog_full");
    let result = json!([{"delivery": leased[0]["id"], "token": leased[0]["token"], "outcome": "delivered",
        "evidence": {"level": "transport"}}]);
    settle(result, "reply").await.ok(200);
    let senders = bench.get(Who::Ops, "/v1/senders").send().await.ok(200).text;
    let limit = r#""limit":{"deliveries":1,"bytes":null}"#;
    assert!(
        senders.contains(&format!(r#"{{"sender":"adapter:lab","deliveries":2,"bytes":14,{limit}}}"#)),
        "{senders}"
    );
    bench.end().await;
}

#[tokio::test]
async fn who_is_refused_over_and_over_is_told_later_and_nobody_else_is() {
    let bench = Bench::new().await;
    let nonsense = |who| bench.post(who, "/v1/messages").body(Body::from("nonsense")).send();
    let known = nonsense(GREEDY).await;
    assert!(known.status.is_client_error(), "{}", known.text);
    let greedy = Actor::new(ActorKind::App, "greedy");
    // Far more than can be told in the time that this test takes.
    for _ in 0..10_000 {
        bench.state.holdback.next(&greedy, Instant::now());
    }
    let mut held = [Box::pin(nonsense(GREEDY)), Box::pin(nonsense(GREEDY))];
    for request in &mut held {
        assert!(super::pends(request.as_mut()).await);
    }
    assert_eq!(nonsense(Who::Ehr).await.status, known.status, "another's refusal is told at once");
    bench.event(GREEDY, &event("accepted", "t.lab")).send().await.ok(202);
    well_behaved(&bench, 0, 5).await;
    bench.stop.send_replace(true);
    for request in held {
        assert_eq!(request.await.status, known.status, "a gateway that stops keeps nobody waiting");
    }
    bench.end().await;
}
