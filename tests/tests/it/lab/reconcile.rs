//! `gatepost audit reconcile` against databases that somebody has been at.

use std::path::PathBuf;
use std::process::Command;

use gatepost_tests::{Gateway, program, skipped};
use serde_json::{Value, json};

use crate::order_event;

/// What the command says of a data directory: exit code and document.
fn reconcile(config: &std::path::Path) -> (i32, Value) {
    let output = Command::new(program("gatepost"))
        .args(["--json", "--config"])
        .arg(config)
        .args(["audit", "reconcile"])
        .output()
        .unwrap();
    let document = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code().unwrap_or(-1), document)
}

/// A copy of a stopped gateway's data, in which `sql` has been done; its configuration.
fn tampered(gateway: &Gateway, name: &str, sql: &str) -> PathBuf {
    let data = gateway.path(name);
    let copied = Command::new("cp").arg("-a").arg(gateway.path("data")).arg(&data).status();
    assert!(copied.unwrap().success());
    let script =
        "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1])\nc.executescript(sys.argv[2])\nc.commit()";
    let done = Command::new("python3").args(["-c", script]).arg(data.join("gatepost.db")).arg(sql).output();
    let done = done.unwrap();
    assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
    let text = std::fs::read_to_string(gateway.config()).unwrap();
    let config = gateway.path(&format!("{name}.toml"));
    std::fs::write(&config, text.replace("/data\"", &format!("/{name}\""))).unwrap();
    config
}

fn kinds(document: &Value) -> Vec<&str> {
    let mut kinds: Vec<_> =
        document["first"].as_array().unwrap().iter().map(|item| item["kind"].as_str().unwrap()).collect();
    kinds.dedup();
    kinds
}

/// What is done to the database, and which disagreements it makes.
const TAMPERINGS: [(&str, &str, &[&str]); 10] = [
    (
        "state",
        "UPDATE delivery SET state = 4, blocks = 0, due = NULL, ready = NULL WHERE pos = 2",
        &["state", "counts"],
    ),
    ("attempts", "UPDATE delivery SET attempts = attempts + 1 WHERE pos = 1", &["attempts"]),
    ("series", "UPDATE delivery SET series = 1 WHERE pos = 1", &["attempts"]),
    ("entries", "UPDATE delivery SET leaves = substr(leaves, 1, 8) WHERE pos = 1", &["entries"]),
    (
        "foreign",
        "UPDATE delivery SET leaves = CAST(leaves || x'0000000000000001' AS BLOB) WHERE pos = 1",
        &["entries"],
    ),
    ("no-delivery", "DELETE FROM delivery WHERE pos = 1", &["delivery_missing"]),
    ("no-message", "DELETE FROM message WHERE seq = 1", &["message_missing", "counts"]),
    (
        "new-message",
        "INSERT INTO message SELECT 900, randomblob(16), accepted_at, sender_kind, sender, kind, form, size, sum, dedup, \
         fingerprint, subject, key, correlation, sum_indexed, attributes, salt, data, barrier FROM message WHERE seq = 1",
        &["message_unrecorded"],
    ),
    (
        "new-delivery",
        "CREATE TEMP TABLE d AS SELECT * FROM delivery WHERE pos = 1; UPDATE d SET pos = 900, id = randomblob(16); \
         INSERT INTO delivery SELECT * FROM d",
        &["delivery_unrecorded"],
    ),
    ("counts", "UPDATE queue SET waiting = waiting + 1, bytes = bytes - 1 WHERE name = 'desk'", &["counts"]),
];

#[test]
fn log_and_database_agree_until_somebody_was_at_the_database() {
    if Command::new("python3").arg("--version").output().is_err() {
        return skipped("needs python3, which has SQLite");
    }
    let mut gateway = Gateway::builder()
        .app("shop", &["*"], &["desk"])
        .inbox("desk", "order = \"key\"")
        .echo(
            "resend",
            "order = \"key\"\nretry = { initial = \"50ms\", max = \"50ms\" }",
            "fail_percent = 30",
        )
        .echo("hold", "on_doubt = \"hold\"", "")
        // What the partner leaves in doubt again and again would be held, and its lane with it.
        .route_when("shop", "data.do != \"in_doubt\"", &["resend"])
        .route("shop", &["desk", "hold"])
        .start();
    for n in 0..120 {
        let what = if n % 7 == 3 { "in_doubt" } else { "" };
        gateway
            .app()
            .event(&order_event(&n.to_string(), &format!("k{}", n % 5), &json!({ "do": what })))
            .expect(202);
        if n % 20 == 0 {
            // At work as well as at rest.
            let (code, document) = reconcile(gateway.config());
            assert_eq!((code, &document["ok"]), (0, &json!(true)), "{document:#}");
        }
    }
    // Of each state some: leased, dead, discarded, replayed, held.
    let leased = gateway.lease("desk", 3);
    let settle = gatepost_tests::settle_item(&leased[0], "reject");
    gateway.app().post("/v1/settle", &json!({ "results": [settle] })).expect(200);
    let dead = leased[0]["id"].as_str().unwrap();
    gateway.admin().post(&format!("/v1/deliveries/{dead}/replay"), &json!({ "reason": "again" })).expect(200);
    gateway.until_settled("resend");
    let (code, document) = reconcile(gateway.config());
    assert_eq!((code, &document["disagreements"]), (0, &json!(0)), "{document:#}");
    assert!(document["entries"].as_u64() > Some(256), "some entries are files: {document}");
    assert_eq!((&document["messages"], &document["deliveries"]), (&json!(120), &json!(343)));

    assert!(gateway.stop().success());
    assert_eq!(reconcile(gateway.config()).0, 0);
    for (name, sql, expected) in TAMPERINGS {
        let (code, document) = reconcile(&tampered(&gateway, name, sql));
        assert_eq!(code, 8, "{name}: {document:#}");
        assert_eq!(kinds(&document), expected, "{name}: {document:#}");
    }
    let (code, document) =
        reconcile(&tampered(&gateway, "all", "UPDATE delivery SET attempts = attempts + 5"));
    assert_eq!((code, &document["disagreements"]), (8, &json!(343)));
    assert_eq!(document["first"].as_array().unwrap().len(), 20);
}
