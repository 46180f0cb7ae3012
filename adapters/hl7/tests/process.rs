//! The real program: its command line, its life under a gateway, and its tools.

use std::path::Path;
use std::process::{Output, Stdio};

use gatepost_adapter::testing::{Gateway, leased_event};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

const ADT: &[u8] = b"MSH|^~\\&|EHR|C|LAB|H|2026||ADT^A01^ADT_A01|M1|P|2.5\rPID|1||42^^^MR||D\xfcrer\r";

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost-hl7"));
    command.kill_on_drop(true).stdin(Stdio::null());
    command
}

async fn check(settings: &str) -> Output {
    let mut child = program().arg("--check").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(settings.as_bytes()).await.unwrap();
    child.wait_with_output().await.unwrap()
}

/// Starts the adapter under a played gateway and gives it these settings.
async fn adapter(settings: Value) -> (Gateway, Child) {
    let mut gateway = Gateway::bind();
    let child = program().env("GATEPOST_SOCKET", gateway.socket()).stderr(Stdio::null()).spawn().unwrap();
    let version = gateway.open_session(json!({ "settings": settings })).await;
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    (gateway, child)
}

/// Starts `listen` on a free port; gives its address and what it goes on to say.
async fn partner(arguments: &[&str]) -> (Child, String, Lines<BufReader<ChildStdout>>) {
    let mut child =
        program().args(["listen", "--port", "0"]).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = lines.next_line().await.unwrap().unwrap();
    let address = first.strip_prefix("listening on ").unwrap().to_owned();
    (child, address, lines)
}

async fn send(address: &str, file: &Path) -> Output {
    program().args(["send", address]).arg(file).output().await.unwrap()
}

async fn code(mut child: Child) -> Option<i32> {
    child.wait().await.unwrap().code()
}

#[tokio::test]
async fn the_manifest_says_what_the_adapter_can_do() {
    let output = program().arg("--manifest").output().await.unwrap();
    assert!(output.status.success());
    let manifest: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(manifest["protocol"], 1);
    assert_eq!(manifest["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(manifest["levels"], json!(["sent", "transport", "business"]));
    assert_eq!((&manifest["query"], &manifest["ordered_pipeline"]), (&json!(false), &json!(false)));
    let schema = &manifest["settings_schema"];
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["properties"]["connections"]["default"], 4);
    assert_eq!(schema["properties"]["partition_key"]["default"], "PID-3.1");
}

#[tokio::test]
async fn settings_are_checked_before_anything_starts() {
    let good = check(r#"{"connect":"lab.example.org:2575"}"#).await;
    assert_eq!((good.status.code(), good.stdout.len()), (Some(0), 0));
    let bad = check(r#"{"connect":"lab","listen":"x","connections":0}"#).await;
    assert_eq!(bad.status.code(), Some(2));
    let faults = String::from_utf8(bad.stdout).unwrap();
    let keys: Vec<&str> = faults.lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(keys, ["connections", "connect", "listen"]);
}

#[tokio::test]
async fn it_delivers_to_the_partner_and_stops_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("partner.jsonl");
    let (_partner, address, _lines) = partner(&["--log", log.to_str().unwrap()]).await;
    let (mut gateway, child) = adapter(json!({ "connect": address })).await;
    let data = serde_json::to_value(gatepost_adapter::binary_reply("", ADT)).unwrap();
    let payload = json!({ "data_base64": data["data_base64"] });
    gateway.lease(&[leased_event(1, Some("42"), "application/hl7-v2+er7", payload)]).await;
    let settle = gateway.next("/v1/settle").await;
    assert_eq!(settle.outcomes(), [("t1", "delivered")]);
    settle.settled("ok");
    let line: Value = serde_json::from_str(&std::fs::read_to_string(&log).unwrap()).unwrap();
    assert_eq!(
        (&line["control_id"], &line["ack"], &line["bytes"]),
        (&json!("M1"), &json!("AA"), &json!(ADT.len()))
    );
    // `printf … | sha256sum` of the message.
    assert_eq!(line["sha256"], "414b39f8956b3ab85f4ed636155a886ab01a3edca355cd14a6f710feee839e64");
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").arg(pid).status().await.unwrap().success());
    assert_eq!(code(child).await, Some(0));
}

#[tokio::test]
async fn wrong_settings_in_the_session_end_it() {
    let (_gateway, child) = adapter(json!({})).await;
    assert_eq!(code(child).await, Some(2));
}

#[tokio::test]
async fn a_newer_session_ends_it() {
    let (mut gateway, child) = adapter(json!({"connect": "127.0.0.1:9"})).await;
    gateway.next("/lease").await.answer_problem("superseded");
    assert_eq!(code(child).await, Some(3));
}

#[tokio::test]
async fn a_gateway_that_is_gone_ends_it_even_when_it_only_receives() {
    let (mut gateway, child) = adapter(json!({"listen": "127.0.0.1:0"})).await;
    gateway.next("/livez").await.hang_up();
    gateway.vanish();
    assert_eq!(code(child).await, Some(4));
}

#[tokio::test]
async fn without_a_gateway_it_says_who_starts_it() {
    let output = program().env_remove("GATEPOST_SOCKET").output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("GATEPOST_SOCKET"));
}

#[tokio::test]
async fn the_tools_talk_to_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("two.hl7");
    std::fs::write(
        &file,
        "MSH|^~\\&|A|B|C|D|||ADT^A01|F1|P|2.5\nPID|1\nMSH|^~\\&|A|B|C|D|||ADT^A01|F2|P|2.5|||AL\n",
    )
    .unwrap();

    let (_partner, address, mut lines) = partner(&[]).await;
    let sent = send(&address, &file).await;
    assert_eq!(sent.status.code(), Some(0));
    assert_eq!(String::from_utf8(sent.stdout).unwrap(), "F1 AA\nF2 CA\n");
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "F1 AA (connection 1)");

    let (_partner, address, _lines) = partner(&["--fail-rate", "0.5", "--fail-with", "AR"]).await;
    let sent = send(&address, &file).await;
    assert_eq!(sent.status.code(), Some(1));
    assert_eq!(String::from_utf8(sent.stdout).unwrap(), "F1 AA\nF2 AR\n");

    let (_partner, address, _lines) = partner(&["--fail-rate", "1", "--fail-with", "close"]).await;
    let sent = send(&address, &file).await;
    assert_eq!(sent.status.code(), Some(1));
    assert!(String::from_utf8(sent.stderr).unwrap().contains("closed"));
}

#[tokio::test]
async fn a_message_is_shown_with_its_fields_by_name() {
    let mut child = program().arg("view").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"MSH|^~\\&|||||||ADT^A01|M1|P|2.5\rPID|1||42\r").await.unwrap();
    let shown = child.wait_with_output().await.unwrap();
    assert_eq!(shown.status.code(), Some(0));
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(
        text.contains("PID  Patient\n") && text.contains("3  Patient ids                   42\n"),
        "{text}"
    );
}
