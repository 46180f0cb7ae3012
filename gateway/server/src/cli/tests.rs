//! What the commands say and do, against a stub that answers as the API does: help texts pinned, requests recorded.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use clap::CommandFactory as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

const MESSAGE: &str = "0193b3f0-0000-7000-8000-000000000001";
const DELIVERY: &str = "0193b3f0-0000-7000-8000-000000000002";

// === a gateway that answers from a script ===

#[derive(Clone, Debug)]
struct Request {
    line: String,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Request {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

type Answers = fn(&Request) -> (u16, Value);

struct Stub {
    dir: TempDir,
    requests: Arc<Mutex<Vec<Request>>>,
    runtime: tokio::runtime::Runtime,
}

impl Stub {
    fn start(answers: Answers) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let state = (Arc::clone(&requests), answers);
        let app = Router::new().fallback(answer).with_state(state);
        let socket = dir.path().join("s.sock");
        runtime.block_on(async {
            let listener = tokio::net::UnixListener::bind(&socket).unwrap();
            tokio::spawn(async move { axum::serve(listener, app).await });
        });
        Self { dir, requests, runtime }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s.sock")
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Runs a command against the stub and gives its outcome and its standard output.
    fn run(&self, line: &str) -> (Result<(), Failure>, String) {
        let words = line.split_whitespace().map(str::to_owned);
        self.run_words(words.collect())
    }

    fn run_words(&self, words: Vec<String>) -> (Result<(), Failure>, String) {
        let socket = self.socket().display().to_string();
        let words =
            std::iter::once("gatepost".to_owned()).chain(words).chain(["--socket".to_owned(), socket]);
        let cli = Cli::try_parse_from(words).unwrap();
        let (ui, text) = Ui::in_memory(cli.global.json);
        let context = Context { config: cli.global.config, ui };
        let result = run(&context, &cli.command, |_| Err(ServeError::Reload("not here".into())));
        let text = String::from_utf8(text.lock().unwrap().clone()).unwrap();
        (result, text)
    }

    fn requests(&self) -> Vec<Request> {
        // What was answered has been recorded.
        let _inside = self.runtime.enter();
        self.requests.lock().unwrap().clone()
    }
}

async fn answer(
    State((requests, answers)): State<(Arc<Mutex<Vec<Request>>>, Answers)>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let request = Request { line: format!("{method} {uri}"), headers, body: body.to_vec() };
    let (status, body) = answers(&request);
    requests.lock().unwrap().push(request);
    let status = StatusCode::from_u16(status).unwrap();
    let body = match body {
        Value::String(text) => text,
        other => other.to_string(),
    };
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn problem(code: gatepost_api::Code) -> (u16, Value) {
    let problem = gatepost_api::Problem::new(code, "detail", "req-1");
    (code.status(), serde_json::to_value(problem).unwrap())
}

fn delivery(state: &str) -> Value {
    json!({
        "id": DELIVERY, "message": MESSAGE, "destination": "lab", "state": state, "reason": null, "attempts": 1,
        "series": 0, "in_doubt": false, "replayed": false, "accepted_at": "2026-11-23T08:00:00.000000Z",
        "changed_at": "2026-11-23T08:00:00.012500Z", "due_at": null,
    })
}

fn accepted(state: &str) -> (u16, Value) {
    let delivery = json!({"id": DELIVERY, "destination": "lab", "state": state});
    let message = json!({"id": MESSAGE, "duplicate": false, "deliveries": [delivery]});
    (202, json!({"messages": [message], "durability": "fsync"}))
}

// === help ===

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn help_texts_are_pinned() {
    fn collect(command: &mut clap::Command, path: &str, text: &mut String) {
        let path = format!("{path}{}", command.get_name());
        text.push_str(&format!("=== {path} ===\n{}\n", command.render_long_help()));
        for subcommand in command.get_subcommands_mut() {
            if subcommand.get_name() != "help" && !subcommand.is_hide_set() {
                collect(subcommand, &format!("{path} "), text);
            }
        }
    }
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut text = String::new();
    collect(&mut command, "", &mut text);
    insta::assert_snapshot!(text);
}

#[test]
fn config_and_json_stand_before_or_after_the_command() {
    for line in
        ["gatepost -c x --json check", "gatepost check --json --config x", "gatepost queue ls -c x --json"]
    {
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        assert_eq!(cli.global.config.as_deref(), Some(Path::new("x")), "{line}");
        assert!(cli.global.json, "{line}");
    }
}

#[test]
fn wrong_usage_is_refused_by_the_parser() {
    for line in [
        "gatepost",
        "gatepost send",
        "gatepost send a --batch b",
        "gatepost show not-an-id",
        "gatepost dead replay --reason x",
        "gatepost dead replay --all",
        "gatepost doubt resolve 0193b3f0-0000-7000-8000-000000000002 --as maybe --reason x",
        "gatepost list --state gone",
        "gatepost list --since yesterday",
        "gatepost receive in --no-settle --follow",
        "gatepost bench --quick --seconds 3",
        "gatepost bench --payload 3",
        "gatepost bench --only nothing",
    ] {
        assert_eq!(Cli::try_parse_from(line.split(' ')).unwrap_err().exit_code(), 2, "{line}");
    }
}

// === sending and receiving ===

#[test]
fn send_hands_in_one_event_in_binary_mode() {
    let stub = Stub::start(|_| accepted("waiting"));
    let file = stub.path().join("message.hl7");
    std::fs::write(&file, b"MSH|^~\\&|\r").unwrap();
    let line = "send --type org.hl7.v2.ADT_A01 --source /ehr --key MRN-1 --id 7 --attribute correlationid=c1";
    let words = line.split(' ').map(str::to_owned).chain([
        "--subject".to_owned(),
        "Ä b".to_owned(),
        file.display().to_string(),
    ]);
    let (result, text) = stub.run_words(words.collect());
    result.unwrap();
    insta::assert_snapshot!(text, @"
    accepted 0193b3f0-0000-7000-8000-000000000001
      → lab: waiting  0193b3f0-0000-7000-8000-000000000002
    ");
    let [request] = &stub.requests()[..] else { panic!() };
    assert_eq!(request.line, "POST /v1/messages");
    for (name, value) in [
        ("content-type", "application/hl7-v2+er7"),
        ("ce-specversion", "1.0"),
        ("ce-type", "org.hl7.v2.ADT_A01"),
        ("ce-source", "/ehr"),
        ("ce-id", "7"),
        ("ce-subject", "%C3%84%20b"),
        ("ce-partitionkey", "MRN-1"),
        ("ce-correlationid", "c1"),
        ("prefer", ""),
    ] {
        assert_eq!(request.header(name), value, "{name}");
    }
    assert_eq!(request.body, b"MSH|^~\\&|\r");
}

#[test]
fn send_waits_and_tells_by_its_exit_code() {
    let stub = Stub::start(|_| {
        let delivery = json!({"id": DELIVERY, "destination": "lab", "state": "dead",
            "reply": {"datacontenttype": "text/plain", "data": "AE"}});
        (
            200,
            json!({"messages": [{"id": MESSAGE, "duplicate": true, "deliveries": [delivery]}], "durability": "fsync"}),
        )
    });
    let file = stub.path().join("m.txt");
    std::fs::write(&file, "x").unwrap();
    let (result, text) = stub.run(&format!("send --wait 5 --idempotency-key k {}", file.display()));
    assert_eq!(result.unwrap_err().exit_code(), 1);
    assert!(text.contains("known already") && text.ends_with("AE\n"), "{text}");
    assert_eq!(stub.requests()[0].header("prefer"), "wait=5");
    assert_eq!(stub.requests()[0].header("idempotency-key"), "k");
}

#[test]
fn send_hands_a_file_of_events_in_as_atomic_batches() {
    let stub = Stub::start(|request| {
        let events = request.json().as_array().unwrap().len();
        let message = json!({"id": MESSAGE, "duplicate": false, "deliveries": []});
        (202, json!({"messages": vec![message; events], "durability": "fsync"}))
    });
    let file = stub.path().join("events.jsonl");
    let lines: String = (0..1_001)
        .map(|n| format!("{{\"specversion\":\"1.0\",\"id\":\"{n}\",\"source\":\"s\",\"type\":\"t\",\"data\":{{ \"a\": 1.0 }}}}\n"))
        .collect();
    std::fs::write(&file, lines).unwrap();
    let (result, text) = stub.run(&format!("send --batch {}", file.display()));
    result.unwrap();
    assert_eq!(text, "accepted 1,001 messages, 0 of them known already\n");
    let requests = stub.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0].header("content-type"), "application/cloudevents-batch+json");
    assert!(
        String::from_utf8_lossy(&requests[0].body).contains(r#""data":{ "a": 1.0 }"#),
        "the sender's own text"
    );
    assert_eq!(requests[1].json().as_array().unwrap().len(), 1);
}

fn inbox(request: &Request) -> (u16, Value) {
    if request.line.ends_with("/lease") {
        let event = json!({"specversion": "1.0", "id": "1", "source": "s", "type": "t", "datacontenttype": "text/plain",
            "gatepostid": MESSAGE, "gatepostapp": "lab", "data": "hello"});
        let delivery = json!({"id": DELIVERY, "token": "00", "attempt": 1, "in_doubt": false, "lease_ms": 1000, "event": event});
        return (200, json!({"deliveries": [delivery]}));
    }
    let state = request.json()["results"][0]["outcome"].clone();
    (200, json!({"results": [{"delivery": DELIVERY, "status": "ok", "state": state}], "emitted": []}))
}

#[test]
fn receive_writes_out_and_then_settles() {
    let stub = Stub::start(inbox);
    let out = stub.path().join("out");
    let (result, text) = stub.run(&format!("receive results --max 1 --out {}", out.display()));
    result.unwrap();
    let file = out.join(format!("{MESSAGE}.txt"));
    assert_eq!(std::fs::read(&file).unwrap(), b"hello");
    assert_eq!(text.trim(), file.display().to_string());
    let requests = stub.requests();
    let lines: Vec<&str> = requests.iter().map(|request| request.line.as_str()).collect();
    assert_eq!(lines, ["POST /v1/queues/results/lease", "POST /v1/settle"]);
    assert_eq!(requests[0].json()["max"], 1);
    assert_eq!(requests[1].json()["results"][0]["outcome"], "delivered");
}

#[test]
fn receive_can_look_without_taking() {
    let stub = Stub::start(inbox);
    let (result, text) = stub.run("receive results --max 1 --no-settle --json");
    result.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["data"], "hello");
    assert_eq!(stub.requests()[1].json()["results"][0]["outcome"], "release");
}

#[test]
fn what_could_not_be_written_out_is_given_back() {
    let stub = Stub::start(inbox);
    let out = stub.path().join("out");
    // A directory stands where the file should go.
    std::fs::create_dir_all(out.join(format!("{MESSAGE}.txt"))).unwrap();
    let (result, _) = stub.run(&format!("receive results --max 1 --out {}", out.display()));
    assert_eq!(result.unwrap_err().exit_code(), 1);
    assert_eq!(stub.requests()[1].json()["results"][0]["outcome"], "release");
}

// === operators ===

fn operators(request: &Request) -> (u16, Value) {
    let queue = json!({"name": "lab", "kind": "adapter", "oldest_ms": 1500, "oldest_ready_ms": null, "held_lanes": 1,
        "depth": {"waiting": 12, "leased": 0, "sending": 1, "in_doubt": 2, "held": 2, "dead": 3},
        "paused": true, "tripped": "unreachable", "rate": {"accepted_per_s": 1.25, "settled_per_s": 0.0}});
    let adapter = json!({"name": "lab", "state": "backing_off", "pid": null, "version": "0.1.0", "restarts": 4,
        "session_epoch": null, "last_error": "exited with 1", "started_at": null});
    let mut step =
        json!({"at": "2026-11-23T08:00:00.001000Z", "event": "attempt", "attempt": 1, "by": "adapter:lab"});
    let attempt = step.clone();
    step["at"] = json!("2026-11-23T08:00:00.012500Z");
    step["event"] = json!("delivered");
    step["evidence"] = json!({"level": "transport", "code": "AA"});
    let mut view = delivery("delivered");
    view["history"] = json!([attempt, step]);
    let event = json!({"specversion": "1.0", "id": "7", "source": "/ehr", "type": "org.hl7.v2.ADT_A01", "partitionkey": "MRN-1"});
    let path = request.line.split([' ', '?']).nth(1).unwrap();
    match path {
        "/readyz" => {
            let warning = "/etc/gatepost/gatepost.toml:7:1: adapters.lab: has no limit [A19]";
            (503, json!({"ready": false, "blocking": ["queue lab is stalled"], "warnings": [warning]}))
        }
        "/v1/queues" => (200, json!({"queues": [queue], "next": null})),
        "/v1/adapters" => (200, json!({"adapters": [adapter], "next": null})),
        "/v1/nodes" => {
            // So long ago that a test's own time does not show.
            let started_at =
                gatepost_core::Timestamp::from_micros(super::text::now().as_micros() - 100 * 3_600_000_000);
            let node = |name: &str, here: bool, lease: Option<u64>| {
                json!({"name": name, "epoch": "0a1b2c3d", "version": "0.1.0", "started_at": started_at.to_rfc3339(),
                    "here": here, "lease_ms": lease, "sequencer": here, "adapters": if here { vec!["lab"] } else { vec![] },
                    "queues": [{"queue": "lab", "buckets": 32, "of": 64}]})
            };
            (200, json!({"nodes": [node("clinic-1a", true, Some(4321)), node("clinic-1b", false, None)]}))
        }
        "/v1/senders" => {
            let sender = |name: &str, deliveries: u64, limit: Value| json!({"sender": name, "deliveries": deliveries, "bytes": 4096, "limit": limit});
            let (full, half) =
                (json!({"deliveries": 1000, "bytes": null}), json!({"deliveries": null, "bytes": 1 << 20}));
            (
                200,
                json!({"senders": [sender("adapter:lab", 3, half), sender("app:ehr", 1000, full), sender("app:other", 1, Value::Null)]}),
            )
        }
        "/v1/audit/checkpoint" => (200, json!("clinic-1\n1234\nq83vEjRWeJA=\n\n— clinic-1 abc\n")),
        "/v1/messages" => {
            let item = json!({"id": MESSAGE, "app": "ehr", "type": "org.hl7.v2.ADT_A01", "size": 612,
                "accepted_at": "2026-11-23T08:00:00.000000Z", "deliveries": [delivery("dead")]});
            (200, json!({"messages": [item], "next": null}))
        }
        "/v1/deliveries" => (200, json!({"deliveries": [delivery("dead")], "next": null})),
        _ if path == format!("/v1/deliveries/{DELIVERY}") => (200, delivery("delivered")),
        _ if path.ends_with("/replay") => (200, delivery("waiting")),
        _ if path.ends_with("/resolve") => (200, delivery("delivered")),
        _ if path.ends_with("/move") => {
            let next = request.json().get("cursor").is_none().then_some("250");
            let left = json!({"waiting": 0, "leased": 0, "sending": 0, "in_doubt": 1, "held": 1, "dead": 0});
            (200, json!({"waiting": 5, "dead": 1, "expired": 0, "left": left, "next": next}))
        }
        _ if path.starts_with("/v1/queues/") => (200, json!({})),
        _ if path == format!("/v1/messages/{MESSAGE}") => (
            200,
            json!({"id": MESSAGE, "app": "ehr", "accepted_at": "2026-11-23T08:00:00.000000Z", "size": 612,
                "attributes": event, "payload_purged": false, "deliveries": [view]}),
        ),
        _ => problem(gatepost_api::Code::NotFound),
    }
}

/// Ages depend on when the test runs.
fn without_ages(text: &str) -> String {
    text.lines()
        .map(|line| match line.split_once(" (") {
            Some((before, after)) if after.contains(" ago)") => format!("{before} (… ago)\n"),
            _ => format!("{line}\n"),
        })
        .collect()
}

#[test]
fn status_says_what_blocks() {
    let stub = Stub::start(operators);
    let (result, text) = stub.run("status");
    assert_eq!(result.unwrap_err().exit_code(), 1);
    insta::assert_snapshot!(text.replace(&stub.socket().display().to_string(), "SOCKET"));
    let (_, text) = stub.run("status --json");
    let status: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["ready"], false);
    assert_eq!(status["queues"][0]["depth"]["dead"], 3);
    assert_eq!(status["audit"]["size"], 1234);
}

#[test]
fn show_tells_the_story_of_a_message() {
    let stub = Stub::start(operators);
    let (result, text) = stub.run(&format!("show {MESSAGE}"));
    result.unwrap();
    insta::assert_snapshot!(without_ages(&text));
    let (result, by_delivery) = stub.run(&format!("show {DELIVERY}"));
    result.unwrap();
    assert_eq!(by_delivery, text);
    let (result, _) = stub.run("show 0193b3f0-0000-7000-8000-00000000dead");
    assert_eq!(result.unwrap_err().exit_code(), 5);
    let (result, _) = stub.run(&format!("show --reply {MESSAGE}"));
    assert_eq!(result.unwrap_err().exit_code(), 1, "there is none");
}

#[test]
fn show_prints_what_the_partner_answered() {
    const OTHER: &str = "0193b3f0-0000-7000-8000-000000000003";
    let stub = Stub::start(|request| {
        let path = request.line.split([' ', '?']).nth(1).unwrap();
        let (mut refused, mut done) = (delivery("dead"), delivery("delivered"));
        refused["reply"] = json!({"datacontenttype": "application/hl7-v2+er7", "data_base64": "TVNIfF5+XCZ8DU1TQXxBRXw3DQ=="});
        done["reply"] = json!({"data": {"ok": true}});
        done["id"] = json!(OTHER);
        for view in [&mut refused, &mut done] {
            view["history"] = json!([]);
        }
        match path.ends_with(MESSAGE) {
            true => {
                let event = json!({"specversion": "1.0", "id": "7", "source": "/ehr", "type": "t"});
                (
                    200,
                    json!({"id": MESSAGE, "app": "ehr", "accepted_at": "2026-11-23T08:00:00.000000Z", "size": 612,
                    "attributes": event, "payload_purged": false, "deliveries": [refused, done]}),
                )
            }
            false if path == format!("/v1/deliveries/{OTHER}") => (200, {
                let mut item = delivery("delivered");
                item["id"] = json!(OTHER);
                item
            }),
            false => problem(gatepost_api::Code::NotFound),
        }
    });
    let shown = |words: &str| {
        let (result, text) = stub.run(&format!("show {words}"));
        result.unwrap();
        text
    };
    assert_eq!(shown(&format!("--reply {MESSAGE}")), "MSH|^~\\&|\rMSA|AE|7\r\n{\"ok\":true}\n");
    assert_eq!(shown(&format!("--reply {OTHER}")), "{\"ok\":true}\n");
    assert!(shown(MESSAGE).contains(&format!("answer (application/hl7-v2+er7): show --reply {DELIVERY}")));
    let json: Value = serde_json::from_str(&shown(&format!("--reply --json {OTHER}"))).unwrap();
    assert_eq!(json, json!([{"data": {"ok": true}}]));
}

#[test]
fn lists_ask_for_what_was_asked_and_show_it() {
    let stub = Stub::start(operators);
    let (result, text) = stub.run("list --app ehr --type t --state dead --key a&b --limit 3");
    result.unwrap();
    insta::assert_snapshot!(text);
    assert_eq!(stub.requests()[0].line, "GET /v1/messages?app=ehr&type=t&state=dead&key=a%26b&limit=3");
}

#[test]
fn pages_are_followed_up_to_the_limit() {
    let stub = Stub::start(|request| {
        let limit: usize =
            request.line.split("limit=").nth(1).unwrap().split('&').next().unwrap().parse().unwrap();
        (200, json!({"deliveries": vec![delivery("dead"); limit.min(100)], "next": "c"}))
    });
    let (result, text) = stub.run("dead ls --limit 250 --json");
    result.unwrap();
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["deliveries"].as_array().unwrap().len(), 250);
    let lines: Vec<String> = stub.requests().into_iter().map(|request| request.line).collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[1].ends_with("limit=150&cursor=c"), "{lines:?}");
    assert!(
        lines[0].ends_with("state=dead&limit=250") && lines[2].ends_with("limit=50&cursor=c"),
        "{lines:?}"
    );
}

#[test]
fn operators_act_with_a_reason() {
    let stub = Stub::start(operators);
    stub.run(&format!("dead replay {DELIVERY} --reason mended")).0.unwrap();
    stub.run("dead replay --all --destination lab --reason mended").0.unwrap();
    stub.run(&format!("doubt resolve {DELIVERY} --as delivered --reason phoned")).0.unwrap();
    stub.run("queue pause lab").0.unwrap();
    stub.run("queue move lab --to lab-2 --reason moved").0.unwrap();
    let requests = stub.requests();
    let lines: Vec<&str> = requests.iter().map(|request| request.line.as_str()).collect();
    let replay = format!("POST /v1/deliveries/{DELIVERY}/replay");
    let all = "GET /v1/deliveries?state=dead&destination=lab&limit=500";
    let resolve = format!("POST /v1/deliveries/{DELIVERY}/resolve");
    let doubtful = "GET /v1/deliveries?state=in_doubt&destination=lab&limit=100";
    let moving = "POST /v1/queues/lab/move";
    let pause = "POST /v1/queues/lab/pause";
    assert_eq!(lines, [&replay, all, &replay, &resolve, pause, moving, moving, doubtful]);
    assert_eq!(requests[5].json(), json!({"to": "lab-2", "reason": "moved"}));
    assert_eq!(requests[6].json()["cursor"], "250", "it goes on until there is no more");
    assert_eq!(requests[0].json(), json!({"reason": "mended"}));
    assert_eq!(requests[3].json(), json!({"as": "delivered", "reason": "phoned"}));
}

#[test]
fn an_adapter_is_called_with_arguments_and_a_reason() {
    let stub = Stub::start(|request| {
        let offers = json!([{"name": "reset", "changes": true, "about": "Sets sequence numbers to 1"}]);
        match request.line.starts_with("GET") {
            true => (200, json!({"calls": offers})),
            false => (200, json!({"answer": {"next_out": 1}})),
        }
    });
    let (result, text) = stub.run("adapter calls fix");
    result.unwrap();
    assert!(text.contains("reset") && text.contains("changes") && text.contains("Sets sequence"), "{text}");
    let (result, text) = stub.run("adapter call fix reset session=BROKER next:=1 --reason phoned");
    result.unwrap();
    assert_eq!(text, "next_out: 1\n");
    let requests = stub.requests();
    assert_eq!(requests[1].line, "POST /v1/adapters/fix/calls");
    let arguments = json!({"session": "BROKER", "next": 1});
    assert_eq!(requests[1].json(), json!({"call": "reset", "arguments": arguments, "reason": "phoned"}));
    let (result, _) = stub.run("adapter call fix reset a=1 a=2");
    assert_eq!(result.unwrap_err().exit_code(), 2);
}

#[test]
fn refusals_and_silence_have_their_exit_codes() {
    let stub = Stub::start(|_| problem(gatepost_api::Code::Forbidden));
    let (result, text) = stub.run("queue ls");
    let failure = result.unwrap_err();
    assert_eq!((failure.exit_code(), text.as_str()), (4, ""));
    assert!(failure.hint().unwrap().contains("`can`"));
    let cli = Cli::try_parse_from(["gatepost", "status", "--socket", "/nowhere/s.sock"]).unwrap();
    let (ui, _) = Ui::in_memory(false);
    let context = Context { config: None, ui };
    let failure = run(&context, &cli.command, |_| Err(ServeError::Reload("not here".into()))).unwrap_err();
    assert_eq!(failure.exit_code(), 3);
    assert!(failure.hint().unwrap().contains("gatepost serve"));
}

#[test]
fn serve_tells_faults_of_adapters_as_faults_and_a_broken_log_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("gatepost.toml");
    std::fs::write(&file, "[[listen]]\nserves = \"operators\"\nunix = \"a.sock\"\n").unwrap();
    let serve = |error: ServeError| {
        let (ui, _) = Ui::in_memory(false);
        let context = Context { config: Some(file.clone()), ui };
        let cli = Cli::try_parse_from(["gatepost", "serve"]).unwrap();
        run(&context, &cli.command, |_| Err(error)).unwrap_err()
    };
    let config = Config::load(Some(&file)).unwrap();
    let fault = config.adapter_fault("adapters.lab.run".into(), "there is no such program".into());
    assert_eq!(serve(ServeError::Adapters(vec![fault])).exit_code(), 2);
    let log = gatepost_store::OpenError::Log(gatepost_store::LogFault::EntryMissing(7));
    assert_eq!(serve(ServeError::Store(log)).exit_code(), 6);
    let used = gatepost_store::OpenError::DataDir(gatepost_store::DataDirError::InUse("d".into()));
    let failure = serve(ServeError::Store(used));
    assert!(failure.exit_code() == 1 && failure.hint().unwrap().contains("gatepost status"));
}

#[test]
fn a_wrong_word_is_told_in_one_line_for_programs() {
    let fault = |words: &[&str]| usage_fault(&Cli::try_parse_from(words).unwrap_err());
    assert_eq!(fault(&["gatepost", "frobnicate"]), "unrecognized subcommand 'frobnicate'");
    let id = fault(&["gatepost", "show", "nonsense"]);
    assert!(id.contains("'nonsense'") && id.contains("not the id") && !id.contains('\n'), "{id}");
    let missing = fault(&["gatepost", "queue", "pause"]);
    assert!(missing.contains("required") && missing.contains("<NAME>"), "{missing}");
}
