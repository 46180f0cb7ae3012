//! Bad input, full disks, second gateways, bad configurations: clear answers, and nothing half done.

use std::path::Path;
use std::process::Command;

use gatepost_tests::{Builder, Gateway, settle_item, skipped, until};
use serde_json::{Value, json};

use crate::order_event;

fn inbox() -> Builder {
    with_inbox(Gateway::builder())
}

fn with_inbox(builder: Builder) -> Builder {
    builder.app("shop", &["*"], &["desk"]).inbox("desk", "").route_when(
        "shop",
        "type != \"nowhere\"",
        &["desk"],
    )
}

#[test]
fn bad_requests_get_their_problem_and_store_nothing() {
    let gateway = inbox().start();
    let app = gateway.app();
    let event = order_event("1", "k", &json!(1));
    let without = |member: &str| {
        let mut event = event.clone();
        event.as_object_mut().unwrap().remove(member);
        event.to_string()
    };
    let with = |member: &str, value: Value| {
        let mut event = event.clone();
        event[member] = value;
        event.to_string()
    };
    let one = "application/cloudevents+json";
    let many = "application/cloudevents-batch+json";
    let batch = |count: usize| Value::from(vec![event.clone(); count]).to_string();
    let cases: Vec<(&str, String, u16, &str)> = vec![
        (one, "{".into(), 400, "invalid_request"),
        (one, "[]".into(), 400, "invalid_event"),
        (one, "\u{0}\u{1}".into(), 400, "invalid_request"),
        (one, without("id"), 400, "invalid_event"),
        (one, without("source"), 400, "invalid_event"),
        (one, without("type"), 400, "invalid_event"),
        (one, without("specversion"), 400, "invalid_event"),
        (one, with("specversion", json!("0.3")), 400, "invalid_event"),
        (one, with("id", json!("")), 400, "invalid_event"),
        (one, with("Bad-Name", json!("x")), 400, "invalid_event"),
        (one, with("data_base64", json!("AAAA")), 400, "invalid_event"),
        (one, with("expirytime", json!("tomorrow")), 400, "invalid_event"),
        (one, with("type", json!("nowhere")), 422, "no_route"),
        (many, event.to_string(), 400, "invalid_event"),
        (many, batch(1001), 413, "too_large"),
        ("text/plain", "x".into(), 415, "unsupported_media_type"),
        ("application/cloudevents+xml", "<x/>".into(), 415, "unsupported_media_type"),
    ];
    let mut wrong = Vec::new();
    for (media_type, body, status, code) in &cases {
        let header = format!("content-type: {media_type}");
        let answer = app.send("POST", "/v1/messages", &[&header], body.as_bytes()).unwrap();
        let problem: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        if (answer.status, problem["code"].as_str()) != (*status, Some(code)) {
            let body: String = body.chars().take(150).collect();
            wrong.push(format!(
                "{media_type} {body}\n  wanted {status} {code}\n  got {} {}",
                answer.status,
                answer.text()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let keyed = ["content-type: application/cloudevents-batch+json", "idempotency-key: x"];
    let answer = app.send("POST", "/v1/messages", &keyed, batch(2).as_bytes()).unwrap();
    assert_eq!(answer.problem(400), "idempotency_key_with_batch");
    assert_eq!(app.post("/v1/settle", &json!({ "resluts": [] })).problem(400), "invalid_request");
    assert_eq!(app.post("/v1/queues/desk/lease", &json!({ "max": 0 })).problem(400), "invalid_request");
    assert_eq!(
        app.post("/v1/queues/desk/lease", &json!({ "max": 1, "more": 1 })).problem(400),
        "invalid_request"
    );
    assert_eq!(app.get("/v1/nothing").problem(404), "not_found");
    assert_eq!(app.get("/v1/settle").problem(405), "method_not_allowed");
    assert_eq!(gateway.list("/v1/messages", "messages").len(), 0);
}

#[test]
fn a_second_gateway_on_the_same_data_is_refused_and_the_first_goes_on() {
    let gateway = inbox().start();
    let second = gateway.cli(&["serve"]);
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("data"), "it says where the trouble is: {said}");
    gateway.app().event(&order_event("1", "k", &json!(1))).expect(202);
}

const TEN_FAULTS: &str = r#"[gateway]
data_dri = "/var/lib/gatepost"
dedup_window = "1 week"
[[listen]]
serves = "aps"
unix = "@gatepost"
[[listen]]
serves = "apps"
tcp = "0.0.0.0:7443"
[apps.ehr]
send = ["org.hl7.v2.*"]
inbox = ["reslts"]
[adapters.lab]
run = "gatepost-hl7"
window = 4
max_in_flight = "many"
[inboxes.results]
[[routes]]
from = "ehr"
when = "type =="
to = ["lab"]
"#;

#[test]
fn check_prints_ten_faults_for_ten() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("gatepost.toml");
    std::fs::write(&file, TEN_FAULTS).unwrap();
    let program = gatepost_tests::program("gatepost");
    let output = Command::new(program).arg("--config").arg(&file).arg("check").output().unwrap();
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    let faults = stderr.lines().filter(|line| line.contains("gatepost.toml:")).count();
    assert_eq!(faults, 10, "{stderr}");
}

#[test]
fn a_reload_swaps_and_a_bad_file_changes_nothing() {
    let gateway = inbox().start();
    let mut payment = order_event("1", "k", &json!(1));
    payment["type"] = "nowhere".into();
    assert_eq!(gateway.app().event(&payment).problem(422), "no_route");
    let text = std::fs::read_to_string(gateway.config()).unwrap();

    std::fs::write(gateway.config(), text.replace("when = ", "wehn = ")).unwrap();
    assert!(!gateway.cli(&["reload"]).status.success());
    assert_eq!(gateway.app().event(&payment).problem(422), "no_route");

    std::fs::write(gateway.config(), text.replace("!= \"nowhere\"", "== \"nowhere\"")).unwrap();
    gateway.cli_ok(&["reload"]);
    gateway.app().event(&payment).expect(202);
    assert_eq!(gateway.app().event(&order_event("2", "k", &json!(1))).problem(422), "no_route");
    assert!(gateway.audit_log().iter().any(|leaf| leaf["event"] == "config_changed"));
}

/// A small file system of its own; gone when dropped.
struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    fn mount(at: &'a Path) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=20m,mode=700", "gatepost-test"])
            .arg(at)
            .output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(at))
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).output();
    }
}

#[test]
fn a_full_disk_refuses_what_is_new_settles_what_is_there_and_recovers() {
    let disk = tempfile::tempdir().unwrap();
    let Some(_mounted) = Tmpfs::mount(disk.path()) else {
        return skipped("needs the right to mount a tmpfs");
    };
    let mut gateway =
        with_inbox(Builder::at(tempfile::Builder::new().prefix("gp-").tempdir_in(disk.path()).unwrap()))
            .start();
    gateway.app().event(&order_event("first", "k", &json!(1))).expect(202);
    let (filler, reserve) = (disk.path().join("filler"), gateway.path("data/reserve"));
    assert!(reserve.exists());
    // Somebody else takes all there is.
    assert!(std::fs::write(&filler, vec![0; 20 << 20]).is_err());
    let payload = "x".repeat(200_000);
    let full = (0..200).find_map(|n| {
        let answer = gateway.app().event(&order_event(&format!("fill-{n}"), "k", &json!(payload)));
        (answer.status != 202).then_some(answer)
    });
    assert_eq!(full.expect("20 MiB are full at some time").problem(507), "storage_full");
    // Only what was the reserve is left.
    assert!(!reserve.exists());
    let leased = gateway.lease("desk", 5);
    assert!(!leased.is_empty());
    let results: Vec<Value> = leased.iter().map(|delivery| settle_item(delivery, "delivered")).collect();
    let settled = gateway.app().post("/v1/settle", &json!({ "results": results })).expect(200);
    assert!(settled["results"].as_array().unwrap().iter().all(|result| result["status"] == "ok"));
    let small = |n: usize| order_event(&format!("after-{n}"), "k", &json!(n));
    assert_eq!(gateway.app().event(&small(0)).problem(507), "storage_full");
    let mut n = 0;
    until("it accepts again", || {
        n += 1;
        // Purging takes days; growing the disk is what its owner would do.
        let _ = Command::new("mount").args(["-o", "remount,size=80m"]).arg(disk.path()).output();
        (gateway.app().event(&small(n)).status == 202).then_some(())
    });
    gateway.audit_verifies();
    assert!(gateway.stop().success());
}

#[test]
fn exported_logs_verify_and_a_changed_byte_is_named() {
    let gateway = inbox().start();
    for n in 0..600 {
        gateway.app().event(&order_event(&n.to_string(), "k", &json!(n))).expect(202);
    }
    let signed = || {
        let verified: Value = serde_json::from_str(&gateway.cli_ok(&["--json", "audit", "verify"])).unwrap();
        (verified["unsigned"] == 0).then_some(())
    };
    until("the newest entries are signed", signed);
    let export = gateway.path("export");
    gateway.cli_ok(&["audit", "export", &export.display().to_string()]);
    let verify = || Command::new(gatepost_tests::program("gatepost-verify")).arg(&export).output().unwrap();
    assert!(verify().status.success());
    foreign(&export);
    for file in files(&export) {
        let good = std::fs::read(&file).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        std::fs::write(&file, &bad).unwrap();
        let output = verify();
        assert!(!output.status.success(), "a change of {} went unseen", file.display());
        assert!(output.stdout.len() + output.stderr.len() > 0, "what is wrong is named");
        std::fs::write(&file, &good).unwrap();
    }
    assert!(verify().status.success());
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Verifiers that share no line with ours.
fn foreign(export: &Path) {
    for script in ["foreign/go-verify.sh", "foreign/openssl-verify.sh"] {
        let output = Command::new("sh")
            .arg(gatepost_tests::source(script))
            .arg(export)
            .arg(export.join("vkey"))
            .env("FOREIGN_INSTALL", "no")
            .output()
            .unwrap();
        let (said, erred) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        match output.status.code() {
            Some(0) => {}
            Some(77) => skipped(&format!("{script}: {said}")),
            _ => panic!("{script}: {said} {erred}"),
        }
    }
}
