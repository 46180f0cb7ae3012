//! Accepting: the whole cycle by curl, idempotency, and batches under kill -9.

use std::collections::HashMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use gatepost_tests::{Builder, Gateway, skipped, source};
use serde_json::{Value, json};

use crate::order_event;

fn inbox() -> Builder {
    Gateway::builder()
        .app("shop", &["orders.*"], &["desk"])
        .inbox("desk", "order = \"key\"")
        .route("shop", &["desk"])
}

#[test]
fn curl_can_do_the_whole_cycle() {
    if Command::new("curl").arg("--version").output().is_err() {
        return skipped("needs curl");
    }
    let builder = Gateway::builder();
    let socket = builder.dir().join("adapter.sock");
    let gateway = builder
        .listen(&format!("serves = \"adapters\"\nunix = {:?}", socket.display().to_string()))
        .app("shop", &["orders.new"], &["answers"])
        .inbox("answers", "")
        .table("[adapters.desk]", "user = \"root\"\nsend = [\"orders.done\"]\norder = \"key\"")
        .route("shop", &["desk"])
        .route("desk", &["answers"])
        .start();
    let output = Command::new(source("cycle.sh"))
        .args([gateway.path("app.sock"), gateway.path("admin.sock"), socket])
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains(r#""state":{"last":"MQ=="}"#), "{stdout}");
    assert!(stdout.contains(r#""data":{"ok":true}"#), "the answer came back: {stdout}");
    assert_eq!((gateway.unsettled("desk"), gateway.unsettled("answers")), (0, 0));
    gateway.audit_verifies();
}

#[test]
fn the_same_again_gets_the_same_receipt_and_other_content_is_refused() {
    let gateway = inbox().start();
    let event = order_event("1", "k", &json!("cup"));
    let first = gateway.app().event(&event).expect(202);
    let again = gateway.app().event(&event).expect(202);
    assert_eq!(again["messages"][0]["duplicate"], true);
    assert_eq!(again["messages"][0]["id"], first["messages"][0]["id"]);
    assert_eq!(again["messages"][0]["deliveries"][0]["id"], first["messages"][0]["deliveries"][0]["id"]);
    assert_eq!(
        gateway.app().event(&order_event("1", "k", &json!("plate"))).problem(422),
        "idempotency_mismatch"
    );
    assert_eq!(gateway.lease("desk", 10).len(), 1);
}

const TWINS: usize = 50;
/// How often so many twins come at once: whether they meet in one commit of the store is up to chance.
const TWIN_ROUNDS: usize = 20;

#[test]
fn of_fifty_twins_at_once_one_is_the_first() {
    let gateway = inbox().start();
    let gate = Barrier::new(TWINS);
    for round in 0..TWIN_ROUNDS {
        let event = order_event(&format!("twin-{round}"), "k", &json!("cup"));
        let request = event.to_string();
        let answers: Vec<Value> = thread::scope(|scope| {
            let send = || {
                let headers = ["content-type: application/cloudevents+json"];
                gate.wait();
                let answer =
                    gateway.app().send("POST", "/v1/messages", &headers, request.as_bytes()).unwrap();
                answer.expect(202)["messages"][0].clone()
            };
            let twins: Vec<_> = (0..TWINS).map(|_| scope.spawn(send)).collect();
            twins.into_iter().map(|twin| twin.join().unwrap()).collect()
        });
        assert_eq!(answers.iter().filter(|answer| answer["duplicate"] == false).count(), 1);
        let of_first = |answer: &Value| {
            (&answer["id"], &answer["deliveries"][0]["id"])
                == (&answers[0]["id"], &answers[0]["deliveries"][0]["id"])
        };
        assert!(answers.iter().all(of_first), "{answers:?}");
    }
    let messages = gateway.list("/v1/messages", "messages");
    assert_eq!(messages.len(), TWIN_ROUNDS);
    assert!(messages.iter().all(|message| message["deliveries"].as_array().unwrap().len() == 1));
    gateway.audit_verifies();
}

/// How often the gateway is killed while batches come in.
const KILLS: usize = 12;
const BATCH: usize = 20;

#[test]
fn a_batch_is_there_whole_or_not_at_all_after_a_kill() {
    let mut gateway = inbox().start();
    let stop = Arc::new(AtomicBool::new(false));
    let sender = {
        let (app, stop) = (gateway.app(), Arc::clone(&stop));
        thread::spawn(move || {
            let mut answered = Vec::new();
            for batch in 0_usize.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let events: Vec<Value> = (0..BATCH)
                    .map(|n| order_event(&format!("{batch}-{n}"), "k", &json!({ "batch": batch })))
                    .collect();
                if app.try_batch(&events).is_ok_and(|answer| answer.status == 202) {
                    answered.push(batch);
                }
            }
            answered
        })
    };
    for _ in 0..KILLS {
        let before = gateway.metric("gatepost_http_requests_total{method=\"POST\"");
        gatepost_tests::until("a few batches went in", || {
            (gateway.metric("gatepost_http_requests_total{method=\"POST\"") > before + 3.0).then_some(())
        });
        gateway.kill();
        gateway.restart();
    }
    stop.store(true, Ordering::Relaxed);
    let answered = sender.join().unwrap();
    let mut there: HashMap<u64, usize> = HashMap::new();
    for message in gateway.list("/v1/messages", "messages") {
        let id = message["id"].as_str().unwrap();
        let data = gateway.app().get(&format!("/v1/messages/{id}/data")).expect(200);
        *there.entry(data["batch"].as_u64().unwrap()).or_default() += 1;
    }
    assert!(there.values().all(|&count| count == BATCH), "a batch came in pieces: {there:?}");
    for batch in &answered {
        assert!(there.contains_key(&(*batch as u64)), "batch {batch} was answered and is lost");
    }
    assert!(answered.len() > KILLS);
    gateway.audit_verifies();
}
