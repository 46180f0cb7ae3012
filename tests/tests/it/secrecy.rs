//! Canaries: what senders and partners say stands nowhere in the clear; who has the keys reads it without us.

use std::io::ErrorKind;
use std::path::Path;

use gatepost_tests::{Gateway, python, skipped, source, until};
use serde_json::{Value, json};

use crate::order_event;

const CANARIES: [&str; 8] = [
    "canary-payload",
    "canary-subject",
    "canary-key",
    "canary-idempotency",
    "canary-token",
    "canary-reason",
    "canary-evidence",
    "canary-state",
];

#[test]
fn canaries_stand_nowhere_in_the_clear() {
    let mut gateway = Gateway::builder()
        .app("shop", &["*"], &["desk"])
        .inbox("desk", "order = \"key\"")
        .echo("partner", "order = \"key\"\nretry = { initial = \"50ms\", attempts = 2 }", "")
        .route("shop", &["desk", "partner"])
        .start();
    let event = json!({
        "specversion": "1.0", "id": "canary-idempotency", "source": "/shop", "type": "orders.new",
        "subject": "canary-subject", "partitionkey": "canary-key",
        "data": { "text": "canary-payload", "do": "fail" },
    });
    gateway.app().event(&event).expect(202);
    let delivery = gateway.lease("desk", 1).remove(0);
    let token = delivery["token"].as_str().unwrap().to_owned();
    let result = json!({
        "delivery": delivery["id"], "token": token, "outcome": "reject", "reason": "canary-reason",
        "evidence": { "level": "transport", "text": "canary-evidence" },
    });
    gateway.app().post("/v1/settle", &json!({ "results": [result] })).expect(200);
    let mut errors = refusals(&gateway, &event);
    until("the partner's delivery is dead", || {
        let dead = gateway.list("/v1/deliveries?state=dead&destination=partner", "deliveries");
        (!dead.is_empty()).then_some(())
    });
    errors.push_str(&gateway.admin().get("/metrics").text());
    errors.push_str(&gateway.cli_ok(&["audit", "log", "--limit", "10000"]));
    for path in ["/v1/deliveries?state=dead", "/v1/queues", "/readyz", "/v1/messages"] {
        errors.push_str(&gateway.admin().get(path).text());
    }
    gateway.audit_verifies();
    gateway.cli_ok(&["audit", "export", &gateway.path("export").display().to_string()]);
    // The database with its log, while all of it is in use.
    files_are_clean(&gateway.path("data"));
    assert!(gateway.stop().success());
    clean("an answer, metric or entry", errors.as_bytes());
    clean("the log", gateway.log().as_bytes());
    files_are_clean(&gateway.path("export"));
    files_are_clean(&gateway.path("data"));
    assert!(!gateway.log().contains(&token) && !errors.contains(&token), "a lease token was written down");
}

/// The search must find what is there to be found: without encryption it does.
#[test]
fn canaries_are_found_where_nothing_is_encrypted() {
    let mut gateway = Gateway::builder()
        .table("[encryption]", "at_rest = false")
        .app("shop", &["*"], &["desk"])
        .inbox("desk", "")
        .route("shop", &["desk"])
        .start();
    gateway.app().event(&order_event("1", "k", &json!("canary-payload"))).expect(202);
    assert!(gateway.stop().success());
    let found = std::panic::catch_unwind(|| files_are_clean(&gateway.path("data")));
    assert!(found.is_err(), "the canary stands in the database");
}

/// The program is the documentation's, and knows nothing of ours.
#[test]
fn a_foreign_program_opens_a_stored_message() {
    if python(&["cryptography"]).is_none() {
        return skipped("needs python3 with pip and PyPI's cryptography");
    }
    let mut gateway =
        Gateway::builder().app("shop", &["*"], &["desk"]).inbox("desk", "").route("shop", &["desk"]).start();
    // The last one stands in pieces.
    let texts = ["first".to_owned(), "second".to_owned(), "third ".repeat(100_000)];
    let ids: Vec<String> = (0..)
        .zip(&texts)
        .map(|(n, text)| gateway.app().event(&order_event(&format!("{n}"), "k", &json!(text))).expect(202))
        .map(|answer| answer["messages"][0]["id"].as_str().unwrap().to_owned())
        .collect();
    assert!(gateway.stop().success());
    for (text, id) in texts.iter().zip(&ids).skip(1) {
        let mut python = python(&["cryptography"]).unwrap();
        let output = python.arg(source("open_sealed.py")).arg(gateway.path("data")).arg(id).output().unwrap();
        let opened = String::from_utf8_lossy(&output.stdout) == format!("\"{text}\"");
        assert!(opened, "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Requests that are refused, each with canaries in it.
fn refusals(gateway: &Gateway, event: &Value) -> String {
    let app = gateway.app();
    let mut texts = String::new();
    let mut other = event.clone();
    other["data"] = json!("canary-payload, other");
    texts.push_str(&app.event(&other).text());
    let cloudevents = ["content-type: application/cloudevents+json", "authorization: Bearer canary-token"];
    for body in [
        "{\"specversion\":\"1.0\",\"partitionkey\":\"canary-key\"",
        "{\"specversion\":\"canary-payload\",\"id\":\"canary-idempotency\",\"source\":\"/s\",\"type\":\"t\"}",
        "{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"t\",\"partitionkey\":[\"canary-key\"]}",
        "{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"t\",\"data_base64\":\"canary-payload\"}",
        "{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"t\",\"expirytime\":\"canary-subject\"}",
    ] {
        let answer = app.send("POST", "/v1/messages", &cloudevents, body.as_bytes()).unwrap();
        assert!((400..500).contains(&answer.status), "{body}: {}", answer.text());
        texts.push_str(&answer.text());
    }
    let settle = json!({ "results": [], "state": { "k": "canary-state" } });
    texts.push_str(&app.post("/v1/settle", &settle).text());
    let bad_token = json!({ "results": [{
        "delivery": "01890000-0000-7000-8000-000000000000", "token": "canary-token", "outcome": "delivered",
        "reason": "canary-reason",
    }] });
    texts.push_str(&app.post("/v1/settle", &bad_token).text());
    texts
}

fn clean(place: &str, bytes: &[u8]) {
    for canary in CANARIES {
        let found = bytes.windows(canary.len()).position(|window| window == canary.as_bytes());
        if let Some(at) = found {
            let around = &bytes[at.saturating_sub(200)..(at + 60).min(bytes.len())];
            panic!("{canary} stands in {place}: …{}…", String::from_utf8_lossy(around));
        }
    }
}

fn files_are_clean(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_are_clean(&path);
        } else if path.is_file() {
            match std::fs::read(&path) {
                Ok(bytes) => clean(&path.display().to_string(), &bytes),
                // While it is in use some files are there for a moment only, and then under another name.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
    }
}
