//! Canaries: what senders and partners say stands nowhere but where it is sealed.

use std::path::Path;
use std::process::Command;

use gatepost_tests::{Gateway, skipped, until};
use serde_json::{Value, json};

/// Columns that may hold content, since they are sealed through one module.
const SEALED: [&str; 5] =
    ["message.attributes", "message.data", "detail.body", "reply.body", "adapter_state.value"];

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

/// Prints every column but the sealed ones, and everything else that the file's pages of indexes hold.
const DUMP: &str = r#"
import sqlite3, sys
db = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
sealed = set(sys.argv[2].split(","))
for (table,) in db.execute("select name from sqlite_master where type = 'table'").fetchall():
    columns = [row[1] for row in db.execute(f"pragma table_info({table})")]
    for column in columns:
        if f"{table}.{column}" not in sealed:
            for (value,) in db.execute(f'select "{column}" from {table}'):
                print(table, column, value if not isinstance(value, bytes) else value.decode("latin-1"))
for name, sql in db.execute("select name, sql from sqlite_master where type = 'index' and sql is not null"):
    print("index", name, sql)
"#;

#[test]
fn canaries_stand_nowhere_but_where_they_are_sealed() {
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
    assert!(gateway.stop().success());
    clean("an answer, metric or entry", errors.as_bytes());
    clean("the log", gateway.log().as_bytes());
    files_are_clean(&gateway.path("export"));
    files_are_clean(&gateway.path("data/audit"));
    assert!(!gateway.log().contains(&token) && !errors.contains(&token), "a lease token was written down");
    database_is_clean(&gateway);
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
        } else {
            clean(&path.display().to_string(), &std::fs::read(&path).unwrap());
        }
    }
}

fn database_is_clean(gateway: &Gateway) {
    let files = std::fs::read_dir(gateway.path("data")).unwrap().map(|entry| entry.unwrap().path());
    let databases: Vec<_> = files
        .filter(|path| std::fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"SQLite format 3")))
        .collect();
    assert_eq!(databases.len(), 1, "{databases:?}");
    let output = Command::new("python3").args(["-c", DUMP]).arg(&databases[0]).arg(SEALED.join(",")).output();
    let Ok(output) = output else { return skipped("needs python3 with sqlite3") };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("message kind orders.new"),
        "the dump shows rows"
    );
    clean("a plain column or index", &output.stdout);
}
